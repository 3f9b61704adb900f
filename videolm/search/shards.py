"""Parquet shards of vectors, and their export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Float64

from videolm.files import replace_file

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


def write_npz(out: Path) -> None:
    """Gather the shards of a folder into its `embeddings.npz`: vectors, ids, start and end, a row a video."""
    tables = [read_shard(path, ["id", "start", "end", "embedding"]) for path in shard_paths(out)]
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
