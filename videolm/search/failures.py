"""`failures.jsonl`: the videos that could not be used, a line each, with the reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from videolm.files import write_text
from videolm.search.sources import Stamp
from videolm.types import Failure


def append_failure(path: Path, failure: Failure, stamp: Stamp) -> None:
    """Add a line; with its stamp the failure stands until the file changes."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_failure_line(failure, stamp))


def write_failures(path: Path, failures: Mapping[str, tuple[Failure, Stamp]]) -> None:
    """Replace the whole file."""
    text = "".join(_failure_line(failure, stamp) for failure, stamp in failures.values())
    write_text(path, text)


def read_failures(path: Path) -> dict[str, tuple[Failure, Stamp]]:
    """By path; the newest line for a path counts. A last line that a kill cut short is no line."""
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a list of failures in UTF-8: {error}") from error
    whole = text[: text.rfind("\n") + 1]
    failures = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            fields = json.loads(line)
            stamp = (fields.pop("size"), fields.pop("mtime_ns"))
            failures[fields["path"]] = (Failure(**fields), stamp)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} line {number} is not a failure of videolm: {error}") from error
    return failures


def _failure_line(failure: Failure, stamp: Stamp) -> str:
    return json.dumps({**asdict(failure), "size": stamp[0], "mtime_ns": stamp[1]}) + "\n"
