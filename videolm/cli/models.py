"""`models`: what can be loaded by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import videolm
from videolm.cli.options import Format, OutputFormat, Verbose
from videolm.cli.output import print_json, print_table, reporting


def models(format: OutputFormat = Format.table, verbose: Verbose = False) -> None:
    """List the models that ship with the package, and those of others that are known to load."""
    with reporting(verbose):
        known = [asdict(model) for model in videolm.list_models()]
        if format is Format.json:
            print_json(known)
        else:
            columns = (
                "name",
                "layout",
                "num_parameters",
                "licence",
                "source",
                "weights_sha256",
                "heads",
                "scores",
            )
            print_table(columns, [[_short(column, model[column]) for column in columns] for model in known])


def _short(column: str, value: Any) -> str:
    if column == "heads":
        return ", ".join(value) or "none"
    if not value:
        return "not measured here" if column == "scores" else "not checked here"
    if isinstance(value, int):
        return f"{value / 1e6:.0f} M"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number}" for key, number in value.items())
    text = str(value)
    return text[:12] if len(text) == 64 else text
