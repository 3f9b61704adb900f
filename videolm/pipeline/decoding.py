"""Videos become clips in worker threads while the model is busy with those before them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from videolm.types import Clip
from videolm.video.readers import open_video
from videolm.video.readers.guard import VideoError
from videolm.video.samplers import Sampler
from videolm.video.transforms import Preprocess

Video = str | os.PathLike[str] | Clip
Decoder = Literal["auto", "pyav", "decord"]

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Frames:
    """A clip as the image tower eats it."""

    pixels: Float[Tensor, "frames 3 size size"]
    pts_seconds: Float64[np.ndarray, " frames"]
    start: float
    end: float
    duration_seconds: float


def read_frames(
    video: Video, *, sampler: Sampler, preprocess: Preprocess, decoder: Decoder
) -> tuple[str, Frames | VideoError]:
    """The name of a video and its frames, or why there are none."""
    if isinstance(video, Clip):
        return video.source, _frames(video, start=0.0, preprocess=preprocess)
    try:
        with open_video(video, decoder=decoder) as reader:
            # Resized as they are decoded, so that a long video in high resolution costs little memory.
            clip = reader.frames_at(sampler(reader.info), size=preprocess.image_size)
            return str(video), _frames(clip, start=reader.info.start_seconds, preprocess=preprocess)
    except VideoError as error:
        return str(video), error


def _frames(clip: Clip, *, start: float, preprocess: Preprocess) -> Frames:
    return Frames(
        pixels=preprocess(clip.frames),
        pts_seconds=clip.pts_seconds.numpy(),
        start=start,
        end=start + clip.duration_seconds,
        duration_seconds=clip.duration_seconds,
    )


def ahead(
    items: Iterable[Item], function: Callable[[Item], Result], *, workers: int, most: int
) -> Generator[Result, None, None]:
    """`function` of each item in order, computed in threads, at most `most` of them ahead of the consumer."""
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
