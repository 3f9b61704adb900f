"""From video files to vectors, an index, hits: `encode`, `index`, `search`, `info`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import videolm
from videolm.cli.options import (
    AllowFailures,
    AllowUntrained,
    BatchSize,
    Decoder,
    DecoderName,
    DtypeName,
    DtypeOption,
    Format,
    FrameCache,
    MaxFailures,
    Model,
    NumFrames,
    OutputFormat,
    Overwrite,
    Quiet,
    ReduceOption,
    RetryFailed,
    SamplerOption,
    ShardFormat,
    Source,
    Timeout,
    Verbose,
    Workers,
)
from videolm.cli.output import (
    close_run,
    load_model,
    print_json,
    print_mapping,
    print_table,
    reporting,
    warnings_said,
)

ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Only the I-th (from 0) of N parts, for jobs that share OUT."
    ),
]


def encode(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    model: Model = "mini",
    num_frames: NumFrames = None,
    sampler: SamplerOption = None,
    batch_size: BatchSize = 8,
    workers: Workers = 2,
    decoder: DecoderName = Decoder.auto,
    dtype: DtypeOption = DtypeName.auto,
    reduce: ReduceOption = None,
    timeout: Timeout = 60.0,
    frame_cache: FrameCache = None,
    shard: ShardOption = None,
    max_failures: MaxFailures = None,
    format: Annotated[ShardFormat, typer.Option(help="npz: embeddings.npz beside the shards.")] = (
        ShardFormat.parquet
    ),
    retry_failed: RetryFailed = False,
    overwrite: Overwrite = False,
    allow_untrained: AllowUntrained = False,
    allow_failures: AllowFailures = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn videos into vectors, in parquet shards."""
    with reporting(verbose):
        from videolm.search.shards import write_npz

        opened = load_model(
            model,
            allow_untrained=allow_untrained,
            dtype=dtype.value,
            reduce=reduce,
            out=None if overwrite else out,
        )
        extraction = opened.extract(
            source,
            out,
            num_frames=num_frames,
            sampler=None if sampler is None else sampler.value,
            batch_size=batch_size,
            workers=workers,
            decoder=decoder.value,
            timeout=timeout,
            frame_cache=frame_cache,
            shard=None if shard is None else parse_shard(shard),
            max_failures=max_failures,
            retry_failed=retry_failed,
            overwrite=overwrite,
            show_progress_bar=False if quiet else None,
            finish=write_npz if format is ShardFormat.npz else None,
        )
        done = f"{extraction.num_videos} videos ({extraction.num_new} new)"
        close_run(done, extraction.failures, extraction.out, quiet, allow_failures)


def parse_shard(text: str) -> tuple[int, int]:
    """The two numbers of "I/N"."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise typer.BadParameter(f"--shard {text!r} must be I/N, as in 0/8")
    return int(index), int(count)


def index(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder for the index.")],
    model: Model = "mini",
    num_frames: NumFrames = None,
    sampler: SamplerOption = None,
    batch_size: BatchSize = 8,
    workers: Workers = 2,
    decoder: DecoderName = Decoder.auto,
    dtype: DtypeOption = DtypeName.auto,
    reduce: ReduceOption = None,
    timeout: Timeout = 60.0,
    frame_cache: FrameCache = None,
    max_failures: MaxFailures = None,
    retry_failed: RetryFailed = False,
    overwrite: Overwrite = False,
    allow_untrained: AllowUntrained = False,
    allow_failures: AllowFailures = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make videos searchable; run again, only new and changed files are encoded."""
    with reporting(verbose):
        opened = load_model(
            model,
            allow_untrained=allow_untrained,
            dtype=dtype.value,
            reduce=reduce,
            out=None if overwrite else out,
        )
        made = opened.index(
            source,
            out,
            num_frames=num_frames,
            sampler=None if sampler is None else sampler.value,
            batch_size=batch_size,
            workers=workers,
            decoder=decoder.value,
            timeout=timeout,
            frame_cache=frame_cache,
            max_failures=max_failures,
            retry_failed=retry_failed,
            overwrite=overwrite,
            show_progress_bar=False if quiet else None,
        )
        close_run(f"indexed {len(made)} videos", made.failures, out, quiet, allow_failures)


def search(
    index: Annotated[Path, typer.Argument(help="Folder that `videolm index` made.")],
    query: Annotated[str, typer.Argument(help="What the video shows.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    model: Annotated[str | None, typer.Option(help="Where the model is now, if it was moved.")] = None,
    format: OutputFormat = Format.table,
    verbose: Verbose = False,
) -> None:
    """Find the videos that a sentence describes."""
    with reporting(verbose):
        with warnings_said():
            opened = videolm.open_index(index, model or None)
            found = opened.search(query, k=k)
        hits = [asdict(hit) | {"path": str(hit.path)} for hit in found]
        if format is Format.json:
            print_json(hits)
        else:
            seconds = [f"{hit['start']:.1f}-{hit['end']:.1f}" for hit in hits]
            rows = [(f"{hit['score']:.3f}", hit["id"], span) for hit, span in zip(hits, seconds, strict=True)]
            print_table(("score", "video", "seconds"), rows)


def info(
    file: Annotated[Path, typer.Argument(help="A video.")],
    decoder: DecoderName = Decoder.auto,
    format: OutputFormat = Format.table,
    verbose: Verbose = False,
) -> None:
    """Say what a video file is."""
    with reporting(verbose), videolm.open_video(file, decoder=decoder.value) as reader:
        print_mapping(asdict(reader.info), format)
