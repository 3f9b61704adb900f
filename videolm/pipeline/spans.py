"""Reading videos piece by piece: whole, in windows, or in the segments between cuts, with bounded memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise

from videolm.pipeline.decoding import Video, num_ahead, read_videos
from videolm.pipeline.segments import Span, windows
from videolm.types import Clip
from videolm.video.isolation import Decoding, open_decoding
from videolm.video.readers.guard import VideoError
from videolm.video.samplers import Sampler, SpanSampler
from videolm.video.worker import ClipRequest

# One request decodes about so many frames: opening a long file costs, and so does holding many frames.
_FRAMES_AT_ONCE = 128
_FIRST_FRAME = Sampler("linspace_endpoints", num_frames=1)
CUT_SAMPLER = Sampler("fps_capped", fps=2.0, max_frames=256)
"""What is looked at to find cuts: two frames a second, in a video of more than two minutes fewer."""

Cut = Callable[[Clip], list[Span]]
"""Gives the spans of a video of which a few frames are known."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A clip of a span of a video, or why there is none."""

    video: int
    """Its place in the list of videos."""
    name: str
    clip: Clip | VideoError
    span: Span | None = None
    """What the clip is of; None where nothing is known of the video."""


def read_whole(
    videos: Iterable[Video], request: ClipRequest, *, workers: int, batch_size: int
) -> Generator[Piece, None, None]:
    """A piece for each video."""
    ahead = num_ahead(workers=workers, batch_size=batch_size)
    with closing(read_videos(videos, request, workers=workers, ahead=ahead, frame_cache=None)) as clips:
        for i, (name, clip) in enumerate(clips):
            span = None if isinstance(clip, VideoError) or defect_of(clip) else span_of(clip)
            yield Piece(i, name, clip, span)


def read_in_spans(
    videos: Iterable[Video], request: ClipRequest, *, cut: Cut, look: Sampler, workers: int
) -> Generator[Piece, None, None]:
    """Pieces for each video, in their order: the spans that `cut` makes of the frames that `look` chooses.

    One video after the other, some spans at a time, and the next ones while the model is busy: what is held does not
    grow with the length of a video. A span that cannot be decoded is named, the others are tried. Of a Clip
    its own frames are looked at, and a span in which it has none is left out.
    """
    with open_decoding(request, workers=workers) as decoding:
        for i, video in enumerate(videos):
            if isinstance(video, Clip):
                yield from _parts_of(video, i, cut)
                continue
            name = os.fspath(video)
            decoding.submit(name, look)
            seen = decoding.next_clip()
            if isinstance(seen, VideoError):
                yield Piece(i, name, seen)
                continue
            spans = cut(seen)
            most = request.sampler.num_frames or request.sampler.max_frames or 1
            num_spans = max(1, _FRAMES_AT_ONCE // most)
            groups = [spans[first : first + num_spans] for first in range(0, len(spans), num_spans)]
            for span, clip in _read_spans(decoding, name, groups, request.sampler):
                yield Piece(i, name, clip, span)


def _parts_of(clip: Clip, video: int, cut: Cut) -> Iterator[Piece]:
    if defect_of(clip):
        yield Piece(video, clip.source, clip)
        return
    for span in cut(clip):
        part = clip_between(clip, *span)
        if len(part.frames):
            yield Piece(video, clip.source, part, span)


def cut_windows(window: int | float) -> tuple[Cut, Sampler]:
    """Windows of so many seconds, and the frames to look at, of which only the video's length counts."""
    return (lambda clip: windows(*span_of(clip), window=window)), _FIRST_FRAME


def span_of(clip: Clip) -> Span:
    """Start and end of the video that a clip is of."""
    return clip.start_seconds, clip.start_seconds + clip.duration_seconds


def defect_of(clip: Clip) -> str:
    """What a clip is that cannot be used; "" for one that can."""
    if len(clip.frames) == 0:
        return "a clip without a frame; give one that has some"
    if not (bool(clip.pts_seconds.isfinite().all()) and all(map(math.isfinite, span_of(clip)))):
        return "a clip whose pts_seconds, start_seconds or duration_seconds are not finite; give it its times"
    return ""


def clip_between(clip: Clip, start: float, end: float) -> Clip:
    """The frames from start on and before end; in the video's first and last span also those beyond its ends."""
    first, last = span_of(clip)
    inside = ((clip.pts_seconds >= start) | (start <= first)) & ((clip.pts_seconds < end) | (end >= last))
    return replace(clip, frames=clip.frames[inside], pts_seconds=clip.pts_seconds[inside])


def _read_spans(
    decoding: Decoding, name: str, groups: Sequence[Sequence[Span]], sampler: Sampler
) -> Iterator[tuple[Span, Clip | VideoError]]:
    """Each span and its clip; a group is one request, and where that fails, its spans are tried one by one."""
    chosen = {f.name: getattr(sampler, f.name) for f in fields(Sampler)}
    samplers = [SpanSampler(**chosen, spans=tuple(group)) for group in groups]
    decoding.submit(name, samplers[0])
    early: Clip | VideoError | None = None
    for current, following in pairwise([*samplers, None]):
        assert current is not None
        if following is not None:
            decoding.submit(name, following)
        clip, early = decoding.next_clip() if early is None else early, None
        if isinstance(clip, Clip):
            ends = list(accumulate(current.counts))
            for span, first, end in zip(current.spans, [0, *ends], ends, strict=False):
                part = slice(first, end)
                yield span, replace(clip, frames=clip.frames[part], pts_seconds=clip.pts_seconds[part])
        elif len(current.spans) == 1:
            yield current.spans[0], clip
        else:
            # the next group is on its way, and comes before what is asked for now
            early = None if following is None else decoding.next_clip()
            yield from _read_spans(decoding, name, [[span] for span in current.spans], sampler)
