"""The main jobs on a small world: render it, index it with the model that ships, search it, and let the model say what
it sees in what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from videolm.datasets.msrvtt import read_queries
from videolm.datasets.msrvtt_qa import read_split as read_questions
from videolm.datasets.questions import VideoQuestion
from videolm.datasets.synthetic import SheetRow, contact_sheet, read_twins, render_world
from videolm.pipeline import load
from videolm.types import Hit
from videolm.video.readers import open_video
from videolm.video.samplers import segment_middle

_SEED = 2026
"""Another world than the one that the model was trained on, and of that the split with unseen combinations."""


@dataclass(frozen=True)
class Found:
    """A query of the demo with what was found for it."""

    query: str
    expected: str
    """File that the sentence was written for."""
    is_twin: bool
    """Another video shows exactly the same frames in the other order."""
    hits: list[Hit]

    @property
    def is_right(self) -> bool:
        return self.hits[0].path.name == self.expected


@dataclass(frozen=True)
class Said:
    """What the model says of a video, beside the truth."""

    path: Path
    caption: str
    truth: str
    """One of the right captions, of many."""
    question: str
    answer: str
    right_answer: str

    @property
    def is_right(self) -> bool:
        return self.answer == self.right_answer


def run_demo(out: Path, *, num_videos: int = 48, num_twin_pairs: int = 3, num_others: int = 4) -> list[Found]:
    """Leaves the world, its index and `found.png` below `out` and returns what was found."""
    model = load()
    world = out / "world"
    with tqdm(total=num_videos, desc="render", unit="video", disable=None) as bar:
        # an eighth of a world is its test split
        render_world(
            world, num_videos=8 * num_videos, seed=_SEED, split="test", on_video=lambda _: bar.update()
        )
    index = model.index(world / "videos", out / "world.index")
    twins = read_twins(world, split="test")
    have_twins = {video_id for t in twins for video_id in (t.video_a, t.video_b)}
    asked = [
        pair
        for t in twins[:num_twin_pairs]
        for pair in ((t.sentence_a, t.video_a), (t.sentence_b, t.video_b))
    ]
    others = [query for query in read_queries(world) if query.video_id not in have_twins]
    asked += [(query.sentence, query.video_id) for query in others[:num_others]]
    found = [
        Found(sentence, f"{video_id}.mp4", video_id in have_twins, index.search(sentence, k=3))
        for sentence, video_id in asked
    ]
    contact_sheet([_row(answer) for answer in found]).save(out / "found.png")
    return found


def describe(out: Path, found: list[Found], *, num_videos: int = 6) -> list[Said]:
    """Captions some of the videos that were found and asks a question of each; leaves `said.png` below `out`.

    Empty, and no picture, for a model that does not speak.
    """
    model, world = load(), out / "world"
    if not {"captioning", "videoqa"} <= model.heads.keys():
        return []
    paths = list(dict.fromkeys(answer.hits[0].path for answer in found))[:num_videos]
    truths = {query.video_id: query.sentence for query in read_queries(world)}
    questions: dict[str, list[VideoQuestion]] = {}
    for question in read_questions(world, "test"):
        questions.setdefault(question.video_id, []).append(question)
    # each video another one of its questions, so that there are some of every kind
    asked = [questions[path.stem][2 * i % len(questions[path.stem])] for i, path in enumerate(paths)]
    captions = model.caption(paths)
    answers = model.answer(paths, [question.question for question in asked])
    said = [
        Said(path, caption.text, truths[path.stem], question.question, answer.text, question.answer)
        for path, caption, question, answer in zip(paths, captions, asked, answers, strict=True)
    ]
    contact_sheet([_said_row(one) for one in said]).save(out / "said.png")
    return said


def _row(answer: Found) -> SheetRow:
    hit = answer.hits[0]
    verdict = "right" if answer.is_right else f"expected {answer.expected}"
    return SheetRow(f"[{verdict}: {hit.id}, {hit.score:.2f}]  {answer.query}", _frames(hit.path))


def _said_row(said: Said) -> SheetRow:
    verdict = "right" if said.is_right else f"expected {said.right_answer}"
    title = f"{said.caption}  [one of its captions: {said.truth}]  {said.question}? {said.answer} [{verdict}]"
    return SheetRow(title, _frames(said.path))


def _frames(path: Path) -> UInt8[np.ndarray, "frames height width 3"]:
    with open_video(path) as reader:
        frames: UInt8[np.ndarray, "frames height width 3"] = reader.frames_at(
            segment_middle(reader.info, num_frames=8), size=96
        ).frames.numpy()
    return frames
