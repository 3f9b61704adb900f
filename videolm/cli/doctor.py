"""`doctor`: what is installed and what works here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import videolm
from videolm.cli.options import Format, OutputFormat, Verbose
from videolm.cli.output import print_json, print_mapping, print_table, reporting

# ViT-B/32 with its text tower; a small model computes in float32 everywhere.
_CLIP_PARAMETERS = 150_000_000
_OPS = ("temporal_attention", "token_merging", "frame_attention", "token_interaction")

Decoders = Annotated[
    bool, typer.Option("--decoders", help="Try every decoder on files of every kind; takes some seconds.")
]


def doctor(decoders: Decoders = False, format: OutputFormat = Format.table, verbose: Verbose = False) -> None:
    """Say what is installed, which decoders work, and where models run."""
    with reporting(verbose):
        if decoders:
            _print_matrix(format)
            return
        from videolm.pipeline.precision import auto_dtype
        from videolm.pipeline.video_lm import describe_environment, pick_device
        from videolm_kernels.backend import choose_backend

        device = pick_device("auto")
        choices = {op: choose_backend(op, backend="auto", device=device) for op in _OPS}
        print_mapping(
            {
                "videolm": videolm.__version__,
                **describe_environment(device),
                "dtype": f"{auto_dtype(device, num_parameters=_CLIP_PARAMETERS)} (a model of CLIP's size)",
                "kernels": {op: f"{choice.backend} ({choice.reason})" for op, choice in choices.items()},
            },
            format,
        )


def _print_matrix(format: Format) -> None:
    """Kinds of files x installed decoders; exit code 1 where one gives a wrong picture."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from videolm.video.matrix import decoder_matrix

    with TemporaryDirectory(prefix="videolm-doctor-") as folder:
        verdicts = list(decoder_matrix(Path(folder)))
    if format is Format.json:
        print_json([asdict(verdict) for verdict in verdicts])
    else:
        rows: dict[str, list[str]] = {}
        for verdict in verdicts:
            rows.setdefault(verdict.kind, [verdict.kind]).append(verdict.outcome)
        names = list(dict.fromkeys(verdict.decoder for verdict in verdicts))
        print_table(["file", *names], list(rows.values()))
        reasons = [(v.kind, v.decoder, v.outcome, v.reason) for v in verdicts if v.reason]
        print_table(["file", "decoder", "outcome", "why"], reasons)
    if any(verdict.outcome == "wrong" for verdict in verdicts):
        raise typer.Exit(1)
