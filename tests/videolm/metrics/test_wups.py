"""WUPS by a small taxonomy whose similarities are known, and what is said where NLTK or its data is missing."""

import sys
from types import ModuleType

import pytest

from tests.videolm.metrics.asked import Asked
from videolm.metrics.wups import STOP_WORDS, WordNet, evaluate_wups, wups

_SIMILAR = {frozenset(("dog", "cat")): 0.8, frozenset(("dog", "chair")): 0.5, frozenset(("run", "walk")): 0.6}


class SmallWords:
    """Lemmas by cutting an s off, and a few similarities."""

    def lemmas(self, sentence):
        return [
            word.removesuffix("s") if word not in STOP_WORDS else word for word in sentence.lower().split()
        ]

    def similarity(self, first, second):
        return _SIMILAR.get(frozenset((first, second)), 0.0)


def similarity(first, second):
    return SmallWords().similarity(first, second)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("dog", "dog", 1.0),
        ("dog", "cat", 0.8),
        ("dog run", "cat walk", 0.8 * 0.6),
        # a word near to nothing is left out of the product, from both sides
        ("dog piano", "dog", 1.0),
        # the chair is 0.5 from the dog: too much said costs
        ("dog chair", "dog", 0.5),
        ("piano", "dog", 0.0),
        ("", "dog", 0.0),
    ],
    ids=["equal", "near", "product", "unknown-word", "too-much", "nothing-near", "empty"],
)
def test_wups_is_the_smaller_product_of_nearest_similarities_in_either_direction(answer, reference, score):
    pair = (answer.split(), reference.split())
    assert wups(*pair, similarity) == wups(*reversed(pair), similarity) == pytest.approx(score)


def test_counts_and_yes_or_no_are_exact_and_the_rest_is_the_best_over_the_answers():
    questions = [
        Asked("1", "the dogs", "CW"),
        Asked("2", "chair", "TP", other_answers=("cat",)),
        Asked("3", "two", "DC"),
        Asked("4", "dog", "DB", other_answers=("the cat",)),
        Asked("5", "dog", "DB"),
    ]
    predictions = {"1": "a dog", "2": "dog", "3": "twos", "4": "cats", "5": "cat"}
    scores = evaluate_wups(predictions, questions, SmallWords())
    assert scores.credit == {"1": 1.0, "2": 0.8, "3": 1.0, "4": 1.0, "5": 0.0}
    assert (scores.measure, scores.score) == ("WUPS", pytest.approx(76.0))
    assert set(scores.by_type) == {"CW", "TN", "DC", "DB"}
    assert {name: part.num_questions for name, part in scores.groups.items()} == {"C": 1, "T": 1, "D": 3}


def test_an_answer_of_nothing_but_stop_words_scores_0():
    scores = evaluate_wups({"1": "to the"}, [Asked("1", "to the dog", "CW")], SmallWords())
    assert scores.score == 0.0


def test_the_stop_words_leave_place_order_number_and_not():
    assert len(STOP_WORDS) == 156
    assert STOP_WORDS.isdisjoint(["in", "on", "under", "before", "after", "by", "no", "not", "both"])


def test_without_nltk_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ImportError, match=r"WUPS needs NLTK: pip install .videolm\[metrics\]."):
        WordNet()


def test_nltk_gives_lemmas_by_part_of_speech_and_without_its_data_the_error_names_the_command(monkeypatch):
    fake = FakeNltk(has_data=True)
    fake.install(monkeypatch)
    words = WordNet()
    # running: a verb here; the: no part that WordNet knows, a noun on its own; swimmer: only its stem is known
    assert words.lemmas("Running the swimmer") == ["run", "the", "swim"]
    assert words.similarity("run", "swim") == 0.25
    assert words.similarity("run", "nothing") == 0.0
    FakeNltk(has_data=False).install(monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"nltk\.downloader wordnet averaged_perceptron_tagger_eng"):
        WordNet()


class FakeNltk:
    """The few names of NLTK that are used, over two known words."""

    def __init__(self, *, has_data):
        self.has_data = has_data

    def install(self, monkeypatch):
        nltk, corpus, stem = (ModuleType(f"nltk{name}") for name in ("", ".corpus", ".stem"))
        nltk.NLTKWordTokenizer = lambda: self
        nltk.pos_tag = lambda words: [(word, "VBG" if word.endswith("ning") else "DT") for word in words]
        corpus.wordnet = self
        stem.PorterStemmer = stem.WordNetLemmatizer = lambda: self
        for module in (nltk, corpus, stem):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def tokenize(self, sentence):
        return sentence.split()

    @property
    def synsets(self):
        # NLTK's corpora are looked for when an attribute of theirs is
        if not self.has_data:
            raise LookupError("wordnet not found")
        return lambda word: [self] if word in ("run", "swim") else []

    def wup_similarity(self, other):
        return 0.25

    def lemmatize(self, word, part):
        return "run" if (word, part) == ("running", "v") else word

    def stem(self, word):
        return word.removesuffix("mer")
