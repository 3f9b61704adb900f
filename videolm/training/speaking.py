"""Training of a speaker: a connector and a language model on the tokens of a tower, which learns too or stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from videolm.encoders.video_clip import VideoCLIP
from videolm.heads.captioning import IGNORED, PrefixLM
from videolm.text.prompts import PromptTokenizer
from videolm.text.tokenizer import Tokenizer
from videolm.training.batches import KindStage, Stage, check_stages, check_starts, level_at, stage_at
from videolm.training.frames import draw_pictures
from videolm.training.loop import Settings, step_seed, train_steps
from videolm.training.losses import clamp_logit_scale_, info_nce
from videolm.types import TextTokens, VideoTokens

Item = TypeVar("Item")


@dataclass(frozen=True)
class Lesson:
    """One text to learn, after a prompt, of the video in a row."""

    row: int
    prompt: str
    """"" for a caption without one, or a question as its template makes it."""
    target: str
    kind: str = ""
    """Videos are drawn by kind, each equally often, however many lessons it has; further lessons of one are any."""
    question: str = ""
    """What a connector reads that takes the question."""
    difficulty: int = 1
    """Lessons above the curriculum's present level are not drawn yet."""


@dataclass(frozen=True)
class SpeakerSchedule(Settings):
    """Everything that decides how a speaker is trained, but not what it is."""

    num_frames: list[Stage] = field(default_factory=lambda: [Stage(0.0, 8)])
    difficulty: list[Stage] = field(default_factory=lambda: [Stage(0.0, 1_000)])
    kinds: list[KindStage] = field(default_factory=lambda: [KindStage(0.0, [])])
    """Some kinds of lessons can be learned before the rest: what tells one thing from another, before what it does."""
    label_smoothing: float = 0.0
    lessons_per_video: int = 1
    """Texts of each video in a batch of `batch_size` videos: the tower runs once for all of them."""
    questions_per_video: int = 0
    """Of each video so many questions are answered beside its texts, their loss added: a caption may leave out what
    it did not see, an answer about one of several things may not."""
    trains_towers: bool = False
    """Whether the towers learn with the speaker; else they stay as they are."""
    contrastive_weight: float = 0.0
    """Weight of InfoNCE between the videos and their first texts, beside the loss of the speaker, so that towers
    which learn to be described still find what a sentence describes (as in CoCa, arXiv 2205.01917)."""
    twin_share: float = 0.0
    """Share of the videos of a batch that are drawn with their twin beside them, each the other's hard negative."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages("num_frames", self.num_frames)
        check_stages("difficulty", self.difficulty)
        check_starts("kinds", self.kinds)
        if not 0 <= self.twin_share <= 1:
            raise ValueError(f"twin_share ({self.twin_share}) must be between 0 and 1")
        if self.questions_per_video < 0:
            raise ValueError(f"questions_per_video ({self.questions_per_video}) must be at least 0")
        if self.lessons_per_video < 1:
            raise ValueError(f"lessons_per_video ({self.lessons_per_video}) must be at least 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing ({self.label_smoothing}) must be in [0, 1)")
        if not 0 <= self.contrastive_weight < (math.inf if self.trains_towers else 1e-9):
            raise ValueError(
                f"contrastive_weight ({self.contrastive_weight}) must be finite and at least 0, and 0 unless "
                "trains_towers"
            )


def train_speaker(
    speaker: PrefixLM,
    towers: VideoCLIP,
    lessons: Sequence[Lesson],
    frames: UInt8[Tensor, "videos cached height width 3"],
    schedule: SpeakerSchedule,
    *,
    prompt_tokenizer: PromptTokenizer,
    text_tokenizer: Tokenizer | None,
    twins: Mapping[int, int],
    preprocess: Callable[[UInt8[Tensor, "n height width 3"]], Float[Tensor, "n 3 height width"]],
    out: str | Path,
    questions: Sequence[Lesson] = (),
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    tensorboard: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Trains `speaker` in place by teacher forcing; the pictures of `lessons[i]` are `frames[lessons[i].row]`.

    `questions` are what `schedule.questions_per_video` draws from, of every video of a lesson one at least.
    `text_tokenizer` is the text tower's, for questions that the connector reads and for the contrastive loss; it is
    needed for no other. `twins` goes from row to row, both ways. The rest is as in `train_steps`, which sees speaker
    and towers, if these learn, as one.
    """
    teacher = _Teacher(speaker, towers, frames, schedule, prompt_tokenizer, text_tokenizer, preprocess)
    drawing = _drawings(lessons, twins, schedule)
    asked: dict[int, list[Lesson]] = {}
    for question in questions:
        asked.setdefault(question.row, []).append(question)
    if schedule.questions_per_video and (unasked := {lesson.row for lesson in lessons} - asked.keys()):
        raise ValueError(f"videos {sorted(unasked)[:5]} have no question, but questions_per_video is above 0")
    model = nn.ModuleDict({"speaker": speaker})
    if schedule.trains_towers:
        model["towers"] = towers
    towers.eval()
    device = teacher.device

    def loss_at(step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        generator = torch.Generator().manual_seed(step_seed(schedule.seed, step))
        progress = step / schedule.num_steps
        num_frames = level_at(progress, schedule.num_frames)
        drawn = drawing(progress)(
            schedule.batch_size, schedule.lessons_per_video, generator, twin_share=schedule.twin_share
        )
        rows = torch.tensor([group[0].row for group in drawn])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=schedule.precision == "bfloat16"):
            video = teacher.look(rows, num_frames, generator)
            parts = {"text_loss": teacher.loss(video, [lesson for group in drawn for lesson in group])}
            if num_questions := schedule.questions_per_video:
                drawn_questions = [
                    _pick(asked[row], generator) for row in rows.tolist() for _ in range(num_questions)
                ]
                parts["answer_loss"] = teacher.loss(video, drawn_questions)
            loss = sum(parts.values(), torch.zeros((), device=device))
            if schedule.contrastive_weight:
                text = teacher.read([group[0].target for group in drawn]).embedding
                parts["contrastive_loss"] = info_nce(
                    text, video.embedding, logit_scale=towers.scale, video_ids=rows.to(device)
                )
                loss = loss + schedule.contrastive_weight * parts["contrastive_loss"]
        values = {name: float(part.detach()) for name, part in parts.items()}
        return loss, {"num_frames": float(num_frames)} | values

    train_steps(
        model,
        schedule,
        loss_at,
        out=out,
        after_step=lambda _: clamp_logit_scale_(towers.scale) if schedule.contrastive_weight else None,
        validate=validate,
        tensorboard=tensorboard,
        should_stop=should_stop,
    )


@dataclass(frozen=True)
class _Teacher:
    """Shows a speaker videos and takes the loss of what it should say of them."""

    speaker: PrefixLM
    towers: VideoCLIP
    frames: UInt8[Tensor, "videos cached height width 3"]
    schedule: SpeakerSchedule
    prompt_tokenizer: PromptTokenizer
    text_tokenizer: Tokenizer | None
    preprocess: Callable[[UInt8[Tensor, "n height width 3"]], Float[Tensor, "n 3 height width"]]

    def __post_init__(self) -> None:
        if self.text_tokenizer is None and (self.reads_question or self.schedule.contrastive_weight):
            raise ValueError("text_tokenizer is missing, which this connector or the contrastive loss needs")

    @property
    def device(self) -> torch.device:
        return next(self.speaker.parameters()).device

    @property
    def reads_question(self) -> bool:
        return getattr(self.speaker.connector, "question", None) is not None

    def look(self, rows: Int[Tensor, " batch"], num_frames: int, generator: torch.Generator) -> VideoTokens:
        pictures, picked = draw_pictures(
            self.frames, rows, num_frames=num_frames, shift=self.schedule.shift, generator=generator
        )
        pixels = self.preprocess(pictures.flatten(0, 1).to(self.device))
        with torch.set_grad_enabled(self.schedule.trains_towers):
            return self.towers.encode_video(
                pixels.view(*pictures.shape[:2], *pixels.shape[1:]),
                pts_seconds=picked.to(self.device, torch.float32),
            )

    def read(self, texts: Sequence[str]) -> TextTokens:
        assert self.text_tokenizer is not None
        ids, mask = self.text_tokenizer(texts)
        return self.towers.encode_text(ids.to(self.device), mask.to(self.device))

    def loss(self, video: VideoTokens, texts: Sequence[Lesson]) -> Float[Tensor, ""]:
        """Of as many texts of every video, those of one after another."""
        per_video = len(texts) // len(video.tokens)
        if self.reads_question:
            with torch.set_grad_enabled(self.schedule.trains_towers):
                question = self.read([lesson.question for lesson in texts])
            prefix = self.speaker.prefix(repeat_videos(video, per_video), question)
        else:
            prefix = self.speaker.prefix(video)
        pairs = [(lesson.prompt, lesson.target) for lesson in texts]
        ids, mask, targets = (rows.to(self.device) for rows in teacher_forcing(self.prompt_tokenizer, pairs))
        return self.speaker.loss(prefix, ids, mask, targets, label_smoothing=self.schedule.label_smoothing)


def _drawings(
    lessons: Sequence[Lesson], twins: Mapping[int, int], schedule: SpeakerSchedule
) -> Callable[[float], Drawing]:
    """By the share of the run that is done, what may be drawn; ValueError for lessons that never may."""
    hardest = max((lesson.difficulty for lesson in lessons), default=0)
    if schedule.difficulty[-1].value < hardest:
        raise ValueError(
            f"difficulty ends at {schedule.difficulty[-1].value}, so that lessons of {hardest} are never seen"
        )
    if unknown := {kind for stage in schedule.kinds for kind in stage.kinds} - {x.kind for x in lessons}:
        raise ValueError(f"kinds {sorted(unknown)} have no lesson")
    if last := schedule.kinds[-1].kinds:
        raise ValueError(f"kinds ends at {last}, so that lessons of others are never seen")

    @cache
    def of(level: int, kinds: tuple[str, ...]) -> Drawing:
        allowed = [x for x in lessons if x.difficulty <= level and (not kinds or x.kind in kinds)]
        return Drawing(allowed, twins)

    def at(progress: float) -> Drawing:
        return of(level_at(progress, schedule.difficulty), tuple(stage_at(progress, schedule.kinds).kinds))

    # all of them at once: one without a lesson is an error before the first step
    for start in {stage.start for stages in (schedule.difficulty, schedule.kinds) for stage in stages}:
        at(start)
    return at


class Drawing:
    """Draws groups of lessons: a kind, each as likely as another, a lesson of it, and others of the same video."""

    def __init__(self, lessons: Sequence[Lesson], twins: Mapping[int, int]) -> None:
        if not lessons:
            raise ValueError("lessons is empty; there is nothing to learn")
        self._by_kind: dict[str, list[Lesson]] = {}
        self._by_row: dict[int, list[Lesson]] = {}
        for lesson in lessons:
            self._by_kind.setdefault(lesson.kind, []).append(lesson)
            self._by_row.setdefault(lesson.row, []).append(lesson)
        self._twins = {row: twin for row, twin in twins.items() if twin in self._by_row}

    def __call__(
        self, num_videos: int, per_video: int, generator: torch.Generator, *, twin_share: float = 0.0
    ) -> list[list[Lesson]]:
        """A group for each of `num_videos`; after a group of the first `twin_share` of them, one of the twin."""
        kinds = sorted(self._by_kind)
        drawn: list[list[Lesson]] = []
        while len(drawn) < num_videos:
            first = _pick(self._by_kind[_pick(kinds, generator)], generator)
            twin = self._twins.get(first.row)
            drawn.append(self._group(first, per_video, generator))
            if twin is not None and len(drawn) + 1 <= twin_share * num_videos:
                drawn.append(self._group(_pick(self._by_row[twin], generator), per_video, generator))
        return drawn

    def _group(self, first: Lesson, size: int, generator: torch.Generator) -> list[Lesson]:
        others = [lesson for lesson in self._by_row[first.row] if lesson is not first] or [first]
        return [first, *(_pick(others, generator) for _ in range(size - 1))]


def _pick(items: Sequence[Item], generator: torch.Generator) -> Item:
    return items[int(torch.randint(len(items), (1,), generator=generator))]


def teacher_forcing(
    tokenizer: PromptTokenizer, texts: Sequence[tuple[str, str]]
) -> tuple[Int[Tensor, "batch words"], Bool[Tensor, "batch words"], Int[Tensor, "batch words"]]:
    """Token ids of (prompt, target) pairs, the mask on them, and what follows each; prompts count in no loss."""
    prompt_ids, prompt_mask = tokenizer.prompts([prompt for prompt, _ in texts])
    target_ids, target_mask = tokenizer.targets(
        [target for _, target in texts], after=[prompt for prompt, _ in texts]
    )
    ids = torch.cat([prompt_ids, target_ids[:, :-1]], dim=1)
    mask = torch.cat([prompt_mask, target_mask[:, :-1]], dim=1)
    unasked = torch.full_like(prompt_ids[:, 1:], IGNORED)
    return ids, mask, torch.cat([unasked, target_ids.masked_fill(~target_mask, IGNORED)], dim=1)


def repeat_videos(video: VideoTokens, times: int) -> VideoTokens:
    """Each video several times, one after the other."""
    return VideoTokens(**{name: rows.repeat_interleave(times, dim=0) for name, rows in vars(video).items()})
