"""A model on a benchmark of video question answering: every question of a video asked while it is looked at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from videolm.datasets.annotations import check_split
from videolm.datasets.protocol import QuestionProtocol
from videolm.datasets.question_catalog import QuestionBenchmark, find_question_benchmark
from videolm.datasets.questions import VideoQuestion
from videolm.datasets.vocabularies import coverage
from videolm.evaluation.answer_report import AnswerReport
from videolm.evaluation.answer_rules import (
    Choices,
    Rule,
    chance_of,
    check_normalisation,
    has_majority,
    make_choices,
    measure_of,
    rule_of,
    score_answers,
)
from videolm.evaluation.conditions import Run, decoder_notes, describe_benchmark, written_conditions
from videolm.evaluation.speaking import (
    ask_each,
    describe_head,
    unknown_words_notes,
    without_word_warnings,
)
from videolm.evaluation.videos import find_files
from videolm.metrics.videoqa import majority_accuracy
from videolm.metrics.wups import WordNet
from videolm.pipeline import VideoLM
from videolm.pipeline.answers import SIMILARITY_TEMPLATE, Asked, check_sentences_differ
from videolm.pipeline.video_lm import describe_environment
from videolm.types import Answer, Failure


def evaluate_answers(model: VideoLM, protocol: QuestionProtocol, run: Run) -> AnswerReport:
    """Asks all questions of a split, by video, and scores the answers as the benchmark has it."""
    benchmark = find_question_benchmark(protocol.benchmark)
    check_split(protocol.split, benchmark.splits)
    rule = rule_of(protocol)
    check_normalisation(protocol, rule)
    if rule == "write" and "videoqa" not in model.heads:
        raise ValueError(
            f"{model.info.name} has no videoqa head to write answers with; vocabulary= (--vocabulary) chooses among "
            "training answers by similarity"
        )
    listed = benchmark.read(run.folder, protocol.split)
    training, training_note = _training(benchmark, run.folder, is_needed=rule == "vocabulary")
    choices = make_choices(rule, protocol, listed, training)
    words = WordNet() if measure_of(protocol, rule) == "WUPS" else None
    ids = list(dict.fromkeys(question.video_id for question in listed))
    limited = ids[: run.limit]
    paths = find_files(run.videos, limited, allow_missing=run.allow_missing)
    asked = _by_video(listed, paths)
    if rule != "write":
        _check_told_apart(model, [q for rows in asked.values() for q in rows], choices, protocol)
    answers, failures = _ask(model, protocol, run, paths, asked, choices)
    questions = [question for question in listed if question.id in answers]
    texts = {question.id: answers[question.id].text for question in questions}
    covered = coverage(choices.vocabulary, questions) if rule == "vocabulary" else None
    scores = score_answers(texts, questions, protocol=protocol, words=words)
    return AnswerReport(
        model=model.info,
        benchmark=describe_benchmark(benchmark.title, run.folder, protocol.split),
        protocol=written_conditions(model, protocol, run) | _written_rule(model, protocol, rule),
        num_listed=len(ids),
        num_read=len({question.video_id for question in questions}),
        missing=[video_id for video_id in limited if video_id not in paths],
        failures=failures,
        environment=describe_environment(model.device) | ({"nltk": version("nltk")} if words else {}),
        notes=[
            *scores.notes,
            *([] if training or not has_majority(protocol, scores) else [training_note]),
            *_word_notes(model, questions, choices),
            *decoder_notes(protocol),
        ],
        qa=scores,
        num_questions_listed=len(listed),
        method=answers[questions[0].id].method,
        majority=majority_accuracy(training, questions)
        if training and has_majority(protocol, scores)
        else None,
        chance=chance_of(questions, choices),
        coverage=covered,
        questions=questions,
        answers=answers,
    )


def _training(
    benchmark: QuestionBenchmark, folder: Path, *, is_needed: bool
) -> tuple[list[VideoQuestion], str]:
    """The questions of the training split, and what to say where they are not there."""
    try:
        return benchmark.read(folder, "train"), ""
    except FileNotFoundError as error:
        if is_needed:
            raise
        name = Path(error.filename or folder).name
        return [], f"the baseline of the most frequent training answer needs {name}, which is not there"


def _check_told_apart(
    model: VideoLM, questions: Sequence[VideoQuestion], choices: Choices, protocol: QuestionProtocol
) -> None:
    """ValueError for candidates that are the same to the model: better known now than after hours of videos."""
    if "videoqa" not in model.heads:
        if model.tokenizer is not None:
            pairs = [("", Asked(question.question, choices.of(question))) for question in questions]
            check_sentences_differ(pairs, model.tokenizer, template=_template(protocol))
        return
    tokenizer = model.heads["videoqa"].tokenizer
    for candidates in dict.fromkeys(choices.of(question) for question in questions):
        written = [tuple(row) for row in tokenizer.targets(candidates)[0].tolist()]
        if len(set(written)) < len(written):
            raise ValueError(
                f"{model.info.name} does not tell the candidates {list(candidates)} apart: some are the same words in "
                f"its vocabulary, so {protocol.benchmark} cannot be chosen from by it"
            )


def _template(protocol: QuestionProtocol) -> str:
    return SIMILARITY_TEMPLATE if protocol.template is None else protocol.template


def _by_video(
    questions: Sequence[VideoQuestion], paths: Mapping[str, Path]
) -> dict[str, list[VideoQuestion]]:
    asked: dict[str, list[VideoQuestion]] = {video_id: [] for video_id in paths}
    for question in questions:
        if question.video_id in asked:
            asked[question.video_id].append(question)
    return asked


def _ask(
    model: VideoLM,
    protocol: QuestionProtocol,
    run: Run,
    paths: Mapping[str, Path],
    asked: Mapping[str, Sequence[VideoQuestion]],
    choices: Choices,
) -> tuple[dict[str, Answer], list[Failure]]:
    """Answers by question id."""

    def ask(ids: Sequence[str]) -> list[list[Answer] | Failure]:
        rows = [question for video_id in ids for question in asked[video_id]]
        # a video that stands in several pairs in a row is looked at once
        found = iter(
            model.answer(
                [paths[question.video_id] for question in rows],
                [question.question for question in rows],
                candidates=None if choices.rule == "write" else [choices.of(question) for question in rows],
                num_beams=protocol.num_beams,
                max_new_tokens=protocol.max_new_tokens,
                num_frames=protocol.num_frames,
                sampler=protocol.sampler,
                budget=protocol.budget,
                batch_size=run.batch_size,
                decoder=protocol.decoder,
                on_error="skip",
                template=_template(protocol),
            )
        )
        return [_of_video([next(found) for _ in asked[video_id]]) for video_id in ids]

    with without_word_warnings():
        answers, failures = ask_each(paths, ask, show_progress_bar=run.show_progress_bar)
    return {
        question.id: answer
        for video_id, said in answers.items()
        for question, answer in zip(asked[video_id], said, strict=True)
    }, failures


def _of_video(found: Sequence[Answer | Failure]) -> list[Answer] | Failure:
    """A video that cannot be read fails with all of its questions."""
    if isinstance(found[0], Failure):
        return found[0]
    return [answer for answer in found if isinstance(answer, Answer)]


def _written_rule(model: VideoLM, protocol: QuestionProtocol, rule: Rule) -> dict[str, Any]:
    head = describe_head(model, "videoqa", protocol) if "videoqa" in model.heads else {}
    return head | {"answers": rule}


def _word_notes(model: VideoLM, questions: Sequence[VideoQuestion], choices: Choices) -> list[str]:
    tokenizer = model.heads["videoqa"].tokenizer if "videoqa" in model.heads else model.tokenizer
    if tokenizer is None:
        return []
    notes = unknown_words_notes((q.question for q in questions), tokenizer, of="questions")
    texts = (text for question in questions for text in choices.of(question))
    return notes + unknown_words_notes(texts, tokenizer, of="candidates")
