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


def draw_pictures(
    frames: UInt8[Tensor, "videos cached height width 3"],
    rows: Int64[Tensor, " batch"],
    *,
    num_frames: int,
    shift: int,
    generator: torch.Generator,
) -> tuple[UInt8[Tensor, "batch {num_frames} height width 3"], Int64[Tensor, "batch {num_frames}"]]:
    """One frame at random from each of `num_frames` segments of each video, moved together by up to `shift` pixels.

    Also which of the cached frames they are.
    """
    picked = pick_segment_random(frames.shape[1], num_frames=num_frames, batch=len(rows), generator=generator)
    pictures = frames[rows[:, None], picked]
    return shift_pictures(pictures, shift, generator) if shift else pictures, picked


def shift_pictures(
    pictures: UInt8[Tensor, "batch frames height width 3"], most: int, generator: torch.Generator
) -> UInt8[Tensor, "batch frames height width 3"]:
    """Each video moved by up to `most` pixels in both directions, its edge repeated."""
    batch, _, height, width, _ = pictures.shape
    offset = torch.randint(-most, most + 1, (2, batch, 1), generator=generator)
    rows = (torch.arange(height) + offset[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + offset[1]).clamp(0, width - 1)
    index = torch.arange(batch)[:, None, None]
    # advanced indices around the slice of frames come first: (batch, height, width, frames, 3)
    moved = pictures[index, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2, 4)
