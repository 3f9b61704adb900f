"""Golden sets of the published code, the MSR-VTT test split, and what the scores must not depend on."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.videolm.metrics.captions import GOLDEN, by_id, golden_human_scores, human_captions
from videolm.metrics.captioning import evaluate

WORDS = st.sampled_from("a the man dog runs jumps red ball with and".split())  # noqa: SIM905
SENTENCES = st.lists(WORDS, min_size=4, max_size=8).map(" ".join)
SETS = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.tuples(SENTENCES, st.lists(SENTENCES, min_size=1, max_size=3)),
    min_size=1,
    max_size=5,
)


def split(pairs):
    return {video: pair[0] for video, pair in pairs.items()}, {
        video: pair[1] for video, pair in pairs.items()
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_sets_to_six_digits(name):
    hypotheses, references, expected = GOLDEN[name]
    scores = evaluate(by_id(hypotheses), by_id(references)).as_dict()
    for metric in scores.keys() & expected.keys():
        assert scores[metric] == pytest.approx(expected[metric], abs=5.1e-7), metric


def test_scores_of_one_video_are_reported():
    hypotheses, references, _ = GOLDEN["aac-metrics"]
    scores = evaluate(by_id(hypotheses), by_id(references))
    assert [video.cider for video in scores.per_video.values()] == pytest.approx([1.3641, 0.5587], abs=5e-5)
    assert scores.cider == pytest.approx(sum(video.cider for video in scores.per_video.values()) / 2)
    assert scores.per_video["video0"].bleu_4 == pytest.approx(1.0)
    assert scores.per_video["video0"].meteor is None


def test_the_result_says_what_it_was_computed_from():
    scores = evaluate(
        {"x": "a dog runs", "y": "a red ball"}, {"x": ["a dog", "the dog runs"], "y": ["a ball"] * 3}
    )
    assert (scores.num_videos, scores.min_references, scores.max_references) == (2, 2, 3)
    assert scores.tokenizer == "videolm-ptb-1"
    assert scores.scorer.startswith("pycocoevalcap 1.")
    assert scores.meteor is None
    assert list(scores.as_dict()) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]
    assert scores.notes == ()


@pytest.mark.slow
def test_msrvtt_human_captions_give_the_published_scores():
    scores = evaluate(*human_captions())
    expected = golden_human_scores()
    assert (scores.num_videos, scores.min_references, scores.max_references) == (2990, 19, 19)
    for metric, value in scores.as_dict().items():
        assert value == pytest.approx(expected[metric], abs=1e-9), metric


def test_a_hundred_msrvtt_videos_give_the_scores_after_the_java_tokenizer():
    hypotheses, references = human_captions()
    videos = sorted(hypotheses)[:100]
    scores = evaluate({v: hypotheses[v] for v in videos}, {v: references[v] for v in videos})
    # pycocoevalcap 1.2 with its own tokeniser on the same hundred
    expected = {
        "bleu_1": 0.7383474576263365,
        "bleu_2": 0.5216021382867466,
        "bleu_3": 0.35563429438541205,
        "bleu_4": 0.2430937313034559,
        "rouge_l": 0.5266494252505701,
        "cider": 0.4823494082083702,
    }
    assert scores.as_dict() == pytest.approx(expected, abs=1e-9)


@given(SETS, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_videos_does_not_matter(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    one = evaluate(*split(pairs))
    other = evaluate(*split({video: pairs[video] for video in shuffled}))
    assert one.as_dict() == other.as_dict()
    assert one.per_video == other.per_video
    assert list(other.per_video) == shuffled


@given(SETS)
@settings(max_examples=30, deadline=None)
def test_a_hypothesis_equal_to_a_reference_is_the_best(pairs):
    _, references = split(pairs)
    scores = evaluate({video: sentences[0] for video, sentences in references.items()}, references)
    assert scores.bleu_4 == pytest.approx(1.0)
    assert scores.rouge_l == pytest.approx(1.0)


@given(SETS)
@settings(max_examples=30, deadline=None)
def test_case_space_and_punctuation_do_not_matter_and_scores_keep_their_range(pairs):
    hypotheses, references = split(pairs)
    scores = evaluate(hypotheses, references)
    dressed = {video: f" {sentence.capitalize()} ." for video, sentence in hypotheses.items()}
    assert evaluate(dressed, references).as_dict() == scores.as_dict()
    assert 0 <= scores.cider <= 10 + 1e-9
    for value in (scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4, scores.rouge_l):
        assert 0 <= value <= 1


def test_one_reference_is_noted():
    scores = evaluate({"a": "a dog", "b": "a cat"}, {"a": ["a dog"], "b": ["a cat", "the cat"]})
    (note,) = scores.notes
    assert note.startswith("1 of 2 videos (the first is 'a') has one reference only")
    assert "retrieval split" in note


def test_an_empty_hypothesis_is_scored_and_noted():
    full = {"a": ["a dog runs", "the dog runs"], "b": ["a cat sleeps", "the cat sleeps"]}
    scores = evaluate({"a": "a dog runs", "b": " . "}, full)
    assert scores.notes == (
        "1 of 2 videos (the first is 'b') has a hypothesis without a word, scored as it is",
    )
    assert scores.num_videos == 2
    assert scores.per_video["b"].rouge_l == scores.per_video["b"].cider == 0
    assert scores.rouge_l == pytest.approx(0.5)


def test_only_empty_hypotheses_score_nothing():
    scores = evaluate({"a": "", "b": ""}, {"a": ["a dog", "the dog"], "b": ["a cat", "the cat"]})
    assert max(scores.as_dict().values()) < 1e-9


def test_a_reference_without_a_word_is_noted():
    scores = evaluate({"a": "a dog", "b": "a cat"}, {"a": ["a dog", "..."], "b": ["a cat", "the cat"]})
    assert scores.notes == (
        "1 of 2 videos (the first is 'a') has a reference without a word, counted as it is",
    )


def test_cider_of_one_video_is_noted():
    scores = evaluate({"a": "a dog runs"}, {"a": ["a dog runs", "the dog runs"]})
    assert scores.cider == 0
    assert "CIDEr of one video is 0 by its definition" in scores.notes[0]


def test_videos_on_one_side_only_are_named():
    with pytest.raises(ValueError, match=r"2 of 3 videos \(the first is 'b'\) have a hypothesis but no ref"):
        evaluate({"a": "x", "b": "x", "c": "x"}, {"a": ["x"]})
    with pytest.raises(
        ValueError, match=r"1 of 2 videos \(the first is 'b'\) has references but no hypothesis"
    ):
        evaluate({"a": "x"}, {"a": ["x"], "b": ["x"]})


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="hypotheses and references are empty"):
        evaluate({}, {})
    with pytest.raises(ValueError, match=r"1 of 2 videos \(the first is 'b'\) has no reference"):
        evaluate({"a": "x", "b": "x"}, {"a": ["x"], "b": []})
    with pytest.raises(ValueError, match="no reference has a word in it"):
        evaluate({"a": "x"}, {"a": ["", "..."]})


def test_one_string_for_references_is_an_error():
    with pytest.raises(TypeError, match=r"references of 'a' are one string: pass a list"):
        evaluate({"a": "a dog"}, {"a": "a dog"})


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(ImportError, match=r"pip install 'videolm\[metrics\]'"):
        evaluate({"a": "a dog"}, {"a": ["a dog"]})


def test_neither_java_nor_pycocotools_is_touched():
    code = (
        "import sys, subprocess; subprocess.Popen = None\n"
        "from videolm.metrics.captioning import evaluate\n"
        "assert 'pycocoevalcap' not in sys.modules\n"
        "evaluate({'a': 'a dog', 'b': 'a cat'}, {'a': ['a dog'], 'b': ['a cat']})\n"
        "assert 'pycocotools' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
