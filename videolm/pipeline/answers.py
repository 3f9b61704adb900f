"""Answers to questions: written, or chosen among candidates by likelihood or similarity."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from videolm.heads.videoqa import EmbeddedCandidates, SimilarityQA
from videolm.pipeline.decoding import Video
from videolm.pipeline.spans import Piece, read_whole
from videolm.pipeline.speaking import rows_of
from videolm.pipeline.talking import OnError, Talker, in_batches, look
from videolm.pipeline.tokens import Eyes, UnusableClipError
from videolm.text.tokenizer import Tokenizer
from videolm.types import Answer, Clip, Failure, VideoTokens
from videolm.video.worker import ClipRequest

SIMILARITY_TEMPLATE = "question: {question} answer: {candidate}"
"""The sentence that a model without a head for questions compares with the video."""


@dataclass(frozen=True)
class Asked:
    """A question, and what its answer may be; None: anything."""

    question: str
    candidates: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not re.search(r"\w", self.question):
            raise ValueError(
                f"the question ({self.question!r}) has no word; ask what the video shows, as in 'what moves?'"
            )
        if self.candidates is None:
            return
        if len(self.candidates) < 2:
            raise ValueError(
                f"candidates ({list(self.candidates)}) must be two texts at least, to choose among"
            )
        if empty := [i for i, text in enumerate(self.candidates) if not text.strip()]:
            raise ValueError(
                f"candidates {list(self.candidates)}: number {empty[0]} (from 0) is empty; leave it out"
            )
        if len({text.strip() for text in self.candidates}) < len(self.candidates):
            raise ValueError(
                f"candidates ({list(self.candidates)}) must differ; leave out the second of two equal ones"
            )


def pair_up(
    videos: Sequence[Video],
    questions: str | Sequence[str],
    candidates: Sequence[str] | Sequence[Sequence[str]] | None,
) -> list[tuple[Video, Asked]]:
    """Each video with its question: one question for all videos, all questions of one video, or as many of both.

    Candidates are those of every question, or a list for each question.
    """
    asked = [questions] if isinstance(questions, str) else list(questions)
    if len(videos) != len(asked) and 1 not in (len(videos), len(asked)):
        raise ValueError(f"{len(videos)} videos but {len(asked)} questions; give as many, or one of either")
    if isinstance(candidates, str):
        raise TypeError(f"candidates must be a list of texts, got one str; pass [{candidates!r}, ...]")
    count = max(len(videos), len(asked)) if videos and asked else 0
    choices: list[tuple[str, ...] | None]
    if candidates is None or all(isinstance(text, str) for text in candidates):
        shared = None if candidates is None else tuple(str(text) for text in candidates)
        choices = [shared] * count
    else:
        for i, row in enumerate(candidates):
            is_list = isinstance(row, Sequence) and not isinstance(row, str)
            if not (is_list and all(isinstance(text, str) for text in row)):
                raise TypeError(
                    f"candidates[{i}] ({row!r}) must be a list of texts, as it is for other questions of these"
                )
        choices = [tuple(row) for row in candidates]
        if len(choices) not in (len(asked), count):
            raise ValueError(
                f"{len(asked)} questions but {len(choices)} lists of candidates; give one for each"
            )
    return [
        (videos[i % len(videos)], Asked(asked[i % len(asked)], choices[i % len(choices)]))
        for i in range(count)
    ]


@runtime_checkable
class KnowsWords(Protocol):
    """A tokenizer."""

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that are not in the vocabulary."""
        ...


def warn_unknown(pairs: Iterable[tuple[Video, Asked]], tokenizer: KnowsWords, *, name: str) -> None:
    """Warns once of the words of questions and candidates, not of the signs, that a model does not know."""
    texts = {text for _, asked in pairs for text in (asked.question, *(asked.candidates or ()))}
    if unknown := sorted(
        {word for text in texts for word in tokenizer.unknown_words(text) if re.search(r"\w", word)}
    ):
        # to whom called the verb that called this
        warnings.warn(f"{name} does not know: {' '.join(unknown)}", stacklevel=3)


def check_sentences_differ(
    pairs: Iterable[tuple[Video, Asked]], tokenizer: Tokenizer, *, template: str
) -> None:
    """ValueError where two candidates of a question make the same sentence, because of unknown words or its length."""
    for asked in {asked for _, asked in pairs}:
        rows = tokenizer(_sentences(asked, template))[0].tolist()
        if len({tuple(row) for row in rows}) < len(rows):
            raise ValueError(
                f"candidates {list(asked.candidates or ())} are not told apart behind {asked.question!r}: at most "
                f"{tokenizer.context_length} tokens of a sentence are read, and all unknown words are one"
            )


def _sentences(asked: Asked, template: str) -> list[str]:
    for part in ("{question}", "{candidate}"):
        if part not in template:
            raise ValueError(f"template ({template!r}) must hold {part}")
    return [
        template.replace("{question}", asked.question).replace("{candidate}", text)
        for text in asked.candidates or ()
    ]


@dataclass(frozen=True)
class Reply:
    """What was found for one question."""

    text: str
    method: Literal["generate", "likelihood", "similarity"]
    scores: tuple[float, ...] = ()
    """Of its candidates."""


Replying = Callable[[VideoTokens, Sequence[Asked]], list[Reply]]
"""Answers a question for each video of a batch; all of them have candidates, or none."""


def answer(
    eyes: Eyes,
    reply: Replying,
    pairs: Iterable[tuple[Video, Asked]],
    request: ClipRequest,
    *,
    budget: int | None,
    batch_size: int,
    workers: int,
    on_error: OnError,
) -> Generator[Answer | Failure, None, None]:
    """Answers in the order of the pairs; a video that stands in several in a row is decoded and looked at once."""
    grouped = [
        (video, [asked for _, asked in some]) for video, some in groupby(pairs, key=lambda pair: pair[0])
    ]

    def say(pieces: list[Piece], clips: list[Clip]) -> list[list[Answer]]:
        seen = look(eyes, clips, budget=budget)
        rows = [(i, asked) for i, piece in enumerate(pieces) for asked in grouped[piece.video][1]]
        said: list[list[Answer]] = [[] for _ in pieces]
        for first in range(0, len(rows), batch_size):
            some = rows[first : first + batch_size]
            replies = reply(rows_of(seen.video, [i for i, _ in some]), [asked for _, asked in some])
            for (i, asked), found in zip(some, replies, strict=True):
                said[i].append(_as_answer(found, asked, pieces[i].name, seen.num_tokens[i], seen.plans[i]))
        return said

    videos = [video for video, _ in grouped]
    with closing(read_whole(videos, request, workers=workers, batch_size=batch_size)) as pieces:
        for i, found in in_batches(pieces, say, batch_size=batch_size, on_error=on_error):
            yield from [found] * len(grouped[i][1]) if isinstance(found, Failure) else found


def by_speaker(talker: Talker, *, num_beams: int | None, max_new_tokens: int | None) -> Replying:
    """Writes the answer; or chooses the candidate that is likeliest to be written, the first of equal ones."""
    speaker = talker.speaker

    def reply(video: VideoTokens, asked: Sequence[Asked]) -> list[Reply]:
        questions = [speaker.clean(one.question) for one in asked]
        prompts, words = [speaker.question_prompt(text) for text in questions], talker.words(questions)
        choices = [one.candidates for one in asked if one.candidates is not None]
        if choices:
            scores = speaker.log_likelihood(video, prompts, words, choices)
            return [
                _best(row, likelihoods, "likelihood")
                for row, likelihoods in zip(choices, scores, strict=True)
            ]
        texts = speaker.write(video, prompts, words, num_beams=num_beams, max_new_tokens=max_new_tokens)
        return [Reply(text, "generate") for text in texts]

    return reply


def by_similarity(
    encode_sentences: Callable[[Sequence[str]], Tensor], logit_scale: Tensor, *, template: str
) -> Replying:
    """Chooses the candidate whose sentence is most similar to the video; the question is only in the sentence."""

    def reply(video: VideoTokens, asked: Sequence[Asked]) -> list[Reply]:
        replies = []
        for row, one in enumerate(asked):
            assert one.candidates is not None
            sentences = _sentences(one, template)
            embedding = encode_sentences(sentences).to(video.embedding.device)
            every = torch.ones(1, len(sentences), dtype=torch.bool, device=embedding.device)
            found = EmbeddedCandidates(embedding[None], every)
            scores = SimilarityQA(logit_scale.float()).score(rows_of(video, [row]), None, found)
            if not bool(scores.isfinite().all()):
                raise UnusableClipError("the model gave NaN or infinity for its candidates")
            replies.append(_best(one.candidates, scores[0].tolist(), "similarity"))
        return replies

    return reply


def _best(
    candidates: Sequence[str], scores: Sequence[float], method: Literal["likelihood", "similarity"]
) -> Reply:
    return Reply(candidates[scores.index(max(scores))], method, tuple(scores))


def _as_answer(reply: Reply, asked: Asked, source: str, num_tokens: int, plan: str) -> Answer:
    probabilities = torch.tensor(reply.scores, dtype=torch.float64).softmax(dim=0).tolist()
    return Answer(
        text=reply.text,
        question=asked.question,
        source=source,
        method=reply.method,
        num_tokens=num_tokens,
        candidates=asked.candidates or (),
        scores=reply.scores,
        probabilities=tuple(probabilities),
        reduce=plan,
    )
