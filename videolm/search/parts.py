"""A folder of videos shared among the jobs of an array, each with a part of OUT that is its own.

Job i of n writes to `OUT/parts/i-of-n/`, which looks like OUT itself: lock, run.json, shards, failures. The next
run over all of OUT moves the shards of the parts into `OUT/shards/`, each by one rename.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from videolm.files import sync
from videolm.search.failures import read_failures, write_failures
from videolm.search.run import REMOVE_AND_REDO, check_same_settings, clear, locked
from videolm.search.shards import next_shard_path, shard_paths

Shard = tuple[int, int]
"""(i, n): the i-th of n jobs, from 0."""


def check_shard(shard: Shard) -> None:
    """A ValueError for a job that there is not."""
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard ({index}/{count}) must be i/n with i from 0 to n - 1")


def part_folder(out: Path, shard: Shard) -> Path:
    """Where a job writes."""
    return out / "parts" / f"{shard[0]}-of-{shard[1]}"


def belongs_to(name: str, shard: Shard) -> bool:
    """Whether a video is the job's; its name alone decides, so a video that comes or goes moves no other."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) % shard[1] == shard[0]


@contextmanager
def held_parts(out: Path) -> Iterator[list[Path]]:
    """The parts of all jobs, held against other processes; BusyError where a job is at work."""
    with ExitStack() as held:
        parts = _parts(out)
        for part in parts:
            held.enter_context(locked(part))
        yield parts


def check_parts(parts: Sequence[Path], run: Mapping[str, Any]) -> None:
    """A ValueError for the first part that was made with other settings."""
    for part in parts:
        check_same_settings(part, run, way_out=REMOVE_AND_REDO)


def adopt_parts(out: Path, parts: Sequence[Path]) -> None:
    """Move what the jobs have finished into `out`; the caller holds both, and has checked the parts.

    A kill leaves each shard in one of the two places.
    """
    for part in parts:
        failures = read_failures(part / "failures.jsonl")
        if failures:
            write_failures(out / "failures.jsonl", {**read_failures(out / "failures.jsonl"), **failures})
        for path in shard_paths(part):
            path.rename(next_shard_path(out))
        sync(out / "shards")
        for name in ("failures.jsonl", "embeddings.npz"):
            (part / name).unlink(missing_ok=True)


def clear_parts(parts: Sequence[Path]) -> None:
    """Remove what the jobs have made."""
    for part in parts:
        clear(part)
        # last: without it there is no part
        (part / "run.json").unlink()


def _parts(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("parts/*-of-*/run.json"))
