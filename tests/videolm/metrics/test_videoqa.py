"""Answers against questions: published predictions with their published figures, and cases counted by hand."""

import gzip
import json

import pytest

from tests.data import data_path
from tests.videolm.metrics.asked import Asked
from videolm.datasets import activitynet_qa, nextqa
from videolm.metrics.videoqa import (
    evaluate_activitynet,
    evaluate_choice,
    evaluate_counts,
    evaluate_nextqa,
    evaluate_open,
    majority_accuracy,
    normalised_words,
)


def read_gz(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def rounded(scores, digits=2):
    parts = {name: round(part.score, digits) for name, part in (scores.by_type | scores.groups).items()}
    return parts | {"all": round(scores.score, digits)}


def test_published_predictions_on_nextqa_have_the_figures_of_the_papers_table():
    questions = nextqa.read_split(data_path("nextqa"), "val")
    published = read_gz(data_path("nextqa/HGA-bert-ft-h256-val-example.json.gz"))
    scores = evaluate_nextqa({id: row["prediction"] for id, row in published.items()}, questions)
    assert rounded(scores) == {
        "CW": 46.99,
        "CH": 44.22,
        "C": 46.26,
        "TN": 49.53,
        "TC": 52.49,
        "T": 50.74,
        "DC": 44.07,
        "DL": 72.54,
        "DO": 55.41,
        "D": 59.33,
        "all": 49.74,
    }
    assert scores.by_type["TN"].num_questions == 895 + 54
    assert sum(scores.credit.values()) == round(0.4974 * 4996)


def test_the_example_predictions_on_activitynet_qa_have_the_scripts_figures_and_the_right_free():
    questions = activitynet_qa.read_split(data_path("activitynet_qa"), "val")
    published = read_gz(data_path("activitynet_qa/pred_val_example.json.gz"))
    scores = evaluate_activitynet({row["question_id"]: row["answer"] for row in published}, questions)
    assert rounded(scores) == {
        "motion": 18.78,
        "spatial": 22.33,
        "temporal": 3.50,
        "yes/no": 76.34,
        "color": 33.67,
        "object": 22.16,
        "location": 28.75,
        "number": 64.03,
        "other": 35.80,
        "free": 50.55,
        "free_official": 75.83,
        "all": 39.84,
    }
    assert scores.groups["free"].num_questions == 12_600
    assert scores.notes == (
        "free_official divides by 8399 questions where there are 12600, as the official script",
    )


def test_an_open_answer_is_compared_as_it_is_and_by_words_only_where_asked():
    questions = [Asked("1", "couch"), Asked("2", "two", "how"), Asked("3", "sea", other_answers=("water",))]
    predictions = {"1": "A couch.", "2": "two", "3": "water"}
    exact = evaluate_open(predictions, questions)
    assert exact.credit == {"1": 0.0, "2": 1.0, "3": 1.0}
    assert (exact.score, exact.num_questions, exact.notes) == (pytest.approx(200 / 3), 3, ())
    assert {type: (part.score, part.num_questions) for type, part in exact.by_type.items()} == {
        "what": (50.0, 2),
        "how": (100.0, 1),
    }
    words = evaluate_open(predictions, questions, normalisation="words")
    assert words.score == 100.0
    assert words.notes == ("answers compared as words, not exactly",)


def test_words_lose_case_punctuation_and_articles():
    assert normalised_words(" The cat's  A-frame, an owl! ") == "cat s frame owl"


def test_an_answer_of_articles_alone_keeps_them():
    assert (normalised_words("A."), normalised_words("the an"), normalised_words("...")) == (
        "a",
        "the an",
        "",
    )
    questions = [Asked("1", "a"), Asked("2", "a")]
    scores = evaluate_open({"1": "A.", "2": ""}, questions, normalisation="words")
    assert scores.credit == {"1": 1.0, "2": 0.0}


def test_a_choice_is_right_where_its_text_is_and_equal_candidates_are_told():
    questions = [
        Asked("1", "a", candidates=("a", "b", "a")),
        Asked("2", "b", candidates=("a", "b", "")),
        Asked("3", "b", candidates=("a", "b", "")),
    ]
    scores = evaluate_choice({"1": 2, "2": 1, "3": 2}, questions)
    assert scores.credit == {"1": 1.0, "2": 1.0, "3": 0.0}
    assert scores.notes == ("1 questions have the right candidate twice; either is right",)


@pytest.mark.parametrize("place", [-1, 2])
def test_a_choice_of_no_candidate_is_an_error(place):
    with pytest.raises(ValueError, match=rf"question 1: prediction \({place}\) must be in \[0, 2\)"):
        evaluate_choice({"1": place}, [Asked("1", "a", candidates=("a", "b"))])


def test_counts_are_rounded_and_cut_before_their_error_is_squared():
    questions = [Asked(str(i), answer, "count") for i, answer in enumerate(["2", "10", "1", "4"])]
    scores = evaluate_counts({"0": 2.4, "1": 37.0, "2": -3.0, "3": 6.5}, questions)
    assert scores.credit == {"0": 0.0, "1": 0.0, "2": 0.0, "3": 4.0}
    assert (scores.measure, scores.score) == ("squared error", 1.0)
    with pytest.raises(ValueError, match=r"question 0: prediction \(nan\) must be a finite number"):
        evaluate_counts({"0": float("nan")}, questions[:1])


def test_free_official_is_the_scripts_order_of_types_and_not_their_meaning():
    types = ["other", "number", "color", "motion", "spatial", "temporal"]
    questions = [Asked(type, "x", type) for type in types] + [Asked("more", "x", "motion")]
    scores = evaluate_activitynet({q.id: "x" for q in questions}, questions)
    assert (scores.groups["free"].score, scores.groups["free"].num_questions) == (100.0, 3)
    # the three free types come first and are left out of the divisor, which is 2 + 1 + 1
    assert (scores.groups["free_official"].score, scores.groups["free_official"].num_questions) == (75.0, 4)


def test_the_majority_baseline_gives_each_type_its_most_frequent_answer_and_the_first_of_equals():
    training = [Asked("1", "red", "color"), Asked("2", "blue", "color"), *(Asked(i, "man") for i in "345")]
    questions = [
        Asked("a", "red", "color"),
        Asked("b", "blue", "color"),
        Asked("c", "man"),
        Asked("d", "man", "who"),
    ]
    by_type = majority_accuracy(training, questions)
    assert by_type.credit == {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}
    assert by_type.notes == ("no training question of type who",)
    over_all = majority_accuracy(training, questions, by="all")
    assert over_all.credit == {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0}
    assert over_all.notes == ()
    with pytest.raises(ValueError, match="training has no questions"):
        majority_accuracy([], questions)


def test_a_missing_prediction_is_an_error_or_wrong_and_never_left_out():
    questions = [Asked("1", "x"), Asked("2", "x"), Asked("3", "x")]
    with pytest.raises(ValueError, match=r"2 of 3 questions have no prediction: 2, 3; missing=\"wrong\""):
        evaluate_open({"1": "x"}, questions)
    scores = evaluate_open({"1": "x"}, questions, missing="wrong")
    assert (scores.score, scores.num_questions, scores.num_missing) == (pytest.approx(100 / 3), 3, 2)
    assert scores.notes == ("2 questions have no prediction and count as wrong",)


@pytest.mark.parametrize(
    ("predictions", "ids", "message"),
    [
        ({}, "", "there are no questions to score"),
        ({"1": "x"}, "11", "1 question ids are there more than once: 1"),
        ({"1": "x", "9": "x"}, "1", "1 predictions are for no question: 9; is it another split"),
    ],
    ids=["none", "twice", "unknown"],
)
def test_questions_and_predictions_that_do_not_fit_are_errors(predictions, ids, message):
    with pytest.raises(ValueError, match=message):
        evaluate_open(predictions, [Asked(id, "x") for id in ids])


def test_a_rule_that_is_not_known_is_an_error():
    # the shape checker of the tests would refuse it before the function does
    plain = getattr(evaluate_open, "__wrapped__", evaluate_open)
    with pytest.raises(ValueError, match=r"normalisation \('vqa'\) must be one of exact, words"):
        plain({"1": "x"}, [Asked("1", "x")], normalisation="vqa")
