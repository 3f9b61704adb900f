"""Annotation files that could be read in two ways, or only in part, are errors that name them."""

import gzip
import sys

import pytest

from videolm.datasets.annotations import (
    caption,
    read_ids,
    read_json,
    read_lines,
    refuse_duplicates,
    video_id,
    without_suffix,
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"v1": 1, "v1": 2}', "1 keys are there more than once: 'v1'"),
        ('[{"a": {"b": 1, "b": 1}}]', "1 keys are there more than once: 'b'"),
        ('{"time": NaN}', "NaN is no value of JSON"),
        ('{"time": -Infinity}', "-Infinity is no value of JSON"),
        ('{"time": 1e999}', "the number 1e999 is too large"),
        ("[" * 100_000, "RecursionError"),
        ("1" * (sys.get_int_max_str_digits() + 1), "ValueError"),
        ('{"a": 1', "JSONDecodeError"),
        ("", "JSONDecodeError"),
    ],
    ids=["key", "inner key", "nan", "infinity", "1e999", "nested", "long integer", "cut", "empty"],
)
def test_json_is_read_in_one_way_or_not_at_all(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)annotation file .*a\.json is not readable: .*{reason}"):
        read_json(path)


def test_a_text_that_is_no_utf_8_is_an_error(tmp_path):
    for name, read in (("a.json", read_json), ("a.txt", read_lines)):
        (tmp_path / name).write_bytes(b"\xff\xfe{}")
        with pytest.raises(ValueError, match=rf"{name} is not readable: UnicodeDecodeError"):
            read(tmp_path / name)


def test_a_file_may_lie_there_compressed_and_begin_with_a_mark(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress('\ufeff{"é": 1}'.encode()))
    assert read_json(tmp_path / "a.json") == {"é": 1}


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:20] + b"x" + data[21:]])
def test_a_damaged_zip_is_named(tmp_path, damage):
    (tmp_path / "a.json.gz").write_bytes(
        damage(gzip.compress(b'{"a": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]}'))
    )
    with pytest.raises(ValueError, match=r"a\.json is not readable"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("value", ["\ud800", "a \udfff b", "", " \n", None, 3, ["a"]])
def test_a_caption_is_a_sentence_that_can_be_encoded(tmp_path, value):
    with pytest.raises(ValueError, match=r"a\.json, line 7: caption"):
        caption(value, tmp_path / "a.json", "line 7")


@pytest.mark.parametrize(
    "value",
    [
        *(
            "../../x",
            "/etc/x",
            "a/../../x",
            "a\0b",
            "x" * 201,
            "..",
            ".",
            ".hidden",
            "a b ",
            "a\u202eb",
            "a\\b",
        ),
        *("", None, 5, "C:x"),
    ],
)
def test_an_id_is_a_name_and_no_path(tmp_path, value):
    with pytest.raises(ValueError, match="not a plain name"):
        video_id(value, tmp_path / "a.json")


@pytest.mark.parametrize("value", ["video0", "-4wsuPCjDBc_5_15", "26292851@N04_42_26.3", "0001_00.00.51.926"])
def test_real_ids_are_names(tmp_path, value):
    assert video_id(value, tmp_path / "a.json") == value


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.mp4", "a"),
        ("a.m2ts", "a"),
        ("a.3gp", "a"),
        ("1@N01_2_3.", "1@N01_2_3"),
        ("0001_X_00.00.51.926-00.00.54.129", "0001_X_00.00.51.926-00.00.54.129"),
        ("0001_X_00.00.51.926-00.00.54.129.avi", "0001_X_00.00.51.926-00.00.54.129"),
        ("v_uqiMw7tQ1Cc", "v_uqiMw7tQ1Cc"),
    ],
)
def test_the_ending_of_a_file_is_no_part_of_its_id(name, stem):
    assert without_suffix(name) == stem


def test_a_list_of_names_is_without_blanks_and_endings(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4\r\n\n  b\n")
    assert read_ids(tmp_path / "list.txt") == ["a", "b"]


def test_ids_that_are_there_twice_are_counted_and_named(tmp_path):
    with pytest.raises(ValueError, match=r"list\.txt: 2 ids are there more than once: a, b"):
        refuse_duplicates(["a", "b", "c", "b", "a"], tmp_path / "list.txt")
    with pytest.raises(ValueError, match=r"9 ids are there more than once: 0, 1, 2, 3, 4, \.\.\."):
        refuse_duplicates([*"012345678", *"012345678"], tmp_path / "list.txt")


def test_an_empty_list_is_an_error(tmp_path):
    (tmp_path / "list.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="has no lines"):
        read_ids(tmp_path / "list.txt")
