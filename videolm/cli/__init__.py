"""The `videolm` command: results on the output stream, everything else on the error stream.

Exit codes: 0 done, 1 unexpected error, 2 wrong usage or configuration, 3 finished but some videos failed,
4 nothing could be read, 5 stopped because too many videos failed, 130 interrupted (the same command goes on where
it was).
"""

from __future__ import annotations

from typing import Annotated

import typer

# Only light imports in this package: torch and the models are imported inside of the commands, so that help
# and a typing mistake are answered at once.
import videolm
from videolm.cli.benchmarks import data, evaluate
from videolm.cli.doctor import doctor
from videolm.cli.models import models
from videolm.cli.speech import ask, caption
from videolm.cli.videos import encode, index, info, search
from videolm.cli.world import demo, render

app = typer.Typer(
    help="Finds the video that a sentence describes, says what happens in one, and answers questions about it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(videolm.__version__)
        raise typer.Exit
    return wanted


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    # The option answers by itself.
    del version


for _command in (encode, index, search, caption, ask, info, models, doctor, render, demo, evaluate, data):
    app.command()(_command)


def main() -> None:
    """The entry point of the `videolm` command."""
    app()
