"""How much of what captions say of the rendered world is true, and how much of the world they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from videolm.datasets.synthetic.captions import Caption, ThingClaim
from videolm.datasets.synthetic.parsing import parse_caption
from videolm.datasets.synthetic.phrases import place_name
from videolm.datasets.synthetic.scene import Scene
from videolm.metrics.attributes import ClaimCounts, sum_claims

ATTRIBUTES = (
    *("colour", "shape", "motion", "order", "size", "texture"),
    *("place", "event", "background", "count"),
)
"""What is scored. "motion": each action of a thing; "order": which of two actions is first; "place": where a
thing starts or ends; "event": a collision, or a thing behind another; "background": pattern and tone;
"count": a number said outright. No recall is wanted of size, texture, place, background and count."""
_TOLD_OF_A_THING = ("colour", "shape", "motion", "order", "size", "texture", "place")


@dataclass(frozen=True)
class AttributeScores:
    """Claims of captions, counted; scores of other captions of other videos may be added."""

    by_things: dict[int, dict[str, ClaimCounts]]
    """Number of things in the video -> attribute -> counts."""
    num_captions: int
    num_understood: int
    """Captions all of whose words belong to the world's language."""
    unknown: Counter[str]
    """The other words of the others, and how often they came."""

    def __add__(self, other: AttributeScores) -> AttributeScores:
        return AttributeScores(
            {
                number: sum_claims([self.by_things.get(number, {}), other.by_things.get(number, {})])
                for number in sorted(self.by_things.keys() | other.by_things.keys())
            },
            self.num_captions + other.num_captions,
            self.num_understood + other.num_understood,
            self.unknown + other.unknown,
        )

    @property
    def all(self) -> dict[str, ClaimCounts]:
        """Counts over all videos."""
        return sum_claims(self.by_things.values())


def attribute_scores(captions: Mapping[str, str], scenes: Mapping[str, Scene]) -> AttributeScores:
    """Counts the true and the false claims of one caption for each video.

    Claims about several things are given to the things of the scene in the way that makes most of them true;
    a thing too many makes only false claims, a thing left out is missed. Both mappings go by video id, and
    a caption whose scene is missing is an error.
    """
    missing = [video_id for video_id in captions if video_id not in scenes]
    if missing:
        raise ValueError(
            f"captions has {len(missing)} videos without a scene ({missing[0]} first): "
            "read the scenes of the same world and split with read_scenes"
        )
    rows: dict[int, list[dict[str, ClaimCounts]]] = {}
    unknown: Counter[str] = Counter()
    num_understood = 0
    for video_id, text in captions.items():
        parsed, scene = parse_caption(text), scenes[video_id]
        rows.setdefault(len(scene.things), []).append(count_claims(parsed.caption, scene))
        unknown.update(parsed.unknown)
        num_understood += not parsed.unknown
    by_things = {number: sum_claims(rows[number]) for number in sorted(rows)}
    return AttributeScores(by_things, len(captions), num_understood, unknown)


def count_claims(caption: Caption, scene: Scene) -> dict[str, ClaimCounts]:
    """The claims of one caption by attribute, every one of `ATTRIBUTES`."""
    told = _best_match(caption.things, scene)
    background = [(caption.pattern, scene.pattern), (caption.tone, scene.tone)]
    event = _judged((caption.event, scene.event))
    told["event"] = ClaimCounts(*event, *((0, 0) if scene.event == "none" else (1, event[1])))
    told["background"] = ClaimCounts(*_judged(*background))
    told["count"] = ClaimCounts(*_judged((caption.number, len(scene.things))))
    return {name: told[name] for name in ATTRIBUTES}


def _best_match(claims: tuple[ThingClaim, ...], scene: Scene) -> dict[str, ClaimCounts]:
    """Counts under the assignment of claims to things that makes most of them true; the first of several."""
    most, things = max(len(claims), len(scene.things)), range(len(scene.things))
    slots: list[ThingClaim] = [*claims, *[ThingClaim(None, None)] * (most - len(claims))]
    tables = [[_count_thing(claim, scene, index) for index in things] for claim in slots]
    right = [[sum(count.right for count in cell.values()) for cell in row] for row in tables]
    # a model that stammers makes hundreds of claims; no thing needs more than its few best ones, for the other
    # things can take only as many of them as there are other things
    wanted = [
        sorted(sorted(range(most), key=lambda slot: -right[slot][index])[: len(things)]) for index in things
    ]
    best = max(
        (order for order in product(*wanted) if len(set(order)) == len(order)),
        key=lambda order: sum(right[s][i] for i, s in enumerate(order)),
    )
    extra = [_count_extra(claim) for slot, claim in enumerate(slots) if slot not in best]
    return sum_claims([*(tables[slot][index] for index, slot in enumerate(best)), *extra])


def _count_thing(claim: ThingClaim, scene: Scene, index: int) -> dict[str, ClaimCounts]:
    thing, program = scene.things[index], scene.program(index)
    said = claim.program or ()
    shared = sum((Counter(said) & Counter(program)).values())
    places = [
        (claim.start, place_name(scene.place(index, "start"))),
        (claim.end, place_name(scene.place(index, "end"))),
    ]
    # a full caption says that two things collide and not how each of them moves; nor that what hides is still
    moves = () if scene.event == "collide" or (scene.event == "behind" and index == 1) else program
    order = int(len(said) == 2 and said == program)
    return {
        "colour": _wanted(claim.colour, thing.colour),
        "shape": _wanted(claim.shape, thing.shape),
        "motion": ClaimCounts(len(said), shared, len(moves), shared if moves else 0),
        "order": ClaimCounts(int(len(said) > 1), order, int(len(moves) == 2), order if moves else 0),
        "size": ClaimCounts(*_judged((claim.size, thing.size))),
        "texture": ClaimCounts(*_judged((claim.texture, thing.texture))),
        "place": ClaimCounts(*_judged(*places)),
    }


def _count_extra(claim: ThingClaim) -> dict[str, ClaimCounts]:
    """A thing that is not there: all that is said of it is wrong."""
    said = claim.program or ()
    claimed = {
        "colour": claim.colour is not None,
        "shape": claim.shape is not None,
        "motion": len(said),
        "order": len(said) > 1,
        "size": claim.size is not None,
        "texture": claim.texture is not None,
        "place": (claim.start is not None) + (claim.end is not None),
    }
    return {name: ClaimCounts(int(claimed[name])) for name in _TOLD_OF_A_THING}


def _judged(*pairs: tuple[object, object]) -> tuple[int, int]:
    """How many of (claim, truth) are claims, and how many of those are true."""
    claims = [(claim, truth) for claim, truth in pairs if claim is not None]
    return len(claims), sum(claim == truth for claim, truth in claims)


def _wanted(claim: str | None, truth: str) -> ClaimCounts:
    claimed, right = _judged((claim, truth))
    return ClaimCounts(claimed, right, 1, right)
