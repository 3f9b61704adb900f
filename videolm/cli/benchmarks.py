"""Measuring a model: `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from videolm.cli.options import AllowFailures, Format, OutputFormat, Quiet, Verbose
from videolm.cli.output import load_model, print_json, printable, reporting


def evaluate(
    model: Annotated[str, typer.Argument(help="'mini', a model's folder, or the hub id of a CLIP.")],
    benchmark: Annotated[Path, typer.Argument(help="Folder in MSR-VTT's form, or a rendered world.")],
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.md.")] = None,
    format: OutputFormat = Format.table,
    allow_failures: AllowFailures = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure recall on a test list and, in a rendered world, whether twins are told apart."""
    with reporting(verbose):
        import videolm.evaluation

        report = videolm.evaluation.evaluate(
            load_model(model, allow_untrained=True), benchmark, show_progress_bar=False if quiet else None
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
