"""Ranks and recall of text-to-video and video-to-text retrieval, with one or many captions a video.

Scores come as a matrix or block by block, so that a benchmark of 60,000 sentences and 3,000 videos needs no
matrix of its own. What a tie counts, and what a video is ranked among, is said by name and never left to a sort.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

Ties = Literal["mean", "optimistic", "pessimistic"]
"""Rank of one among equals: the mean over all their orders, the first of them, or the last."""

VideoToText = Literal["group_max", "best_caption"]
"""What a video is ranked among, where videos have many captions.

"group_max": a video's captions count as one candidate with the highest of their scores, ranked among the
videos' groups (the rule of CLIP4Clip, arXiv 2104.08860). "best_caption": the rank of its best own caption among
all captions (collaborative experts, arXiv 1907.13487; Frozen in Time, arXiv 2104.00650), harder at R@5 and R@10:
numbers under one rule say nothing about those under the other. With one caption a video both are the same.
"""

ScoreBlocks = Callable[[int, int], Float[np.ndarray, "rows videos"]]
"""`blocks(first, last)`: scores of sentences first to last - 1 with every video, the same at every call."""


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


@dataclass(frozen=True, eq=False)
class RankedQueries:
    """Every query of one direction with its rank and the first of what it finds."""

    ranks: Float[np.ndarray, " queries"]
    """float64, from 1."""
    top_indices: Int[np.ndarray, "queries top"]
    """Candidates by falling score; equal scores by rising index."""
    top_scores: Float[np.ndarray, "queries top"]


@dataclass(frozen=True, eq=False)
class RetrievalRanking:
    """Both directions over one set of scores."""

    t2v: RankedQueries
    """A query a sentence, candidates are videos."""
    v2t: RankedQueries
    """A query a video, candidates are videos' groups of captions ("group_max") or captions ("best_caption")."""


def ranks_of_targets(
    similarity: Float[np.ndarray, "queries items"],
    targets: Int[np.ndarray, " targets"],
    *,
    ties: Ties = "mean",
) -> Float[np.ndarray, " queries"]:
    """Rank of `targets[i]` in row i: 1 + items with a higher score + what `ties` makes of those with the same.

    By the mean rank (half of the equal ones) all ranks of a constant matrix are those of chance, and never those
    of a perfect model; a tie for the first place is rank 1.5 or worse and does not count towards R@1. Computed
    in the dtype given: pass float32 or better, since half precision makes ties. A score of -inf is padding: an
    item that is not there.

    Raises ValueError where a score is NaN or +inf, or a target is padding or no item.
    """
    _check_choice("ties", ties, Ties)
    _check_targets(targets, num_rows=len(similarity), num_items=similarity.shape[1])
    _check_scores(similarity, targets, first_row=0)
    return _ranks(similarity, targets, ties)


def rank_retrieval(
    blocks: ScoreBlocks,
    video_of_text: Int[np.ndarray, " texts"],
    *,
    num_videos: int,
    ties: Ties = "mean",
    v2t: VideoToText = "group_max",
    top_k: int = 10,
    block_size: int = 1024,
) -> RetrievalRanking:
    """Ranks of every sentence among the videos and of every video by the rule `v2t`, `block_size` sentences a block.

    `video_of_text[i]` is the one video that sentence i was written for, in any order; every video needs a
    sentence. "best_caption" goes through the blocks twice. Ties, -inf and errors as in `ranks_of_targets`; where
    several own captions tie for best with others, the mean is that of the first own one over all orders.
    """
    _check_choice("v2t", v2t, VideoToText)
    _check_choice("ties", ties, Ties)
    num_texts = len(video_of_text)
    _check_targets(video_of_text, num_rows=num_texts, num_items=num_videos)
    without = np.flatnonzero(np.bincount(video_of_text, minlength=num_videos) == 0)
    if len(without):
        raise ValueError(
            f"{len(without)} of {num_videos} videos have no sentence, the first is {without[0]}: leave them out"
        )
    ranks = np.empty(num_texts)
    own = np.empty(num_texts)
    tops: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
    groups: np.ndarray[Any, Any] | None = None
    for first in range(0, num_texts, block_size):
        targets = video_of_text[first : first + block_size]
        rows = slice(first, first + len(targets))
        block = _block(blocks, rows, num_videos)
        _check_scores(block, targets, first_row=first)
        ranks[rows] = _ranks(block, targets, ties)
        own[rows] = block[np.arange(len(targets)), targets]
        tops.append(_top(block, top_k))
        if v2t == "group_max":
            if groups is None:
                groups = np.full((num_videos, num_videos), -np.inf, dtype=block.dtype)
            _raise_groups(groups, block, targets)
    t2v = RankedQueries(ranks, *(np.concatenate(part) for part in zip(*tops, strict=True)))
    if groups is not None:
        # groups[g, j]: the best score of a caption of video g with video j
        own_group = np.arange(num_videos)
        return RetrievalRanking(t2v, RankedQueries(_ranks(groups.T, own_group, ties), *_top(groups.T, top_k)))
    captions = _rank_best_captions(
        blocks, video_of_text, own, num_videos=num_videos, ties=ties, top_k=top_k, block_size=block_size
    )
    return RetrievalRanking(t2v, captions)


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


def text_to_video(
    similarity: Float[np.ndarray, "texts videos"],
    video_of_text: Int[np.ndarray, " texts"],
    *,
    ties: Ties = "mean",
) -> RetrievalScores:
    """Every sentence is a query; `similarity[i, j]` is that of sentence i and video j."""
    return scores_of_ranks(ranks_of_targets(similarity, video_of_text, ties=ties))


def video_to_text(
    similarity: Float[np.ndarray, "texts videos"],
    video_of_text: Int[np.ndarray, " texts"],
    *,
    convention: VideoToText = "group_max",
    ties: Ties = "mean",
) -> RetrievalScores:
    """Every video is a query, ranked by `convention`; `similarity[i, j]` is that of sentence i and video j."""
    ranking = rank_retrieval(
        matrix_blocks(similarity), video_of_text, num_videos=similarity.shape[1], ties=ties, v2t=convention
    )
    return scores_of_ranks(ranking.v2t.ranks)


def matrix_blocks(similarity: Float[np.ndarray, "texts videos"]) -> ScoreBlocks:
    """The rows of a matrix that is there already."""
    return lambda first, last: similarity[first:last]


def cosine_blocks(
    texts: Float[np.ndarray, "texts dim"], videos: Float[np.ndarray, "videos dim"]
) -> ScoreBlocks:
    """Cosines of embeddings, computed when they are asked for; the rows need not be of unit length, but not 0."""
    unit_videos = videos / np.linalg.norm(videos, axis=1, keepdims=True)

    def blocks(first: int, last: int) -> Float[np.ndarray, "rows videos"]:
        rows = texts[first:last]
        scores: np.ndarray[Any, Any] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)) @ unit_videos.T
        return scores

    return blocks


def pair_accuracy(own: Float[np.ndarray, " sentences"], other: Float[np.ndarray, " sentences"]) -> float:
    """Percent of sentences that score their own video above its twin; a tie counts half."""
    if np.isnan(own).any() or np.isnan(other).any():
        raise ValueError("a score is NaN")
    return 100.0 * float(np.mean((own > other) + 0.5 * (own == other)))


def _recall(ranks: Float[np.ndarray, " queries"], k: int) -> float:
    return 100.0 * float(np.mean(ranks <= k))


def _ranks(
    scores: Float[np.ndarray, "rows items"], targets: Int[np.ndarray, " rows"], ties: Ties
) -> Float[np.ndarray, " rows"]:
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    return _place((scores > own).sum(axis=1), (scores == own).sum(axis=1) - 1, ties)


def _place(
    higher: Int[np.ndarray, " queries"], equal: Int[np.ndarray, " queries"], ties: Ties, num_own: Any = 1
) -> Float[np.ndarray, " queries"]:
    """Rank of the first of `num_own` right items that tie with `equal` others below `higher` ones."""
    share = {"optimistic": 0.0, "mean": 1 / (num_own + 1), "pessimistic": 1.0}[ties]
    return np.asarray(1.0 + higher + equal * share, dtype=np.float64)


def _rank_best_captions(
    blocks: ScoreBlocks,
    video_of_text: Int[np.ndarray, " texts"],
    own: Float[np.ndarray, " texts"],
    *,
    num_videos: int,
    ties: Ties,
    top_k: int,
    block_size: int,
) -> RankedQueries:
    """Rank of each video's best own caption among all captions; `own[i]` is the score of caption i with its video."""
    best = np.full(num_videos, -np.inf)
    np.maximum.at(best, video_of_text, own)
    num_own = np.bincount(video_of_text, weights=own == best[video_of_text], minlength=num_videos)
    higher, equal = np.zeros(num_videos, dtype=np.int64), np.zeros(num_videos, dtype=np.int64)
    indices = np.zeros((num_videos, 0), dtype=np.int64)
    scores = np.zeros((num_videos, 0))
    for first in range(0, len(video_of_text), block_size):
        targets = video_of_text[first : first + block_size]
        block = _block(blocks, slice(first, first + len(targets)), num_videos)
        candidates, values = _top(block.T, top_k)
        values = np.concatenate([scores, values], axis=1)
        places, scores = _top(values, top_k)
        indices = np.take_along_axis(np.concatenate([indices, candidates + first], axis=1), places, axis=1)
        others = block.copy()
        others[np.arange(len(targets)), targets] = -np.inf
        higher += (others > best).sum(axis=0)
        equal += (others == best).sum(axis=0)
    return RankedQueries(_place(higher, equal, ties, num_own), indices, scores)


def _raise_groups(
    groups: Float[np.ndarray, "videos videos"],
    block: Float[np.ndarray, "rows videos"],
    targets: Int[np.ndarray, " rows"],
) -> None:
    """Lifts the rows of `groups` to the block's captions of the same video, in place."""
    order = np.argsort(targets, kind="stable")
    videos, starts = np.unique(targets[order], return_index=True)
    groups[videos] = np.maximum(groups[videos], np.maximum.reduceat(block[order], starts, axis=0))


def _top(
    scores: Float[np.ndarray, "rows items"], k: int
) -> tuple[Int[np.ndarray, "rows top"], Float[np.ndarray, "rows top"]]:
    """Indices and scores of the k highest of each row, fewer where a row has fewer; of equal ones the first."""
    num_items = scores.shape[1]
    k = min(k, num_items)
    lowest = np.partition(scores, num_items - k, axis=1)[:, num_items - k, None]
    higher, equal = scores > lowest, scores == lowest
    # a partition cuts anywhere through those that equal the lowest; the ones with the lowest index are taken
    equal &= np.cumsum(equal, axis=1, dtype=np.int32) <= k - higher.sum(axis=1, keepdims=True)
    # by rising index, in which the stable sort leaves equal scores
    chosen = np.nonzero(higher | equal)[1].reshape(-1, k)
    values = np.take_along_axis(scores, chosen, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1), np.take_along_axis(values, order, axis=1)


def _block(blocks: ScoreBlocks, rows: slice, num_videos: int) -> Float[np.ndarray, "rows videos"]:
    block = np.asarray(blocks(rows.start, rows.stop))
    expected = (rows.stop - rows.start, num_videos)
    if block.shape != expected:
        raise ValueError(
            f"blocks({rows.start}, {rows.stop}) gave scores of shape {block.shape}, expected {expected}"
        )
    return block


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} ({value!r}) must be one of {', '.join(get_args(choices))}")


def _check_targets(targets: Int[np.ndarray, " targets"], *, num_rows: int, num_items: int) -> None:
    if num_rows != len(targets):
        raise ValueError(f"targets ({len(targets)}) must be as many as rows of similarity ({num_rows})")
    if len(targets) and not 0 <= targets.min() <= targets.max() < num_items:
        raise ValueError(
            f"targets ({targets.min()} to {targets.max()}) must be in [0, {num_items}), the items"
        )


def _check_scores(
    scores: Float[np.ndarray, "rows items"], targets: Int[np.ndarray, " rows"], *, first_row: int
) -> None:
    if not scores.size:
        return
    # the maximum of an array with NaN is NaN, and NaN is below nothing
    if not scores.max() < np.inf:
        for what, wrong in (("NaN", np.isnan(scores)), ("+inf", np.isposinf(scores))):
            rows = np.flatnonzero(wrong.any(axis=1))
            if len(rows):
                raise ValueError(
                    f"similarity has {what} in {len(rows)} rows, the first is {first_row + rows[0]}"
                )
    padded = np.flatnonzero(np.isneginf(scores[np.arange(len(targets)), targets]))
    if len(padded):
        raise ValueError(f"similarity is -inf, that is padding, at the target of row {first_row + padded[0]}")
