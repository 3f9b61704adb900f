"""A folder of videos becomes shards of vectors; a killed run goes on where it was, and none is done twice.

What is known of a file is its path, size and time of change. A row of a finished shard counts for as long
as they agree with the file; a failure counts as long too, and is tried again only on request.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from videolm.files import write_json
from videolm.search.failures import append_failure, read_failures, write_failures
from videolm.search.parts import (
    Shard,
    adopt_parts,
    belongs_to,
    check_parts,
    check_shard,
    clear_parts,
    held_parts,
    part_folder,
)
from videolm.search.progress import Progress
from videolm.search.run import (
    ANOTHER_FOLDER,
    REMOVE_AND_REDO,
    SCHEMA_VERSION,
    START_AGAIN,
    begin,
    check_ours,
    check_same_settings,
    clear,
    fingerprint,
    locked,
)
from videolm.search.shards import Row, ShardWriter, drop_stale_rows, known_rows
from videolm.search.sources import Source, Stamp, find_videos, stamp_of
from videolm.types import Failure

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
"""Gives one result for each path, in their order, as they become ready, and no vector that is not finite; tells how
long it waited for frames."""


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

    `out` made from another source or with other settings is a ValueError that names the differences; `overwrite`
    starts again from nothing, whatever `out` and its parts were made with. Rows of files that are gone leave
    their shards at the end. A video that fails is named in `failures.jsonl` and the run goes on, until more than
    `max_failures` have failed, or 20 in a row, which is a TooManyFailuresError; NothingReadError where not one
    has a vector. With `retry_failed` earlier failures are tried again, after the new videos, and do not count
    towards the 20. `finish` is called at the end with the folder, while it is still held against other processes.

    With `shard=(i, n)` only the videos of the i-th of n jobs are encoded, into a part of `out` of its own; the
    jobs may run at the same time. A run without `shard` takes over what the jobs have made: all of it, or, where
    one of them is at work or was given other settings, nothing, and `out` is left as it is.
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
            check_same_settings(out, run, way_out=ANOTHER_FOLDER)
        folder = part_folder(out, shard)
        videos = replace(videos, names=[name for name in videos.names if belongs_to(name, shard)])
    with locked(folder), held_parts(folder) as parts:
        if overwrite:
            clear_parts(parts)
            clear(folder)
        else:
            if (folder / "run.json").exists():
                way_out = START_AGAIN if shard is None else REMOVE_AND_REDO
                check_same_settings(folder, run, way_out=way_out)
            check_parts(parts, run)
        begin(folder, run)
        adopt_parts(folder, [] if overwrite else parts)
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
    failed_before: set[str] = set()
    for listed in (failures, *(read_failures(at / "failures.jsonl") for at in elsewhere)):
        failed_before |= {name for name, (_, stamp) in listed.items() if stamps.get(name) == stamp}
    made_with = fingerprint(run["settings"])
    known = {name for at in (out, *elsewhere) for name in known_rows(at, stamps, made_with=made_with)}
    left = [name for name in videos.names if name not in known]
    names = [name for name in left if name not in failed_before]
    if retry_failed:
        # the new ones first: those that will most likely fail again must not keep them waiting
        names += [name for name in left if name in failed_before]
    writer = ShardWriter(out, {"videolm.model": run["model"]["name"], "videolm.settings": made_with})
    with Progress(len(names), show=show_progress_bar) as progress:
        _encode_all(
            _results(videos.root, names, encode=encode, progress=progress),
            stamps,
            writer=writer,
            progress=progress,
            failed_before=failed_before,
            max_failures=max_failures,
        )
    known |= writer.done
    drop_stale_rows(out, stamps)
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


def _encode_all(
    results: Generator[tuple[str, EncodedVideo | Failure], None, None],
    stamps: Mapping[str, Stamp],
    *,
    writer: ShardWriter,
    progress: Progress,
    failed_before: Collection[str],
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
                    # that those fail again says nothing of disk and options
                    num_in_a_row += name not in failed_before
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
        yield from zip(readable, results, strict=True)


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
