"""Videos become clips in worker processes while the model is busy with those before them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from pathlib import Path

from videolm.pipeline.frame_cache import FrameCache
from videolm.types import Clip
from videolm.video.isolation import open_decoding
from videolm.video.readers.guard import Decoder, VideoError
from videolm.video.worker import ClipRequest

__all__ = ["Decoder", "Video", "num_ahead", "read_videos"]

Video = str | os.PathLike[str] | Clip
# Files that are decoded ahead of the model, beyond one for each worker: each holds a descriptor.
_MOST_AHEAD = 64


def num_ahead(*, workers: int, batch_size: int) -> int:
    """So many that a batch is ready, or nearly, when the model has done with the one before."""
    return workers + min(batch_size, _MOST_AHEAD)


def read_videos(
    videos: Iterable[Video],
    request: ClipRequest,
    *,
    workers: int,
    ahead: int,
    frame_cache: str | os.PathLike[str] | None,
) -> Generator[tuple[str, Clip | VideoError], None, None]:
    """The name of each video and its clip, or why there is none, in their order; see `open_decoding`.

    A Clip comes out as it went in; a file that is in the cache is not decoded. At most `ahead` videos are taken
    before they are asked for.
    """
    cache = None if frame_cache is None else FrameCache(frame_cache, request)
    # name; the clip, where it is there already; where the cache keeps it
    waiting: deque[tuple[str, Clip | None, Path | None]] = deque()
    with open_decoding(request, workers=workers) as decoding:

        def next_one() -> tuple[str, Clip | VideoError]:
            name, clip, entry = waiting.popleft()
            if clip is not None:
                return name, clip
            outcome = decoding.next_clip()
            if cache is not None and entry is not None and isinstance(outcome, Clip):
                cache.write(entry, outcome)
            return name, outcome

        for video in videos:
            if isinstance(video, Clip):
                waiting.append((video.source, video, None))
            else:
                name = os.fspath(video)
                entry = None if cache is None else cache.entry(name)
                clip = None if cache is None or entry is None else cache.read(entry, name)
                waiting.append((name, clip, entry))
                if clip is None:
                    decoding.submit(name)
            if len(waiting) > ahead:
                yield next_one()
        while waiting:
            yield next_one()
