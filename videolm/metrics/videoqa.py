"""Accuracy of answers to questions about videos: open, multiple choice, counts; by type of question.

Every question counts. A prediction that is missing is an error that counts and names them, or is wrong where that is
asked for (`missing="wrong"`), and never leaves the denominator; a prediction for an unknown question is an error.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

Missing = Literal["error", "wrong"]
Normalisation = Literal["exact", "words"]
"""What two answers are compared by.

"exact": the strings as they are, the rule of MSRVTT-QA, MSVD-QA, ActivityNet-QA and TGIF-QA, whose answers are lower
case without punctuation. "words": lower case, without punctuation and without the articles a, an and the, which stay
where there is nothing else; for models that write sentences. Numbers by the two do not compare.
"""
Groups = Mapping[str, Sequence[str]]
"""Name of a group to the types in it."""
NEXTQA_GROUPS: Groups = {"C": ("CW", "CH"), "T": ("TN", "TC"), "D": ("DC", "DL", "DO", "DB")}
"""Causal, temporal and descriptive questions."""
NEXTQA_COUNTED_AS = {"TP": "TN"}
"""What comes before and what comes next are one type in the published tables."""
ACTIVITYNET_FREE = ("yes/no", "color", "object", "location", "number", "other")
"""Types 3 to 8 of ActivityNet-QA."""
COUNT_RANGE = (1, 10)
"""What a predicted count is cut to in TGIF-QA."""


@runtime_checkable
class Question(Protocol):
    """What is needed of a question to score an answer to it."""

    @property
    def id(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def other_answers(self) -> tuple[str, ...]: ...
    @property
    def type(self) -> str: ...
    @property
    def candidates(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class PartScore:
    """The score of some of the questions."""

    score: float
    num_questions: int


@dataclass(frozen=True)
class QAScores:
    """The score of all questions and of the parts of them."""

    measure: str
    """"accuracy" and "WUPS" in percent, "squared error" as it is; scores of other measures do not compare."""
    score: float
    num_questions: int
    by_type: dict[str, PartScore]
    """In the order in which the types first appear."""
    groups: dict[str, PartScore]
    num_missing: int
    """Questions without a prediction, counted as wrong."""
    notes: tuple[str, ...]
    """What a reader of the number has to know."""
    credit: dict[str, float]
    """By question id: 1 for a right answer and 0 for a wrong one, its share of WUPS, or its squared error."""


def evaluate_open(
    predictions: Mapping[str, str],
    questions: Sequence[Question],
    *,
    normalisation: Normalisation = "exact",
    groups: Groups | None = None,
    missing: Missing = "error",
) -> QAScores:
    """Accuracy in percent of answers as text: right where it equals an answer of the question."""
    _check_choice("normalisation", normalisation, Normalisation)
    rule: Callable[[str], str] = normalised_words if normalisation == "words" else lambda text: text

    def credit(question: Question, prediction: str) -> float:
        return float(rule(prediction) in [rule(text) for text in (question.answer, *question.other_answers)])

    scores = scores_of("accuracy", predictions, questions, credit, groups=groups, missing=missing)
    return scores if normalisation == "exact" else _noted(scores, "answers compared as words, not exactly")


def evaluate_choice(
    predictions: Mapping[str, int],
    questions: Sequence[Question],
    *,
    groups: Groups | None = None,
    counted_as: Mapping[str, str] | None = None,
    missing: Missing = "error",
) -> QAScores:
    """Accuracy in percent of chosen candidates, by their place from 0; `counted_as` puts a type under another.

    A candidate that equals the right one, word for word, is right: NExT-QA has two such questions in its test. A place
    that is no candidate is an error.
    """

    def credit(question: Question, prediction: int) -> float:
        if not 0 <= prediction < len(question.candidates):
            raise ValueError(
                f"question {question.id}: prediction ({prediction}) must be in [0, {len(question.candidates)}), "
                "the candidates"
            )
        return float(question.candidates[prediction] == question.answer)

    scores = scores_of(
        "accuracy", predictions, questions, credit, groups=groups, counted_as=counted_as, missing=missing
    )
    twice = sum(question.candidates.count(question.answer) > 1 for question in questions)
    return (
        _noted(scores, f"{twice} questions have the right candidate twice; either is right")
        if twice
        else scores
    )


def evaluate_nextqa(
    predictions: Mapping[str, int], questions: Sequence[Question], *, missing: Missing = "error"
) -> QAScores:
    """Multiple-choice accuracy of NExT-QA as its tables have it: TP counted as TN, groups C, T and D."""
    return evaluate_choice(
        predictions, questions, groups=NEXTQA_GROUPS, counted_as=NEXTQA_COUNTED_AS, missing=missing
    )


def evaluate_activitynet(
    predictions: Mapping[str, str], questions: Sequence[Question], *, missing: Missing = "error"
) -> QAScores:
    """Accuracy of ActivityNet-QA with the group `free`, right, and `free_official`, as its evaluation script has it.

    The script divides the right answers of the free types (3 to 8) by the number of questions of all types but those
    three that come first in the answers' file, where it means types 0 to 2: on validation by 8,399 in place of 12,600.
    `free_official` is there to compare with published numbers, and can be above 100.
    """
    scores = evaluate_open(predictions, questions, groups={"free": ACTIVITYNET_FREE}, missing=missing)
    if "free" not in scores.groups:
        return scores
    divisor = sum(part.num_questions for part in list(scores.by_type.values())[3:])
    if not divisor:
        return scores
    free = scores.groups["free"]
    official = PartScore(free.score * free.num_questions / divisor, divisor)
    note = f"free_official divides by {divisor} questions where there are {free.num_questions}, as the official script"
    return replace(_noted(scores, note), groups=scores.groups | {"free_official": official})


def evaluate_counts(predictions: Mapping[str, float], questions: Sequence[Question]) -> QAScores:
    """Mean squared error of TGIF-QA's counts; a prediction is rounded, halves to even, and cut to 1 to 10.

    There is no error to count a missing prediction with: each question needs one.
    """

    def credit(question: Question, prediction: float) -> float:
        if not math.isfinite(prediction):
            raise ValueError(f"question {question.id}: prediction ({prediction}) must be a finite number")
        low, high = COUNT_RANGE
        return float((min(max(round(prediction), low), high) - int(question.answer)) ** 2)

    return scores_of("squared error", predictions, questions, credit)


def majority_accuracy(
    training: Iterable[Question], questions: Sequence[Question], *, by: Literal["type", "all"] = "type"
) -> QAScores:
    """Accuracy in percent of always giving the most frequent training answer, of the question's type or of all.

    Ties go to the answer that appears first. A type that training does not have gets the most frequent of all answers.
    """
    _check_choice("by", by, Literal["type", "all"])
    counts: defaultdict[str | None, Counter[str]] = defaultdict(Counter)
    for question in training:
        counts[None][question.answer] += 1
        counts[question.type][question.answer] += 1
    if not counts:
        raise ValueError("training has no questions to take the most frequent answer from")
    best = {type: counter.most_common(1)[0][0] for type, counter in counts.items()}
    predictions = {q.id: best.get(q.type if by == "type" else None, best[None]) for q in questions}
    scores = evaluate_open(predictions, questions)
    unknown = [type for type in scores.by_type if by == "type" and type not in best]
    return _noted(scores, f"no training question of type {', '.join(unknown)}") if unknown else scores


def scores_of(
    measure: str,
    predictions: Mapping[str, Any],
    questions: Sequence[Question],
    credit: Callable[[Any, Any], float],
    *,
    groups: Groups | None = None,
    counted_as: Mapping[str, str] | None = None,
    missing: Missing = "error",
) -> QAScores:
    """Means of `credit(question, prediction)` over all questions, each type and each group that has any.

    In percent, but for "squared error". Raises ValueError for no questions, one id twice, predictions for unknown
    questions, and, with "error", for questions without a prediction.
    """
    _check_choice("missing", missing, Missing)
    absent = _check_ids(predictions, [question.id for question in questions], missing)
    credits = {q.id: 0.0 if q.id in absent else credit(q, predictions[q.id]) for q in questions}
    scale = 1.0 if measure == "squared error" else 100.0
    values: dict[str, list[float]] = {}
    for question in questions:
        type = (counted_as or {}).get(question.type, question.type)
        values.setdefault(type, []).append(credits[question.id])

    def part(types: Iterable[str]) -> PartScore:
        chosen = [value for type in types for value in values.get(type, ())]
        return PartScore(scale * math.fsum(chosen) / len(chosen), len(chosen))

    return QAScores(
        measure=measure,
        score=part(values).score,
        num_questions=len(questions),
        by_type={type: part([type]) for type in values},
        groups={
            name: part(types) for name, types in (groups or {}).items() if any(t in values for t in types)
        },
        num_missing=len(absent),
        notes=(f"{len(absent)} questions have no prediction and count as wrong",) if absent else (),
        credit=credits,
    )


def normalised_words(text: str) -> str:
    """The words of an answer in lower case, without punctuation and articles, with one blank between them.

    The articles of an answer that has no other word stay: the letter "a" is not the same as no answer.
    """
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def _check_ids(predictions: Mapping[str, Any], ids: Sequence[str], missing: Missing) -> set[str]:
    """The ids that have no prediction."""
    if not ids:
        raise ValueError("there are no questions to score")
    twice = [id for id, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} question ids are there more than once: {_named(twice)}")
    known = set(ids)
    unknown = [id for id in predictions if id not in known]
    if unknown:
        raise ValueError(
            f"{len(unknown)} predictions are for no question: {_named(unknown)}; is it another split?"
        )
    absent = [id for id in ids if id not in predictions]
    if absent and missing == "error":
        raise ValueError(
            f"{len(absent)} of {len(ids)} questions have no prediction: {_named(absent)}; "
            'missing="wrong" counts them as wrong'
        )
    return set(absent)


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


def _noted(scores: QAScores, note: str) -> QAScores:
    return replace(scores, notes=(*scores.notes, note))


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} ({value!r}) must be one of {', '.join(get_args(choices))}")
