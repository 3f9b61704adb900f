"""Vectors of all videos of a benchmark's split: `python tools/extract_features.py msrvtt OUT --data D --model M`.

For a folder of videos, give the folder in place of the benchmark's name. The same command goes on where a killed one
was. For an array of jobs, give each `--shard I/N` and the same OUT, and run the command once more without it. The exit
codes are those of `videolm encode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from videolm.cli.options import (
    AllowFailures,
    AllowUntrained,
    BatchSize,
    Decoder,
    DecoderName,
    DtypeName,
    DtypeOption,
    FrameCache,
    MaxFailures,
    Model,
    NumFrames,
    Overwrite,
    Quiet,
    ReduceOption,
    RetryFailed,
    SamplerOption,
    Timeout,
    Verbose,
    Workers,
)
from videolm.cli.output import close_run, load_model, reporting, say
from videolm.cli.videos import ShardOption, parse_shard
from videolm.datasets.catalog import BENCHMARKS
from videolm.evaluation.videos import locate_videos, named
from videolm.search.sources import Source


def main(
    source: Annotated[str, typer.Argument(help=f"{', '.join(BENCHMARKS)}, or a folder of videos.")],
    out: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    split: Annotated[str | None, typer.Option(help="Of the benchmark; default: test.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmark's annotation.")] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder with its videos; default: DATA/videos.")] = None,
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
    retry_failed: RetryFailed = False,
    overwrite: Overwrite = False,
    allow_untrained: AllowUntrained = False,
    allow_failures: AllowFailures = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn the videos of a benchmark into vectors, in parquet shards."""
    with reporting(verbose):
        missing: list[str] = []
        if source not in BENCHMARKS:
            refuse_for_folder(source, {"--split": split, "--data": data, "--videos": videos})
            chosen: Path | Source = Path(source)
        elif data is None:
            raise typer.BadParameter(f"{source} needs --data, the folder with its annotation")
        else:
            split = split or "test"
            chosen, missing = list_videos(source, split, data, videos or data / "videos")
        opened = load_model(
            model,
            allow_untrained=allow_untrained,
            dtype=dtype.value,
            reduce=reduce,
            out=None if overwrite else out,
        )
        extraction = opened.extract(
            chosen,
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
        )
        if missing:
            say(f"{len(missing)} videos of {source} {split} have no file: {named(missing)}")
        done = f"{extraction.num_videos} videos ({extraction.num_new} new)"
        close_run(done, extraction.failures, extraction.out, quiet, allow_failures)
        if missing and not allow_failures:
            raise typer.Exit(3)


def refuse_for_folder(source: str, options: Mapping[str, object]) -> None:
    """A usage error for an option that only a benchmark has."""
    if given := [name for name, value in options.items() if value is not None]:
        raise typer.BadParameter(
            f"{source} is not one of {', '.join(BENCHMARKS)}, so it is a folder of videos, and that takes no "
            f"{' or '.join(given)}"
        )


def list_videos(benchmark: str, split: str, data: Path, folder: Path) -> tuple[Source, list[str]]:
    """The files of a split, and the ids of the videos that have none."""
    try:
        ids = [video.id for video in BENCHMARKS[benchmark].read(data, split)]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; `videolm data {benchmark} --dir {data}` says what is missing and where to get it"
        ) from error
    files = locate_videos(folder, ids)
    root = folder.absolute()
    names = sorted(path.relative_to(root).as_posix() for path in files.values())
    if not names:
        raise FileNotFoundError(f"{folder} holds no video of {benchmark} {split}; give --videos")
    source = Source(root, names, 0, f"{benchmark} {split} in {root}")
    return source, [video_id for video_id in ids if video_id not in files]


if __name__ == "__main__":
    typer.run(main)
