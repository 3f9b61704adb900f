"""Plans for the reducer slot: what each layer of an image tower does to have fewer tokens. Data, no modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Literal, get_args, get_origin, get_type_hints

Count = int | float
"""An int is a number of tokens of a frame, a float in (0, 1) a share of them, rounded down."""


@dataclass(frozen=True)
class Step:
    """What one layer does. A frame's class tokens are counted in a share, but always kept as they are."""

    join: int = 1
    """This many neighbouring frames become one, before attention: their class tokens first, then their patches."""
    before: Count = 0
    """Tokens merged before attention, those whose rows at the block's input are alike."""
    after: Count = 0
    """Tokens merged between attention and MLP."""
    metric: Literal["key", "tokens"] = "key"
    """What `after` compares: the mean of a token's keys over the heads, or the tokens themselves."""
    weight: Literal["size", "saliency"] = "size"
    """What a token that `after` merges counts, in its group and in attention from then on: its size, or that times
    its saliency."""
    keep: Count | None = None
    """Patches that stay, between attention and MLP, a share being one of the patches; None: all of them."""

    def __post_init__(self) -> None:
        if self.join < 1:
            raise ValueError(f"join ({self.join}) must be at least 1 frame")
        for name in ("before", "after"):
            _check_count(name, getattr(self, name))
        if self.keep is not None and (self.keep <= 0 or (isinstance(self.keep, float) and self.keep > 1)):
            raise ValueError(f"keep ({self.keep}) must be a number of patches from 1, or a share up to 1.0")
        if self.keep is not None and self.after:
            raise ValueError(f"a step takes keep ({self.keep}) or after ({self.after}), not both")

    @property
    def acts_before(self) -> bool:
        """Whether attention already sees fewer tokens, or fewer frames."""
        return self.join > 1 or self.before > 0

    @property
    def acts_after(self) -> bool:
        """Whether tokens are merged or dropped between attention and MLP."""
        return self.after > 0 or self.keep is not None


@dataclass(frozen=True)
class ReductionPlan:
    """One step for each layer, and what happens behind the last one. Without any the tower is as it was.

    Before a later layer of divided attention or token shift, `after` and `keep` do the same in every frame of a clip.
    """

    steps: tuple[Step, ...]
    drop_repeats: float | None = None
    """Patches that changed by no more than this since the frame before are left out of what a head gets."""

    def __post_init__(self) -> None:
        if self.drop_repeats is not None and not self.drop_repeats >= 0:
            raise ValueError(f"threshold ({self.drop_repeats}) must be at least 0")

    @property
    def changes_tower(self) -> bool:
        """Whether any layer does something; if not, all embeddings are those without the plan."""
        return any(step.acts_before or step.acts_after for step in self.steps)


def no_reduction(depth: int) -> ReductionPlan:
    """Nothing is reduced."""
    return ReductionPlan((Step(),) * depth)


def tome(depth: int, *, r: Count | Sequence[Count], inflect: int | float = 0) -> ReductionPlan:
    """Merges r tokens of each frame in every layer. Source: ToMe, arXiv 2210.09461.

    A list gives each layer its own r, and 0 to those after its end. `inflect` tilts a number: with -1 the first
    layer merges 2r and the last none, with 1 it is the other way round, in equal steps. Where fewer can be
    merged, as many are: half of the patches of a frame at most.
    """
    if not -1 <= inflect <= 1:
        raise ValueError(f"inflect ({inflect}) must be from -1 to 1")
    if inflect and not isinstance(r, int):
        raise ValueError(f"inflect ({inflect}) tilts a number of tokens, r is {r}")
    if isinstance(r, int) and inflect:
        first = int(r * (1 - inflect))
        step = (2 * r - 2 * first) / max(depth - 1, 1)
        r = [int(first + step * layer) for layer in range(depth)]
    return ReductionPlan(tuple(Step(after=count) for count in _each_layer(r, depth)))


def tempme(depth: int, *, r: Count = 2, across: Count = 0.3, within: Count = 0.1) -> ReductionPlan:
    """Merges in frames first, then joins frames by 2, 2 and 3 and merges across them. Source: TempMe, ICLR 2025.

    Of 12 layers: r tokens merged in each of the first 8; in layers 8, 9 and 10 frames are joined, a share of
    `across` merged before attention and one of `within` behind it; in the last one only `within`. A tower of
    another depth, 4 at least, joins at the same share of it. Made for 12 frames, which end as one with 12 class
    tokens; others work. r is 2 for ViT-B/32 as released; what is printed of MACs for B/16 fits 16.

    Left out: the position of each frame, learned, which is added before a join. It comes with the training.
    """
    if depth < 4:
        raise ValueError(f"tempme needs a tower of 4 layers at least, this one has {depth}; take 'tome:r=8'")
    for name, count in (("r", r), ("across", across), ("within", within)):
        _check_count(name, count)
    last_join = min(round(depth * 10 / 12), depth - 2)
    joins = {last_join - 2: 2, last_join - 1: 2, last_join: 3}
    steps = [
        Step(join=joins[layer], before=across, after=within)
        if layer in joins
        else Step(after=r if layer < last_join else within)
        for layer in range(depth)
    ]
    return ReductionPlan(tuple(steps))


def vid_tldr(depth: int, *, r: Count | Sequence[Count]) -> ReductionPlan:
    """Merges early, and what says little counts little in it. Source: vid-TLDR, arXiv 2403.13347.

    A layer's saliency of a token is the negative entropy of its attention, the mean over the heads, scaled to
    [0, 1] over the patches of its frame; below its mean it is 0, above it counts from the mean on and the
    highest is 1. A token that is merged goes with this weight into the mean of its group, and into the size by which
    later attention and merging weigh the group: background vanishes from both. (`VideoTokens.sizes` still counts
    it.) The entropy is that of attention without those sizes. Tokens are compared as they are and not by their
    keys. The published r are [600, 200, 100] for 2352 tokens seen jointly.
    """
    steps = [Step(after=count, metric="tokens", weight="saliency") for count in _each_layer(r, depth)]
    return ReductionPlan(tuple(steps))


def top_k(depth: int, *, keep: Count, layers: int | Sequence[int] | None = None) -> ReductionPlan:
    """Drops the patches that the class token attends to least. Source: EViT, arXiv 2202.07800, without its fusion.

    In each of `layers`, without which it is those at a quarter, half and three quarters of the depth. A frame
    without a class token goes by the attention of all of its tokens.
    """
    if layers is None:
        layers = [depth // 4, depth // 2, 3 * depth // 4]
    chosen = [layers] if isinstance(layers, int) else list(layers)
    for layer in chosen:
        if not 0 <= layer < depth:
            raise ValueError(f"layers ({chosen}) must be in [0, {depth}), the blocks of the tower")
    return ReductionPlan(tuple(Step(keep=keep if layer in chosen else None) for layer in range(depth)))


def drop_repeats(depth: int, *, threshold: int | float = 0.1) -> ReductionPlan:
    """Leaves out, behind the tower, patches whose pixels are as in the frame before. Source: VideoLLaMA3 (2501.13106).

    A patch stays where the mean change of its pixels, that count from -1 to 1, is above `threshold` / 255: two
    thresholds are one of the 256 steps of a pixel. The first frame stays whole, and of any other its class
    token, or else its first patch where none changed. The embedding of the video does not change. In the source a
    patch is 2 x 2 of the tower's, which are merged there.
    """
    return ReductionPlan((Step(),) * depth, drop_repeats=float(threshold))


_PLANS: dict[str, Callable[..., ReductionPlan]] = {
    "tome": tome,
    "tempme": tempme,
    "vid_tldr": vid_tldr,
    "top_k": top_k,
    "drop_repeats": drop_repeats,
}
# At most nine digits: more would be no count of anything, and the time to read them has no limit.
_WHOLE, _NUMBER = "-?[0-9]{1,9}", r"-?([0-9]{1,9}|[0-9]{0,9}\.[0-9]{1,9})"


def parse_plan(text: str, *, depth: int) -> ReductionPlan:
    """The plan that "name:key=value,key=value" stands for; "" and "none" are none.

    Names and keys are those of the functions here, as in "tome:r=16" or "vid_tldr:r=32/16/8": a list is written
    with slashes. Raises ValueError that names the value, the rule and the choices.
    """
    name, _, given = text.partition(":")
    if text in ("", "none"):
        return no_reduction(depth)
    if name not in _PLANS:
        raise ValueError(f"reduce ({text!r}) must be 'none' or begin with one of {', '.join(_PLANS)}")
    plan = _PLANS[name]
    keys = {key: p for key, p in signature(plan).parameters.items() if p.kind is Parameter.KEYWORD_ONLY}
    hints = get_type_hints(plan)
    values: dict[str, Count | list[Count]] = {}
    for pair in given.split(",") if given else ():
        key, _, value = pair.partition("=")
        if key not in keys or key in values:
            raise ValueError(
                f"reduce ({text!r}): {pair!r} must be key=value, {name} has {', '.join(keys)}, once each"
            )
        values[key] = _value(text, key, value, hint=hints[key])
    if missing := [key for key, p in keys.items() if p.default is Parameter.empty and key not in values]:
        raise ValueError(
            f"reduce ({text!r}): {name} needs {', '.join(missing)}, as in '{name}:{missing[0]}=8'"
        )
    try:
        return plan(depth, **values)
    except ValueError as error:
        raise ValueError(f"reduce ({text!r}): {error}") from error


def _value(text: str, key: str, value: str, *, hint: Any) -> Count | list[Count]:
    """What stands behind `key`, which takes a list, or fractions, as the `hint` of the plan's function says."""
    takes_list = any(get_origin(choice) is Sequence for choice in get_args(hint))
    takes_share = float in get_args(hint)
    parts = value.split("/")
    number = _NUMBER if takes_share else _WHOLE
    if not all(re.fullmatch(number, part) for part in parts) or (len(parts) > 1 and not takes_list):
        wanted = "a number" if takes_share else "a whole number"
        wanted += ", or several like 8/4/2" if takes_list else ""
        raise ValueError(f"reduce ({text!r}): {key} ({value!r}) must be {wanted}, of nine digits at most")
    numbers: list[Count] = [float(part) if "." in part else int(part) for part in parts]
    return numbers if len(numbers) > 1 else numbers[0]


def _check_count(name: str, count: Count) -> None:
    if count < 0 or (isinstance(count, float) and count >= 1):
        raise ValueError(f"{name} ({count}) must be a number of tokens from 0, or a share below 1")


def _each_layer(r: Count | Sequence[Count], depth: int) -> list[Count]:
    counts = [r] * depth if isinstance(r, int | float) else list(r)
    if len(counts) > depth:
        raise ValueError(f"r has {len(counts)} values, the tower {depth} layers; leave out the last")
    for count in counts:
        _check_count("r", count)
    return [*counts, *[0] * (depth - len(counts))]
