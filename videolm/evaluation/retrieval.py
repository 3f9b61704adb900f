"""A model on a benchmark of text-video retrieval, in both directions, on the videos that are there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from videolm.datasets.annotations import Query, check_split, queries_of
from videolm.datasets.catalog import find_benchmark
from videolm.datasets.protocol import RetrievalProtocol
from videolm.evaluation.background import read_background
from videolm.evaluation.conditions import (
    Run,
    decoder_notes,
    describe_benchmark,
    written_conditions,
)
from videolm.evaluation.results import score
from videolm.evaluation.retrieval_report import QueryTable, RetrievalReport
from videolm.evaluation.twins import twin_accuracy
from videolm.evaluation.videos import find_files
from videolm.metrics.retrieval import (
    RetrievalScores,
    ScoreBlocks,
    rank_retrieval,
    scores_of_ranks,
)
from videolm.pipeline import VideoLM
from videolm.pipeline.video_lm import describe_environment
from videolm.search.extraction import NothingReadError
from videolm.types import Embeddings


def evaluate_retrieval(model: VideoLM, protocol: RetrievalProtocol, run: Run) -> RetrievalReport:
    """Ranks the sentences and videos of a split by each other; with a limit its numbers are too good."""
    benchmark = find_benchmark(protocol.benchmark)
    check_split(protocol.split, benchmark.splits)
    listed = benchmark.read(run.folder, protocol.split)
    limited = listed[: run.limit]
    # all that may fail at once comes before the videos, which may take hours
    background = read_background(run.folder, protocol, listed)
    paths = find_files(run.videos, [video.id for video in limited], allow_missing=run.allow_missing)
    texts = _encode_distinct(model, [q.sentence for q in queries_of(v for v in limited if v.id in paths)])
    bank_texts = _encode_distinct(model, background.bank)
    encoded = model.encode_videos(
        list(paths.values()),
        num_frames=protocol.num_frames,
        sampler=protocol.sampler,
        batch_size=run.batch_size,
        decoder=protocol.decoder,
        on_error="skip",
        show_progress_bar=run.show_progress_bar,
    )
    row = _rows(encoded, paths)
    ranked = [video for video in limited if video.id in row]
    ids = sorted(row, key=row.__getitem__)
    queries = queries_of(ranked)
    bank = None
    if background.bank:
        bank = _score_blocks(model, background.bank, bank_texts, encoded), len(background.bank)
    ranking, results = score(
        _score_blocks(model, [query.sentence for query in queries], texts, encoded),
        np.array([row[query.video_id] for query in queries]),
        ids,
        protocol=protocol,
        leaks=background.leaks,
        bank=bank,
    )
    ceiling, num_ambiguous = background.ceiling(ranked)
    twins = [twin for twin in background.twins if twin.video_a in row and twin.video_b in row]
    accuracy = twin_accuracy(model, encoded, twins, row)
    return RetrievalReport(
        model=model.info,
        benchmark=describe_benchmark(benchmark.title, run.folder, protocol.split),
        protocol=written_conditions(model, protocol, run),
        results=results,
        num_listed=len(listed),
        num_read=len(ids),
        missing=[video.id for video in limited if video.id not in paths],
        failures=encoded.failures,
        ceiling=ceiling,
        num_ambiguous=num_ambiguous,
        twin_accuracy=accuracy,
        num_twin_pairs={kind: sum(kind in ("all", t.kind) for t in twins) for kind in accuracy},
        environment=describe_environment(model.device),
        notes=background.notes + decoder_notes(protocol),
        queries=QueryTable(queries, ids, ranking, protocol.v2t),
    )


def retrieval_scores(
    model: VideoLM, videos: Embeddings, queries: Sequence[Query], row: dict[str, int]
) -> tuple[RetrievalScores, RetrievalScores]:
    """Text-to-video and video-to-text; `row` tells the row of `videos` by video id."""
    sentences = [query.sentence for query in queries]
    blocks = _score_blocks(model, sentences, _encode_distinct(model, sentences), videos)
    targets = np.array([row[query.video_id] for query in queries])
    ranking = rank_retrieval(blocks, targets, num_videos=len(videos))
    return scores_of_ranks(ranking.t2v.ranks), scores_of_ranks(ranking.v2t.ranks)


def _encode_distinct(model: VideoLM, sentences: Sequence[str]) -> Embeddings:
    """Every sentence once: what equal ones get must not depend on the batch that they are in."""
    return model.encode_texts(list(dict.fromkeys(sentences)))


def _score_blocks(
    model: VideoLM, sentences: Sequence[str], texts: Embeddings, videos: Embeddings
) -> ScoreBlocks:
    """The head's scores of the sentences, all of them in `texts`, with the videos, computed when asked for."""
    place = {sentence: i for i, sentence in enumerate(texts.ids)}
    places = [place[sentence] for sentence in sentences]
    vectors = np.asarray(texts)

    def blocks(first: int, last: int) -> Float[np.ndarray, "rows videos"]:
        part = replace(texts, vectors=vectors[places[first:last]], ids=list(sentences[first:last]))
        return model.similarity(part, videos).numpy()

    return blocks


def _rows(encoded: Embeddings, paths: dict[str, Path]) -> dict[str, int]:
    """Row of each video by id."""
    if not len(encoded):
        first = encoded.failures[0]
        raise NothingReadError(f"none of the {len(paths)} videos could be read; {first.path}: {first.error}")
    ids = {os.fspath(path): video_id for video_id, path in paths.items()}
    return {ids[name]: i for i, name in enumerate(encoded.ids)}
