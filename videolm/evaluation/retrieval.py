"""A model on a benchmark of text-video retrieval, in both directions, on the videos that are there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float

from videolm.datasets.annotations import (
    CaptionedVideo,
    Query,
    check_split,
    exists,
    queries_of,
    videos_of_sentences,
)
from videolm.datasets.catalog import Benchmark, find_benchmark
from videolm.datasets.msrvtt import ANNOTATION, Split, read_captions
from videolm.datasets.protocol import Protocol
from videolm.datasets.synthetic import read_twins
from videolm.evaluation.report import QueryTable, Report
from videolm.evaluation.results import score
from videolm.evaluation.twins import is_world, twin_accuracy, world_ceiling
from videolm.evaluation.videos import locate_videos, named
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


def evaluate(
    model: VideoLM,
    folder: str | Path,
    *,
    protocol: Protocol | None = None,
    videos: str | Path | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    allow_missing: bool = False,
    show_progress_bar: bool | None = None,
) -> Report:
    """Ranks the sentences and videos of a split whose annotation is in `folder`; a rendered world is one, too.

    Without a protocol by that of MSR-VTT 1k-A. Videos are looked for in `videos`, by default `folder/videos`;
    `limit` takes the first of the split's list. Missing files are a FileNotFoundError, or with `allow_missing`
    left out with their queries and reported, as is always what cannot be read; NothingReadError where nothing
    is left.
    """
    protocol = protocol or Protocol()
    if limit is not None and limit < 1:
        raise ValueError(f"limit ({limit}) must be at least 1")
    folder = Path(folder)
    benchmark = find_benchmark(protocol.benchmark)
    check_split(protocol.split, benchmark.splits)
    listed = benchmark.read(folder, protocol.split)[:limit]
    bank = _bank(folder, protocol) if protocol.qb_norm else []
    paths = _locate(folder / "videos" if videos is None else Path(videos), listed, allow_missing)
    encoded = model.encode_videos(
        list(paths.values()),
        num_frames=protocol.num_frames,
        batch_size=batch_size,
        decoder=protocol.decoder,
        on_error="skip",
        show_progress_bar=show_progress_bar,
    )
    row = _rows(encoded, paths)
    ranked = [video for video in listed if video.id in row]
    ids = sorted(row, key=row.__getitem__)
    queries = queries_of(ranked)
    blocks = score_blocks(model, [query.sentence for query in queries], encoded)
    targets = np.array([row[query.video_id] for query in queries])
    ranking, results, notes = score(
        blocks,
        targets,
        ids,
        folder=folder,
        protocol=protocol,
        bank=(score_blocks(model, bank, encoded), len(bank)) if bank else None,
    )
    ceiling, num_ambiguous = _ceiling(folder, protocol, ranked)
    twins = read_twins(folder, split="test") if is_world(folder, protocol.split) else []
    twins = [twin for twin in twins if twin.video_a in row and twin.video_b in row]
    accuracy = twin_accuracy(model, encoded, twins, row)
    return Report(
        model=model.info,
        benchmark=f"{_title(benchmark, folder)}, {protocol.split} ({folder})",
        protocol=asdict(protocol) | {"limit": limit, "dtype": str(model.dtype)},
        results=results,
        num_listed=len(listed),
        num_ranked=len(ids),
        missing=[video.id for video in listed if video.id not in paths],
        failures=encoded.failures,
        ceiling=ceiling,
        num_ambiguous=num_ambiguous,
        twin_accuracy=accuracy,
        num_twin_pairs={kind: sum(kind in ("all", t.kind) for t in twins) for kind in accuracy},
        environment=describe_environment(model.device),
        notes=notes,
        queries=QueryTable(queries, ids, ranking, protocol.v2t),
    )


def retrieval_scores(
    model: VideoLM, videos: Embeddings, queries: Sequence[Query], row: dict[str, int]
) -> tuple[RetrievalScores, RetrievalScores]:
    """Text-to-video and video-to-text; `row` tells the row of `videos` by video id."""
    blocks = score_blocks(model, [query.sentence for query in queries], videos)
    targets = np.array([row[query.video_id] for query in queries])
    ranking = rank_retrieval(blocks, targets, num_videos=len(videos))
    return scores_of_ranks(ranking.t2v.ranks), scores_of_ranks(ranking.v2t.ranks)


def score_blocks(model: VideoLM, sentences: Sequence[str], videos: Embeddings) -> ScoreBlocks:
    """The head's scores of the sentences with the videos, computed when they are asked for.

    Every distinct sentence is encoded once: what equal sentences get must not depend on the batch they are in.
    """
    distinct = {sentence: place for place, sentence in enumerate(dict.fromkeys(sentences))}
    texts = model.encode_texts(list(distinct))
    vectors = np.asarray(texts)
    places = np.array([distinct[sentence] for sentence in sentences])

    def blocks(first: int, last: int) -> Float[np.ndarray, "rows videos"]:
        part = replace(texts, vectors=vectors[places[first:last]], ids=list(sentences[first:last]))
        return model.similarity(part, videos).numpy()

    return blocks


def _locate(where: Path, listed: Sequence[CaptionedVideo], allow_missing: bool) -> dict[str, Path]:
    """The files that are there, by video id."""
    ids = [video.id for video in listed]
    paths = locate_videos(where, ids)
    missing = [video_id for video_id in ids if video_id not in paths]
    if not paths:
        raise NothingReadError(f"none of the {len(ids)} videos is in {where}: {named(missing)}")
    if missing and not allow_missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(ids)} videos are not in {where}: {named(missing)}; allow_missing=True "
            "(--allow-missing) ranks the others and says so"
        )
    return paths


def _rows(encoded: Embeddings, paths: dict[str, Path]) -> dict[str, int]:
    """Row of each video by id."""
    if not len(encoded):
        first = encoded.failures[0]
        raise NothingReadError(f"none of the {len(paths)} videos could be read; {first.path}: {first.error}")
    ids = {os.fspath(path): video_id for video_id, path in paths.items()}
    return {ids[name]: i for i, name in enumerate(encoded.ids)}


def _ceiling(
    folder: Path, protocol: Protocol, ranked: Sequence[CaptionedVideo]
) -> tuple[float | None, int | None]:
    """Expected R@1, in percent, of a reader that knows the captions, and how many queries leave it to guess."""
    if is_world(folder, protocol.split):
        return world_ceiling(folder, {video.id for video in ranked}), None
    captions = ranked
    if protocol.benchmark == "msrvtt":
        # a query of 1k-A or 1k-B is one caption of 20, and the others tell what else it fits
        if not exists(folder / ANNOTATION):
            return None, None
        ids = {video.id for video in ranked}
        every = read_captions(folder, split=cast(Split, protocol.split))
        captions = [video for video in every if video.id in ids]
    fitting = videos_of_sentences(queries_of(ranked), captions)
    return 100 * float(np.mean([1 / len(videos) for videos in fitting])), sum(len(v) > 1 for v in fitting)


def _title(benchmark: Benchmark, folder: Path) -> str:
    return "a rendered world" if (folder / "world.json").exists() else benchmark.title


def _bank(folder: Path, protocol: Protocol) -> list[str]:
    """Sentences of the training split that goes with a test split, drawn without replacement."""
    benchmark = find_benchmark(protocol.benchmark)
    training = benchmark.splits[protocol.split].training
    if training is None:
        raise ValueError(
            f"qb_norm needs a split to measure on, and {protocol.split} of {protocol.benchmark} is for training"
        )
    sentences = [query.sentence for query in queries_of(benchmark.read(folder, training))]
    chosen = np.random.default_rng(protocol.seed).permutation(len(sentences))[: protocol.qb_norm_bank]
    return [sentences[i] for i in sorted(chosen)]
