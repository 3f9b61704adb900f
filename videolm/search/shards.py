"""Parquet shards of vectors, and their export."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Float64

from videolm.files import replace_file
from videolm.search.sources import Stamp

_ROWS_PER_SHARD = 1024
_SECONDS_PER_SHARD = 60.0
_ROWS_PER_GROUP = 1024
# Vectors neither compressed nor dictionary-coded: with pyarrow's defaults the same file is a quarter
# larger, takes several times as long to write and is read three times slower.
_COMPRESSION = {
    "id": "zstd",
    "path": "zstd",
    "start": "zstd",
    "end": "zstd",
    "pts_seconds.list.element": "zstd",
    "duration": "zstd",
    "size": "zstd",
    "mtime_ns": "zstd",
    "embedding.list.element": "none",
}


@dataclass(frozen=True, eq=False)
class Row:
    """One video of a shard."""

    id: str
    path: str
    """Relative to the source folder, with `/` between the parts."""
    start: float
    end: float
    pts_seconds: Float64[np.ndarray, " frames"]
    duration: float
    size: int
    """Bytes of the file as it was read; with `mtime_ns` it tells whether the file has changed since."""
    mtime_ns: int
    vector: Float32[np.ndarray, " dim"]


def shard_paths(out: Path) -> list[Path]:
    """The finished shards of a folder, in the order in which they were written."""
    return sorted((out / "shards").glob("*.parquet"), key=lambda path: int(path.stem))


def next_shard_path(out: Path) -> Path:
    """Where the next shard of a folder goes."""
    number = max((int(path.stem) for path in shard_paths(out)), default=-1) + 1
    return out / "shards" / f"{number:05d}.parquet"


def write_shard(path: Path, rows: Sequence[Row], *, metadata: Mapping[str, str]) -> None:
    """Write rows as one parquet shard that exists as a whole or not at all."""
    dim = rows[0].vector.shape[0]
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("path", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("pts_seconds", pa.list_(pa.float64())),
            ("duration", pa.float64()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("embedding", pa.list_(pa.float32(), dim)),
        ]
    )
    columns: list[Any] = [
        [row.id for row in rows],
        [row.path for row in rows],
        [row.start for row in rows],
        [row.end for row in rows],
        [row.pts_seconds for row in rows],
        [row.duration for row in rows],
        [row.size for row in rows],
        [row.mtime_ns for row in rows],
        pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate([row.vector for row in rows])), dim),
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    write_table(path, pa.Table.from_arrays(arrays, schema=schema.with_metadata(dict(metadata))))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table with a shard's columns and its own metadata, by one rename."""
    replace_file(
        path,
        lambda temporary: pq.write_table(
            table,
            temporary,
            row_group_size=_ROWS_PER_GROUP,
            use_dictionary=["id", "path"],
            compression=_COMPRESSION,
        ),
    )


def read_shard(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a shard, or some of its columns; one that is damaged is a ValueError that names it."""
    try:
        return pq.read_table(path, columns=columns, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and run the same command again, "
            "which encodes its videos anew"
        ) from error


@dataclass
class ShardWriter:
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


def known_rows(out: Path, stamps: Mapping[str, Stamp], *, made_with: str) -> set[str]:
    """Ids of the finished rows whose files have not changed since.

    A shard that does not carry the fingerprint `made_with` is a ValueError.
    """
    known: set[str] = set()
    for path in shard_paths(out):
        table = read_shard(path, ["id", "size", "mtime_ns"])
        if (table.schema.metadata or {}).get(b"videolm.settings", b"").decode() != made_with:
            raise ValueError(f"{path} was made with other settings than {out / 'run.json'} says; delete it")
        known.update(row[0] for row in _row_stamps(table) if stamps.get(row[0]) == row[1])
    return known


def drop_stale_rows(out: Path, stamps: Mapping[str, Stamp]) -> None:
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


def _row_stamps(table: pa.Table) -> Iterator[tuple[str, Stamp]]:
    sizes, times = table["size"].to_pylist(), table["mtime_ns"].to_pylist()
    return zip(table["id"].to_pylist(), zip(sizes, times, strict=True), strict=True)


def write_npz(out: Path) -> None:
    """Gather the shards of a folder into its `embeddings.npz`: vectors, ids, start and end, a row a video.

    For `extract(finish=write_npz)`, which holds the folder against other processes; without shards there is
    nothing to write.
    """
    tables = [read_shard(path, ["id", "start", "end", "embedding"]) for path in shard_paths(out)]
    if not tables:
        return
    table = pa.concat_tables(tables).sort_by("id")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(
                file,
                vectors=shard_vectors(table),
                ids=np.array(table["id"].to_pylist(), dtype=np.str_),
                start=np.asarray(table["start"]),
                end=np.asarray(table["end"]),
            )

    replace_file(out / "embeddings.npz", write)


def shard_vectors(table: pa.Table) -> Float[np.ndarray, "rows dim"]:
    """The vectors of a shard as one float32 matrix."""
    column = table["embedding"].combine_chunks()
    return np.asarray(column.flatten(), dtype=np.float32).reshape(len(table), column.type.list_size)
