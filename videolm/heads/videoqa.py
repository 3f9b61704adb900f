"""Choosing an answer: one way to ask, whatever is inside.

Every scorer has `score(video, question, candidates)`, higher is better. What a question and the candidates are as
tensors differs by scorer; the values for it stand here. Scorers that read question and video together are in
`heads.fusion`, those on frozen image embeddings in `heads.tem_adapter`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from videolm.heads.captioning import IGNORED, PrefixLM
from videolm.metrics.videoqa import normalised_words
from videolm.types import TextTokens, VideoTokens

QuestionT = TypeVar("QuestionT", contravariant=True)
CandidatesT = TypeVar("CandidatesT", contravariant=True)


class AnswerScorer(Protocol[QuestionT, CandidatesT]):
    """What chooses an answer."""

    def score(
        self, video: VideoTokens, question: QuestionT, candidates: CandidatesT
    ) -> Float[Tensor, "batch candidates"]:
        """Higher is better, -inf for a candidate that is none; no candidate's score depends on another one."""
        ...


@dataclass(frozen=True, eq=False)
class EmbeddedCandidates:
    """Candidates after the text tower."""

    embedding: Float[Tensor, "#batch candidates dim"]
    """TextTokens' embedding of each one; one row of candidates serves all videos."""
    mask: Bool[Tensor, "#batch candidates"]
    """True = can be chosen, False = an empty option, or padding where others have more."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question as a language model reads it."""

    ids: Int[Tensor, "batch words"]
    """Padded on the left, as by `PromptTokenizer.prompts`."""
    mask: Bool[Tensor, "batch words"]
    """True = real."""
    words: TextTokens | None = None
    """The same after the text tower, for a connector that reads the question."""


@dataclass(frozen=True, eq=False)
class TokenCandidates:
    """Candidates as a language model writes them."""

    ids: Int[Tensor, "batch candidates target"]
    """Padded on the right, the end token last, as by `PromptTokenizer.targets`."""
    token_mask: Bool[Tensor, "batch candidates target"]
    """True = a token of the candidate."""
    mask: Bool[Tensor, "batch candidates"]
    """True = can be chosen."""


@dataclass(frozen=True, eq=False)
class SimilarityQA:
    """Zero-shot CLIP: cosine of the video with each sentence made of question and candidate, times exp(logit_scale).

    The sentence is a template's, such as "question: {question} answer: {candidate}"; the candidates are its embeddings,
    so that the question itself is not read.
    """

    logit_scale: Float[Tensor, ""]
    """The dual encoder's: the logarithm of what multiplies the cosine."""

    def score(
        self, video: VideoTokens, question: object, candidates: EmbeddedCandidates
    ) -> Float[Tensor, "batch candidates"]:
        """The softmax over a video's candidates is CLIP's probability of each."""
        # at least in float32, as the two are made: in bfloat16 a cosine would keep three digits
        dtype = torch.promote_types(video.embedding.dtype, torch.float32)
        seen, told = (F.normalize(rows.to(dtype), dim=-1) for rows in (video.embedding, candidates.embedding))
        cosine = torch.einsum("bd,bcd->bc", seen, told)
        return only_possible(self.logit_scale.to(dtype).exp() * cosine, candidates.mask)


@dataclass(frozen=True, eq=False)
class LikelihoodQA:
    """How likely a language model that has read video and question continues with each candidate and its end.

    The logarithm, in nats: of all tokens together, or with `length_normalize` their mean, so that a long candidate is
    not unlikely for its length. Video and question are read once for all candidates. Source: the ranking of mPLUG-2
    (arXiv 2302.00402).
    """

    speaker: PrefixLM
    length_normalize: bool = False

    def score(
        self, video: VideoTokens, question: Prompt, candidates: TokenCandidates
    ) -> Float[Tensor, "batch candidates"]:
        """0 at most."""
        num_tokens = _count_tokens(candidates)
        prefix = self.speaker.prefix(video, question.words)
        scores = self.speaker.log_likelihood(
            prefix, question.ids, question.mask, candidates.ids, candidates.token_mask
        )
        return only_possible(scores / num_tokens if self.length_normalize else scores, candidates.mask)


@dataclass(frozen=True, eq=False)
class YesNoQA:
    """log p(yes) - log p(no) where a language model is asked of each candidate whether it is the answer.

    The prompt is what all candidates share ("{question} Is it"), a candidate goes on to the place of the verdict
    ("'{candidate}'?"), and one token follows: it takes the place of the end token. Video and question are read once.
    Source: FrozenBiLM's multiple choice (arXiv 2206.08155), which ranks by p(yes) among the two; the order is the same.
    """

    speaker: PrefixLM
    yes_token_id: int
    no_token_id: int

    def __post_init__(self) -> None:
        if self.yes_token_id == self.no_token_id:
            raise ValueError(
                f"yes_token_id and no_token_id are both {self.yes_token_id}; "
                f"has the vocabulary a word for each, or is it the unknown token?"
            )

    def score(
        self, video: VideoTokens, question: Prompt, candidates: TokenCandidates
    ) -> Float[Tensor, "batch candidates"]:
        """Above 0 where yes is more likely than no."""
        last = (_count_tokens(candidates) - 1).unsqueeze(-1)
        verdicts = [candidates.ids.scatter(2, last, token) for token in (self.yes_token_id, self.no_token_id)]
        prefix = self.speaker.prefix(video, question.words)
        # What stands before the verdict is as likely in both, so that the difference is the verdict's alone.
        yes, no = self.speaker.log_likelihood(
            prefix,
            question.ids,
            question.mask,
            torch.cat(verdicts, dim=1),
            candidates.token_mask.repeat(1, 2, 1),
        ).chunk(2, dim=1)
        return only_possible(yes - no, candidates.mask)


def match_answer(text: str, candidates: Sequence[str]) -> int | None:
    """Place of the candidate that a generated text is, word for word but for case, punctuation and articles.

    None where it is none of them, or where it is several that differ: what then is the caller's to say, and to count.
    Of candidates that are the same the first one is meant. An empty text or candidate matches nothing.
    """
    words = normalised_words(text)
    if not words:
        return None
    places = [place for place, candidate in enumerate(candidates) if normalised_words(candidate) == words]
    return places[0] if len({candidates[place] for place in places}) == 1 else None


def choice_cross_entropy(
    scores: Float[Tensor, "batch candidates"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Mean of -log softmax(scores)[label] over the rows whose label is not IGNORED; 0 where there is none.

    Candidates with -inf do not take part. ValueError where the label is one of them.
    """
    counted = _check_labels(scores, labels)
    loss = F.cross_entropy(scores[counted], labels[counted], reduction="sum")
    return loss / counted.sum().clamp(min=1)


def choice_hinge(
    scores: Float[Tensor, "batch candidates"], labels: Int[Tensor, " batch"], *, margin: float = 1.0
) -> Float[Tensor, ""]:
    """Sum over the wrong candidates k of max(0, margin + score_k - score_label), mean over the rows as above.

    Tem-Adapter (arXiv 2308.08414) also counts k = label, a constant of `margin`; here it is left out.
    """
    counted = _check_labels(scores, labels)
    scores, labels = scores[counted], labels[counted].unsqueeze(1)
    wrong = F.relu(margin + scores - scores.gather(1, labels)).scatter(1, labels, 0)
    return wrong.sum() / counted.sum().clamp(min=1)


def only_possible(
    scores: Float[Tensor, "batch candidates"], mask: Bool[Tensor, "#batch candidates"]
) -> Float[Tensor, "batch candidates"]:
    """The scores with -inf where the mask is False; ValueError for a question that is left without a candidate."""
    empty = ~mask.any(dim=1)
    if bool(empty.any()):
        raise ValueError(
            f"candidates of question {int(empty.int().argmax())} of the batch are all empty; "
            f"at least one must be there to be chosen"
        )
    return scores.masked_fill(~mask, -torch.inf)


def _count_tokens(candidates: TokenCandidates) -> Int[Tensor, "batch candidates"]:
    """Tokens of each candidate, 1 for one that is none; a possible one without tokens would have likelihood 1."""
    num_tokens = candidates.token_mask.sum(dim=2)
    silent = (candidates.mask & (num_tokens == 0)).nonzero()
    if len(silent):
        row, column = silent[0].tolist()
        raise ValueError(
            f"candidate {column} of question {row} has no token, not even the end token, but its mask is True"
        )
    return num_tokens.clamp(min=1)


def _check_labels(
    scores: Float[Tensor, "batch candidates"], labels: Int[Tensor, " batch"]
) -> Bool[Tensor, " batch"]:
    """Which rows count; ValueError where the right candidate is not there or cannot be chosen."""
    counted: Tensor = labels != IGNORED
    inside = (labels >= 0) & (labels < scores.shape[1])
    right = scores.gather(1, labels.where(inside, 0).unsqueeze(1)).squeeze(1)
    bad = counted & (~inside | right.isneginf())
    if bool(bad.any()):
        row = int(bad.int().argmax())
        raise ValueError(
            f"label {int(labels[row])} of question {row} must be one of its candidates, "
            f"{scores[row].isfinite().nonzero().squeeze(1).tolist()}, or {IGNORED} for a question that does not count"
        )
    return counted
