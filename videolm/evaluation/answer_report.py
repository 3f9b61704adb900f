"""The report of a benchmark of video question answering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videolm.datasets.questions import VideoQuestion
from videolm.datasets.vocabularies import Coverage
from videolm.evaluation.report import Report, write_samples
from videolm.metrics.videoqa import PartScore, QAScores
from videolm.types import Answer

_MOST_CANDIDATES = 10
_METHODS = {
    "generate": "written by the head for questions",
    "likelihood": "chosen by the likelihood of the head for questions",
    "similarity": "chosen by the similarity of sentence and video",
}


@dataclass(frozen=True, kw_only=True)
class AnswerReport(Report):
    """How many answers of a model are right."""

    qa: QAScores
    num_questions_listed: int
    """That the split has, whatever the limit."""
    method: str
    """How the answers came about, as in `Answer`."""
    majority: QAScores | None = None
    """Always the most frequent training answer of the question's type."""
    chance: float | None = None
    """Percent, of drawing one of the question's candidates."""
    coverage: Coverage | None = None
    """Of the vocabulary that was chosen from."""
    questions: Sequence[VideoQuestion]
    """Those that were asked."""
    answers: Mapping[str, Answer]
    """By question id."""

    def scores(self) -> dict[str, float]:
        """The score of all questions, of the most frequent answers, and by type."""
        scores = {self.qa.measure: self.qa.score}
        if self.majority is not None:
            scores["most frequent answers"] = self.majority.score
        scores |= {f"{self.qa.measure}, {type}": part.score for type, part in self.qa.by_type.items()}
        return {name: round(value, 1) for name, value in scores.items()}

    def counted(self) -> str:
        return f"{self.qa.num_questions:,} questions on {self.num_read:,} videos"

    def partial_warning(self) -> str:
        return (
            f"**Only {self.num_read:,} of {self.num_listed:,} videos were asked about, with "
            f"{self.qa.num_questions:,} of {self.num_questions_listed:,} questions.** The others are in no score: "
            "these numbers do not compare with those of the whole benchmark."
        )

    def tables(self) -> list[list[str]]:
        return [self._scores(), self._legend()]

    def details(self) -> dict[str, Any]:
        return {
            "measure": self.qa.measure,
            "score": self.qa.score,
            "num_questions": self.qa.num_questions,
            "num_questions_listed": self.num_questions_listed,
            "by_type": _as_json(self.qa.by_type),
            "groups": _as_json(self.qa.groups),
            "method": self.method,
            "majority": None
            if self.majority is None
            else {"score": self.majority.score, "by_type": _as_json(self.majority.by_type)},
            "chance": self.chance,
            "coverage": None
            if self.coverage is None
            else asdict(self.coverage) | {"percent": self.coverage.percent},
        }

    def save_samples(self, folder: Path) -> list[str]:
        """Writes per_sample.jsonl, of many candidates the ten with the highest scores."""
        write_samples(folder, (self._sample(question) for question in self.questions))
        return []

    def _sample(self, question: VideoQuestion) -> dict[str, Any]:
        answer = self.answers[question.id]
        scored = sorted(
            zip(answer.candidates, answer.scores, strict=True), key=lambda pair: pair[1], reverse=True
        )
        return {
            "question_id": question.id,
            "video_id": question.video_id,
            "type": question.type,
            "question": question.question,
            "answer": question.answer,
            "other_answers": list(question.other_answers),
            "prediction": answer.text,
            "score": self.qa.credit[question.id],
            "candidates": [
                {"text": text, "score": round(score, 4)} for text, score in scored[:_MOST_CANDIDATES]
            ],
        }

    def _scores(self) -> list[str]:
        unit = "squared error" if self.qa.measure == "squared error" else f"{self.qa.measure}, %"
        majority = self.majority.by_type if self.majority else {}
        columns = ["questions about", "number", unit, *(["most frequent answer"] if majority else [])]
        lines = [f"| {' | '.join(columns)} |", "| --- | --- | --- |" + (" --- |" if majority else "")]

        def line(name: str, part: PartScore, other: float | None) -> str:
            beside = f" {'-' if other is None else f'{other:.1f}'} |" if majority else ""
            digits = 3 if self.qa.measure == "squared error" else 1
            return f"| {name} | {part.num_questions:,} | {part.score:.{digits}f} |{beside}"

        whole = PartScore(self.qa.score, self.qa.num_questions)
        lines.append(line("**all**", whole, self.majority.score if self.majority else None))
        for name, part in self.qa.groups.items():
            lines.append(line(f"group {name}", part, None))
        for name, part in self.qa.by_type.items():
            lines.append(line(name, part, majority[name].score if name in majority else None))
        return lines

    def _legend(self) -> list[str]:
        lines = [f"Answers are {_METHODS[self.method]}."]
        if self.majority is not None:
            lines.append(
                "The most frequent answer: always that of the training questions of the same type, whatever is asked."
            )
        if self.chance is not None:
            lines.append(f"Drawing a candidate would give {self.chance:.1f} %.")
        if self.coverage is not None:
            lines.append(
                f"Coverage: {self.coverage.num_covered:,} of {self.coverage.num_questions:,} questions "
                f"({self.coverage.percent:.1f} %) have their answer in the vocabulary; more cannot be right."
            )
        return lines


def _as_json(parts: Mapping[str, PartScore]) -> dict[str, dict[str, Any]]:
    return {name: asdict(part) for name, part in parts.items()}
