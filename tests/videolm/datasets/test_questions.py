"""Questions as values, the answers a classifier can give, and how a question gets its type."""

import json
from dataclasses import replace

import pytest

from tests.data import data_path
from videolm.datasets import msrvtt_qa, msvd_qa
from videolm.datasets.question_catalog import QUESTION_BENCHMARKS, find_question_benchmark
from videolm.datasets.questions import VideoQuestion, the_one_of, words_type
from videolm.datasets.vocabularies import Coverage, build_vocabulary, coverage, read_vocabulary


def asked(answer, *others, id="1"):
    return VideoQuestion(id, "video0", "what is it", answer, "what", other_answers=others)


def test_an_empty_candidate_keeps_its_place_and_is_no_choice():
    question = replace(asked("b"), candidates=("a", "", "b", " "), answer_index=2)
    assert question.mask == (True, False, True, False)
    assert asked("b").mask == ()


@pytest.mark.parametrize(
    ("candidates", "answer_index", "message"),
    [
        (("a", "b"), None, r"answer_index \(None\) and 2 candidates: give both or none"),
        ((), 0, r"answer_index \(0\) and 0 candidates: give both or none"),
        (("a", "b"), 2, r"answer_index \(2\) must be in \[0, 2\)"),
        (("a", "b"), -1, r"answer_index \(-1\) must be in \[0, 2\)"),
        (("a", "b"), 0, "candidate 0 is 'a', but the answer is 'b'"),
    ],
)
def test_candidates_and_answer_fit_or_are_an_error(candidates, answer_index, message):
    with pytest.raises(ValueError, match=f"question 1: {message}"):
        replace(asked("b"), candidates=candidates, answer_index=answer_index)


@pytest.mark.parametrize(
    ("question", "just_ask", "first_word"),
    [
        ("what color is the car", "color", "what"),
        ("who is colored", "color", "who"),
        ("How many men run", "how", "how"),
        ("when does it end", "when", "when"),
        ("where is it", "where", "where"),
        ("does it move", "other", "other"),
    ],
)
def test_the_type_is_the_first_word_and_by_just_ask_color_before_it(question, just_ask, first_word):
    assert words_type(question) == just_ask
    assert words_type(question, rule="first-word") == first_word


def test_of_two_possible_files_there_is_one_or_it_is_an_error(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "a.csv"]
    assert the_one_of(paths) == paths[0]
    (tmp_path / "a.csv.gz").touch()
    assert the_one_of(paths) == paths[1]
    paths[0].touch()
    with pytest.raises(ValueError, match=r"holds a\.json and a\.csv, which may differ; leave one of them"):
        the_one_of(paths)


def test_a_vocabulary_has_the_most_frequent_answers_first_and_of_equals_the_first():
    questions = [asked(answer) for answer in ("dog", "cat", "man", "cat", "man", "bird")]
    assert build_vocabulary(questions) == ("cat", "man", "dog", "bird")
    assert build_vocabulary(questions, size=3) == ("cat", "man", "dog")
    covered = coverage(("cat", "sea"), [*questions, asked("ocean", "sea")])
    assert covered == Coverage(3, 7)
    assert covered.percent == pytest.approx(300 / 7)


def test_a_vocabulary_needs_questions_and_a_size():
    with pytest.raises(ValueError, match="no questions to take answers from"):
        build_vocabulary([])
    with pytest.raises(ValueError, match=r"size \(0\) must be at least 1"):
        build_vocabulary([asked("a")], size=0)
    with pytest.raises(ValueError, match="no questions to cover"):
        coverage(("a",), [])


@pytest.mark.parametrize("value", [["b", "a"], {"a": 1, "b": 0}], ids=["list", "labels"])
def test_both_forms_of_a_vocabulary_file_are_read_by_label(tmp_path, value):
    path = tmp_path / "ans.json"
    path.write_text(json.dumps(value))
    assert read_vocabulary(path) == ("b", "a")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1, "b": 2}, "labels must be 0 to 1, each once"),
        ({"a": 0, "b": True}, "labels must be 0 to 1, each once"),
        ({"a": 0, "b": 0}, "labels must be 0 to 1, each once"),
        (["a", "b", "a"], "1 ids are there more than once: a"),
        (["a", 1], "must hold a list of answers"),
        ([], "must hold a list of answers"),
        ({}, "must hold a list of answers"),
        ("a", "must hold a list of answers"),
    ],
)
def test_a_vocabulary_file_that_is_neither_is_an_error(tmp_path, value, message):
    path = tmp_path / "ans.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message):
        read_vocabulary(path)


def test_the_real_vocabularies_leave_3_and_6_percent_of_the_answers_out():
    msrvtt = read_vocabulary(data_path("msrvtt_qa/ans_word.json"))
    assert len(msrvtt) == 4000
    validation = msrvtt_qa.read_split(data_path("msrvtt_qa"), "val")
    assert coverage(msrvtt, validation).percent == pytest.approx(96.99, abs=0.005)
    msvd = build_vocabulary(msvd_qa.read_split(data_path("msvd_qa"), "train"))
    assert len(msvd) == len(read_vocabulary(data_path("msvd_qa/ans_word.json"))) == 1852
    test = msvd_qa.read_split(data_path("msvd_qa"), "test")
    assert coverage(msvd, test).percent == pytest.approx(94.08, abs=0.005)


def test_every_question_benchmark_says_where_it_is_from_and_a_wrong_name_lists_them():
    for benchmark in QUESTION_BENCHMARKS.values():
        assert "http" in benchmark.source
        assert benchmark.terms
        assert {"train", "test"} <= set(benchmark.splits)
    assert find_question_benchmark("nextqa").title == "NExT-QA, multiple choice"
    with pytest.raises(ValueError, match=r"benchmark \('nextq'\) must be one of msrvtt-qa, msvd-qa, nextqa"):
        find_question_benchmark("nextq")
