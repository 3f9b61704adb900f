"""What every command does alike: load a model, report errors, print results, close a run."""

from __future__ import annotations

import json
import os
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import videolm
from videolm.cli.options import Format

if TYPE_CHECKING:
    from videolm.datasets.protocol import Dtype

_MOST_FAILURES_SHOWN = 5


def load_model(
    name: str,
    *,
    allow_untrained: bool,
    dtype: Dtype = "auto",
    reduce: str | None = None,
    out: Path | None = None,
) -> videolm.VideoLM:
    """The model; with the dtype "auto", or without `reduce`, it computes as in the run that is in `out` already."""
    import torch

    from videolm.search.run import written_setting

    wanted: str = dtype
    if dtype == "auto" and out is not None:
        # another machine, or the same with another torch, may find another one faster
        wanted = str(written_setting(out, "dtype")).removeprefix("torch.")
    if reduce is None and out is not None and isinstance(shape := written_setting(out, "shape"), dict):
        reduce = shape.get("reduce")
    found = getattr(torch, wanted, None)
    with warnings_said():
        return videolm.load(
            name,
            reduce=reduce,
            allow_untrained=allow_untrained,
            dtype=found if isinstance(found, torch.dtype) else "auto",
        )


@contextmanager
def warnings_said() -> Iterator[None]:
    """Warnings as one line each, without the place in the code that gave them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield
    for warning in caught:
        say(f"warning: {warning.message}")


@contextmanager
def reporting(
    verbose: bool, *, interrupted: str = "interrupted; the same command goes on where it was"
) -> Iterator[None]:
    """An error becomes one line and an exit code; `interrupted` is what is said at Ctrl-C."""
    try:
        yield
    except (typer.Exit, typer.BadParameter):
        raise
    except KeyboardInterrupt:
        say(interrupted)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # whoever read the results has enough; what is still buffered must not be written at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except Exception as error:
        if verbose:
            traceback.print_exc()
        code = _exit_code(error)
        say(f"error: {error}" if code > 1 else f"error: {type(error).__name__}: {error}")
        if code == 1 and not verbose:
            say("this was not expected; --verbose shows where it happened")
        raise typer.Exit(code) from None


def _exit_code(error: Exception) -> int:
    from videolm.search.extraction import NothingReadError, TooManyFailuresError
    from videolm.search.run import BusyError
    from videolm.video.readers.guard import VideoError

    if isinstance(error, NothingReadError | VideoError):
        return 4
    if isinstance(error, TooManyFailuresError):
        return 5
    if isinstance(error, OSError) and error.filename is not None:
        # it cannot be read or written, or its disk is full
        return 2
    # ImportError: an extra that is not installed
    wrong_usage = ValueError | FileNotFoundError | NotADirectoryError | BusyError | ImportError
    return 2 if isinstance(error, wrong_usage) else 1


def close_run(
    done: str,
    failures: Sequence[videolm.Failure],
    out: Path,
    quiet: bool,
    allow_failures: bool,
) -> None:
    """What failed, then the closing line, which begins with `done`; and the exit code."""
    for failure in failures[:_MOST_FAILURES_SHOWN]:
        say(f"  {failure.path}: {failure.error}")
    if len(failures) > _MOST_FAILURES_SHOWN:
        say(f"  and {len(failures) - _MOST_FAILURES_SHOWN} more")
    if failures:
        say(f"{done}, {len(failures)} failed (see {out / 'failures.jsonl'}; --retry-failed tries them again)")
        if not allow_failures:
            raise typer.Exit(3)
    elif not quiet:
        say(f"{done} into {out}")


def printable(text: str) -> str:
    """Text from outside with its control, direction and other invisible characters as escapes."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        else character
        for character in text
    )


def say(text: str) -> None:
    """One line, whatever the names in it hold."""
    print(printable(text), file=sys.stderr)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def print_mapping(values: Mapping[str, Any], format: Format) -> None:
    if format is Format.json:
        print_json(values)
        return
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows.extend((f"{key}: {inner}", str(text)) for inner, text in value.items())
        else:
            rows.append((key, str(value)))
    print_table(("what", "value"), rows)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A drawn table on a terminal; elsewhere one line a row with tabs between the cells."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in [columns, *cells]:
            print("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for line in cells:
        # Text, so that brackets in a name are not read as markup.
        table.add_row(*map(Text, line))
    Console().print(table)
