"""A folder in MSR-VTT's form as a training set: captions, twins and cached frames, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from videolm.datasets.msrvtt import Split, read_captions, video_path
from videolm.datasets.synthetic import TwinPair, read_twins
from videolm.training.batches import TrainingVideo
from videolm.training.frames import cache_frames
from videolm.types import Failure


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Row i of `frames` belongs to `videos[i]` and `ids[i]`."""

    ids: list[str]
    videos: list[TrainingVideo]
    frames: UInt8[Tensor, "videos cached height width 3"]
    twins: list[TwinPair]
    failures: list[Failure]


def read_training_set(
    folder: str | Path,
    *,
    split: Split,
    cached_frames: int,
    image_size: int,
    on_video: Callable[[str], object] | None = None,
) -> TrainingSet:
    """Reads the captions of a split and its frames, which are decoded once into `folder/frames-SPLIT-...`.

    In a rendered world a video is as difficult as it has things. Unreadable videos are in `failures` and nowhere
    else.
    """
    folder = Path(folder)
    captioned = {video.id: video for video in read_captions(folder, split=split)}
    cache = cache_frames(
        folder / f"frames-{split}-{cached_frames}x{image_size}",
        [(video_id, video_path(folder, video_id)) for video_id in captioned],
        num_frames=cached_frames,
        image_size=image_size,
        on_video=on_video,
    )
    row = {video_id: i for i, video_id in enumerate(cache.ids)}
    # elsewhere there are no twins, and the category is a topic and no measure of how hard a video is
    is_world = (folder / "world.json").exists()
    twins = read_twins(folder, split=split) if is_world and (split == "train" or split == "val") else []
    twins = [twin for twin in twins if {twin.video_a, twin.video_b} <= row.keys()]
    other = {t.video_a: row[t.video_b] for t in twins} | {t.video_b: row[t.video_a] for t in twins}
    videos = [
        TrainingVideo(
            captioned[i].captions,
            difficulty=captioned[i].category if is_world else 1,
            twin=other.get(i),
        )
        for i in cache.ids
    ]
    frames = torch.from_numpy(cache.frames)[: len(cache.ids)]
    return TrainingSet(cache.ids, videos, frames, twins, cache.failures)
