"""The real annotation files, what the test set leaks, and files that lie."""

import gzip
import json
from collections import Counter

import pytest

from tests.data import data_path
from videolm.datasets.annotations import queries_of, read_rows, videos_of_sentences
from videolm.datasets.msrvtt import (
    Excerpt,
    find_leak,
    read_captions,
    read_leak,
    read_queries,
    read_split,
    video_path,
)


@pytest.fixture(scope="module")
def folder():
    return data_path("msrvtt")


@pytest.fixture(scope="module")
def real(folder):
    """Some of the real splits by name, each read once; the slow tests of the inventory count them all."""
    return {
        split: read_split(folder, split)
        for split in ("train-without-val", "train-clean", "full-test", "test")
    }


@pytest.fixture(scope="module")
def listed(folder):
    """The ids of the lists that come with the annotation."""
    names = {"train": "train.9k", "train-7k": "train.7k", "full-train": "train.full", "full-val": "val.full"}
    rows = {split: read_rows(folder / f"MSRVTT_{name}.csv", ["video_id"]) for split, name in names.items()}
    return {split: {row["video_id"] for row in chosen} for split, chosen in rows.items()}


@pytest.fixture(scope="module")
def leak(folder):
    return {split: read_leak(folder, train=split) for split in ("train", "train-7k", "train-clean")}


def test_the_real_splits_have_the_published_sizes(real, listed):
    assert {split: len(videos) for split, videos in (real | listed).items()} == {
        "train": 9000,
        "train-7k": 7010,
        "train-without-val": 8503,
        "train-clean": 8585,
        "full-train": 6513,
        "full-val": 497,
        "full-test": 2990,
        "test": 1000,
    }
    assert len(queries_of(real["full-test"])) == 59_800
    assert {len(video.captions) for video in real["full-test"]} == {20}
    assert len(queries_of(real["test"])) == len({video.id for video in real["test"]}) == 1000


def test_no_split_to_choose_a_checkpoint_by_shares_a_video_with_its_training(real, listed):
    ids = {split: {video.id for video in videos} for split, videos in real.items()} | listed
    assert ids["train-without-val"] == ids["train"] - ids["full-val"]
    assert ids["full-val"] < ids["train"]
    assert ids["train-clean"] < ids["train"]
    assert ids["train-7k"] == ids["full-train"] | ids["full-val"]
    for train in ("train", "train-7k"):
        assert not ids[train] & ids["test"]
    assert not ids["train-7k"] & ids["full-test"]
    assert len(ids["train"] & ids["full-test"]) == 1990


def test_9k_training_leaks_the_source_of_372_test_videos_and_the_footage_of_52(leak):
    assert len(leak["train"].same_source) == 372
    overlaps = leak["train"].overlap_seconds
    assert len(overlaps) == 52
    assert overlaps.keys() < leak["train"].same_source
    assert 1 < min(overlaps.values()) < max(overlaps.values()) < 23
    assert max(overlaps, key=overlaps.get) == "video7591"


@pytest.mark.parametrize("train", ["train-7k", "train-clean"])
def test_7k_training_and_the_clean_list_leak_nothing(leak, train):
    assert not leak[train].same_source
    assert not leak[train].overlap_seconds


def test_57_queries_of_1k_a_fit_another_video_too_and_bound_r1_by_96_2(folder):
    queries = read_queries(folder)
    captions = read_captions(folder, split="test")
    fitting = videos_of_sentences(queries, captions)
    assert sum(len(videos) > 1 for videos in fitting) == 57
    ceiling = 100 * sum(1 / len(videos) for videos in fitting) / len(queries)
    assert ceiling == pytest.approx(96.21, abs=0.005)
    # the same sentence cannot find two videos first
    sentences = Counter(query.sentence for query in queries)
    assert len(sentences) == 995
    assert sorted(count for count in sentences.values() if count > 1) == [2, 2, 2, 3]
    # after punctuation is left out every sentence of 1k-A is a caption of its own video
    of_captions = dict(
        zip(queries_of(captions), videos_of_sentences(queries_of(captions), captions), strict=True)
    )
    assert sum(query not in of_captions for query in queries) == 35


def test_overlap_is_counted_by_hand():
    excerpts = {
        "a": Excerpt("u", 10.0, 20.0),
        "b": Excerpt("u", 17.5, 30.0),
        "c": Excerpt("u", 20.0, 25.0),
        "d": Excerpt("w", 10.0, 20.0),
        "e": Excerpt("u", 19.0, 40.0),
    }
    leak = find_leak(excerpts, test_ids=["a", "d", "unknown"], train_ids=["b", "c", "e", "unknown"])
    assert leak.same_source == {"a"}
    assert leak.overlap_seconds == {"a": 2.5}
    # a video that begins where the other ends shows none of it
    assert find_leak(excerpts, test_ids=["a"], train_ids=["c"]).overlap_seconds == {}


def write_annotation(folder, *, videos=(), sentences=()):
    (folder / "MSRVTT_data.json").write_text(
        json.dumps({"videos": list(videos), "sentences": list(sentences)})
    )


def sentences(**captions):
    return [{"video_id": i, "caption": text} for i, texts in captions.items() for text in texts]


def test_the_official_split_is_read_from_the_annotation_where_there_is_no_list(tmp_path):
    videos = [
        {"video_id": "video0", "category": 3, "split": "train"},
        {"video_id": "video1", "category": 4, "split": "validate"},
        {"video_id": "video2", "category": 5, "split": "test"},
    ]
    write_annotation(
        tmp_path, videos=videos, sentences=sentences(video0=["a"], video1=["b"], video2=["c", "d"])
    )
    (video,) = read_split(tmp_path, "full-test")
    assert (video.id, video.captions, video.category) == ("video2", ("c", "d"), 5)
    assert [video.id for video in read_split(tmp_path, "val")] == ["video1"]


def test_1k_b_asks_by_the_first_caption_of_a_test_video_and_trains_on_all(tmp_path):
    write_annotation(tmp_path, sentences=sentences(video0=["a", "b"], video1=["c", "d"]))
    (tmp_path / "test_list_miech.txt").write_text("video1\n")
    (tmp_path / "train_list_miech.txt").write_text("video0\n")
    assert [video.captions for video in read_split(tmp_path, "1kb-test")] == [("c",)]
    assert [video.captions for video in read_split(tmp_path, "1kb-train")] == [("a", "b")]


def test_a_folder_without_the_official_split_says_so(tmp_path):
    write_annotation(tmp_path, videos=[{"video_id": "video0"}])
    with pytest.raises(FileNotFoundError, match=r"MSRVTT_test\.full\.csv is not there, and .* does not tell"):
        read_split(tmp_path, "full-test")


def test_an_unknown_split_names_the_known_ones(tmp_path):
    read = getattr(read_split, "__wrapped__", read_split)
    with pytest.raises(ValueError, match=r"split \('tset'\) must be one of train, train-7k, .*full-test"):
        read(tmp_path, "tset")


@pytest.mark.parametrize("video_id", ["../../etc/x", "/etc/passwd", "..", "a/b", "", "x" * 300, "a\0b"])
def test_an_id_that_is_not_a_plain_name_is_refused(tmp_path, video_id):
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(f'video_id,sentence\n"{video_id}",a\n')
    with pytest.raises(ValueError, match=r"not a plain name|line contains NUL"):
        read_queries(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{}", '{"videos": [{}], "sentences": []}', '{"videos": [], "sentences": [1]}', "\x00"],
    ids=["nested", "empty", "no id", "no sentence", "binary"],
)
def test_a_broken_annotation_file_is_named(tmp_path, text):
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo5\n")
    (tmp_path / "MSRVTT_data.json").write_text(text)
    with pytest.raises(ValueError, match=r"MSRVTT_data\.json is not readable"):
        read_captions(tmp_path, split="train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video_id\nvideo5\n", "line 2: no value in the column sentence"),
        ("video_id,sentence\nvideo5,a\nvideo6\n", "line 3: no value in the column sentence"),
        ("video_id,sentence\nvideo5,a\nvideo5,b\n", "1 ids are there more than once: video5"),
        ("", "has no rows"),
    ],
)
def test_a_broken_list_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"MSRVTT_JSFUSION_test\.csv.*{message}"):
        read_queries(tmp_path)


def test_a_truncated_zip_is_named(tmp_path):
    (tmp_path / "MSRVTT_JSFUSION_test.csv.gz").write_bytes(gzip.compress(b"video_id,sentence\nv,a\n")[:-9])
    with pytest.raises(ValueError, match="is not readable"):
        read_queries(tmp_path)


def test_a_video_without_captions_is_named(tmp_path):
    write_annotation(tmp_path)
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo5\n")
    with pytest.raises(ValueError, match="video video5 has no caption"):
        read_captions(tmp_path, split="train")


def test_files_are_below_the_folder(tmp_path):
    assert video_path(tmp_path, "video5") == tmp_path / "videos" / "video5.mp4"
