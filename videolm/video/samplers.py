"""Which moments of a video are looked at: pure functions from what is known of a file to float64 seconds.

A sampler never opens a file and never counts frames: it names presentation times, and a reader gives the
frame that is shown at each of them. Times ascend and lie in [start, start + duration) of the video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from videolm.types import VideoInfo

# A duration is a sum of rounded times: 4.999999999 s at one frame a second are five frames.
_SLACK_SECONDS = 1e-6

Kind = Literal[
    "segment_middle",
    "segment_random",
    "linspace_endpoints",
    "one_fps_then_uniform",
    "fps_capped",
    "keyframes",
]


def segment_middle(info: VideoInfo, *, num_frames: int) -> Float[Tensor, " frames"]:
    """The middles of `num_frames` equal segments of the video.

    At a constant rate this shows frame (2i + 1) * n // (2 * num_frames) of n for segment i; a video with
    fewer frames than segments repeats some. Source: the test sampling of TSN, arXiv 1608.00859, section 3.1.
    """
    _check_count("num_frames", num_frames)
    segment = (2 * torch.arange(num_frames, dtype=torch.float64) + 1) / (2 * num_frames)
    return info.start_seconds + segment * info.duration_seconds


def segment_random(
    info: VideoInfo, *, num_frames: int, generator: torch.Generator
) -> Float[Tensor, " frames"]:
    """One uniformly drawn moment of each of `num_frames` equal segments: the training twin of segment_middle.

    Source: the training sampling of TSN, arXiv 1608.00859, section 3.1.
    """
    _check_count("num_frames", num_frames)
    offset = torch.rand(num_frames, dtype=torch.float64, generator=generator)
    segment = (torch.arange(num_frames, dtype=torch.float64) + offset) / num_frames
    return info.start_seconds + segment * info.duration_seconds


def linspace_endpoints(info: VideoInfo, *, num_frames: int) -> Float[Tensor, " frames"]:
    """`num_frames` equally distant times, the first and the last frame among them; a single one is the first.

    At a constant rate this shows frame i * (n - 1) // (num_frames - 1) of n.
    """
    _check_count("num_frames", num_frames)
    position = torch.arange(num_frames, dtype=torch.float64) / max(num_frames - 1, 1)
    return info.start_seconds + position * (info.last_seconds - info.start_seconds)


def one_fps_then_uniform(info: VideoInfo, *, num_frames: int) -> Float[Tensor, " frames"]:
    """A frame every second from the start; if those are more than `num_frames`, that many of them.

    A short video gives fewer than `num_frames` times: pad its frames and mask them. Of n seconds the ones
    kept are i * (n - 1) // (num_frames - 1). Source: CLIP4Clip, `rawvideo_util.py`, `slice_framepos=2`.
    """
    _check_count("num_frames", num_frames)
    seconds = _at_rate(info, fps=1.0)
    if len(seconds) > num_frames:
        seconds = seconds[torch.arange(num_frames) * (len(seconds) - 1) // max(num_frames - 1, 1)]
    return seconds


def fps_capped(info: VideoInfo, *, fps: float, max_frames: int) -> Float[Tensor, " frames"]:
    """`fps` frames a second from the start; if those are more than `max_frames`, as linspace_endpoints.

    Source: LLaVA-NeXT, `fps` with `frames_upbound`.
    """
    _check_rate(fps)
    _check_count("max_frames", max_frames)
    if _count_at_rate(info.duration_seconds, fps=fps) > max_frames:
        return linspace_endpoints(info, num_frames=max_frames)
    return _at_rate(info, fps=fps)


def multi_clip(info: VideoInfo, *, num_clips: int, num_frames: int) -> Float[Tensor, "clips frames"]:
    """`num_clips` clips that each span the whole video, shifted against each other within the segments.

    Clip c takes the moment (c + 1/2) / num_clips of every segment, so one clip is segment_middle. Average the
    embeddings of the clips. Source: Frozen in Time, arXiv 2104.00650, `sliding_window_stride`.
    """
    _check_count("num_clips", num_clips)
    times = segment_middle(info, num_frames=num_clips * num_frames)
    return times.view(num_frames, num_clips).T.contiguous()


def keyframes(
    info: VideoInfo, *, num_frames: int, key_seconds: Float[Tensor, " keys"]
) -> Float[Tensor, " frames"]:
    """The key frames nearest to the times of segment_middle; of two as near the earlier one.

    Ascending; a key frame repeats where there are few. `key_seconds` are the times of all key frames,
    ascending (`VideoReader.key_pts_seconds`). The cheap choice where key frames are far apart: no other frame
    has to be decoded.
    """
    if len(key_seconds) == 0:
        raise ValueError(f"{info.path}: keyframes needs at least one key frame")
    wanted = segment_middle(info, num_frames=num_frames)
    after = torch.searchsorted(key_seconds, wanted).clamp(max=len(key_seconds) - 1)
    before = (after - 1).clamp(min=0)
    is_earlier = wanted - key_seconds[before] <= key_seconds[after] - wanted
    return torch.where(is_earlier, key_seconds[before], key_seconds[after])


@dataclass(frozen=True)
class Sampler:
    """A choice of sampler that can be written as JSON: what is saved with a model."""

    kind: Kind
    num_frames: int | None = None
    """Times that come back; at most so many for one_fps_then_uniform. Not used by fps_capped."""
    fps: float | None = None
    """Hz. Only for fps_capped."""
    max_frames: int | None = None
    """Only for fps_capped."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"sampler kind {self.kind!r} is unknown; it must be one of {', '.join(get_args(Kind))}"
            )
        wanted = {"fps", "max_frames"} if self.kind == "fps_capped" else {"num_frames"}
        given = {name for name in ("num_frames", "fps", "max_frames") if getattr(self, name) is not None}
        if given != wanted:
            raise ValueError(
                f"sampler {self.kind} takes {' and '.join(sorted(wanted))}, "
                f"got {' and '.join(sorted(given)) or 'nothing'}"
            )
        for name in given - {"fps"}:
            _check_count(name, getattr(self, name))
        if self.fps is not None:
            _check_rate(self.fps)

    def __call__(
        self,
        info: VideoInfo,
        *,
        generator: torch.Generator | None = None,
        key_seconds: Float[Tensor, " keys"] | None = None,
    ) -> Float[Tensor, " frames"]:
        """The times to look at.

        `generator` is needed by segment_random, `key_seconds` (`VideoReader.key_pts_seconds`) by keyframes;
        the others do not read them.
        """
        if self.kind == "fps_capped":
            assert self.fps is not None
            assert self.max_frames is not None
            return fps_capped(info, fps=self.fps, max_frames=self.max_frames)
        assert self.num_frames is not None
        if self.kind == "segment_random":
            if generator is None:
                raise ValueError(
                    "sampler segment_random needs a generator=torch.Generator(); it draws no other way"
                )
            return segment_random(info, num_frames=self.num_frames, generator=generator)
        if self.kind == "keyframes":
            if key_seconds is None:
                raise ValueError(
                    "sampler keyframes needs key_seconds=reader.key_pts_seconds; it does not open the file"
                )
            return keyframes(info, num_frames=self.num_frames, key_seconds=key_seconds)
        if self.kind == "linspace_endpoints":
            return linspace_endpoints(info, num_frames=self.num_frames)
        if self.kind == "one_fps_then_uniform":
            return one_fps_then_uniform(info, num_frames=self.num_frames)
        return segment_middle(info, num_frames=self.num_frames)


@dataclass(frozen=True)
class SpanSampler(Sampler):
    """The moments that a sampler names in each of some spans of a video, span after span."""

    spans: tuple[tuple[float, float], ...] = ()
    """Start and end in seconds of presentation time, inside the video."""

    @property
    def counts(self) -> list[int]:
        """How many moments each span has."""
        if self.kind == "fps_capped":
            assert self.fps is not None
            assert self.max_frames is not None
            return [min(_count_at_rate(b - a, fps=self.fps), self.max_frames) for a, b in self.spans]
        assert self.num_frames is not None
        if self.kind == "one_fps_then_uniform":
            return [min(_count_at_rate(b - a, fps=1.0), self.num_frames) for a, b in self.spans]
        return [self.num_frames] * len(self.spans)

    def __call__(
        self,
        info: VideoInfo,
        *,
        generator: torch.Generator | None = None,
        key_seconds: Float[Tensor, " keys"] | None = None,
    ) -> Float[Tensor, " frames"]:
        """The times to look at; the nearest key frame to a moment of a span may lie outside of it."""
        choose = super().__call__
        return torch.cat(
            [choose(_span_of(info, *s), generator=generator, key_seconds=key_seconds) for s in self.spans]
        )


def _span_of(info: VideoInfo, start: float, end: float) -> VideoInfo:
    """A span as if it were a video."""
    last = max(start, min(end - 1 / info.fps if info.fps > 0 else end, info.last_seconds))
    return replace(info, start_seconds=start, last_seconds=last, duration_seconds=end - start)


def _at_rate(info: VideoInfo, *, fps: float) -> Float[Tensor, " frames"]:
    steps = torch.arange(_count_at_rate(info.duration_seconds, fps=fps), dtype=torch.float64)
    return info.start_seconds + steps / fps


def _count_at_rate(duration_seconds: float, *, fps: float) -> int:
    return max(1, math.ceil((duration_seconds - _SLACK_SECONDS) * fps))


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} ({value}) must be at least 1")


def _check_rate(fps: float) -> None:
    if not 0 < fps < math.inf:
        raise ValueError(f"fps ({fps}) must be positive and finite")
