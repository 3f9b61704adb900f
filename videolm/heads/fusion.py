"""Answers from a transformer that reads the question's words and the video's tokens together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from videolm.encoders.blocks import Block, Grid, init_blocks
from videolm.heads.captioning import IGNORED
from videolm.heads.resampler import RelativeTime
from videolm.heads.videoqa import EmbeddedCandidates, only_possible
from videolm.metrics.videoqa import COUNT_RANGE
from videolm.types import TextTokens, VideoTokens


class Fusion(nn.Module):
    """One vector of a question and a video: a learned token after `depth` layers in which everything sees everything.

    A token that stands for s original ones counts s times as a key (a bias of log s). `max_frames` rows tell the
    tokens' time, see RelativeTime; 0: they do not tell it. Source: the encoder over words and frames of ClipBERT
    (arXiv 2102.06183) and Just Ask (arXiv 2012.00451).
    """

    def __init__(
        self,
        *,
        token_width: int,
        text_width: int,
        width: int = 256,
        depth: int = 2,
        num_heads: int = 4,
        max_frames: int = 0,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width ({width}) must be a multiple of num_heads ({num_heads})")
        self.width = width
        self.time = RelativeTime(width=token_width, max_frames=max_frames) if max_frames else None
        self.video = nn.Sequential(nn.LayerNorm(token_width), nn.Linear(token_width, width))
        self.words = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.pool = nn.Parameter(torch.randn(width) * width**-0.5)
        blocks = [
            Block(
                width=width,
                num_heads=num_heads,
                mlp_width=4 * width,
                activation="gelu",
                layer_norm_eps=1e-5,
            )
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        init_blocks(blocks, width=width)

    def forward(self, video: VideoTokens, question: TextTokens) -> Float[Tensor, "batch width"]:
        dtype = self.pool.dtype
        tokens = self.video((video.tokens if self.time is None else self.time(video)).to(dtype))
        words = self.words(question.tokens.to(dtype))
        pool = self.pool.expand(len(tokens), 1, -1)
        sizes = [
            video.sizes.new_ones(len(tokens), 1),
            question.mask.to(video.sizes.dtype),
            video.sizes.masked_fill(~video.mask, 0),
        ]
        # Words and tokens are to these blocks what the tokens of one frame are to the tower.
        grid = Grid(
            torch.cat([pool, words, tokens], dim=1).unsqueeze(1), sizes=torch.cat(sizes, 1).unsqueeze(1)
        )
        for block in self.blocks:
            grid = block(grid)
        fused: Tensor = self.norm(grid.tokens[:, 0, 0])
        return fused


@dataclass(frozen=True, eq=False)
class LabelCandidates:
    """Candidates as places in an answer vocabulary."""

    labels: Int[Tensor, "batch candidates"]
    """Any place where the mask is False."""
    mask: Bool[Tensor, "batch candidates"]
    """True = can be chosen."""


@dataclass(frozen=True)
class AnswerVocabulary:
    """The answers that a classifier knows, in the order of its logits."""

    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.answers:
            raise ValueError("answers is empty; a classifier needs an answer at least")
        if len(self.index) < len(self.answers):
            twice = next(a for place, a in enumerate(self.answers) if self.index[a] != place)
            raise ValueError(f"answer {twice!r} is in the vocabulary twice")

    @cached_property
    def index(self) -> dict[str, int]:
        """Place of each answer."""
        return {answer: place for place, answer in enumerate(self.answers)}

    def labels(self, answers: Sequence[str]) -> Int[Tensor, " batch"]:
        """Place of each answer; IGNORED for one that is not in the vocabulary.

        Such a question teaches nothing, and in a test it counts as wrong: no prediction equals its answer.
        """
        return torch.tensor([self.index.get(answer, IGNORED) for answer in answers])

    def candidates(self, options: Sequence[Sequence[str]]) -> LabelCandidates:
        """The options of each question, blank ones masked; ValueError for an option that has no place."""
        width = max(map(len, options))
        filled = [[*row, *[""] * (width - len(row))] for row in options]
        unknown = {option for row in filled for option in row if option.strip() and option not in self.index}
        if unknown:
            raise ValueError(
                f"candidates {sorted(unknown)} are not among the {len(self.answers)} answers of the vocabulary; "
                f"a classifier cannot score them, a scorer by similarity or likelihood can"
            )
        return LabelCandidates(
            labels=torch.tensor([[self.index.get(option, 0) for option in row] for row in filled]),
            mask=torch.tensor([[bool(option.strip()) for option in row] for row in filled]),
        )


class ClassifierQA(nn.Module):
    """A logit for each answer of a vocabulary, by an MLP of widths d, 2d, answers over fused question and video.

    Source: ClipBERT and ALPRO (arXiv 2112.09583). Trained by `choice_cross_entropy` on `AnswerVocabulary.labels`.
    """

    def __init__(self, fusion: Fusion, *, num_answers: int) -> None:
        super().__init__()
        self.fusion = fusion
        self.classify = _mlp(fusion.width, num_answers)

    def forward(self, video: VideoTokens, question: TextTokens) -> Float[Tensor, "batch answers"]:
        """At least float32."""
        return _scores(self.classify(self.fusion(video, question)))

    def score(
        self, video: VideoTokens, question: TextTokens, candidates: LabelCandidates
    ) -> Float[Tensor, "batch candidates"]:
        """The logits of the candidates."""
        return only_possible(self(video, question).gather(1, candidates.labels), candidates.mask)


def log_sum_exp(
    logits: Float[Tensor, "batch clips answers"], mask: Bool[Tensor, "batch clips"] | None = None
) -> Float[Tensor, "batch answers"]:
    """A video's logits from those of its clips: log of the sum of exp, so that the clip that is sure decides.

    `mask` is True on the clips that exist. Source: ClipBERT.
    """
    if mask is None:
        return logits.logsumexp(dim=1)
    if not bool(mask.any(dim=1).all()):
        raise ValueError(f"video {int((~mask.any(dim=1)).int().argmax())} of the batch has no clip")
    return logits.masked_fill(~mask.unsqueeze(-1), -torch.inf).logsumexp(dim=1)


class JustAskQA(nn.Module):
    """Dot product of fused question and video with each answer's embedding, both in a space of `dim` numbers.

    The answers may be a question's options, or one row of the whole vocabulary for all videos, in which new answers
    find their place without training. Source: Just Ask (arXiv 2012.00451), with the text tower's embeddings of
    answers in place of DistilBERT's.
    """

    def __init__(self, fusion: Fusion, *, text_width: int, dim: int = 256) -> None:
        super().__init__()
        self.fusion = fusion
        self.question = nn.Linear(fusion.width, dim)
        self.answer = nn.Linear(text_width, dim)

    def score(
        self, video: VideoTokens, question: TextTokens, candidates: EmbeddedCandidates
    ) -> Float[Tensor, "batch candidates"]:
        """Logits, trained by `choice_cross_entropy`."""
        answers = self.answer(candidates.embedding.to(self.answer.weight.dtype))
        scores = torch.einsum("bd,bcd->bc", self.question(self.fusion(video, question)), answers)
        return only_possible(_scores(scores), candidates.mask)


class CountQA(nn.Module):
    """How often something happens, as a number; for the counts of TGIF-QA (arXiv 1704.04497)."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion
        self.regress = _mlp(fusion.width, 1)

    def forward(self, video: VideoTokens, question: TextTokens) -> Float[Tensor, " batch"]:
        """Any real number, at least float32."""
        return _scores(self.regress(self.fusion(video, question))).squeeze(1)

    def loss(
        self, video: VideoTokens, question: TextTokens, counts: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Mean squared error."""
        predicted: Tensor = self(video, question)
        return F.mse_loss(predicted, counts.to(predicted.dtype))

    @torch.no_grad()
    def count(self, video: VideoTokens, question: TextTokens) -> Int[Tensor, " batch"]:
        """The nearest whole number from 1 to 10, halves to even."""
        counts: Tensor = self(video, question).round().clamp(*COUNT_RANGE).long()
        return counts


def _mlp(width: int, out_width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, out_width))


def _scores(values: Tensor) -> Tensor:
    """At least float32: in bfloat16 a softmax over many answers would tie."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
