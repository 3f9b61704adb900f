"""WUPS, the score of NExT-OE's open answers: how near their words are to the reference's in WordNet.

The similarity of two words is Wu and Palmer's of their first synsets, 1 for equal words and 0 where WordNet does not
know one of them. An answer's score is the product, over its words, of the similarity to the nearest word of the
reference; words that are near to none are left out, and where all are, it is 0. WUPS is the smaller one of that and the
same from the reference to the answer, so that neither saying too much nor too little pays. Source: Malinowski and
Fritz, NIPS 2014, without their threshold; words and types as in NExT-QA, Xiao et al., CVPR 2021, repository
doc-doc/NExT-OE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, runtime_checkable

from videolm.metrics.videoqa import (
    NEXTQA_COUNTED_AS,
    NEXTQA_GROUPS,
    Missing,
    QAScores,
    Question,
    scores_of,
)

Similarity = Callable[[str, str], float]
"""Two words to a number from 0 to 1."""
EXACT_TYPES = ("DC", "DB")
"""Counts and yes or no: right or wrong, without a similarity."""
# NLTK's English list without the words that tell place, order, number and "not"
_STOP_TEXT = (
    "i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he "
    "him his himself she she's her hers herself it it's its itself they them their theirs themselves what "
    "which who whom this that that'll these those am is are was were be been being have has had having do "
    "does did doing a an the and but if or because as until while to from of at for with about into through "
    "during again further then here there when where why how all any each most other some such only own so "
    "than too very s t can will just don don't should should've now d ll m o re ve y ain aren aren't couldn "
    "couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven haven't isn isn't ma mightn mightn't "
    "mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won won't wouldn "
    "wouldn't"
)
STOP_WORDS = frozenset(_STOP_TEXT.split())


@runtime_checkable
class Words(Protocol):
    """What is known of English words."""

    def lemmas(self, sentence: str) -> list[str]:
        """The words of a sentence in the form in which a dictionary has them."""

    def similarity(self, first: str, second: str) -> float:
        """Of two different words, from 0 to 1; 0 where one of them is not known."""


class WordNet:
    """Words through NLTK, as NExT-OE's evaluation has them from NLTK and pywsd.

    Needs the extra `metrics` and NLTK's data, which NLTK loads by `python -m nltk.downloader wordnet
    averaged_perceptron_tagger_eng`; ImportError or FileNotFoundError says so.
    """

    def __init__(self) -> None:
        try:
            import nltk
            from nltk.corpus import wordnet
            from nltk.stem import PorterStemmer, WordNetLemmatizer
        except ImportError as error:
            raise ImportError("WUPS needs NLTK: pip install 'videolm[metrics]'") from error
        self._tokens = nltk.NLTKWordTokenizer().tokenize
        self._tag = nltk.pos_tag
        self._stem = PorterStemmer().stem
        self._lemma = WordNetLemmatizer().lemmatize
        try:
            # the corpus is looked for at the first use of it, the tagger's data at the first word
            self._synsets = cache(wordnet.synsets)
            self._tag(["word"])
        except LookupError as error:
            raise FileNotFoundError(
                "WUPS needs data of NLTK that is not there: python -m nltk.downloader wordnet "
                "averaged_perceptron_tagger_eng"
            ) from error

    def lemmas(self, sentence: str) -> list[str]:
        """Each word's lemma for its part of speech; its stem where WordNet has only that; else the word."""
        return [self._lemma_of(word.lower(), tag) for word, tag in self._tag(self._tokens(sentence))]

    def similarity(self, first: str, second: str) -> float:
        """Of Wu and Palmer, of the first synsets of two words."""
        synsets = [self._synsets(word) for word in (first, second)]
        if not all(synsets):
            return 0.0
        return float(synsets[0][0].wup_similarity(synsets[1][0]) or 0.0)

    def _lemma_of(self, word: str, tag: str) -> str:
        parts = {"NN": "n", "JJ": "a", "VB": "v", "RB": "r"}
        # a word of another part of speech is looked at again on its own, and is a noun where that does not help
        part = parts.get(tag[:2]) or parts.get(self._tag([word])[0][1][:2], "n")
        lemma: str = self._lemma(word, part)
        if self._synsets(lemma):
            return lemma
        stem: str = self._stem(word)
        return stem if self._synsets(stem) else word


def evaluate_wups(
    predictions: Mapping[str, str],
    questions: Sequence[Question],
    words: Words,
    *,
    missing: Missing = "error",
) -> QAScores:
    """WUPS in percent, TP counted as TN, groups C, T and D; the best over a question's answers.

    Both sides are lemmas without stop words. Counts (DC) and yes or no (DB) are right where these are equal.
    """

    @cache
    def content(sentence: str) -> tuple[str, ...]:
        return tuple(word for word in words.lemmas(sentence) if word not in STOP_WORDS)

    similarity = cache(words.similarity)

    def credit(question: Any, prediction: str) -> float:
        own = content(prediction)
        references = [content(answer) for answer in (question.answer, *question.other_answers)]
        if question.type in EXACT_TYPES:
            return float(own in references)
        return max(wups(own, reference, similarity) for reference in references)

    return scores_of(
        "WUPS",
        predictions,
        questions,
        credit,
        groups=NEXTQA_GROUPS,
        counted_as=NEXTQA_COUNTED_AS,
        missing=missing,
    )


def wups(answer: Sequence[str], reference: Sequence[str], similarity: Similarity) -> float:
    """From 0 to 1, the same for answer and reference exchanged; 0 where one of them has no words."""
    return min(_towards(answer, reference, similarity), _towards(reference, answer, similarity))


def _towards(words: Sequence[str], others: Sequence[str], similarity: Similarity) -> float:
    nearest = [max((_similar(word, other, similarity) for other in others), default=0.0) for word in words]
    known = [value for value in nearest if value > 0]
    return math.prod(known) if known else 0.0


def _similar(word: str, other: str, similarity: Similarity) -> float:
    return 1.0 if word == other else similarity(word, other)
