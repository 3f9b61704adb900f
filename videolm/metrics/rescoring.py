"""Scores mended at test time with the help of other queries: dual softmax and querybank normalisation.

Both are transductive: the score of a query depends on queries that a search would not have seen. What comes out
is reported beside the plain scores, under its name, and never as the plain ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from videolm.metrics.retrieval import ScoreBlocks

Queries = Literal["texts", "videos"]


@dataclass(frozen=True, eq=False)
class QueryBank:
    """What a bank of other queries says about the items."""

    log_sum: Float[np.ndarray, " items"]
    """log of the sum over the bank of exp(beta * score)."""
    is_active: Bool[np.ndarray, " items"]
    """Items that are among the first of some query of the bank: the hubs."""
    beta: float


def dual_softmax(
    blocks: ScoreBlocks,
    *,
    num_texts: int,
    queries: Queries,
    scale: float = 100.0,
    block_size: int = 1024,
) -> ScoreBlocks:
    """Each score times its softmax over all queries for the same item: S * softmax(scale * S), in float64.

    Transductive: it sees the whole test set. `queries="texts"` is the matrix for text-to-video, the softmax over
    the sentences of each video; "videos" the one for video-to-text, over the videos of each sentence (CLIP-ViP
    takes the first for both directions). It supposes that every item is wanted by one query, and gains nothing
    where videos have many captions. Source: CAMoE, arXiv 2109.04290.
    """
    over_texts = None
    if queries == "texts":
        over_texts = _log_sum_exp_of_columns(blocks, num_rows=num_texts, scale=scale, block_size=block_size)

    def rescored(first: int, last: int) -> Float[np.ndarray, "rows items"]:
        scores = np.asarray(blocks(first, last), dtype=np.float64)
        log_sum = _log_sum_exp(scale * scores, axis=1)[:, None] if over_texts is None else over_texts
        product: np.ndarray[Any, Any] = scores * np.exp(scale * scores - log_sum)
        return product

    return rescored


def build_querybank(
    blocks: ScoreBlocks, *, num_queries: int, beta: float = 20.0, top_k: int = 1, block_size: int = 1024
) -> QueryBank:
    """The bank of `num_queries` sentences (of the training split), `blocks` being their scores with the test videos.

    An item is active when it is among the `top_k` of a query of the bank.
    """
    if num_queries < 1:
        raise ValueError(f"num_queries ({num_queries}) must be at least 1: an empty bank normalises nothing")
    log_sum = _log_sum_exp_of_columns(blocks, num_rows=num_queries, scale=beta, block_size=block_size)
    is_active = np.zeros(len(log_sum), dtype=bool)
    for first in range(0, num_queries, block_size):
        scores = np.asarray(blocks(first, min(first + block_size, num_queries)))
        cut = scores.shape[1] - min(top_k, scores.shape[1])
        is_active[np.argpartition(scores, cut, axis=1)[:, cut:]] = True
    return QueryBank(log_sum, is_active, beta)


def querybank_norm(blocks: ScoreBlocks, bank: QueryBank) -> ScoreBlocks:
    """Scores of the queries whose first item is a hub of the bank, normalised by what the bank gives each item.

    Such a row becomes beta * S - log sum exp(beta * S_bank), the logarithm of the published quotient, in the
    same order; other rows stay as they are, so scores of different rows do not compare, and only text-to-video
    ranks are read from it. Transductive: it sees other queries, and which videos the test set holds. Source:
    QB-Norm with the dynamic inverted softmax, arXiv 2112.12777.
    """

    def rescored(first: int, last: int) -> Float[np.ndarray, "rows items"]:
        scores = np.array(blocks(first, last), dtype=np.float64)
        rows = bank.is_active[scores.argmax(axis=1)]
        scores[rows] = bank.beta * scores[rows] - bank.log_sum
        return scores

    return rescored


def _log_sum_exp_of_columns(
    blocks: ScoreBlocks, *, num_rows: int, scale: float, block_size: int
) -> Float[np.ndarray, " items"]:
    parts = [
        _log_sum_exp(scale * np.asarray(blocks(first, min(first + block_size, num_rows)), np.float64), axis=0)
        for first in range(0, num_rows, block_size)
    ]
    return _log_sum_exp(np.stack(parts), axis=0)


def _log_sum_exp(values: Float[np.ndarray, "rows items"], *, axis: int) -> Float[np.ndarray, " kept"]:
    highest = values.max(axis=axis, keepdims=True)
    sums = np.exp(values - highest).sum(axis=axis)
    return np.asarray(np.log(sums) + highest.squeeze(axis))
