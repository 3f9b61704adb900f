"""One hostile file: what it is, and what a careful reader must make of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["seed", "awkward", "bomb", "bad", "elsewhere", "no file", "mutant", "found"]
Expect = Literal["frames", "refuse", "either"]


@dataclass(frozen=True)
class Case:
    """A file of the set."""

    path: Path
    kind: Kind
    expect: Expect
    """frames: the right ones. refuse: an error with file and reason. either: frames that are true, or an error."""
    codes: tuple[int, ...] | None = None
    """The numbers of all frames that are shown, in order; None where they are not known beforehand."""
    parent: str | None = None
    """Name of the healthy seed of which this is a copy, or what is left of it."""
    turns: int = 0
    """Quarters clockwise by which the stored picture is to be turned."""


def save_cases(folder: Path, cases: Iterable[Case]) -> None:
    """Write the list of a folder's files into it."""
    rows = [{**asdict(case), "path": case.path.name} for case in cases]
    (folder / _LIST).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load_cases(folder: Path) -> list[Case]:
    """The files of a folder, as they were saved."""
    cases = []
    for line in (folder / _LIST).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        codes = None if row["codes"] is None else tuple(row["codes"])
        cases.append(Case(**{**row, "path": folder / row["path"], "codes": codes}))
    return cases


_LIST = "cases.jsonl"
