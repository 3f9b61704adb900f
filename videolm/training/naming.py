"""A tower learns to name: which answers the questions about a video have, before any sentence is read.

Sentences teach a tower from scratch slowly what is in a picture: which of many wordings comes next is most of their
loss, and what a short answer says of a shape or a movement is little of it. So the tower learns that first, from the
answers alone, its stem before the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from videolm.encoders.clip import ImageTower
from videolm.encoders.stem import ConvStem
from videolm.training.frames import draw_pictures
from videolm.training.loop import Settings, step_seed, train_steps


@dataclass(frozen=True)
class Naming(Settings):
    """How a tower is trained on answers."""

    kinds: list[str] = field(default_factory=list)
    """Types of questions whose answers it learns."""
    num_frames: int = 1
    part: Literal["stem", "tower"] = "tower"
    """What learns: the convolutions alone, or all of the image tower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds ({self.kinds}) must name one type of question or several, each once")
        if self.part not in ("stem", "tower"):
            raise ValueError(f"part ({self.part!r}) must be 'stem' or 'tower'")
        if self.num_frames < 1:
            raise ValueError(f"num_frames ({self.num_frames}) must be at least 1")


@dataclass(frozen=True)
class NamedAnswer:
    """An answer to a question of some kind about the video in a row."""

    row: int
    kind: str
    answer: str


class AnswerNames(nn.Module):
    """Logits of all answers of every kind from a tower's tokens: their maxima over the two halves of a clip.

    What one place shows in one frame is enough, wherever it is (arXiv 1411.4734); halves, so that what comes first
    differs from what comes last.
    """

    def __init__(self, width: int, answers: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.sizes = [len(of_kind) for of_kind in answers]
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(2 * width, sum(self.sizes))

    def forward(self, patches: Float[Tensor, "batch frames patches width"]) -> Float[Tensor, "batch answers"]:
        best, half = patches.amax(dim=2), (patches.shape[1] + 1) // 2
        logits: Tensor = self.out(torch.cat([best[:, :half].amax(dim=1), best[:, -half:].amax(dim=1)], dim=1))
        return logits

    def loss(
        self, logits: Float[Tensor, "batch answers"], named: Float[Tensor, "batch answers"]
    ) -> Float[Tensor, ""]:
        """Sum over the kinds of the mean cross-entropy of the videos of which one is asked.

        `named` is 1 for an answer that a question of the video has; several share the target evenly.
        """
        total = logits.new_zeros(())
        parts = (torch.split(rows, self.sizes, dim=1) for rows in (logits, named))
        for given, target in zip(*parts, strict=True):
            asked = target.any(dim=1)
            if asked.any():
                target = F.normalize(target[asked], p=1, dim=1)
                total = total + F.cross_entropy(given[asked].float(), target)
        return total


def train_naming(
    tower: ImageTower,
    answers: Sequence[NamedAnswer],
    frames: UInt8[Tensor, "videos cached height width 3"],
    schedule: Naming,
    *,
    preprocess: Callable[[UInt8[Tensor, "n height width 3"]], Float[Tensor, "n 3 height width"]],
    out: str | Path,
    tensorboard: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Trains a part of `tower` in place to name the answers about the videos whose pictures are `frames[answer.row]`.

    The rest is as in `train_steps`. ValueError where a kind has no answer, or the tower no stem to train.
    """
    table: dict[str, dict[str, None]] = {kind: {} for kind in schedule.kinds}
    for answer in answers:
        if answer.kind in table:
            table[answer.kind][answer.answer] = None
    if missing := [kind for kind, found in table.items() if not found]:
        raise ValueError(f"kinds {missing} have no answer in this data")
    columns = {
        pair: i
        for i, pair in enumerate((kind, text) for kind, found in table.items() for text in sorted(found))
    }
    named = torch.zeros(len(frames), len(columns))
    for answer in answers:
        if answer.kind in table:
            named[answer.row, columns[answer.kind, answer.answer]] = 1
    stem, device = tower.patch, tower.position.device
    if schedule.part == "stem" and not isinstance(stem, ConvStem):
        raise ValueError("part is 'stem', but this tower has none; take 'tower'")
    learns = stem if schedule.part == "stem" else tower
    names = AnswerNames(tower.position.shape[1], [list(found) for found in table.values()]).to(device)
    rows_asked = named.any(dim=1).nonzero()[:, 0]

    def loss_at(step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        generator = torch.Generator().manual_seed(step_seed(schedule.seed, step))
        rows = rows_asked[torch.randint(len(rows_asked), (schedule.batch_size,), generator=generator)]
        pictures, _ = draw_pictures(
            frames, rows, num_frames=schedule.num_frames, shift=schedule.shift, generator=generator
        )
        pixels = preprocess(pictures.flatten(0, 1).to(device))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=schedule.precision == "bfloat16"):
            clips = pixels.view(*pictures.shape[:2], *pixels.shape[1:])
            logits = names(stem(clips) if schedule.part == "stem" else tower(clips).tokens)
        return names.loss(logits, named[rows].to(device)), {}

    train_steps(
        nn.ModuleDict({schedule.part: learns, "names": names}),
        schedule,
        loss_at,
        out=out,
        tensorboard=tensorboard,
        should_stop=should_stop,
    )
