"""The real annotation files, and files that lie."""

import gzip
import json

import pytest

from tests.data import data_path
from videolm.datasets.msrvtt import read_captions, read_queries, video_path


def test_the_1k_a_list_has_a_thousand_queries_for_a_thousand_videos():
    queries = read_queries(data_path("msrvtt"))
    assert len(queries) == len({query.video_id for query in queries}) == 1000
    assert len({query.sentence for query in queries}) == 995


def test_the_real_splits_have_the_published_sizes():
    folder = data_path("msrvtt")
    nine, seven = (read_captions(folder, split=split) for split in ("train", "train-7k"))
    assert (len(nine), len(seven)) == (9000, 7010)
    assert {video.id for video in seven} < {video.id for video in nine}
    assert len(nine[0].captions) == 20


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
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"videos": [], "sentences": []}))
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo5\n")
    with pytest.raises(ValueError, match="video video5 has no caption"):
        read_captions(tmp_path, split="train")


def test_files_are_below_the_folder(tmp_path):
    assert video_path(tmp_path, "video5") == tmp_path / "videos" / "video5.mp4"
