"""From scores to results: plain, on parts of the queries, mended by other queries, and of no model at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
from jaxtyping import Bool, Int

from videolm.datasets.protocol import RetrievalProtocol
from videolm.evaluation.retrieval_report import Result
from videolm.metrics.bootstrap import bootstrap_intervals
from videolm.metrics.rescoring import Queries, build_querybank, dual_softmax, querybank_norm
from videolm.metrics.retrieval import (
    RetrievalRanking,
    ScoreBlocks,
    cosine_blocks,
    rank_retrieval,
    scores_of_ranks,
)

_RANDOM_DIM = 256


def score(
    blocks: ScoreBlocks,
    video_of_text: Int[np.ndarray, " texts"],
    ids: Sequence[str],
    *,
    protocol: RetrievalProtocol,
    leaks: Mapping[str, Set[str]],
    bank: tuple[ScoreBlocks, int] | None,
) -> tuple[RetrievalRanking, list[Result]]:
    """The plain ranking, and all results that the protocol asks for, the plain one first.

    `ids` are the videos in the order of the columns; `leaks` those that training has seen something of, by what;
    `bank` holds the scores of other sentences, and how many.
    """
    rank = partial(
        rank_retrieval, video_of_text=video_of_text, num_videos=len(ids), ties=protocol.ties, v2t=protocol.v2t
    )
    ranking = rank(blocks)
    results = [_result("all", ranking, video_of_text, seed=protocol.seed)]
    for what, left_out in leaks.items():
        is_kept = np.array([video_id not in left_out for video_id in ids])
        if is_kept.any():
            name = f"1k-A clean: without the {(~is_kept).sum()} {what}"
            results.append(_result(name, ranking, video_of_text, seed=protocol.seed, is_kept=is_kept))
    if protocol.dsl:
        results.append(_dual_softmax_result(rank, blocks, video_of_text, protocol))
    if bank is not None:
        results.append(_querybank_result(rank, blocks, video_of_text, protocol, bank))
    results.append(_floor(rank, video_of_text, len(ids), seed=protocol.seed))
    return ranking, results


def _result(
    name: str,
    ranking: RetrievalRanking,
    video_of_text: Int[np.ndarray, " texts"],
    *,
    seed: int,
    is_kept: Bool[np.ndarray, " videos"] | None = None,
) -> Result:
    """The scores of the queries of the videos that are kept, ranked among all."""
    t2v_ranks, v2t_ranks, groups = ranking.t2v.ranks, ranking.v2t.ranks, video_of_text
    if is_kept is not None:
        v2t_ranks = v2t_ranks[is_kept]
        t2v_ranks, groups = t2v_ranks[is_kept[video_of_text]], groups[is_kept[video_of_text]]
    return Result(
        name=name,
        t2v=scores_of_ranks(t2v_ranks),
        v2t=scores_of_ranks(v2t_ranks),
        t2v_intervals=bootstrap_intervals(t2v_ranks, groups=groups, seed=seed),
        v2t_intervals=bootstrap_intervals(v2t_ranks, seed=seed),
    )


def _dual_softmax_result(
    rank: Callable[[ScoreBlocks], RetrievalRanking],
    blocks: ScoreBlocks,
    video_of_text: Int[np.ndarray, " texts"],
    protocol: RetrievalProtocol,
) -> Result:
    """Each direction with the softmax over its own queries."""
    of_texts, of_videos = (
        rank(dual_softmax(blocks, num_texts=len(video_of_text), queries=queries, scale=protocol.dsl_scale))
        for queries in get_args(Queries)
    )
    ranking = RetrievalRanking(of_texts.t2v, of_videos.v2t)
    return replace(_result("DSL", ranking, video_of_text, seed=protocol.seed), is_transductive=True)


def _querybank_result(
    rank: Callable[[ScoreBlocks], RetrievalRanking],
    blocks: ScoreBlocks,
    video_of_text: Int[np.ndarray, " texts"],
    protocol: RetrievalProtocol,
    bank: tuple[ScoreBlocks, int],
) -> Result:
    bank_blocks, num_bank = bank
    hubs = build_querybank(bank_blocks, num_queries=num_bank, beta=protocol.qb_norm_beta)
    result = _result(
        f"QB-Norm, {num_bank:,} training sentences",
        rank(querybank_norm(blocks, hubs)),
        video_of_text,
        seed=protocol.seed,
    )
    # a bank for the other direction would be training videos
    return replace(result, is_transductive=True, v2t=None, v2t_intervals={})


def _floor(
    rank: Callable[[ScoreBlocks], RetrievalRanking],
    video_of_text: Int[np.ndarray, " texts"],
    num_videos: int,
    *,
    seed: int,
) -> Result:
    """What embeddings without any meaning reach."""
    generator = np.random.default_rng(seed)
    texts = generator.standard_normal((len(video_of_text), _RANDOM_DIM), dtype=np.float32)
    videos = generator.standard_normal((num_videos, _RANDOM_DIM), dtype=np.float32)
    ranking = rank(cosine_blocks(texts, videos))
    return _result("random embeddings (the floor)", ranking, video_of_text, seed=seed)
