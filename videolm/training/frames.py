"""Training frames, decoded once: one memory-mapped array of small uint8 pictures for a list of videos."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from videolm.files import write_text
from videolm.types import Failure
from videolm.video.readers import VideoError, open_video
from videolm.video.samplers import segment_middle
from videolm.video.transforms import center_crop


@dataclass(frozen=True)
class FrameCache:
    """`frames[i]` are the pictures of video `ids[i]`, from the middles of equal segments."""

    ids: list[str]
    frames: UInt8[np.ndarray, "videos cached size size 3"]
    failures: list[Failure]
    """Videos that could not be read; they are in no row."""


def cache_frames(
    folder: str | Path,
    videos: Sequence[tuple[str, Path]],
    *,
    num_frames: int,
    image_size: int,
    workers: int = 2,
    on_video: Callable[[str], object] | None = None,
) -> FrameCache:
    """Decodes `num_frames` frames of each (id, path), short side and centre crop `image_size`, into `folder`.

    A cache that is there already for the same videos, unchanged, and the same settings is opened and nothing
    decoded. A video that cannot be read is left out and reported in `failures`.
    """
    folder = Path(folder)
    asked = {
        "num_frames": num_frames,
        "image_size": image_size,
        # without the paths, so that a world may be moved with its frames
        "videos": [[video_id, *_stamp(path)] for video_id, path in videos],
    }
    facts = folder / "cache.json"
    if facts.exists():
        found = json.loads(facts.read_text(encoding="utf-8"))
        if found["asked"] == asked:
            failures = [Failure(**row) for row in found["failures"]]
            return FrameCache(found["ids"], np.load(folder / "frames.npy", mmap_mode="c"), failures)
    folder.mkdir(parents=True, exist_ok=True)
    facts.unlink(missing_ok=True)
    # under another name: who has the old array mapped keeps it
    unfinished = folder / ".frames.npy.part"
    unfinished.unlink(missing_ok=True)
    array = np.lib.format.open_memmap(
        unfinished, "w+", np.uint8, (len(videos), num_frames, image_size, image_size, 3)
    )
    ids: list[str] = []
    failures = []

    def decode(job: tuple[str, Path]) -> np.ndarray | Failure:
        return _decode(job[1], num_frames, image_size)

    with ThreadPoolExecutor(workers) as pool:
        for (video_id, _), result in zip(videos, pool.map(decode, videos), strict=True):
            if isinstance(result, Failure):
                failures.append(result)
            else:
                array[len(ids)] = result
                ids.append(video_id)
            if on_video is not None:
                on_video(video_id)
    array.flush()
    os.replace(unfinished, folder / "frames.npy")
    # The rows of unreadable videos are at the end, unused; the list of ids says how many rows count.
    row = {"asked": asked, "ids": ids, "failures": [vars(failure) for failure in failures]}
    write_text(facts, json.dumps(row))
    return FrameCache(ids, array, failures)


def _stamp(path: Path) -> tuple[int, int]:
    if not path.exists():
        return (-1, -1)
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _decode(path: Path, num_frames: int, image_size: int) -> np.ndarray | Failure:
    try:
        with open_video(path) as reader:
            seconds = segment_middle(reader.info, num_frames=num_frames)
            clip = reader.frames_at(seconds, size=image_size)
    except VideoError as error:
        return Failure(path=str(path), stage=error.stage, error=error.reason, backend=error.decoder)
    frames: np.ndarray = center_crop(clip.frames, image_size).numpy()
    return frames


def pick_segment_random(
    cached: int, *, num_frames: int, batch: int, generator: torch.Generator
) -> Int64[Tensor, "batch {num_frames}"]:
    """Row numbers (batch, num_frames) into `cached` frames: one at random from each of num_frames segments."""
    if not 1 <= num_frames <= cached:
        raise ValueError(f"num_frames ({num_frames}) must be between 1 and the {cached} cached frames")
    bounds = torch.arange(num_frames + 1) * cached // num_frames
    width = bounds[1:] - bounds[:-1]
    offset = (torch.rand(batch, num_frames, generator=generator) * width).long()
    return bounds[:-1] + offset
