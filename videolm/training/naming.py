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
    bound_to: list[str] = field(default_factory=list)
    """Types whose answers name things ("circle"). What is asked of a thing by such a word ("what color is the circle")
    is learned of each word for itself as well, so that a token holds together what is true of one thing."""

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
    question: str = ""


class AnswerNames(nn.Module):
    """Logits of all answers of every kind from a tower's tokens: their maxima over the two halves of a clip.

    What one place shows in one frame is enough, wherever it is (arXiv 1411.4734); halves, so that what comes first
    differs from what comes last.
    """

    def __init__(self, width: int, sizes: Sequence[Sequence[int]]) -> None:
        """`sizes[i]` are the numbers of answers to the questions that count together as one kind."""
        super().__init__()
        self.sizes = sizes
        self.out = nn.Linear(2 * width, sum(map(sum, sizes)))

    def forward(self, patches: Float[Tensor, "batch frames patches width"]) -> Float[Tensor, "batch answers"]:
        best, half = patches.amax(dim=2), (patches.shape[1] + 1) // 2
        logits: Tensor = self.out(torch.cat([best[:, :half].amax(dim=1), best[:, -half:].amax(dim=1)], dim=1))
        return logits

    def loss(
        self, logits: Float[Tensor, "batch answers"], named: Float[Tensor, "batch answers"]
    ) -> Float[Tensor, ""]:
        """Sum over the kinds of the mean cross-entropy of their questions, each of the videos of which it is asked.

        `named` is 1 for an answer that a question of the video has; several share the target evenly.
        """
        total, first = logits.new_zeros(()), 0
        for kind in self.sizes:
            of_kind: list[Tensor] = []
            for size in kind:
                given, target = (rows[:, first : first + size] for rows in (logits, named))
                asked, first = target.any(dim=1), first + size
                target = F.normalize(target[asked], p=1, dim=1)
                of_kind.append(F.cross_entropy(given[asked].float(), target, reduction="none"))
            losses = torch.cat(of_kind)
            if len(losses):
                total = total + losses.mean()
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
    if missing := {*schedule.kinds, *schedule.bound_to} - {answer.kind for answer in answers}:
        raise ValueError(f"kinds {sorted(missing)} have no answer in this data")
    names_of_things = {answer.answer for answer in answers if answer.kind in schedule.bound_to}
    # by kind and whether of one thing, then by the word for it, "" for any: the rows that have each answer
    table: dict[tuple[str, bool], dict[str, dict[str, list[int]]]] = {}
    for answer in answers:
        if answer.kind in schedule.kinds:
            for word in ("", *(names_of_things.intersection(answer.question.split()))):
                asked = table.setdefault((answer.kind, bool(word)), {}).setdefault(word, {})
                asked.setdefault(answer.answer, []).append(answer.row)
    blocks = [[asked[word] for word in sorted(asked)] for _, asked in sorted(table.items())]
    sizes = [[len(block) for block in kind] for kind in blocks]
    named = torch.zeros(len(frames), sum(map(sum, sizes)))
    columns = (rows for kind in blocks for block in kind for _, rows in sorted(block.items()))
    for column, rows in enumerate(columns):
        named[rows, column] = 1
    stem, device = tower.patch, tower.position.device
    if schedule.part == "stem" and not isinstance(stem, ConvStem):
        raise ValueError("part is 'stem', but this tower has none; take 'tower'")
    learns = stem if schedule.part == "stem" else tower
    names = AnswerNames(tower.position.shape[1], sizes).to(device)
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
