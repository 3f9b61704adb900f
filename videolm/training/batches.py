"""Which videos, captions and frames a training step sees: a pure function of seed and step.

Nothing is remembered from step to step, so a run that goes on from a checkpoint sees exactly what it would have
seen. Two things are easier before they are harder (a curriculum): short clips before long ones, and videos with
few things before videos with many. Twins of one scene go into one batch, where each is the other's hard negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from videolm.training.loop import step_seed


@dataclass(frozen=True)
class TrainingVideo:
    """One row of the training set."""

    captions: tuple[str, ...]
    difficulty: int = 1
    """Videos above the curriculum's present level are not drawn yet."""
    twin: int | None = None
    """Row of the video that a batch should hold beside this one."""


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    rows: Int[Tensor, " batch"]
    captions: list[str]
    num_frames: int
    generator: torch.Generator
    """For everything else that is random in this step."""


@dataclass(frozen=True)
class Stage:
    """From this share of the run on, this value."""

    start: float
    value: int


@dataclass(frozen=True)
class KindStage:
    """From this share of the run on, lessons of these kinds alone; of every kind where none is named."""

    start: float
    kinds: list[str]


AnyStage = TypeVar("AnyStage", Stage, KindStage)


def check_starts(name: str, stages: Sequence[Stage] | Sequence[KindStage]) -> None:
    """Raises ValueError where stages do not begin at 0 and rise."""
    starts = [stage.start for stage in stages]
    if not starts or starts[0] != 0 or starts != sorted(set(starts)):
        raise ValueError(f"{name} must have rising starts from 0.0, has {starts}")


def check_stages(name: str, stages: Sequence[Stage]) -> None:
    """Raises ValueError where stages do not begin at 0, rise, and have values of at least 1."""
    check_starts(name, stages)
    if min(stage.value for stage in stages) < 1:
        raise ValueError(f"{name} must have values of at least 1")


def stage_at(progress: float, stages: Sequence[AnyStage]) -> AnyStage:
    """The last stage whose start is at most `progress`, the share of the run that is done."""
    return [stage for stage in stages if stage.start <= progress][-1]


def level_at(progress: float, stages: Sequence[Stage]) -> int:
    """Value of the stage at `progress`."""
    return stage_at(progress, stages).value


def draw_batch(
    videos: Sequence[TrainingVideo],
    step: int,
    *,
    seed: int,
    batch_size: int,
    num_steps: int,
    twin_share: float,
    num_frames: Sequence[Stage],
    difficulty: Sequence[Stage],
) -> Batch:
    """The batch of a step: `twin_share` of it in twin pairs, the rest single videos, no video twice."""
    generator = torch.Generator().manual_seed(step_seed(seed, step))
    progress = step / num_steps
    level = level_at(progress, difficulty)
    allowed = [row for row, video in enumerate(videos) if video.difficulty <= level]
    if len(allowed) < batch_size:
        raise ValueError(
            f"batch_size ({batch_size}) is above the {len(allowed)} videos of difficulty <= {level}"
        )
    order = [allowed[i] for i in torch.randperm(len(allowed), generator=generator).tolist()]
    rows: dict[int, None] = {}
    for row in order:
        if len(rows) + 2 > batch_size * twin_share:
            break
        twin = videos[row].twin
        if twin is not None:
            rows |= {row: None, twin: None}
    for row in order:
        if len(rows) >= batch_size:
            break
        rows[row] = None
    chosen = list(rows)[:batch_size]
    captions = [videos[row].captions[_index(len(videos[row].captions), generator)] for row in chosen]
    return Batch(torch.tensor(chosen), captions, level_at(progress, num_frames), generator)


def _index(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))
