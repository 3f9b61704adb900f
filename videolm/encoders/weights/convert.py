"""Takes weights from one layout's names to ours and back, and lists every key that does not fit."""

import hashlib
import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from videolm.encoders.presets import CLIPShape, build_video_clip
from videolm.encoders.video_clip import VideoCLIP
from videolm.encoders.weights.tables import Layout, Operation


def from_state(theirs: Mapping[str, Tensor], *, layout: Layout, shape: CLIPShape) -> dict[str, Tensor]:
    """Their weights in our names, as float32."""
    # A config comes from outside: it must not make us build more layers than there are weights for.
    depths = [shape.vision_depth, shape.text_depth]
    if shape.aggregator in ("transformer", "multiframe"):
        depths.append(shape.aggregator_depth)
    if sum(depths) > len(theirs):
        depth = f"{' + '.join(map(str, depths))} layers"
        raise ValueError(f"the config asks for {depth}, but there are only {len(theirs)} tensors")
    with torch.device("meta"):
        ours = build_video_clip(shape).state_dict()
    return in_our_names(theirs, ours=ours, layout=layout)


def in_our_names(
    theirs: Mapping[str, Tensor], *, ours: Mapping[str, Tensor], layout: Layout
) -> dict[str, Tensor]:
    """Their weights for the parameters in `ours`, of which only shapes matter, as float32.

    ValueError lists the keys that are missing or unknown, or names a tensor of another shape or that is not finite.
    """
    sources = {name: source_of(name, layout) for name in ours}
    wanted = {key for keys, _ in sources.values() for key in keys}
    missing = sorted(wanted - theirs.keys())
    unknown = sorted(key for key in theirs.keys() - wanted if not re.fullmatch(layout.unused, key))
    if missing or unknown:
        raise ValueError(_describe(missing=missing, unknown=unknown))

    state = {}
    for name, (keys, operation) in sources.items():
        expected = [part.shape for part in operation.write(ours[name])]
        parts = [_checked(key, theirs[key], expected=size) for key, size in zip(keys, expected, strict=True)]
        state[name] = operation.read(parts).contiguous()
    return state


def to_state(ours: Mapping[str, Tensor], *, layout: Layout) -> dict[str, Tensor]:
    """The way back from `from_state`."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        keys, operation = source_of(name, layout)
        theirs.update(zip(keys, (part.clone() for part in operation.write(tensor)), strict=True))
    return theirs


def source_of(name: str, layout: Layout) -> tuple[list[str], Operation]:
    """Names under which a layout keeps our parameter, and how they become it."""
    for pattern, templates, operation in layout.rows:
        if match := re.fullmatch(pattern, name):
            return [match.expand(template) for template in templates], operation
    raise ValueError(f"{name} has no counterpart in the layout of {layout.name}")


def load_clip_state(model: VideoCLIP, state: Mapping[str, Tensor]) -> None:
    """Fills a model with CLIP's weights; a temporal module or aggregator, which CLIP has not, stays as it is."""
    result = model.load_state_dict(dict(state), strict=False)
    missing = [name for name in result.missing_keys if not is_added(name)]
    if missing or result.unexpected_keys:
        raise ValueError(_describe(missing=missing, unknown=result.unexpected_keys))


def is_added(name: str) -> bool:
    """Whether our parameter belongs to what is added to CLIP."""
    return re.match(r"vision\.(embed|blocks\.\d+\.(pre|mid|tap))\.|aggregator\.", name) is not None


def weights_sha256(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and bytes, in the order of the names and whatever the device."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _checked(key: str, tensor: Tensor, *, expected: torch.Size) -> Tensor:
    # A scalar may be kept as a list of one.
    if tensor.shape != expected and not tensor.numel() == expected.numel() == 1:
        raise ValueError(f"{key} is {tuple(tensor.shape)}, but the config asks for {tuple(expected)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{key} is {tensor.dtype}, but weights are floating point numbers")
    if not bool(tensor.isfinite().all()):
        raise ValueError(
            f"{key} holds {int((~tensor.isfinite()).sum())} NaN or infinite values; the file is damaged"
        )
    return tensor.to(torch.float32).reshape(expected)


def _describe(*, missing: list[str], unknown: list[str]) -> str:
    parts = [f"{len(missing)} keys missing ({', '.join(missing)})"] if missing else []
    parts += [f"{len(unknown)} keys unknown ({', '.join(unknown)})"] if unknown else []
    return " and ".join(parts)
