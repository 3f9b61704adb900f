"""The answers that a classifier can give: made from training questions, or read from a published list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from videolm.datasets.annotations import read_json, refuse_duplicates
from videolm.datasets.questions import VideoQuestion


@dataclass(frozen=True)
class Coverage:
    """How many questions have their answer in a vocabulary: the ceiling of a classifier over it."""

    num_covered: int
    num_questions: int

    @property
    def percent(self) -> float:
        return 100.0 * self.num_covered / self.num_questions


def build_vocabulary(questions: Iterable[VideoQuestion], *, size: int | None = None) -> tuple[str, ...]:
    """The most frequent answers first, ties by first appearance; at most `size` of them, None: all."""
    counts = Counter(question.answer for question in questions)
    if not counts:
        raise ValueError("there are no questions to take answers from")
    if size is not None and size < 1:
        raise ValueError(f"size ({size}) must be at least 1, or None for all answers")
    # a Counter keeps the order of first appearance, and so does most_common among equals
    return tuple(answer for answer, _ in counts.most_common(size))


def coverage(vocabulary: Sequence[str], questions: Iterable[VideoQuestion]) -> Coverage:
    """How many of the questions have an answer, word for word, in the vocabulary."""
    known = set(vocabulary)
    answers = [{question.answer, *question.other_answers} for question in questions]
    if not answers:
        raise ValueError("there are no questions to cover")
    return Coverage(sum(bool(known & own) for own in answers), len(answers))


def read_vocabulary(path: str | Path) -> tuple[str, ...]:
    """The answers of a JSON file by their label: a list of answers, or an object {answer: label} with labels 0, 1, ...

    Lists are `ans_word.json` (HQGA), objects `train_ans2label.json` (ALPRO, ClipBERT) and `vocab1000.json` (Just Ask,
    FrozenBiLM).
    """
    path = Path(path)
    value = read_json(path)
    if isinstance(value, dict):
        labels = list(value.values())
        if any(type(label) is not int for label in labels) or sorted(labels) != list(range(len(labels))):
            raise ValueError(f"{path}: the labels must be 0 to {len(labels) - 1}, each once")
        value = sorted(value, key=value.__getitem__)
    if not isinstance(value, list) or not value or not all(isinstance(answer, str) for answer in value):
        raise ValueError(f"{path} must hold a list of answers, or an object of answers and their labels")
    refuse_duplicates(value, path)
    return tuple(value)
