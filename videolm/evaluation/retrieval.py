"""A model on a benchmark of text-video retrieval, in both directions, on the videos that are there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from videolm.datasets.annotations import CaptionedVideo, Query, check_split, queries_of
from videolm.datasets.catalog import Benchmark, find_benchmark
from videolm.datasets.protocol import Protocol
from videolm.evaluation.background import read_background
from videolm.evaluation.report import QueryTable, Report
from videolm.evaluation.results import score
from videolm.evaluation.twins import twin_accuracy
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
from videolm.video.readers import AUTO_ORDER, available_decoders


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
    `limit` takes the first of the split's list, for a trial: with fewer to rank against, its numbers are too good.
    Missing files are a FileNotFoundError, or with `allow_missing` left out with their queries and reported, as
    is always what cannot be read; NothingReadError where nothing is left. ValueError where the model computes in
    another dtype, or with another plan to reduce tokens, than the protocol says.
    """
    protocol = protocol or Protocol()
    if limit is not None and limit < 1:
        raise ValueError(f"limit ({limit}) must be at least 1")
    _check_model(model, protocol)
    folder = Path(folder)
    benchmark = find_benchmark(protocol.benchmark)
    check_split(protocol.split, benchmark.splits)
    listed = benchmark.read(folder, protocol.split)
    limited = listed[:limit]
    # all that may fail at once comes before the videos, which may take hours
    background = read_background(folder, protocol, listed)
    paths = _locate(folder / "videos" if videos is None else Path(videos), limited, allow_missing)
    texts = _encode_distinct(model, [q.sentence for q in queries_of(v for v in limited if v.id in paths)])
    bank_texts = _encode_distinct(model, background.bank)
    encoded = model.encode_videos(
        list(paths.values()),
        num_frames=protocol.num_frames,
        sampler=protocol.sampler,
        batch_size=batch_size,
        decoder=protocol.decoder,
        on_error="skip",
        show_progress_bar=show_progress_bar,
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
    return Report(
        model=model.info,
        benchmark=f"{_title(benchmark, folder)}, {protocol.split} ({folder})",
        protocol=asdict(protocol)
        | {"limit": limit, "dtype": str(model.dtype), "reduce": model.shape.reduce or "none"},
        results=results,
        num_listed=len(listed),
        num_ranked=len(ids),
        missing=[video.id for video in limited if video.id not in paths],
        failures=encoded.failures,
        ceiling=ceiling,
        num_ambiguous=num_ambiguous,
        twin_accuracy=accuracy,
        num_twin_pairs={kind: sum(kind in ("all", t.kind) for t in twins) for kind in accuracy},
        environment=describe_environment(model.device),
        notes=background.notes + _decoder_notes(protocol),
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


def _check_model(model: VideoLM, protocol: Protocol) -> None:
    reduce = "" if protocol.reduce == "none" else protocol.reduce
    if reduce not in (None, model.shape.reduce):
        raise ValueError(
            f"reduce ({protocol.reduce!r}) of the protocol is not that of {model.info.name}, which has "
            f"{model.shape.reduce or 'none'!r}: load it with reduce={protocol.reduce!r}"
        )
    if protocol.dtype not in ("auto", str(model.dtype).removeprefix("torch.")):
        raise ValueError(
            f"dtype ({protocol.dtype!r}) of the protocol is not that of {model.info.name}, which computes in "
            f"{model.dtype}: load it with dtype=torch.{protocol.dtype}"
        )


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


def _decoder_notes(protocol: Protocol) -> list[str]:
    """What "auto" stands for: an embedding does not carry the back end that read its file."""
    if protocol.decoder != "auto":
        return []
    versions = available_decoders()
    usable = [
        f"{name} {versions[name]}" for name in AUTO_ORDER if not versions[name].startswith("cannot be used")
    ]
    return [
        f"files are read by the first of {', '.join(usable)} whose frames come back at the times that the file "
        "says; which one read which file is not recorded"
    ]


def _title(benchmark: Benchmark, folder: Path) -> str:
    return "a rendered world" if (folder / "world.json").exists() else benchmark.title
