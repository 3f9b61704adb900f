from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from videolm.search.shards import (
    Row,
    read_shard,
    shard_paths,
    shard_vectors,
    write_npz,
    write_shard,
)


def row(name: str, seed: int, dim: int = 4) -> Row:
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return Row(name, name, 0.5, 2.5, np.array([0.5, 1.5]), 2.0, 10, 123456789012345678, vector)


def test_a_shard_gives_back_what_was_written(tmp_path: Path) -> None:
    rows = [row("a.mp4", 0), row("b/ä.mp4", 1)]
    write_shard(tmp_path / "00000.parquet", rows, metadata={"videolm.model": "tiny"})
    table = read_shard(tmp_path / "00000.parquet")
    assert table["id"].to_pylist() == table["path"].to_pylist() == ["a.mp4", "b/ä.mp4"]
    assert table["pts_seconds"].to_pylist() == [[0.5, 1.5], [0.5, 1.5]]
    assert table["mtime_ns"].to_pylist() == [123456789012345678] * 2
    assert table.schema.metadata[b"videolm.model"] == b"tiny"
    np.testing.assert_array_equal(shard_vectors(table), [r.vector for r in rows])


def test_a_shard_has_the_documented_columns_and_leaves_vectors_as_they_are(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.parquet", [row(str(n), n) for n in range(3)], metadata={})
    file = pq.ParquetFile(tmp_path / "0.parquet")
    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert types == {
        "id": "string",
        "path": "string",
        "start": "double",
        "end": "double",
        "pts_seconds": "list<element: double>",
        "duration": "double",
        "size": "int64",
        "mtime_ns": "int64",
        "embedding": "fixed_size_list<element: float>[4]",
    }
    columns = [file.metadata.row_group(0).column(n) for n in range(file.metadata.num_columns)]
    vectors = next(column for column in columns if column.path_in_schema.startswith("embedding"))
    assert vectors.compression == "UNCOMPRESSED"
    assert "RLE_DICTIONARY" not in vectors.encodings


def test_a_shard_cut_short_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "00000.parquet"
    write_shard(path, [row("a", 0)], metadata={})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"00000\.parquet is damaged .* delete it"):
        read_shard(path)


def test_npz_gathers_all_shards_in_the_order_of_ids_without_pickle(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards/00000.parquet", [row("c", 0), row("a", 1)], metadata={})
    write_shard(tmp_path / "shards/00001.parquet", [row("b", 2)], metadata={})
    write_npz(tmp_path)
    with np.load(tmp_path / "embeddings.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == ["a", "b", "c"]
        np.testing.assert_array_equal(arrays["vectors"], [row("", seed).vector for seed in (1, 2, 0)])
        assert arrays["end"].tolist() == [2.5] * 3


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number in (99999, 100000, 2):
        (tmp_path / f"shards/{number:05d}.parquet").touch()
    assert [int(path.stem) for path in shard_paths(tmp_path)] == [2, 99999, 100000]
