"""Exact search over the vectors of an extraction: a scan of one memory-mapped file.

No approximation up to about a million videos: a query over 200,000 vectors of 512 takes some 15 ms, the
result is the same on every machine, and nothing needs to be trained or tuned.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from videolm.files import file_sha256, read_json, replace_file, write_json
from videolm.search.failures import read_failures
from videolm.search.run import SCHEMA_VERSION
from videolm.search.shards import read_shard, shard_paths, shard_vectors
from videolm.types import Failure, Hit

EncodeText = Callable[[str], Float32[np.ndarray, " dim"]]
_ROWS_PER_CHUNK = 65536
_LENGTH_TOLERANCE = 1e-3
_MAKE_AGAIN = "make the index again with `videolm index`"


class Index:
    """Videos that a sentence or a vector finds; made by `VideoLM.index` or `videolm.open_index`."""

    def __init__(
        self,
        folder: Path,
        *,
        description: dict[str, Any],
        ids: list[str],
        start: Float[np.ndarray, " rows"],
        end: Float[np.ndarray, " rows"],
        vectors: Float32[np.ndarray, "rows dim"],
        failures: list[Failure],
        encode_text: EncodeText | None,
    ) -> None:
        self.folder = folder
        self.ids = ids
        """Paths relative to `root`, in the order of the rows, which is alphabetical."""
        self.root = Path(description["root"])
        self.model: dict[str, Any] = description["model"]
        """name, source, weights_sha256 and trained of the model that made the vectors."""
        self.vectors = vectors
        self.failures = failures
        """Videos of the source that are not in the index, and why."""
        self._start = start
        self._end = end
        self._encode_text = encode_text

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Index({len(self)} videos, model={self.model['name']!r}, folder={str(self.folder)!r})"

    def search(
        self, text: str | None = None, *, vector: Float[np.ndarray, " dim"] | None = None, k: int = 10
    ) -> list[Hit]:
        """The k videos (fewer if the index is smaller) nearest to a text or a vector, best first.

        The score is the cosine; equal scores come in the order of the rows. Exactly one of `text` and
        `vector` is given.
        """
        if k < 1:
            raise ValueError(f"k ({k}) must be at least 1")
        if (text is None) == (vector is None):
            raise ValueError("search takes exactly one of text and vector")
        if text is not None:
            if self._encode_text is None:
                raise ValueError(
                    f"{self.folder} was opened without a model, so it cannot encode {text!r}; "
                    "give vector=, or open it with videolm.open_index"
                )
            vector = self._encode_text(text)
        scores = _scan(self.vectors, self._unit_length(np.asarray(vector)))
        if not np.isfinite(scores).all():
            name = self.ids[int(np.argmin(np.isfinite(scores)))]
            raise ValueError(f"{self.folder}: the vector of {name!r} is not finite; {_MAKE_AGAIN}")
        return [self._hit(row, float(scores[row])) for row in top_k(scores, k).tolist()]

    def _hit(self, row: int, score: float) -> Hit:
        name = self.ids[row]
        return Hit(name, self.root / name, score, float(self._start[row]), float(self._end[row]))

    def _unit_length(self, vector: Float[np.ndarray, " dim"]) -> Float32[np.ndarray, " dim"]:
        dim = self.vectors.shape[1]
        if vector.shape != (dim,):
            raise ValueError(f"vector has shape {vector.shape}, the vectors of {self.folder} have ({dim},)")
        length = np.linalg.norm(vector.astype(np.float64))
        if not (np.isfinite(length) and length > 0):
            raise ValueError(f"vector must be finite and not zero, its length is {length}")
        return np.asarray(vector / length, dtype=np.float32)


def top_k(scores: Float[np.ndarray, " rows"], k: int) -> Int[np.ndarray, " top"]:
    """Rows of the k largest scores, largest first, equal ones in the order of their rows."""
    k = min(k, len(scores))
    threshold = np.partition(scores, -k)[-k]
    above = np.flatnonzero(scores > threshold)
    equal = np.flatnonzero(scores == threshold)[: k - len(above)]
    rows = np.concatenate([above, equal])
    return rows[np.argsort(-scores[rows], kind="stable")]


def build_index(out: str | os.PathLike[str]) -> None:
    """Make a finished extraction searchable: `vectors.npy` in alphabetical order of ids, and `index.json`.

    For `extract(finish=build_index)`, which holds the folder against other processes. A vector that is not
    finite or not of unit length is a ValueError that names its shard and video.
    """
    out = Path(out)
    run = read_json(out / "run.json")
    shards = shard_paths(out)
    ids, _, _, order = _read_rows(shards)
    vectors = np.concatenate([_checked_vectors(path) for path in shards])[order]
    replace_file(out / "vectors.npy", lambda temporary: _save_array(temporary, vectors))
    files = {
        path.relative_to(out).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in [out / "vectors.npy", *shards]
    }
    write_json(
        out / "index.json",
        {
            "schema": SCHEMA_VERSION,
            "kind": "exact",
            "metric": "cosine",
            "model": run["model"],
            "settings": run["settings"],
            "root": run["root"],
            "num_rows": len(ids),
            "dim": vectors.shape[1],
            "files": files,
        },
    )


def read_description(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `index.json` says, checked for the keys that a reader needs."""
    path = Path(folder) / "index.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is no index: {path} does not exist; make one with `videolm index`")
    description = read_json(path)
    types = {"model": dict, "settings": dict, "files": dict, "root": str, "num_rows": int, "dim": int}
    wrong = [key for key, kind in types.items() if not isinstance(description.get(key), kind)]
    wrong += [key for key in ("schema", "kind") if key not in description]
    if not wrong:
        model, files = description["model"], description["files"].values()
        if (
            not all(isinstance(model.get(key), str) for key in ("name", "weights_sha256"))
            or "source" not in model
        ):
            wrong = ["model"]
        if not all(isinstance(entry, dict) and {"size", "sha256"} <= entry.keys() for entry in files):
            wrong.append("files")
    if wrong:
        raise ValueError(
            f"{path} is not an index of videolm: {', '.join(wrong)} is missing or of another type; {_MAKE_AGAIN}"
        )
    if description["schema"] != SCHEMA_VERSION or description["kind"] != "exact":
        raise ValueError(
            f"{path} has schema {description['schema']} and kind {description['kind']!r}; "
            f"this version reads schema {SCHEMA_VERSION} and kind 'exact'"
        )
    return description


def read_index(folder: str | os.PathLike[str], *, encode_text: EncodeText | None = None) -> Index:
    """Open an index whose files are as they were written; a ValueError names the one that is not."""
    folder = Path(folder)
    description = read_description(folder)
    _check_files(folder, description["files"])
    shards = sorted((folder / name for name in description["files"] if name != "vectors.npy"), key=_number)
    ids, start, end, _ = _read_rows(shards)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
    shape = (description["num_rows"], description["dim"])
    if vectors.dtype != np.float32 or vectors.shape != shape or len(ids) != len(vectors):
        raise ValueError(
            f"{folder / 'vectors.npy'} holds {vectors.dtype} {vectors.shape}, index.json says float32 "
            f"{shape}, the shards hold {len(ids)} rows; {_MAKE_AGAIN}"
        )
    return Index(
        folder,
        description=description,
        ids=ids,
        start=start,
        end=end,
        vectors=vectors,
        failures=[failure for failure, _ in read_failures(folder / "failures.jsonl").values()],
        encode_text=encode_text,
    )


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    if "vectors.npy" not in files:
        raise ValueError(f"{folder / 'index.json'} does not name vectors.npy; {_MAKE_AGAIN}")
    for name, expected in files.items():
        if name != "vectors.npy" and not re.fullmatch(r"shards/\d+\.parquet", name):
            raise ValueError(f"{folder / 'index.json'} names the file {name!r}, which no index has")
        path = folder / name
        if not path.exists():
            raise ValueError(f"{path} is missing; {_MAKE_AGAIN}")
        if path.stat().st_size != expected["size"]:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes, was written with {expected['size']}; {_MAKE_AGAIN}"
            )
        if file_sha256(path) != expected["sha256"]:
            raise ValueError(f"{path} is not as it was written, its hash differs; {_MAKE_AGAIN}")


def _read_rows(
    shards: list[Path],
) -> tuple[list[str], Float[np.ndarray, " rows"], Float[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """Ids, starts and ends in alphabetical order of ids, and that order of the shards' rows."""
    tables = [read_shard(path, ["id", "start", "end"]) for path in shards]
    ids = [name for table in tables for name in table["id"].to_pylist()]
    for name in ids:
        # The shards may come from a stranger: a hit's path must stay under the root.
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"id {name!r} in {shards[0].parent} is not a path inside of the source folder")
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    sorted_ids = [ids[row] for row in order]
    if twice := {a for a, b in pairwise(sorted_ids) if a == b}:
        raise ValueError(f"{shards[0].parent} holds {min(twice)!r} more than once; {_MAKE_AGAIN}")
    start = np.concatenate([np.asarray(table["start"]) for table in tables])[order]
    end = np.concatenate([np.asarray(table["end"]) for table in tables])[order]
    return sorted_ids, start, end, order


def _checked_vectors(path: Path) -> Float32[np.ndarray, "rows dim"]:
    table = read_shard(path, ["id", "embedding"])
    vectors = shard_vectors(table)
    # NaN compares false, so it is refused too.
    is_unit = np.abs(np.linalg.norm(vectors, axis=1) - 1) < _LENGTH_TOLERANCE
    if not is_unit.all():
        name = table["id"][int(np.argmin(is_unit))].as_py()
        raise ValueError(f"{path}: the vector of {name!r} is not of unit length or not finite")
    return vectors


def _scan(
    vectors: Float32[np.ndarray, "rows dim"], query: Float32[np.ndarray, " dim"]
) -> Float32[np.ndarray, " rows"]:
    scores = np.empty(len(vectors), dtype=np.float32)
    for first in range(0, len(vectors), _ROWS_PER_CHUNK):
        chunk = vectors[first : first + _ROWS_PER_CHUNK]
        # As fast as a matrix product here, and equal vectors get equal scores wherever they stand.
        np.einsum("rd,d->r", chunk, query, out=scores[first : first + _ROWS_PER_CHUNK])
    return scores


def _save_array(path: Path, array: Float32[np.ndarray, "rows dim"]) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _number(path: Path) -> int:
    return int(path.stem)
