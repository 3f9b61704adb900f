"""Text out of videos: `caption`, `ask`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videolm.cli.options import (
    AllowFailures,
    AllowUntrained,
    BatchSize,
    Budget,
    Decoder,
    DecoderName,
    DtypeName,
    Format,
    MaxNewTokens,
    NumBeams,
    NumFrames,
    OutputFormat,
    SamplerOption,
    Segments,
    Stream,
    Timeout,
    Verbose,
    Workers,
)
from videolm.cli.output import (
    load_model,
    print_json,
    print_table,
    printable,
    reporting,
    say,
    warnings_said,
)

if TYPE_CHECKING:
    import videolm
    from videolm.types import Answer, Caption, Failure

_MOST_SPANS_SHOWN = 8
_INTERRUPTED = "interrupted; called again, it begins again"

Sources = Annotated[
    list[Path], typer.Argument(metavar="SRC...", help="Videos, folders of them, or .txt with a path a line.")
]
Model = Annotated[
    str,
    typer.Option(
        help="'mini', the folder of a model that has a head for this, or the hub id of a GIT or BLIP-2; a CLIP can "
        "choose among candidates."
    ),
]
DtypeOption = Annotated[
    DtypeName, typer.Option("--dtype", help="What the model computes in; auto: the faster one.")
]
ReduceOption = Annotated[
    str | None,
    typer.Option(
        "--reduce",
        metavar="PLAN",
        help="Fewer tokens in the vision tower, as in tome:r=16; none: all. Without it as the model was saved.",
    ),
]


def caption(
    sources: Sources,
    model: Model = "mini",
    prompt: Annotated[str | None, typer.Option(help="Text that the caption goes on from.")] = None,
    window: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="A caption for every so many seconds.")
    ] = None,
    segments: Annotated[
        Segments | None, typer.Option(help="A caption for every segment between cuts.")
    ] = None,
    stream: Stream = False,
    num_beams: NumBeams = None,
    max_new_tokens: MaxNewTokens = None,
    num_frames: NumFrames = None,
    sampler: SamplerOption = None,
    budget: Budget = None,
    batch_size: BatchSize = 8,
    workers: Workers = 2,
    decoder: DecoderName = Decoder.auto,
    timeout: Timeout = 60.0,
    dtype: DtypeOption = DtypeName.auto,
    reduce: ReduceOption = None,
    allow_untrained: AllowUntrained = False,
    allow_failures: AllowFailures = False,
    format: OutputFormat = Format.table,
    verbose: Verbose = False,
) -> None:
    """Say what happens in videos."""
    with reporting(verbose, interrupted=_INTERRUPTED):
        paths = _paths(sources)
        _check_stream(
            stream, paths, format, {"--window": window, "--segments": segments, "--num-beams": num_beams}
        )
        opened = _load(model, allow_untrained=allow_untrained, dtype=dtype, reduce=reduce)
        reading: dict[str, Any] = {
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
            "num_frames": num_frames,
            "sampler": None if sampler is None else sampler.value,
            "budget": budget,
            "workers": workers,
            "decoder": decoder.value,
            "timeout": timeout,
        }
        with warnings_said():
            if stream:
                _print_stream(opened.caption_stream(paths[0], **reading))
                return
            printer = _CaptionPrinter(format)
            opened.caption(
                paths,
                num_beams=num_beams,
                window=window,
                segments=None if segments is None else "auto",
                batch_size=batch_size,
                on_error="skip",
                on_caption=printer.take,
                **reading,
            )
        printer.close(allow_failures)


def ask(
    video: Annotated[Path, typer.Argument(help="A video.")],
    question: Annotated[str, typer.Argument(help="What is to be known of it.")],
    candidates: Annotated[
        list[str] | None,
        typer.Option("--candidates", help="Answers to choose among, as in cat,dog; or given several times."),
    ] = None,
    model: Model = "mini",
    stream: Stream = False,
    num_beams: NumBeams = None,
    max_new_tokens: MaxNewTokens = None,
    num_frames: NumFrames = None,
    sampler: SamplerOption = None,
    budget: Budget = None,
    workers: Workers = 2,
    decoder: DecoderName = Decoder.auto,
    timeout: Timeout = 60.0,
    dtype: DtypeOption = DtypeName.auto,
    reduce: ReduceOption = None,
    allow_untrained: AllowUntrained = False,
    format: OutputFormat = Format.table,
    verbose: Verbose = False,
) -> None:
    """Answer a question about a video."""
    with reporting(verbose, interrupted=_INTERRUPTED):
        paths = _paths([video])
        if len(paths) > 1:
            raise typer.BadParameter(f"a question is about one video, {video} holds {len(paths)}")
        _check_stream(stream, paths, format, {"--candidates": candidates, "--num-beams": num_beams})
        opened = _load(model, allow_untrained=allow_untrained, dtype=dtype, reduce=reduce)
        reading: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "num_frames": num_frames,
            "sampler": None if sampler is None else sampler.value,
            "budget": budget,
            "workers": workers,
            "decoder": decoder.value,
            "timeout": timeout,
        }
        with warnings_said():
            if stream:
                _print_stream(opened.answer_stream(paths[0], question, **reading))
                return
            choices = split_candidates(candidates)
            answer = opened.answer(paths[0], question, candidates=choices, num_beams=num_beams, **reading)
        _print_answer(answer, format)


def split_candidates(given: list[str] | None) -> list[str] | None:
    """One text of several with commas between them, or each one by itself, in which a comma is a comma."""
    if given is None or len(given) != 1:
        return given
    return [text.strip() for text in given[0].split(",")]


def _load(name: str, *, allow_untrained: bool, dtype: DtypeName, reduce: str | None) -> videolm.VideoLM:
    opened = load_model(name, allow_untrained=allow_untrained, dtype=dtype.value, reduce=reduce)
    if not opened.trained and not allow_untrained:
        raise ValueError(
            f"{opened.info.name} has untrained weights, what it says means nothing; load another model, or say "
            "--allow-untrained where this is a test"
        )
    return opened


def _paths(sources: list[Path]) -> list[Path]:
    from videolm.search.sources import find_videos

    found = [find_videos(source) for source in sources]
    return [source.root / name for source in found for name in source.names]


def _check_stream(stream: bool, paths: list[Path], format: Format, others: dict[str, Any]) -> None:
    if not stream:
        return
    if len(paths) > 1:
        raise typer.BadParameter(f"--stream is for one video, these are {len(paths)}")
    if format is Format.json:
        raise typer.BadParameter("--stream prints words as they come; leave out --format json")
    if given := [name for name, value in others.items() if value is not None]:
        raise typer.BadParameter(f"--stream cannot be with {', '.join(given)}")


def _print_stream(pieces: Iterable[str]) -> None:
    for piece in pieces:
        print(printable(piece), end="", flush=True)
    print()


class _CaptionPrinter:
    """Prints captions as they come, or as JSON at the end, and then what failed."""

    def __init__(self, format: Format) -> None:
        self._format = format
        self._said: list[Caption] = []
        self._failures: list[Failure] = []

    def take(self, result: Caption | Failure) -> None:
        from videolm.types import Failure

        if isinstance(result, Failure):
            self._failures.append(result)
            return
        self._said.append(result)
        if self._format is Format.table:
            if len(self._said) == 1:
                print("video\tseconds\tcaption")
            row = (result.source, f"{result.start:.1f}-{result.end:.1f}", result.text)
            print("\t".join(map(printable, row)), flush=True)

    def close(self, allow_failures: bool) -> None:
        said, failures = self._said, self._failures
        if self._format is Format.json:
            print_json(
                {"captions": [asdict(one) for one in said], "failures": [asdict(one) for one in failures]}
            )
        for line in _failure_lines(failures):
            say(line)
        if failures:
            say(f"{len(said)} captions, {len(failures)} failed")
            if not said:
                raise typer.Exit(4)
            if not allow_failures:
                raise typer.Exit(3)


def _failure_lines(failures: Iterable[Failure]) -> Iterator[str]:
    """One for each reason of a video, with the spans it is the reason of."""
    spans: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        known = spans.setdefault((failure.path, failure.error), [])
        if failure.start is not None and failure.end is not None:
            known.append(f"{failure.start:.1f}-{failure.end:.1f}")
    for (path, error), known in spans.items():
        more = len(known) - _MOST_SPANS_SHOWN
        shown = [*known[:_MOST_SPANS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        yield f"  {path}{' at ' if shown else ''}{', '.join(shown)}: {error}"


def _print_answer(answer: Answer, format: Format) -> None:
    if format is Format.json:
        print_json(asdict(answer))
    elif answer.candidates:
        rows = zip(answer.candidates, answer.probabilities, answer.scores, strict=True)
        print_table(
            ("answer", "probability", "score"),
            [
                (text, f"{probability:.3f}", f"{score:.3f}")
                for text, probability, score in sorted(rows, key=lambda row: -row[1])
            ],
        )
        say(f"chosen by {answer.method}")
    else:
        print(printable(answer.text))
