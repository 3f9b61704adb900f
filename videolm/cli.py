"""The `videolm` command: results on the output stream, everything else on the error stream.

Exit codes: 0 done, 1 unexpected error, 2 wrong usage or configuration, 3 finished but some videos failed,
4 nothing could be read, 130 interrupted (the same command goes on where it was).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

# Only light imports here: torch and the models are imported inside of the commands, so that help and a
# typing mistake are answered at once.
import videolm

app = typer.Typer(
    help="Finds the video that a sentence describes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_MOST_FAILURES_SHOWN = 5


class Format(StrEnum):
    """How a result is printed."""

    table = "table"
    json = "json"


class ShardFormat(StrEnum):
    """How `encode` writes the vectors."""

    parquet = "parquet"
    npz = "npz"


class Split(StrEnum):
    """A part of a rendered world."""

    all = "all"
    train = "train"
    val = "val"
    test = "test"


class Decoder(StrEnum):
    """The back end that reads video files."""

    auto = "auto"
    pyav = "pyav"
    decord = "decord"


Source = Annotated[Path, typer.Argument(help="Folder of videos, one video, or a .txt with a path a line.")]
Model = Annotated[str, typer.Option(help="'mini', a model's folder, or the hub id of a CLIP.")]
NumFrames = Annotated[
    int | None, typer.Option(min=1, help="Frames a video; without it as the model was trained.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Videos that go through the model at once.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads that decode.")]
DecoderName = Annotated[Decoder, typer.Option("--decoder", help="What reads the files.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try again what failed in an earlier run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start again where OUT was made otherwise.")]
AllowUntrained = Annotated[bool, typer.Option("--allow-untrained", help="Take a model with random weights.")]
AllowFailures = Annotated[
    bool, typer.Option("--allow-failures", help="Exit with 0 although some videos failed.")
]
OutputFormat = Annotated[Format, typer.Option("--format", help="For people or for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but errors and failures.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")]


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


@app.command()
def encode(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    model: Model = "mini",
    num_frames: NumFrames = None,
    batch_size: BatchSize = 8,
    workers: Workers = 2,
    decoder: DecoderName = Decoder.auto,
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
    with _reporting(verbose):
        from videolm.search.shards import write_npz

        extraction = _load(model, allow_untrained=allow_untrained).extract(
            source,
            out,
            num_frames=num_frames,
            batch_size=batch_size,
            workers=workers,
            decoder=decoder.value,
            retry_failed=retry_failed,
            overwrite=overwrite,
            show_progress_bar=False if quiet else None,
        )
        if format is ShardFormat.npz:
            write_npz(out)
        _close("encoded", extraction.num_videos, extraction.failures, out, quiet, allow_failures)


@app.command()
def index(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder for the index.")],
    model: Model = "mini",
    num_frames: NumFrames = None,
    batch_size: BatchSize = 8,
    workers: Workers = 2,
    decoder: DecoderName = Decoder.auto,
    retry_failed: RetryFailed = False,
    overwrite: Overwrite = False,
    allow_untrained: AllowUntrained = False,
    allow_failures: AllowFailures = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make videos searchable; run again, only new and changed files are encoded."""
    with _reporting(verbose):
        made = _load(model, allow_untrained=allow_untrained).index(
            source,
            out,
            num_frames=num_frames,
            batch_size=batch_size,
            workers=workers,
            decoder=decoder.value,
            retry_failed=retry_failed,
            overwrite=overwrite,
            show_progress_bar=False if quiet else None,
        )
        _close("indexed", len(made), made.failures, out, quiet, allow_failures)


@app.command()
def search(
    index: Annotated[Path, typer.Argument(help="Folder that `videolm index` made.")],
    query: Annotated[str, typer.Argument(help="What the video shows.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    model: Annotated[str | None, typer.Option(help="Where the model is now, if it was moved.")] = None,
    format: OutputFormat = Format.table,
    verbose: Verbose = False,
) -> None:
    """Find the videos that a sentence describes."""
    with _reporting(verbose):
        with _warnings_said():
            opened = videolm.open_index(index, videolm.load(model) if model else None)
            found = opened.search(query, k=k)
        hits = [asdict(hit) | {"path": str(hit.path)} for hit in found]
        if format is Format.json:
            _print_json(hits)
        else:
            seconds = [f"{hit['start']:.1f}-{hit['end']:.1f}" for hit in hits]
            rows = [(f"{hit['score']:.3f}", hit["id"], span) for hit, span in zip(hits, seconds, strict=True)]
            _print_table(("score", "video", "seconds"), rows)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A video.")],
    decoder: DecoderName = Decoder.auto,
    format: OutputFormat = Format.table,
    verbose: Verbose = False,
) -> None:
    """Say what a video file is."""
    with _reporting(verbose), videolm.open_video(file, decoder=decoder.value) as reader:
        _print_mapping(asdict(reader.info), format)


@app.command()
def models(format: OutputFormat = Format.table, verbose: Verbose = False) -> None:
    """List the models that ship with the package."""
    with _reporting(verbose):
        known = [asdict(model) for model in videolm.list_models()]
        if format is Format.json:
            _print_json(known)
        else:
            columns = ("name", "trained", "licence", "weights_sha256", "scores")
            _print_table(columns, [[_short(model[column]) for column in columns] for model in known])


@app.command()
def doctor(format: OutputFormat = Format.table, verbose: Verbose = False) -> None:
    """Say what is installed, which decoders work, and where models run."""
    with _reporting(verbose):
        import torch

        from videolm.pipeline.video_lm import describe_environment, pick_device
        from videolm_kernels.backend import choose_backend

        device = pick_device("auto")
        choice = choose_backend("temporal_attention", backend="auto", device=device)
        _print_mapping(
            {
                "videolm": videolm.__version__,
                **describe_environment(device),
                "dtype": str(torch.float32),
                "kernels": {"temporal_attention": f"{choice.backend} ({choice.reason})"},
            },
            format,
        )


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder for the world.")],
    videos: Annotated[
        int, typer.Option(min=8, help="Videos of all splits; an eighth of them is test.")
    ] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another world.")] = 0,
    split: Annotated[Split, typer.Option(help="Make the files of one split only.")] = Split.all,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 2,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a world of moving shapes: mp4 files with captions and questions in MSR-VTT's formats."""
    with _reporting(verbose):
        from tqdm import tqdm

        from videolm.datasets.synthetic import render_world, world_sheet

        with tqdm(desc="render", unit="video", disable=True if quiet else None) as bar:
            made = render_world(
                out,
                num_videos=videos,
                seed=seed,
                split=split.value,
                workers=workers,
                on_video=lambda _: bar.update(),
            )
        world_sheet(made[:24]).save(out / "contact_sheet.png")
        if not quiet:
            _say(f"rendered {len(made)} videos into {out}, the first of them on {out / 'contact_sheet.png'}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the world, its index and the picture.")] = Path(
        "demo"
    ),
    format: OutputFormat = Format.table,
    verbose: Verbose = False,
) -> None:
    """Render a small world, index it with the model that ships, ask it, show what was found."""
    with _reporting(verbose):
        from videolm.demo import run_demo

        found = run_demo(out)
        columns = ("first hit is", "has a twin", "video", "score", "query")
        rows = [
            (
                "right" if answer.is_right else "wrong",
                "yes" if answer.is_twin else "",
                answer.hits[0].id,
                f"{answer.hits[0].score:.3f}",
                answer.query,
            )
            for answer in found
        ]
        if format is Format.json:
            _print_json([dict(zip(columns, row, strict=True)) for row in rows])
        else:
            _print_table(columns, rows)
        right = sum(answer.is_right for answer in found)
        _say(f"{right} of {len(found)} queries found their video first; the hits are on {out / 'found.png'}")


@app.command()
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
    with _reporting(verbose):
        import videolm.evaluation

        report = videolm.evaluation.evaluate(
            _load(model, allow_untrained=True), benchmark, show_progress_bar=False if quiet else None
        )
        if out is not None:
            report.save(out)
        if format is Format.json:
            _print_json(report.as_json())
        else:
            for line in report.markdown().splitlines():
                print(printable(line))
        if report.failures and not allow_failures:
            raise typer.Exit(3)


def main() -> None:
    """The entry point of the `videolm` command."""
    app()


def _load(name: str, *, allow_untrained: bool) -> videolm.VideoLM:
    with _warnings_said():
        return videolm.load(name, allow_untrained=allow_untrained)


@contextmanager
def _warnings_said() -> Iterator[None]:
    """Warnings as one line each, without the place in the code that gave them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield
    for warning in caught:
        _say(f"warning: {warning.message}")


@contextmanager
def _reporting(verbose: bool) -> Iterator[None]:
    """An error becomes one line and an exit code."""
    try:
        yield
    except (typer.Exit, typer.BadParameter):
        raise
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on where it was")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # whoever read the results has enough; what is still buffered must not be written at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except Exception as error:
        if verbose:
            traceback.print_exc()
        code = _exit_code(error)
        _say(f"error: {error}" if code > 1 else f"error: {type(error).__name__}: {error}")
        if code == 1 and not verbose:
            _say("this was not expected; --verbose shows where it happened")
        raise typer.Exit(code) from None


def _exit_code(error: Exception) -> int:
    from videolm.search.extraction import BusyError, NothingReadError
    from videolm.video.readers.guard import VideoError

    if isinstance(error, NothingReadError | VideoError):
        return 4
    return 2 if isinstance(error, ValueError | FileNotFoundError | NotADirectoryError | BusyError) else 1


def _close(
    verb: str,
    num_videos: int,
    failures: Sequence[videolm.Failure],
    out: Path,
    quiet: bool,
    allow_failures: bool,
) -> None:
    """The closing line, which names what failed, and the exit code."""
    for failure in failures[:_MOST_FAILURES_SHOWN]:
        _say(f"  {printable(failure.path)}: {printable(failure.error)}")
    if len(failures) > _MOST_FAILURES_SHOWN:
        _say(f"  and {len(failures) - _MOST_FAILURES_SHOWN} more")
    if failures:
        _say(
            f"{verb} {num_videos} videos, {len(failures)} failed (see {out / 'failures.jsonl'}; "
            "--retry-failed tries them again)"
        )
        if not allow_failures:
            raise typer.Exit(3)
    elif not quiet:
        _say(f"{verb} {num_videos} videos into {out}")


def printable(text: str) -> str:
    """Text from outside with its control, direction and other invisible characters as escapes."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
        else character
        for character in text
    )


def _say(text: str) -> None:
    for line in text.splitlines():
        print(printable(line), file=sys.stderr)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def _print_mapping(values: Mapping[str, Any], format: Format) -> None:
    if format is Format.json:
        _print_json(values)
        return
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows.extend((f"{key}: {inner}", str(text)) for inner, text in value.items())
        else:
            rows.append((key, str(value)))
    _print_table(("what", "value"), rows)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
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


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number}" for key, number in value.items())
    text = str(value)
    return text[:12] if len(text) == 64 else text
