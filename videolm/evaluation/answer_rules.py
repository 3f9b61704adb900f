"""How the benchmarks of questions are asked and scored: written or chosen, of what, and by which measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from videolm.datasets.protocol import QuestionProtocol
from videolm.datasets.questions import VideoQuestion
from videolm.datasets.vocabularies import build_vocabulary
from videolm.metrics.videoqa import (
    COUNT_RANGE,
    NEXTQA_GROUPS,
    QAScores,
    evaluate_activitynet,
    evaluate_choice,
    evaluate_counts,
    evaluate_nextqa,
    evaluate_open,
)
from videolm.metrics.wups import Words, evaluate_wups

Rule = Literal["write", "choose", "vocabulary", "count"]
"""In words of the model's own; one of the question's candidates; one of the most frequent training answers; one of the
numbers that a count is cut to."""
_OWN_RULES: Mapping[str, Rule] = {
    "nextqa": "choose",
    "tgif-transition": "choose",
    "tgif-action": "choose",
    "tgif-count": "count",
}


@dataclass(frozen=True)
class Choices:
    """What is chosen from, question by question."""

    rule: Rule
    vocabulary: tuple[str, ...] = ()

    def of(self, question: VideoQuestion) -> tuple[str, ...]:
        """The candidates, without empty ones and, of equal ones, with the first."""
        candidates = question.candidates if self.rule == "choose" else self.vocabulary
        distinct: dict[str, str] = {}
        for text in candidates:
            if text.strip():
                distinct.setdefault(text.strip(), text)
        return tuple(distinct.values())


def rule_of(protocol: QuestionProtocol) -> Rule:
    """What the protocol says, or the benchmark itself where it says nothing."""
    own = _OWN_RULES.get(protocol.benchmark, "write")
    if own == "count":
        if protocol.answers != "auto" or protocol.vocabulary is not None:
            raise ValueError(
                f"{protocol.benchmark} asks for numbers, chosen from {COUNT_RANGE[0]} to {COUNT_RANGE[1]}; leave "
                "answers and vocabulary out"
            )
        return own
    if protocol.vocabulary is not None:
        return "vocabulary"
    return own if protocol.answers == "auto" else protocol.answers


def check_normalisation(protocol: QuestionProtocol, rule: Rule) -> None:
    """ValueError for a way to compare texts where none are compared."""
    is_compared = rule in ("write", "vocabulary") and measure_of(protocol, rule) == "accuracy"
    if protocol.normalisation != "exact" and not is_compared:
        raise ValueError(
            f"normalisation ({protocol.normalisation!r}) is for answers that are compared word for word, which those "
            f"of {protocol.benchmark} are not here; leave it out"
        )


def measure_of(protocol: QuestionProtocol, rule: Rule) -> Literal["WUPS", "accuracy"]:
    """What answers as text are scored by."""
    is_open = protocol.benchmark == "nextoe" and rule in ("write", "vocabulary")
    return "WUPS" if is_open and protocol.measure == "auto" else "accuracy"


def make_choices(
    rule: Rule,
    protocol: QuestionProtocol,
    questions: Sequence[VideoQuestion],
    training: Sequence[VideoQuestion],
) -> Choices:
    """ValueError for a question without candidates of its own where those are asked for."""
    if rule == "vocabulary":
        return Choices(rule, build_vocabulary(training, size=protocol.vocabulary))
    if rule == "count":
        return Choices(rule, tuple(str(n) for n in range(COUNT_RANGE[0], COUNT_RANGE[1] + 1)))
    if rule == "choose" and (open_ones := [q.id for q in questions if not q.candidates]):
        raise ValueError(
            f"{len(open_ones)} of {len(questions)} questions of {protocol.benchmark} have no candidates to choose "
            f"from ({open_ones[0]} first): leave answers out, or give a vocabulary"
        )
    return Choices(rule)


def score_answers(
    texts: Mapping[str, str],
    questions: Sequence[VideoQuestion],
    *,
    protocol: QuestionProtocol,
    words: Words | None = None,
) -> QAScores:
    """The measure of a benchmark of answers as text, by question id; NExT-OE's takes WordNet as `words`."""
    rule = rule_of(protocol)
    measure = measure_of(protocol, rule)
    if rule == "count":
        return evaluate_counts({id: float(text) for id, text in texts.items()}, questions)
    if rule == "choose":
        # a candidate that is there twice was offered once, and either is right
        places = {q.id: q.candidates.index(texts[q.id]) for q in questions}
        choose = evaluate_nextqa if protocol.benchmark == "nextqa" else evaluate_choice
        return choose(places, questions)
    if measure == "WUPS":
        if words is None:
            raise ValueError("WUPS needs words, as WordNet() has them")
        return evaluate_wups(texts, questions, words)
    if protocol.benchmark == "activitynet-qa" and protocol.normalisation == "exact":
        return evaluate_activitynet(texts, questions)
    groups = NEXTQA_GROUPS if protocol.benchmark == "nextoe" else None
    return evaluate_open(texts, questions, normalisation=protocol.normalisation, groups=groups)


def has_majority(protocol: QuestionProtocol, scores: QAScores) -> bool:
    """Whether questions share their answers, so that the most frequent one of training is a baseline."""
    return scores.measure == "accuracy" and _OWN_RULES.get(protocol.benchmark) != "choose"


def chance_of(questions: Sequence[VideoQuestion], choices: Choices) -> float | None:
    """Accuracy in percent of drawing a candidate; None where they are not the question's own."""
    if choices.rule != "choose":
        return None
    return 100 * sum(1 / len(choices.of(question)) for question in questions) / len(questions)
