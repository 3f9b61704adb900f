"""Questions about videos: the value that every reader of question answering gives, and what the readers share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from videolm.datasets.annotations import caption, exists, refuse_duplicates

TypeRule = Literal["just-ask", "first-word"]
"""How a question without a type of its own gets one.

"first-word": what, who, how, when or where, the types of the authors of MSRVTT-QA and MSVD-QA (Xu et al., ACM MM
2017). "just-ask": the same, but "color" wherever that is in the question (Just Ask, arXiv 2012.00451).
"""
_FIRST_WORDS = ("what", "who", "how", "when", "where")


@dataclass(frozen=True)
class VideoQuestion:
    """One question about one video, with its answer and, for multiple choice, what to choose from."""

    id: str
    """Unique in its split; predictions are kept by it."""
    video_id: str
    """Name of the video's file without its ending."""
    question: str
    answer: str
    """As the file has it; a count is written in digits."""
    type: str
    """What the benchmark's scores are split by."""
    candidates: tuple[str, ...] = ()
    """In the order of the file; empty for an open question. An empty candidate is no choice: see `mask`."""
    answer_index: int | None = None
    """Place of the answer among the candidates."""
    other_answers: tuple[str, ...] = ()
    """Further answers that are as right."""
    start_seconds: float | None = None
    """Where the part of the video begins that the question is about; None: it is about the whole video."""
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.answer_index is None) != (not self.candidates):
            raise ValueError(
                f"question {self.id}: answer_index ({self.answer_index}) and {len(self.candidates)} candidates: "
                "give both or none"
            )
        if self.answer_index is None:
            return
        if not 0 <= self.answer_index < len(self.candidates):
            raise ValueError(
                f"question {self.id}: answer_index ({self.answer_index}) must be in [0, {len(self.candidates)})"
            )
        if self.candidates[self.answer_index] != self.answer or not self.answer.strip():
            raise ValueError(
                f"question {self.id}: candidate {self.answer_index} is "
                f"{self.candidates[self.answer_index]!r}, but the answer is {self.answer!r}"
            )

    @property
    def mask(self) -> tuple[bool, ...]:
        """Which candidates can be chosen."""
        return tuple(bool(candidate.strip()) for candidate in self.candidates)


def words_type(question: str, *, rule: TypeRule = "just-ask") -> str:
    """The type of a question by its words; "other" where it begins with none of the five."""
    if rule == "just-ask" and "color" in question:
        return "color"
    first = question.split(maxsplit=1)[0].lower() if question.split() else ""
    return first if first in _FIRST_WORDS else "other"


def checked(questions: Iterable[VideoQuestion], path: Path) -> list[VideoQuestion]:
    """The questions of a file; one id twice is an error, and so is a file without any."""
    questions = list(questions)
    if not questions:
        raise ValueError(f"{path} has no questions")
    refuse_duplicates([question.id for question in questions], path)
    return questions


def the_one_of(paths: Sequence[Path]) -> Path:
    """The one of several possible files that is there; two of them could be read in two ways, which is an error.

    Where none is there, the first one: opening it then says what is missing.
    """
    there = [path for path in paths if exists(path)]
    if len(there) > 1:
        names = " and ".join(path.name for path in there)
        raise ValueError(f"{there[0].parent} holds {names}, which may differ; leave one of them")
    return there[0] if there else paths[0]


def choice(
    *,
    id: str,
    video_id: str,
    question: object,
    candidates: Sequence[str],
    index: object,
    type: str,
    path: Path,
) -> VideoQuestion:
    """A multiple-choice question of a file, whose answer is the number of a candidate, counted from 0."""
    number = str(index)
    if not (number.isascii() and number.isdigit() and int(number) < len(candidates)):
        raise ValueError(f"{path}, {id}: answer {index!r} must be a number from 0 to {len(candidates) - 1}")
    text = caption(question, path, id, what="question")
    answer_index = int(number)
    answer = caption(candidates[answer_index], path, id, what="answer")
    return VideoQuestion(id, video_id, text, answer, type, tuple(candidates), answer_index)
