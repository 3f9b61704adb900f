"""Measure a model by a protocol of configs/: `python tools/evaluate.py CONFIG --data D --videos V --model M`.

The exit codes are those of `videolm evaluate`: 3 says that some videos could not be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from videolm.cli.benchmarks import run_evaluation
from videolm.cli.options import BatchSize, Format, OutputFormat, Quiet, Verbose
from videolm.cli.output import reporting
from videolm.recipes import read_protocol


def main(
    config: Annotated[Path, typer.Argument(help="A file of configs/.")],
    data: Annotated[Path, typer.Option(help="Folder with the benchmark's annotation.")],
    model: Annotated[str, typer.Option(help="'mini', a model's folder, or the hub id of a CLIP.")],
    videos: Annotated[Path | None, typer.Option(help="Folder with the videos; default: DATA/videos.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    batch_size: BatchSize = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first videos of the list.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Measure on the videos that are there, and say so.")
    ] = False,
    override: Annotated[list[str] | None, typer.Option("--set", help="key=value of the protocol.")] = None,
    format: OutputFormat = Format.table,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Retrieval, captions or answers, as the config's benchmark has it: what came out, and with what."""
    with reporting(verbose):
        run_evaluation(
            model,
            data,
            protocol=read_protocol(config, override or ()),
            videos=videos,
            out=out,
            batch_size=batch_size,
            limit=limit,
            allow_missing=allow_missing,
            format=format,
            quiet=quiet,
        )


if __name__ == "__main__":
    typer.run(main)
