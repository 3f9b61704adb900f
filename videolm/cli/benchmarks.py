"""Measuring a model, and what there is to measure it on: `evaluate`, `data`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videolm.cli.options import (
    AllowFailures,
    BatchSize,
    Budget,
    DtypeName,
    Format,
    MaxNewTokens,
    NumBeams,
    NumFrames,
    OutputFormat,
    Quiet,
    SamplerOption,
    Verbose,
)
from videolm.cli.output import load_model, print_json, print_table, printable, reporting, say

if TYPE_CHECKING:
    from videolm.datasets.protocol import CaptionProtocol, QuestionProtocol, RetrievalProtocol


class Asking(StrEnum):
    """How questions are answered."""

    auto = "auto"
    write = "write"
    choose = "choose"


def evaluate(
    model: Annotated[str, typer.Argument(help="'mini', a model's folder, or the hub id of a CLIP.")],
    data: Annotated[Path, typer.Argument(help="Folder with a benchmark's annotation, or a rendered world.")],
    benchmark: Annotated[
        str,
        typer.Option(
            help="Name as in `videolm data`, for retrieval or questions; msrvtt-captions, msvd-captions or "
            "vatex-captions for captions."
        ),
    ] = "msrvtt",
    split: Annotated[str, typer.Option(help="A split of the benchmark.")] = "test",
    videos: Annotated[Path | None, typer.Option(help="Folder with the videos; default: DATA/videos.")] = None,
    num_frames: NumFrames = None,
    sampler: SamplerOption = None,
    dtype: Annotated[
        DtypeName, typer.Option(help="What the model computes in; float32 for numbers that compare.")
    ] = DtypeName.auto,
    reduce: Annotated[
        str | None,
        typer.Option(metavar="PLAN", help="Fewer tokens in the vision tower, as in tome:r=16; none: all."),
    ] = None,
    dsl: Annotated[bool, typer.Option("--dsl", help="Retrieval: also dual softmax (transductive).")] = False,
    qb_norm: Annotated[
        bool, typer.Option("--qb-norm", help="Retrieval: also QB-Norm (transductive).")
    ] = False,
    meteor: Annotated[
        bool, typer.Option("--meteor", help="Captions: also METEOR, which needs Java.")
    ] = False,
    answers: Annotated[
        Asking,
        typer.Option(help="Questions: write answers, choose candidates; auto: as the benchmark has it."),
    ] = Asking.auto,
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="Questions: choose among so many training answers.")
    ] = None,
    num_beams: NumBeams = None,
    max_new_tokens: MaxNewTokens = None,
    budget: Budget = None,
    batch_size: BatchSize = 8,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json, report.md and more.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first videos of the list.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Measure on the videos that are there, and say so.")
    ] = False,
    format: OutputFormat = Format.table,
    allow_failures: AllowFailures = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a model on a benchmark: what it finds, how it captions, or how it answers."""
    with reporting(verbose):
        from videolm.datasets.protocol import protocol_of

        rules = {
            "dsl": dsl or None,
            "qb_norm": qb_norm or None,
            "meteor": meteor or None,
            "answers": None if answers is Asking.auto else answers.value,
            "vocabulary": vocabulary,
            "num_beams": num_beams,
            "max_new_tokens": max_new_tokens,
            "budget": budget,
        }
        run_evaluation(
            model,
            data,
            protocol=protocol_of(
                benchmark,
                split=split,
                num_frames=num_frames,
                sampler=None if sampler is None else sampler.value,
                dtype=dtype.value,
                reduce=reduce,
                **{name: value for name, value in rules.items() if value is not None},
            ),
            videos=videos,
            out=out,
            batch_size=batch_size,
            limit=limit,
            allow_missing=allow_missing,
            allow_failures=allow_failures,
            format=format,
            quiet=quiet,
        )


def data(
    name: Annotated[
        str,
        typer.Argument(
            help="msrvtt, msvd, didemo, activitynet, lsmdc, vatex; msrvtt-qa, msvd-qa, nextqa, nextoe, "
            "activitynet-qa, tgif-frameqa, tgif-transition, tgif-action or tgif-count."
        ),
    ],
    dir: Annotated[Path, typer.Option("--dir", help="Folder with the annotation.")],
    videos: Annotated[Path | None, typer.Option(help="Folder with the videos; default: DIR/videos.")] = None,
    format: OutputFormat = Format.table,
    verbose: Verbose = False,
) -> None:
    """Say what of a benchmark is there, what is missing and where to get it; nothing is downloaded."""
    with reporting(verbose):
        from videolm.evaluation import check_benchmark

        found = check_benchmark(name, dir, videos=videos)
        if format is Format.json:
            print_json(found.as_json())
        else:
            print_table(("what", "expected", "found", "status"), found.rows())
            say(f"source: {found.source}")
            say(f"terms: {found.terms}")
            for note in found.notes:
                say(f"note: {note}")
        if not found.is_complete:
            raise typer.Exit(3)


def run_evaluation(
    model: str,
    data: Path,
    *,
    protocol: RetrievalProtocol | CaptionProtocol | QuestionProtocol,
    videos: Path | None,
    out: Path | None,
    batch_size: int,
    limit: int | None,
    allow_missing: bool,
    format: Format,
    quiet: bool,
    allow_failures: bool = False,
) -> None:
    """Evaluate, print and save; exit code 3 where a video could not be read and that was not allowed."""
    import videolm.evaluation

    if out is not None:
        # a folder that cannot be made is better known now than after the videos
        out.mkdir(parents=True, exist_ok=True)
    report = videolm.evaluation.evaluate(
        load_model(model, allow_untrained=True, dtype=protocol.dtype, reduce=protocol.reduce),
        data,
        protocol=protocol,
        videos=videos,
        batch_size=batch_size,
        limit=limit,
        allow_missing=allow_missing,
        show_progress_bar=False if quiet else None,
    )
    if out is not None:
        report.save(out)
    if format is Format.json:
        print_json(report.as_json())
    else:
        for line in report.markdown().splitlines():
            print(printable(line))
    if report.failures and not allow_failures:
        raise typer.Exit(3)
