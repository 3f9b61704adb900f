"""Ranks and recall of text-to-video and video-to-text retrieval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class RetrievalScores:
    """Recall in percent, ranks from 1."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    num_queries: int

    @property
    def r_sum(self) -> float:
        """R@1 + R@5 + R@10."""
        return self.r1 + self.r5 + self.r10


def ranks_of_targets(
    similarity: Float[np.ndarray, "queries items"], targets: Int[np.ndarray, " targets"]
) -> Float[np.ndarray, " queries"]:
    """Rank of `targets[i]` in row i: 1 + items with a higher score + half of the others with the same score.

    A tie is counted by its mean rank: all ranks of a constant matrix are those of chance, and never those of a
    perfect model. A tie for the first place is rank 1.5 or worse, so it does not count towards R@1. Computed in
    the dtype given: pass float32 or better, since half precision makes ties.

    Raises ValueError where a score is NaN or a target is no item.
    """
    if similarity.shape[0] != len(targets):
        raise ValueError(
            f"targets ({len(targets)}) must be as many as rows of similarity ({similarity.shape[0]})"
        )
    if len(targets) and not 0 <= targets.min() <= targets.max() < similarity.shape[1]:
        raise ValueError(
            f"targets ({targets.min()} to {targets.max()}) must be in [0, {similarity.shape[1]}), the items"
        )
    nan_rows = np.flatnonzero(np.isnan(similarity).any(axis=1))
    if len(nan_rows):
        raise ValueError(f"similarity has NaN in {len(nan_rows)} rows, the first is {nan_rows[0]}")
    own = np.take_along_axis(similarity, targets[:, None], axis=1)
    higher = (similarity > own).sum(axis=1)
    equal = (similarity == own).sum(axis=1) - 1
    return np.asarray(1.0 + higher + equal / 2, dtype=np.float64)


def scores_of_ranks(ranks: Float[np.ndarray, " queries"]) -> RetrievalScores:
    """R@1, R@5, R@10, median and mean rank; R@k is the share of queries whose rank is at most k."""
    if not len(ranks):
        raise ValueError("ranks is empty: there is no query to score")
    return RetrievalScores(
        r1=_recall(ranks, 1),
        r5=_recall(ranks, 5),
        r10=_recall(ranks, 10),
        median_rank=float(np.median(ranks)),
        mean_rank=float(np.mean(ranks)),
        num_queries=len(ranks),
    )


def _recall(ranks: Float[np.ndarray, " queries"], k: int) -> float:
    return 100.0 * float(np.mean(ranks <= k))


def text_to_video(
    similarity: Float[np.ndarray, "texts videos"], video_of_text: Int[np.ndarray, " texts"]
) -> RetrievalScores:
    """Every sentence is a query; `similarity[i, j]` is that of sentence i and video j."""
    return scores_of_ranks(ranks_of_targets(similarity, video_of_text))


def video_to_text(
    similarity: Float[np.ndarray, "texts videos"], text_of_video: Int[np.ndarray, " videos"]
) -> RetrievalScores:
    """Every video is a query with one sentence of its own, `text_of_video[j]`."""
    return scores_of_ranks(ranks_of_targets(similarity.T, text_of_video))


def pair_accuracy(own: Float[np.ndarray, " sentences"], other: Float[np.ndarray, " sentences"]) -> float:
    """Percent of sentences that score their own video above its twin; a tie counts half."""
    if np.isnan(own).any() or np.isnan(other).any():
        raise ValueError("a score is NaN")
    return 100.0 * float(np.mean((own > other) + 0.5 * (own == other)))
