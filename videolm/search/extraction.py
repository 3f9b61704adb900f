"""A folder of videos becomes shards of vectors; a killed run goes on where it was, and none is done twice.

What is known of a file is its path, size and time of change. A row of a finished shard counts for as long
as they agree with the file; a failure counts as long too, and is tried again only on request.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64
from tqdm import tqdm

from videolm.search.failures import append_failure, read_failures, write_failures
from videolm.search.shards import (
    Row,
    read_json,
    read_shard,
    shard_paths,
    temporary_path,
    write_json,
    write_shard,
    write_table,
)
from videolm.search.sources import Stamp, find_videos, stamp_of
from videolm.types import Failure

SCHEMA_VERSION = 1
_ROWS_PER_SHARD = 1024
_SECONDS_PER_SHARD = 60.0
_OUR_FILES = ("index.json", "vectors.npy", "embeddings.npz", "failures.jsonl", "run.json")


class NothingReadError(ValueError):
    """Not one of the videos could be read."""


class BusyError(RuntimeError):
    """Another process is writing to the folder."""


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    """What an encode function makes of one file."""

    vector: Float32[np.ndarray, " dim"]
    pts_seconds: Float64[np.ndarray, " frames"]
    start: float
    end: float
    duration_seconds: float


EncodeFunction = Callable[[Sequence[Path]], Iterator[EncodedVideo | Failure]]
"""Gives one result for each path, in their order, as they become ready."""


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
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    encode: EncodeFunction,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    retry_failed: bool = False,
    overwrite: bool = False,
    show_progress_bar: bool | None = None,
) -> Extraction:
    """Encode the new and changed videos of `source` into shards under `out`.

    `out` made from another source or with other settings is a ValueError that names the differences, unless
    `overwrite` asks to start again. Rows of files that are gone leave their shards at the end. A video that
    fails is named in `failures.jsonl` and the run goes on; NothingReadError where not one has a vector.
    """
    out = Path(out)
    # once there was something, an emptied folder means that all of it is gone
    videos = find_videos(source, may_be_empty=(out / "run.json").exists())
    settings = {"source": os.path.abspath(source), **settings}
    run: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "model": dict(model),
        "settings": settings,
        "root": str(videos.root),
        "environment": dict(environment),
        "command": sys.argv,
        "started": _now(),
        "finished": None,
        "counts": None,
    }
    _check_ours(out)
    with locked(out):
        _prepare(out, run, overwrite=overwrite)
        stamps = {name: stamp_of(videos.root / name) for name in videos.names}
        failures = read_failures(out / "failures.jsonl")
        # Whole again, should a kill have cut its last line short.
        write_failures(out / "failures.jsonl", failures)
        current = {} if retry_failed else {n: f for n, (f, s) in failures.items() if stamps.get(n) == s}
        fingerprint = _fingerprint(settings)
        known = _known_rows(out, stamps, fingerprint=fingerprint)
        new = _encode_all(
            out,
            videos.root,
            [name for name in videos.names if name not in known and name not in current],
            stamps,
            encode=encode,
            metadata={"videolm.model": model["name"], "videolm.settings": fingerprint},
            show_progress_bar=show_progress_bar,
        )
        known |= new
        _drop_stale_rows(out, stamps)
        failures = {
            name: (failure, stamp)
            for name, (failure, stamp) in read_failures(out / "failures.jsonl").items()
            if stamps.get(name) == stamp and name not in known
        }
        write_failures(out / "failures.jsonl", failures)
        counts = {
            "videos": len(known),
            "new": len(new),
            "failed": len(failures),
            "ignored": videos.num_ignored,
        }
        write_json(out / "run.json", {**run, "finished": _now(), "counts": counts})
    if not known and not failures:
        raise NothingReadError(f"{source} holds no video any more; {out} is empty now")
    if not known:
        first = next(iter(failures.values()))[0]
        raise NothingReadError(
            f"none of the {len(failures)} videos of {source} could be read; the first: "
            f"{first.path}: {first.error} (all are in {out / 'failures.jsonl'})"
        )
    return Extraction(out, len(known), len(new), [f for f, _ in failures.values()])


def hidden(show_progress_bar: bool | None) -> bool | None:
    """tqdm's `disable`, for which None means: unless the error stream is a terminal."""
    return None if show_progress_bar is None else not show_progress_bar


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock ends with the process, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another process is writing to {out}; wait for its end") from None
        yield


def _check_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; the result needs a folder")
    if out.exists() and not (out / "run.json").exists():
        # These two are there after a kill in the first moment.
        foreign = sorted(path.name for path in out.iterdir() if path.name not in {".lock", "run.json.tmp"})
        if foreign:
            raise ValueError(
                f"{out} holds {foreign[0]!r} and no run.json: it was not made by videolm; "
                "choose another folder"
            )


def _prepare(out: Path, run: dict[str, Any], *, overwrite: bool) -> None:
    """Make the folder ready for this run, or say why it cannot be used."""
    if (out / "run.json").exists():
        if overwrite:
            _clear(out)
        else:
            _check_same_settings(out, read_json(out / "run.json"), run)
    write_json(out / "run.json", run)
    (out / "shards").mkdir(exist_ok=True)
    # a copy of the rows as they were
    (out / "embeddings.npz").unlink(missing_ok=True)
    for path in [*(temporary_path(out / name) for name in _OUR_FILES), *(out / "shards").glob("*.tmp")]:
        path.unlink(missing_ok=True)


def _clear(out: Path) -> None:
    """Remove the files of an earlier run, and nothing else."""
    for path in [*shard_paths(out), *(out / name for name in _OUR_FILES)]:
        path.unlink(missing_ok=True)


def _check_same_settings(out: Path, earlier: dict[str, Any], run: dict[str, Any]) -> None:
    try:
        schema, then, then_model = earlier["schema"], _flat(earlier["settings"]), earlier["model"]["name"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{out / 'run.json'} is not a run of videolm: {error} is missing") from error
    if schema != SCHEMA_VERSION:
        raise ValueError(f"{out / 'run.json'} has schema {schema}, this version writes {SCHEMA_VERSION}")
    now = _flat(run["settings"])
    differences = [
        f"{key} is {then.get(key)!r} there and {now.get(key)!r} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key != "weights_sha256"
    ]
    if then.get("weights_sha256") != now.get("weights_sha256"):
        differences.insert(
            0,
            f"model is {then_model!r} (weights {str(then.get('weights_sha256'))[:12]}) there and "
            f"{run['model']['name']!r} (weights {str(now.get('weights_sha256'))[:12]}) now",
        )
    if differences:
        raise ValueError(
            f"{out} was made otherwise: {'; '.join(differences)}. Choose another folder, or start again "
            "with overwrite=True (--overwrite)"
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            # As JSON gives it back: a tuple is a list there.
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _fingerprint(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_flat(settings), sort_keys=True).encode()).hexdigest()


def _known_rows(out: Path, stamps: Mapping[str, Stamp], *, fingerprint: str) -> set[str]:
    """Ids of the finished rows whose files have not changed since."""
    known: set[str] = set()
    for path in shard_paths(out):
        table = read_shard(path, ["id", "size", "mtime_ns"])
        made_with = (table.schema.metadata or {}).get(b"videolm.settings", b"").decode()
        if made_with != fingerprint:
            raise ValueError(f"{path} was made with other settings than {out / 'run.json'} says; delete it")
        known.update(row[0] for row in _row_stamps(table) if stamps.get(row[0]) == row[1])
    return known


def _row_stamps(table: pa.Table) -> Iterator[tuple[str, Stamp]]:
    sizes, times = table["size"].to_pylist(), table["mtime_ns"].to_pylist()
    return zip(table["id"].to_pylist(), zip(sizes, times, strict=True), strict=True)


def _encode_all(
    out: Path,
    root: Path,
    names: Sequence[str],
    stamps: Mapping[str, Stamp],
    *,
    encode: EncodeFunction,
    metadata: Mapping[str, str],
    show_progress_bar: bool | None,
) -> set[str]:
    """Encode the named videos and return those that have a vector now.

    Rows go to shards, a failure to its file as soon as it is known.
    """
    number = max((int(path.stem) for path in shard_paths(out)), default=-1) + 1
    done: set[str] = set()
    rows: list[Row] = []
    shard_started = time.monotonic()

    def write_rows() -> None:
        write_shard(out / "shards" / f"{number:05d}.parquet", rows, metadata=metadata)
        done.update(row.id for row in rows)

    with tqdm(total=len(names), unit="video", disable=hidden(show_progress_bar)) as bar:
        try:
            for num_seen, (name, result) in enumerate(_results(root, names, encode=encode), 1):
                if isinstance(result, Failure):
                    append_failure(out / "failures.jsonl", replace(result, path=name), stamps[name])
                else:
                    rows.append(_row(name, result, stamps[name]))
                bar.update()
                bar.set_postfix(failed=num_seen - len(done) - len(rows), refresh=False)
                is_late = time.monotonic() - shard_started > _SECONDS_PER_SHARD
                if rows and (is_late or len(rows) >= _ROWS_PER_SHARD):
                    write_rows()
                    number, rows, shard_started = number + 1, [], time.monotonic()
        finally:
            # Also on Ctrl-C: what has been encoded is kept.
            if rows:
                write_rows()
    return done


def _results(
    root: Path, names: Sequence[str], *, encode: EncodeFunction
) -> Iterator[tuple[str, EncodedVideo | Failure]]:
    readable = []
    for name in names:
        try:
            name.encode("utf-8")
            readable.append(name)
        except UnicodeEncodeError:
            yield name, Failure(name, "open", "the file's name is not valid UTF-8; rename the file")
    results = encode([root / name for name in readable])
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
    """Write the shards that hold rows of changed or deleted files again without them."""
    for path in shard_paths(out):
        table = read_shard(path, ["id", "size", "mtime_ns"])
        keep = [stamps.get(name) == stamp for name, stamp in _row_stamps(table)]
        if not all(keep):
            # an index names its shards with their hashes: without this one it is none
            (out / "index.json").unlink(missing_ok=True)
        if not any(keep):
            path.unlink()
        elif not all(keep):
            write_table(path, read_shard(path).filter(pa.array(keep)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
