"""Clips become vectors in full batches, results in the order of the videos."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from videolm.search.extraction import EncodedVideo
from videolm.types import Clip, Failure
from videolm.video.readers.guard import VideoError

_NOT_FINITE = "the model gave a vector with NaN or infinity"

Vectors = Callable[[Sequence[Clip]], Float[np.ndarray, "clips dim"]]


def encode_clips(
    clips: Iterable[tuple[str, Clip | VideoError]],
    vectors: Vectors,
    *,
    batch_size: int,
    on_error: Literal["raise", "skip"],
) -> Generator[tuple[str, EncodedVideo | Failure], None, None]:
    """Name and result of each video; with `on_error="raise"` the first failure is raised.

    Every batch but the last is full, however many videos between its clips failed.
    """
    waiting: list[tuple[str, Clip | Failure]] = []
    num_clips = 0
    for name, clip in clips:
        if isinstance(clip, VideoError):
            if on_error == "raise":
                raise clip
            failure = Failure(name, clip.stage, clip.reason, clip.decoder)
            # in order: behind the clips of a batch that is not full yet
            if waiting:
                waiting.append((name, failure))
            else:
                yield name, failure
            continue
        waiting.append((name, clip))
        num_clips += 1
        if num_clips == batch_size:
            yield from _encode_batch(waiting, vectors, on_error=on_error)
            waiting, num_clips = [], 0
    yield from _encode_batch(waiting, vectors, on_error=on_error)


def _encode_batch(
    items: Sequence[tuple[str, Clip | Failure]], vectors: Vectors, *, on_error: Literal["raise", "skip"]
) -> Iterator[tuple[str, EncodedVideo | Failure]]:
    clips = [item for _, item in items if isinstance(item, Clip)]
    rows = iter(vectors(clips) if clips else ())
    for name, item in items:
        if isinstance(item, Failure):
            yield name, item
            continue
        vector: Float[np.ndarray, " dim"] = next(rows)
        if np.isfinite(vector).all():
            start, duration = item.start_seconds, item.duration_seconds
            yield name, EncodedVideo(vector, item.pts_seconds.numpy(), start, start + duration, duration)
        elif on_error == "raise":
            raise ValueError(f"{_NOT_FINITE} for {name}")
        else:
            yield name, Failure(name, "encode", _NOT_FINITE)
