from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.videolm.search.fakes import DIM, run, vector_of
from videolm.files import write_json
from videolm.search import index as index_module
from videolm.search.index import Index, build_index, read_index, top_k
from videolm.search.shards import read_shard, shard_paths, write_table


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for number in range(9):
        (folder / f"v{number}.mp4").write_text(f"video {number}")
    (folder / "sub/deep.mp4").write_text("deep")
    (folder / "broken.mp4").write_text("bad")
    return folder


@pytest.fixture
def out(source: Path, tmp_path: Path) -> Path:
    run(source, tmp_path / "out")
    build_index(tmp_path / "out")
    return tmp_path / "out"


def test_search_finds_each_video_by_its_own_vector(source: Path, out: Path) -> None:
    index = read_index(out)
    for name in index.ids:
        hit = index.search(vector=vector_of(source / name), k=1)[0]
        assert (hit.id, hit.path, hit.start, hit.end) == (name, source / name, 0.0, 1.0)
        assert hit.score == pytest.approx(1, abs=1e-6)


def test_scores_equal_float64_cosines_whatever_the_length_of_the_query(source: Path, out: Path) -> None:
    index = read_index(out)
    query = 17 * np.random.default_rng(5).standard_normal(DIM)
    hits = index.search(vector=query, k=100)
    vectors = np.stack([vector_of(source / hit.id) for hit in hits]).astype(np.float64)
    expected = vectors @ query / np.linalg.norm(query) / np.linalg.norm(vectors, axis=1)
    assert len(hits) == len(index) == 10
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-6)
    assert np.all(np.diff(expected) <= 1e-6)


def test_a_text_is_encoded_by_the_given_function(source: Path, out: Path) -> None:
    index = read_index(out, encode_text=lambda text: vector_of(source / text))
    assert index.search("v3.mp4", k=2)[0].id == "v3.mp4"


def test_rows_are_in_the_order_of_ids_whatever_the_order_of_encoding(source: Path, out: Path) -> None:
    first = np.load(out / "vectors.npy")
    (source / "a.mp4").write_text("late")
    run(source, out)
    build_index(out)
    index = read_index(out)
    assert index.ids == sorted(index.ids)
    assert index.ids[0] == "a.mp4"
    np.testing.assert_array_equal(index.vectors[1:], first)


def test_an_index_knows_its_model_and_its_failures(source: Path, out: Path) -> None:
    index = read_index(out)
    assert index.model == {"name": "model-0", "source": None, "weights_sha256": "0" * 64, "trained": True}
    assert [failure.path for failure in index.failures] == ["broken.mp4"]
    assert repr(index) == f"Index(10 videos, model='model-0', folder='{out}')"


@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40),
    k=st.integers(1, 50),
)
def test_top_k_equals_a_stable_sort(scores: list[float], k: int) -> None:
    array = np.array(scores, dtype=np.float32)
    expected = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]
    assert top_k(array, k).tolist() == expected


def test_equal_vectors_score_equal_and_come_in_the_order_of_ids(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_ROWS_PER_CHUNK", 3)
    vectors = np.tile(vector_of(source / "v0.mp4"), (10, 1))
    _replace_vectors(out, vectors)
    build_index(out)
    index = read_index(out)
    hits = index.search(vector=np.random.default_rng(0).standard_normal(DIM), k=7)
    assert [hit.id for hit in hits] == index.ids[:7]
    assert len({hit.score for hit in hits}) == 1


def test_wrong_questions_are_refused_with_the_rule(out: Path) -> None:
    index = read_index(out)
    with pytest.raises(ValueError, match="exactly one of text and vector"):
        index.search()
    with pytest.raises(ValueError, match="exactly one of text and vector"):
        index.search("a", vector=np.ones(DIM))
    with pytest.raises(ValueError, match=r"k \(0\) must be at least 1"):
        index.search(vector=np.ones(DIM), k=0)
    with pytest.raises(ValueError, match=r"vector has shape \(3,\), the vectors of .* have \(8,\)"):
        index.search(vector=np.ones(3))
    with pytest.raises(ValueError, match="finite and not zero"):
        index.search(vector=np.full(DIM, np.nan))
    with pytest.raises(ValueError, match="finite and not zero"):
        index.search(vector=np.zeros(DIM))
    with pytest.raises(ValueError, match="opened without a model"):
        index.search("a red circle")


def _cut_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["shards/00000.parquet", "vectors.npy"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(_cut_a_byte, "bytes, was written with"), (_change_a_byte, "hash differs"), (Path.unlink, "is missing")],
    ids=["cut", "changed", "gone"],
)
def test_a_file_that_is_not_as_it_was_written_is_named(out: Path, name: str, damage, message: str) -> None:
    damage(out / name)
    with pytest.raises(ValueError, match=rf"{name}.*{message}|{name} is not as it was written"):
        read_index(out)


def test_two_shards_that_changed_places_are_noticed(source: Path, out: Path) -> None:
    (source / "zz.mp4").write_text("zz")
    run(source, out)
    build_index(out)
    first, second = shard_paths(out)
    first.rename(out / "shards/x")
    second.rename(first)
    (out / "shards/x").rename(second)
    with pytest.raises(ValueError, match=r"shards/0000\d\.parquet"):
        read_index(out)


def test_shards_that_came_after_the_index_are_not_in_it_yet(source: Path, out: Path) -> None:
    (source / "zz.mp4").write_text("zz")
    run(source, out)
    assert "zz.mp4" not in read_index(out).ids


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0])
def test_a_vector_that_is_no_unit_vector_cannot_enter_an_index(out: Path, value: float) -> None:
    vectors = np.load(out / "vectors.npy")
    vectors[3] = value
    _replace_vectors(out, vectors)
    name = read_shard(shard_paths(out)[0])["id"][3].as_py()
    with pytest.raises(ValueError, match=rf"00000\.parquet: the vector of '{name}' is not of unit length"):
        build_index(out)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.mp4", "a/../../b.mp4"])
def test_an_id_that_leaves_the_source_folder_is_refused(out: Path, name: str) -> None:
    table = read_shard(shard_paths(out)[0])
    ids = [name, *table["id"].to_pylist()[1:]]
    write_table(shard_paths(out)[0], table.set_column(0, "id", pa.array(ids)))
    with pytest.raises(ValueError, match="is not a path inside of the source folder"):
        build_index(out)


def test_a_description_that_names_other_files_is_refused(out: Path) -> None:
    description = json.loads((out / "index.json").read_text())
    description["files"]["../../secret"] = {"size": 0, "sha256": ""}
    write_json(out / "index.json", description)
    with pytest.raises(ValueError, match=r"names the file '\.\./\.\./secret'"):
        read_index(out)


def test_a_description_of_another_kind_is_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no index"):
        read_index(tmp_path)
    description = json.loads((out / "index.json").read_text())
    write_json(out / "index.json", {**description, "kind": "hnsw"})
    with pytest.raises(ValueError, match="kind 'hnsw'; this version reads"):
        read_index(out)
    del description["root"]
    write_json(out / "index.json", description)
    with pytest.raises(ValueError, match="root is missing"):
        read_index(out)


def test_an_index_reads_its_vectors_from_the_file(out: Path) -> None:
    index = read_index(out)
    assert isinstance(index, Index)
    assert isinstance(index.vectors, np.memmap)


def _replace_vectors(out: Path, vectors: np.ndarray) -> None:
    path = shard_paths(out)[0]
    table = read_shard(path)
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    position = table.schema.get_field_index("embedding")
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    write_table(path, table.set_column(position, "embedding", column))
