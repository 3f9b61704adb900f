"""A folder of videos becomes shards of vectors; a killed run goes on where it was, and none is done twice.

What is known of a file is its path, size and time of change. A row of a finished shard counts for as long
as they agree with the file; a failure counts as long too, and is tried again only on request.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64

from videolm.files import write_json
from videolm.search.failures import append_failure, read_failures, write_failures
from videolm.search.parts import Shard, adopt_parts, belongs_to, check_shard, clear_parts, part_folder
from videolm.search.progress import Progress
from videolm.search.run import (
    SCHEMA_VERSION,
    begin,
    check_ours,
    check_same_settings,
    clear,
    fingerprint,
    locked,
)
from videolm.search.shards import Row, next_shard_path, read_shard, shard_paths, write_shard, write_table
from videolm.search.sources import Source, Stamp, find_videos, stamp_of
from videolm.types import Failure

_ROWS_PER_SHARD = 1024
_SECONDS_PER_SHARD = 60.0
# So many in a row are not the videos: a disk is gone, or an option is wrong.
_MAX_FAILURES_IN_A_ROW = 20


class NothingReadError(ValueError):
    """Not one of the videos could be read."""


class TooManyFailuresError(RuntimeError):
    """So many videos failed that something else must be wrong; what was encoded is kept."""


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    """What an encode function makes of one file."""

    vector: Float32[np.ndarray, " dim"]
    pts_seconds: Float64[np.ndarray, " frames"]
    start: float
    end: float
    duration_seconds: float


EncodeFunction = Callable[[Sequence[Path], Progress], Generator[EncodedVideo | Failure, None, None]]
"""Gives one result for each path, in their order, as they become ready; tells how long it waited for frames."""


@dataclass(frozen=True)
class Extraction:
    """How a run ended."""

    out: Path
    num_videos: int
    """Videos of the source that have a vector now."""
    num_new: int
    """Those of them that were encoded in this run."""
    failures: list[Failure]
    """Videos of the source that have none, in this run or still from an earlier one."""


def extract(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    encode: EncodeFunction,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    shard: Shard | None = None,
    retry_failed: bool = False,
    overwrite: bool = False,
    max_failures: int | None = None,
    show_progress_bar: bool | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Extraction:
    """Encode the new and changed videos of `source`, as `find_videos` takes it, into shards under `out`.

    `out` made from another source or with other settings is a ValueError that names the differences, unless
    `overwrite` asks to start again. Rows of files that are gone leave their shards at the end. A video that
    fails is named in `failures.jsonl` and the run goes on, until more than `max_failures` have failed, or 20 in
    a row, which is a TooManyFailuresError; NothingReadError where not one has a vector. `finish` is called at
    the end with the folder, while it is still held against other processes.

    With `shard=(i, n)` only the videos of the i-th of n jobs are encoded, into a part of `out` of its own; the
    jobs may run at the same time. A run without `shard` takes over what the jobs have made.
    """
    out = Path(out)
    check_ours(out)
    # once there was something, an emptied folder means that all of it is gone
    videos = source
    if not isinstance(videos, Source):
        videos = find_videos(videos, may_be_empty=(out / "run.json").exists())
    run: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "model": dict(model),
        "settings": {"source": videos.description, **settings},
        "root": str(videos.root),
        "environment": dict(environment),
        "command": sys.argv,
        "started": _now(),
        "finished": None,
        "counts": None,
    }
    folder = out
    if shard is not None:
        check_shard(shard)
        if overwrite:
            raise ValueError(
                "overwrite does not go with shard, as other jobs may be at work: remove the folder"
            )
        if (out / "run.json").exists():
            check_same_settings(out, run)
        folder = part_folder(out, shard)
        videos = replace(videos, names=[name for name in videos.names if belongs_to(name, shard)])
    with locked(folder):
        if overwrite:
            clear_parts(folder)
            clear(folder)
        elif (folder / "run.json").exists():
            check_same_settings(folder, run)
        begin(folder, run)
        adopt_parts(folder, run)
        extraction = _bring_up_to_date(
            folder,
            videos,
            run,
            encode=encode,
            elsewhere=[] if shard is None else [out],
            retry_failed=retry_failed,
            max_failures=max_failures,
            show_progress_bar=show_progress_bar,
        )
        _check_something_read(extraction, videos, is_part=shard is not None)
        if finish is not None:
            finish(folder)
    return extraction


def _bring_up_to_date(
    out: Path,
    videos: Source,
    run: Mapping[str, Any],
    *,
    encode: EncodeFunction,
    elsewhere: Sequence[Path],
    retry_failed: bool,
    max_failures: int | None,
    show_progress_bar: bool | None,
) -> Extraction:
    """Encode what has no row, here or `elsewhere`; drop the rows of what is gone."""
    stamps = {name: stamp_of(videos.root / name) for name in videos.names}
    failures = read_failures(out / "failures.jsonl")
    # Whole again, should a kill have cut its last line short.
    write_failures(out / "failures.jsonl", failures)
    stands: set[str] = set()
    if not retry_failed:
        for listed in (failures, *(read_failures(at / "failures.jsonl") for at in elsewhere)):
            stands |= {name for name, (_, stamp) in listed.items() if stamps.get(name) == stamp}
    made_with = fingerprint(run["settings"])
    known = {name for at in (out, *elsewhere) for name in _known_rows(at, stamps, made_with=made_with)}
    names = [name for name in videos.names if name not in known and name not in stands]
    writer = _ShardWriter(out, {"videolm.model": run["model"]["name"], "videolm.settings": made_with})
    with Progress(len(names), show=show_progress_bar) as progress:
        _encode_all(
            _results(videos.root, names, encode=encode, progress=progress),
            stamps,
            writer=writer,
            progress=progress,
            max_failures=max_failures,
        )
    known |= writer.done
    _drop_stale_rows(out, stamps)
    failures = {
        name: (failure, stamp)
        for name, (failure, stamp) in read_failures(out / "failures.jsonl").items()
        if stamps.get(name) == stamp and name not in known
    }
    write_failures(out / "failures.jsonl", failures)
    counts = {
        "videos": len(known),
        "new": len(writer.done),
        "failed": len(failures),
        "ignored": videos.num_ignored,
    }
    speed = {
        "seconds": round(progress.seconds, 1),
        "videos_per_second": round(progress.videos_per_second, 2),
        "waiting_share": round(progress.waiting_share, 3),
    }
    write_json(out / "run.json", {**run, "finished": _now(), "counts": counts, "speed": speed})
    return Extraction(out, len(known), len(writer.done), [f for f, _ in failures.values()])


def _check_something_read(extraction: Extraction, videos: Source, *, is_part: bool) -> None:
    out, source, failures = extraction.out, videos.description, extraction.failures
    if extraction.num_videos or (is_part and not failures):
        return
    if not failures:
        raise NothingReadError(f"{source} holds no video any more; {out} is empty now")
    raise NothingReadError(
        f"none of the {len(failures)} videos of {source} could be read; the first: "
        f"{failures[0].path}: {failures[0].error} (all are in {out / 'failures.jsonl'})"
    )


def _known_rows(out: Path, stamps: Mapping[str, Stamp], *, made_with: str) -> set[str]:
    """Ids of the finished rows whose files have not changed since."""
    known: set[str] = set()
    for path in shard_paths(out):
        table = read_shard(path, ["id", "size", "mtime_ns"])
        if (table.schema.metadata or {}).get(b"videolm.settings", b"").decode() != made_with:
            raise ValueError(f"{path} was made with other settings than {out / 'run.json'} says; delete it")
        known.update(row[0] for row in _row_stamps(table) if stamps.get(row[0]) == row[1])
    return known


def _row_stamps(table: pa.Table) -> Iterator[tuple[str, Stamp]]:
    sizes, times = table["size"].to_pylist(), table["mtime_ns"].to_pylist()
    return zip(table["id"].to_pylist(), zip(sizes, times, strict=True), strict=True)


@dataclass
class _ShardWriter:
    """Gathers rows and writes a shard when there are enough of them or the last one is a while ago."""

    out: Path
    metadata: Mapping[str, str]
    done: set[str] = field(default_factory=set)
    """Ids of the rows in finished shards."""
    _rows: list[Row] = field(default_factory=list)
    _path: Path | None = None
    _started: float = field(default_factory=time.monotonic)

    def add(self, row: Row) -> None:
        self._rows.append(row)
        is_late = time.monotonic() - self._started > _SECONDS_PER_SHARD
        if is_late or len(self._rows) >= _ROWS_PER_SHARD:
            self.write()

    def write(self) -> None:
        """Finish the shard that is under way; when Ctrl-C comes in between, again under the same name."""
        if self._rows:
            self._path = self._path or next_shard_path(self.out)
            write_shard(self._path, self._rows, metadata=self.metadata)
            self.done.update(row.id for row in self._rows)
        self._rows, self._path, self._started = [], None, time.monotonic()


def _encode_all(
    results: Generator[tuple[str, EncodedVideo | Failure], None, None],
    stamps: Mapping[str, Stamp],
    *,
    writer: _ShardWriter,
    progress: Progress,
    max_failures: int | None,
) -> None:
    """Rows go to shards, a failure to its file as soon as it is known."""
    num_in_a_row = 0
    with closing(results):
        try:
            for name, result in results:
                is_failure = isinstance(result, Failure)
                progress.advance(failed=is_failure)
                if isinstance(result, Failure):
                    failure = replace(result, path=name)
                    append_failure(writer.out / "failures.jsonl", failure, stamps[name])
                    num_in_a_row += 1
                    _check_failures(failure, progress.num_failed, num_in_a_row, max_failures=max_failures)
                else:
                    num_in_a_row = 0
                    writer.add(_row(name, result, stamps[name]))
        finally:
            # Also on Ctrl-C: what has been encoded is kept.
            writer.write()


def _check_failures(last: Failure, num_failed: int, num_in_a_row: int, *, max_failures: int | None) -> None:
    if max_failures is not None and num_failed > max_failures:
        stopped = f"{num_failed} videos failed, {max_failures} allowed (max_failures)"
    elif num_in_a_row >= _MAX_FAILURES_IN_A_ROW:
        stopped = f"{num_in_a_row} videos failed in a row"
    else:
        return
    raise TooManyFailuresError(
        f"stopped: {stopped}; the last: {last.path}: {last.error}. The same command goes on behind them, with "
        "retry_failed=True (--retry-failed) it tries them again"
    )


def _results(
    root: Path, names: Sequence[str], *, encode: EncodeFunction, progress: Progress
) -> Generator[tuple[str, EncodedVideo | Failure], None, None]:
    readable = []
    for name in names:
        try:
            name.encode("utf-8")
            readable.append(name)
        except UnicodeEncodeError:
            yield name, Failure(name, "open", "the file's name is not valid UTF-8; rename the file")
    with closing(encode([root / name for name in readable], progress)) as results:
        for name, result in zip(readable, results, strict=True):
            if isinstance(result, EncodedVideo) and not np.isfinite(result.vector).all():
                result = Failure(name, "encode", "the model gave a vector with NaN or infinity")
            yield name, result


def _row(name: str, video: EncodedVideo, stamp: Stamp) -> Row:
    return Row(
        id=name,
        path=name,
        start=video.start,
        end=video.end,
        pts_seconds=video.pts_seconds,
        duration=video.duration_seconds,
        size=stamp[0],
        mtime_ns=stamp[1],
        vector=video.vector,
    )


def _drop_stale_rows(out: Path, stamps: Mapping[str, Stamp]) -> None:
    """Write the shards that hold rows of changed or deleted files, or doubled ones, again without them.

    A row is doubled where jobs were counted in another way before, and their parts overlap.
    """
    seen: set[str] = set()
    for path in shard_paths(out):
        table = read_shard(path, ["id", "size", "mtime_ns"])
        keep = [stamps.get(name) == stamp and name not in seen for name, stamp in _row_stamps(table)]
        seen.update(name for (name, _), kept in zip(_row_stamps(table), keep, strict=True) if kept)
        if not all(keep):
            # an index names its shards with their hashes: without this one it is none
            (out / "index.json").unlink(missing_ok=True)
        if not any(keep):
            path.unlink()
        elif not all(keep):
            write_table(path, read_shard(path).filter(pa.array(keep)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
