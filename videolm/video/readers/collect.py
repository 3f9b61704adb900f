"""What all back ends share: from asked moments to a clip, and the open file that this is asked of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from videolm.types import Clip, VideoInfo
from videolm.video.readers.guard import GuardedFile, Limits, VideoError, wrap_errors
from videolm.video.readers.probe import Probe
from videolm.video.transforms import Interpolation, Resize, resize

Pictures = Callable[[Sequence[int]], Iterable[tuple[int, UInt8[Tensor, "height width 3"]]]]
"""What a back end has to give: the upright picture of each frame it is handed (ascending, each once)."""


class ProbedReader:
    """See VideoReader. The probe says which frame is shown when, a back end gives the pictures."""

    def __init__(self, file: GuardedFile, found: Probe, pictures: Pictures) -> None:
        self._file = file
        self._probe = found
        self._pictures: Pictures | None = pictures

    @property
    def info(self) -> VideoInfo:
        """What the first pass found."""
        return self._probe.info

    @property
    def pts_seconds(self) -> Float[Tensor, " n"]:
        """All times at which a new frame is shown."""
        return self._probe.pts_seconds()

    @property
    def key_pts_seconds(self) -> Float[Tensor, " n"]:
        """See VideoReader."""
        return self._probe.key_pts_seconds()

    def frames_at(
        self, seconds: Sequence[float] | Float[Tensor, " frames"], *, size: int | Resize | None = None
    ) -> Clip:
        """The frames shown at these moments; see VideoReader."""
        if self._pictures is None:
            raise ValueError(f"{self.info.path}: the reader is closed")
        return collect(self._probe, seconds, size=size, limits=self._file.limits, pictures=self._pictures)

    def close(self) -> None:
        """Give the file back; a second call does nothing."""
        if self._pictures is not None:
            self._pictures = None
            self._file.close()

    def __enter__(self) -> ProbedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def collect(
    found: Probe,
    seconds: Sequence[float] | Float[Tensor, " frames"],
    *,
    size: int | Resize | None,
    limits: Limits,
    pictures: Pictures,
) -> Clip:
    """The frames shown at these moments, in the order asked for, each resized as soon as it is decoded.

    One full-size picture is in memory at a time, beside the result.
    """
    info = found.info
    times = torch.as_tensor(seconds, dtype=torch.float64).tolist()
    if not times:
        raise VideoError(info.path, "decode", "no times were asked for", info.decoder)
    if len(times) > limits.max_frames:
        reason = f"{limits.max_frames:,} frames allowed in one call (max_frames), {len(times):,} asked for"
        raise VideoError(info.path, "decode", reason, info.decoder)
    height, width = info.height, info.width
    interpolation: Interpolation = "bicubic"
    if size is not None:
        target = Resize(size) if isinstance(size, int) else size
        (height, width), interpolation = target.shape(height, width), target.interpolation
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
    with wrap_errors(info.path, "decode", info.decoder):
        for index, picture in pictures(sorted(rows)):
            frames[rows.pop(index)] = resize(picture[None], height, width, interpolation=interpolation)
    if rows:
        reason = f"the frame at {found.seconds(min(rows)):.6f} s does not come out of the decoder"
        raise VideoError(info.path, "decode", reason, info.decoder)
    pts_seconds = torch.tensor([found.seconds(index) for index in indices], dtype=torch.float64)
    return Clip(frames, pts_seconds, info.duration_seconds, info.path, info.start_seconds)
