"""From asked moments to a clip, the same way for every back end: which frames, how large, in what order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from videolm.types import Clip
from videolm.video.readers.guard import Limits, VideoError
from videolm.video.readers.probe import Probe
from videolm.video.transforms import resize, short_side_shape


def collect(
    found: Probe,
    seconds: Sequence[float] | Float[Tensor, " frames"],
    *,
    size: int | None,
    limits: Limits,
    pictures: Callable[[Sequence[int]], Iterable[tuple[int, Tensor]]],
) -> Clip:
    """The frames shown at these moments, in the order asked for, each resized as soon as it is decoded.

    `pictures` gives the upright (height, width, 3) picture of each frame that it is handed (ascending, each
    once). One full-size picture is in memory at a time, beside the result.
    """
    info = found.info
    times = torch.as_tensor(seconds, dtype=torch.float64).tolist()
    if not times:
        raise VideoError(info.path, "decode", "no times were asked for", info.decoder)
    if len(times) > limits.max_frames:
        reason = f"{limits.max_frames:,} frames allowed in one call (max_frames), {len(times):,} asked for"
        raise VideoError(info.path, "decode", reason, info.decoder)
    height, width = info.height, info.width
    if size is not None:
        height, width = short_side_shape(height, width, size)
    num_bytes = len(times) * height * width * 3
    if num_bytes > limits.max_result_bytes:
        reason = (
            f"{limits.max_result_bytes / 1e9:.1f} GB of frames allowed in one call (max_result_bytes), "
            f"{num_bytes / 1e9:.1f} GB asked for; give a size or ask for fewer"
        )
        raise VideoError(info.path, "decode", reason, info.decoder)
    indices = [found.index_at(time) for time in times]
    rows: dict[int, list[int]] = {}
    for row, index in enumerate(indices):
        rows.setdefault(index, []).append(row)
    frames = torch.empty((len(times), height, width, 3), dtype=torch.uint8)
    for index, picture in pictures(sorted(rows)):
        frames[rows.pop(index)] = resize(picture[None], height, width)
    if rows:
        reason = f"the frame at {found.seconds(min(rows)):.6f} s does not come out of the decoder"
        raise VideoError(info.path, "decode", reason, info.decoder)
    pts_seconds = torch.tensor([found.seconds(index) for index in indices], dtype=torch.float64)
    return Clip(frames, pts_seconds, info.duration_seconds, info.path)
