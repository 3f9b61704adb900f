"""Answers measured on small benchmarks and on real annotation, against computations by hand."""

import gzip
import json
import shutil
import warnings
from dataclasses import replace

import pytest

from tests.data import data_path
from tests.tiny import speaking_model, tiny_model, write_clip
from videolm.datasets import nextqa
from videolm.datasets.protocol import CaptionProtocol, QuestionProtocol, RetrievalProtocol, protocol_of
from videolm.datasets.questions import VideoQuestion
from videolm.evaluation import evaluate
from videolm.evaluation.answer_rules import score_answers
from videolm.pipeline import answers as answering
from videolm.types import Answer

WRITTEN = QuestionProtocol(benchmark="msrvtt-qa")
CHOSEN = QuestionProtocol(benchmark="msrvtt-qa", answers="choose")


def row(number, video, question, answer, type, *candidates):
    made = {"id": number, "video_id": video, "question": question, "answer": answer, "category_id": 0}
    made |= {"type": type, "candidates": candidates, "answer_index": candidates.index(answer)}
    return made


TRAIN = [
    row(90, 9, "a circle", "red", "color", "red", "blue"),
    row(91, 9, "a circle", "red", "color", "red", "green"),
    row(92, 9, "a moves", "circle", "shape", "circle", "red"),
    row(93, 9, "a moves", "moves", "action", "moves", "red"),
]
TEST = [
    row(0, 0, "a circle", "red", "color", "red", "green", "blue"),
    row(1, 1, "a circle", "green", "color", "red", "green"),
    row(2, 0, "a moves", "circle", "shape", "circle", "a", "moves"),
    row(3, 2, "a red circle", "moves", "action", "moves", "a"),
    row(4, 1, "what is unheard", "blue", "color", "blue", "a"),
]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "train_qa.json").write_text(json.dumps(TRAIN))
    (folder / "test_qa.json").write_text(json.dumps(TEST))
    for number in range(3):
        write_clip(folder / "videos" / f"video{number}.mp4", seed=number)
    return folder


def saying(monkeypatch, texts):
    """A model that gives the answers in `texts`, one after the other."""
    model = speaking_model()
    waiting, asked = iter(texts), []

    def answer(paths, questions, *, candidates, **settings):
        asked.append(settings | {"candidates": candidates})
        return [
            Answer(next(waiting), question, str(path), "likelihood" if candidates else "generate", 1)
            for path, question in zip(paths, questions, strict=True)
        ]

    monkeypatch.setattr(model, "answer", answer)
    return model, asked


def test_answers_are_those_of_the_model_asked_alone_and_each_video_is_looked_at_once(benchmark, monkeypatch):
    seen = []
    look = answering.look

    def looking(eyes, clips, **settings):
        seen.extend(clip.source for clip in clips)
        return look(eyes, clips, **settings)

    monkeypatch.setattr(answering, "look", looking)
    report = evaluate(speaking_model(), benchmark, protocol=CHOSEN, show_progress_bar=False)
    assert seen == [str(benchmark / "videos" / f"video{i}.mp4") for i in (0, 1, 2)]
    model = speaking_model()
    right = {}
    for test in TEST:
        path = benchmark / "videos" / f"video{test['video_id']}.mp4"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="tiny does not know: is unheard what")
            said = model.answer(path, test["question"], candidates=test["candidates"])
        found = report.answers[str(test["id"])]
        assert (found.text, found.method) == (said.text, "likelihood")
        assert found.scores == pytest.approx(said.scores, abs=1e-4)
        right.setdefault(test["type"], []).append(said.text == test["answer"])
    assert {type: part.score for type, part in report.qa.by_type.items()} == {
        type: pytest.approx(100 * sum(rows) / len(rows)) for type, rows in right.items()
    }


def test_written_answers_are_right_where_they_equal_the_annotations(benchmark, monkeypatch):
    # by video: 0, 2, then 1, 4, then 3
    model, asked = saying(monkeypatch, ["red", "circle", "Green", "blue", "a"])
    report = evaluate(model, benchmark, protocol=WRITTEN, show_progress_bar=False)
    assert asked[0]["candidates"] is None
    assert report.qa.credit == {"0": 1.0, "1": 0.0, "2": 1.0, "3": 0.0, "4": 1.0}
    assert report.scores() == {
        "accuracy": 60.0,
        # red, red, circle, moves, red
        "most frequent answers": 60.0,
        "accuracy, color": 66.7,
        "accuracy, shape": 100.0,
        "accuracy, action": 0.0,
    }
    model, _ = saying(monkeypatch, ["red", "circle", "Green", "blue", "a"])
    protocol = QuestionProtocol(benchmark="msrvtt-qa", normalisation="words")
    assert evaluate(model, benchmark, protocol=protocol, show_progress_bar=False).qa.score == 80.0


def test_the_report_says_what_was_measured_beside_the_most_frequent_answer(benchmark, monkeypatch, tmp_path):
    model, _ = saying(monkeypatch, ["red", "circle", "green", "blue", "a"])
    report = evaluate(model, benchmark, protocol=WRITTEN, show_progress_bar=False)
    report.save(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "5 questions on 3 videos" in text.splitlines()[0]
    assert "| **all** | 5 | 80.0 | 60.0 |" in text
    assert "| color | 3 | 100.0 | 33.3 |" in text
    assert "Answers are written" in text
    assert "1 of 4 different questions have words that the model does not know: is, unheard, what" in text
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["score"], written["majority"]["score"], written["coverage"]) == (80.0, 60.0, None)
    assert written["by_type"]["color"] == {"score": 100.0, "num_questions": 3}
    assert written["protocol"].items() >= {"answers": "write", "max_new_tokens": 6}.items()
    rows = [json.loads(line) for line in (tmp_path / "per_sample.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert rows[3].items() >= {"prediction": "a", "answer": "moves", "score": 0.0, "type": "action"}.items()


def test_without_the_training_questions_the_baseline_is_left_out_and_that_is_said(benchmark, tmp_path):
    folder = shutil.copytree(benchmark, tmp_path / "benchmark")
    (folder / "train_qa.json").unlink()
    report = evaluate(speaking_model(), folder, protocol=WRITTEN, show_progress_bar=False)
    assert report.majority is None
    assert "most frequent training answer needs train_qa.json, which is not there" in report.markdown()
    with pytest.raises(FileNotFoundError, match=r"train_qa\.json"):
        evaluate(speaking_model(), folder, protocol=QuestionProtocol(benchmark="msrvtt-qa", vocabulary=2))


def test_a_vocabulary_is_of_the_most_frequent_training_answers_and_its_coverage_is_printed(
    benchmark, tmp_path
):
    protocol = QuestionProtocol(benchmark="msrvtt-qa", vocabulary=2)
    report = evaluate(speaking_model(), benchmark, protocol=protocol, show_progress_bar=False)
    assert {answer.candidates for answer in report.answers.values()} == {("red", "circle")}
    assert "Coverage: 2 of 5 questions (40.0 %)" in report.markdown()
    report.save(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "per_sample.jsonl").read_text().splitlines()]
    for row in rows:
        best, other = row["candidates"]
        assert row["prediction"] == best["text"]
        assert best["score"] >= other["score"]


def test_a_model_without_a_head_chooses_by_similarity_and_does_not_write(benchmark):
    # the tiny model reads eight tokens
    protocol = replace(CHOSEN, template="{question} {candidate}")
    report = evaluate(tiny_model(), benchmark, protocol=protocol, limit=1, show_progress_bar=False)
    assert report.method == "similarity"
    assert report.chance == pytest.approx(100 / 3)
    assert "chosen by the similarity" in report.markdown()
    with pytest.raises(ValueError, match="tiny has no videoqa head to write answers with"):
        evaluate(tiny_model(), benchmark, protocol=WRITTEN)


def test_a_video_that_cannot_be_read_leaves_with_its_questions(benchmark, tmp_path):
    folder = shutil.copytree(benchmark, tmp_path / "benchmark")
    (folder / "videos" / "video1.mp4").write_bytes(b"")
    report = evaluate(speaking_model(), folder, protocol=CHOSEN, show_progress_bar=False)
    assert [question.id for question in report.questions] == ["0", "2", "3"]
    assert (report.num_listed, report.num_read, len(report.failures)) == (3, 2, 1)
    assert "**Only 2 of 3 videos were asked about, with 3 of 5 questions.**" in report.markdown()


def test_published_predictions_on_nextqa_come_out_of_the_report_as_published(tmp_path, monkeypatch):
    folder = data_path("nextqa")
    with gzip.open(data_path("nextqa/HGA-bert-ft-h256-val-example.json.gz")) as file:
        published = json.load(file)
    questions = nextqa.read_split(folder, "val")
    by_video = {}
    for question in questions:
        by_video.setdefault(question.video_id, []).append(question)
        (tmp_path / f"{question.video_id}.mp4").touch()
    ordered = [question for group in by_video.values() for question in group]
    texts = [question.candidates[published[question.id]["prediction"]] for question in ordered]
    model, asked = saying(monkeypatch, texts)
    # the tiny model has few words, and is not asked
    monkeypatch.setattr("videolm.evaluation.videoqa._check_told_apart", lambda *_: None)
    protocol = QuestionProtocol(benchmark="nextqa", split="val")
    report = evaluate(model, folder, protocol=protocol, videos=tmp_path, show_progress_bar=False)
    assert report.scores()["accuracy"] == 49.7
    text = report.markdown()
    assert "4,996 questions on 570 videos" in text
    for line in ("group C | 2,607 | 46.3", "group T | 1,612 | 50.7", "group D | 777 | 59.3"):
        assert line in text
    # equal candidates are offered once
    assert sum(len(row) == 4 for part in asked for row in part["candidates"]) == 3
    assert report.majority is None
    assert report.chance == pytest.approx(20, abs=0.1)


def question(id, answer, type="TN", *, other=()):
    return VideoQuestion(id, "v", "why", answer, type, other_answers=other)


def test_counts_are_scored_by_their_squared_error():
    scores = score_answers(
        {"a": "3", "b": "10"},
        [question("a", "5", "count"), question("b", "10", "count")],
        protocol=QuestionProtocol(benchmark="tgif-count"),
    )
    assert (scores.measure, scores.score) == ("squared error", 2.0)


class EqualWords:
    """Words that are near to none but themselves."""

    def lemmas(self, sentence):
        return sentence.split()

    def similarity(self, first, second):
        return 0.0


def test_nextoe_is_scored_by_wups_or_where_that_is_asked_for_by_accuracy():
    asked, texts = [question("a", "red ball"), question("b", "dog", other=("cat",))], {"a": "red", "b": "cat"}
    protocol = QuestionProtocol(benchmark="nextoe")
    scores = score_answers(texts, asked, protocol=protocol, words=EqualWords())
    assert (scores.measure, scores.credit["b"]) == ("WUPS", 1.0)
    with pytest.raises(ValueError, match="WUPS needs words"):
        score_answers(texts, asked, protocol=protocol)
    exact = QuestionProtocol(benchmark="nextoe", measure="accuracy")
    assert score_answers(texts, asked, protocol=exact).groups["T"].score == 50.0


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (
            QuestionProtocol(benchmark="tgif-count", vocabulary=5),
            "tgif-count asks for numbers, chosen from 1 to 10",
        ),
        (
            QuestionProtocol(benchmark="nextqa", normalisation="words"),
            r"normalisation \('words'\) is for answers that are compared",
        ),
        (
            QuestionProtocol(benchmark="msrvtt-qa", split="dev"),
            r"split \('dev'\) must be one of test, val, train",
        ),
    ],
    ids=["count", "normalisation", "split"],
)
def test_rules_that_do_not_go_together_are_an_error_before_any_file(protocol, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate(speaking_model(), tmp_path, protocol=protocol)


def test_candidates_that_a_model_does_not_tell_apart_are_an_error_before_any_video(tmp_path, benchmark):
    folder = shutil.copytree(benchmark, tmp_path / "benchmark")
    (folder / "test_qa.json").write_text(json.dumps([row(0, 0, "a", "left", "color", "left", "right")]))
    (folder / "videos" / "video0.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tiny does not tell the candidates \['left', 'right'\] apart"):
        evaluate(speaking_model(), folder, protocol=CHOSEN)
    with pytest.raises(ValueError, match="are not told apart behind 'a'"):
        evaluate(tiny_model(), folder, protocol=CHOSEN)


def test_questions_without_candidates_cannot_be_chosen_from(tmp_path):
    rows = [{key: TEST[0][key] for key in ("id", "video_id", "question", "answer", "category_id")}]
    (tmp_path / "test_qa.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"1 of 1 questions of msrvtt-qa have no candidates .*\(0 first\)"):
        evaluate(speaking_model(), tmp_path, protocol=CHOSEN)


def test_a_vocabulary_is_what_is_chosen_from():
    with pytest.raises(ValueError, match=r"vocabulary \(5\) and answers \('write'\) cannot both be"):
        QuestionProtocol(benchmark="msrvtt-qa", vocabulary=5, answers="write")


@pytest.mark.parametrize(
    ("benchmark", "kind"),
    [
        ("msvd", RetrievalProtocol),
        ("vatex-captions", CaptionProtocol),
        ("tgif-action", QuestionProtocol),
    ],
)
def test_a_benchmark_has_one_kind_of_protocol(benchmark, kind):
    assert protocol_of(benchmark, num_frames=4) == kind(benchmark=benchmark, num_frames=4)


def test_a_rule_of_another_kind_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"dsl \(True\) is no rule of nextqa; it has benchmark, split"):
        protocol_of("nextqa", dsl=True)
    with pytest.raises(ValueError, match=r"benchmark \('coco'\) must be one of .*msrvtt-captions.*nextqa"):
        protocol_of("coco")


@pytest.mark.parametrize("name", ["num_beams", "max_new_tokens", "budget", "vocabulary", "num_frames"])
def test_numbers_below_one_are_an_error(name):
    with pytest.raises(ValueError, match=rf"{name} \(0\) must be at least 1"):
        QuestionProtocol(benchmark="msrvtt-qa", **{name: 0})
