"""An encode function without a model, and what must be true of every folder that it has filled."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np

from videolm.search.extraction import EncodedVideo, EncodeFunction, Extraction, extract
from videolm.search.parts import Shard
from videolm.search.progress import Progress
from videolm.search.shards import read_shard, shard_paths, shard_vectors
from videolm.types import Failure

DIM = 8


def vector_of(path: Path) -> np.ndarray:
    """A unit vector that depends on the file's name and content only."""
    vector = np.random.default_rng(zlib.crc32(path.name.encode() + path.read_bytes())).standard_normal(DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def encode(paths: Sequence[Path], progress: Progress) -> Generator[EncodedVideo | Failure, None, None]:
    """A file whose content begins with "bad" fails."""
    for path in progress.timed(paths):
        if path.read_bytes().startswith(b"bad"):
            yield Failure(str(path), "open", "not a video", "fake")
        else:
            yield EncodedVideo(vector_of(path), np.array([0.0, 0.5]), 0.0, 1.0, 1.0)


def run(
    source: Path,
    out: Path,
    *,
    encode: EncodeFunction = encode,
    weights: str = "0" * 64,
    num_frames: int = 4,
    retry_failed: bool = False,
    overwrite: bool = False,
    shard: Shard | None = None,
    max_failures: int | None = None,
    show_progress_bar: bool | None = False,
    finish: Callable[[Path], None] | None = None,
) -> Extraction:
    return extract(
        source,
        out,
        encode=encode,
        model={"name": f"model-{weights[0]}", "source": None, "weights_sha256": weights, "trained": True},
        settings={"weights_sha256": weights, "sampler": {"num_frames": num_frames}, "mean": (0.5, 0.5)},
        environment={"device": "cpu"},
        retry_failed=retry_failed,
        overwrite=overwrite,
        shard=shard,
        max_failures=max_failures,
        show_progress_bar=show_progress_bar,
        finish=finish,
    )


def recorder(seen: list[str]) -> EncodeFunction:
    """The encode function above, which also notes the name of each file that it is given."""

    def encode_and_note(
        paths: Sequence[Path], progress: Progress
    ) -> Generator[EncodedVideo | Failure, None, None]:
        seen.extend(path.name for path in paths)
        yield from encode(paths, progress)

    return encode_and_note


def rows_of(out: Path) -> dict[str, np.ndarray]:
    """Vector by id over all shards; an id that comes twice is an error."""
    rows: dict[str, np.ndarray] = {}
    for path in shard_paths(out):
        table = read_shard(path)
        for name, vector in zip(table["id"].to_pylist(), shard_vectors(table), strict=True):
            assert name not in rows, f"{name} is doubled"
            rows[name] = vector
    return rows


def check_complete(source: Path, out: Path) -> None:
    """Every video of the folder has its own vector or stands in the failures, once; nothing else is there."""
    good = {path.name: path for path in source.iterdir() if not path.read_bytes().startswith(b"bad")}
    rows = rows_of(out)
    assert rows.keys() == good.keys()
    for name, path in good.items():
        np.testing.assert_array_equal(rows[name], vector_of(path))
    failed = [json.loads(line)["path"] for line in (out / "failures.jsonl").read_text().splitlines()]
    assert sorted([*failed, *good]) == sorted(path.name for path in source.iterdir())
    assert not list(out.rglob("*.tmp"))
    assert json.loads((out / "run.json").read_text())["finished"] is not None
