from __future__ import annotations

import os
from pathlib import Path

import pytest

from videolm.search.sources import find_videos, stamp_of


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_folder_gives_its_videos_to_the_bottom_sorted_and_without_hidden_ones(tmp_path: Path) -> None:
    for name in [
        "b.mp4",
        "a/z.MKV",
        "a/b/c.webm",
        ".hidden.mp4",
        ".thumbs/t.mp4",
        "notes.txt",
        "a.jpg",
        "a.mp4",
    ]:
        touch(tmp_path / name)
    found = find_videos(tmp_path)
    assert found.root == tmp_path
    assert found.names == ["a.mp4", "a/b/c.webm", "a/z.MKV", "b.mp4"]
    assert found.num_ignored == 2
    assert found.description == str(tmp_path)


def test_linked_folders_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path / "in/a.mp4")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    assert find_videos(tmp_path / "in").names == ["a.mp4"]


def test_one_video_is_its_own_source_whatever_its_ending(tmp_path: Path) -> None:
    path = touch(tmp_path / "clip.bin")
    assert find_videos(path).names == ["clip.bin"]
    assert find_videos(path).root == tmp_path


def test_a_list_gives_the_paths_relative_to_its_folder_once_each(tmp_path: Path) -> None:
    content = f"b.mp4\n\nsub/a.mp4\n./b.mp4\n{tmp_path}/c.mp4\n"
    found = find_videos(touch(tmp_path / "list.txt", content.encode()))
    assert found.root == tmp_path
    assert found.names == ["b.mp4", "c.mp4", "sub/a.mp4"]


@pytest.mark.parametrize("line", ["../x.mp4", "/etc/x.mp4", "sub/../../x.mp4"])
def test_a_list_cannot_leave_its_folder(tmp_path: Path, line: str) -> None:
    path = touch(tmp_path / "deep/list.txt", f"a.mp4\n{line}\n".encode())
    with pytest.raises(ValueError, match=r"list\.txt line 2: .* lies outside"):
        find_videos(path)


@pytest.mark.parametrize(("content", "message"), [(b"a\0.mp4", "line 1 holds a NUL"), (b"\xff", "in UTF-8")])
def test_a_list_that_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = touch(tmp_path / "list.txt", content)
    with pytest.raises(ValueError, match=message):
        find_videos(path)


def test_nothing_to_read_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path / "notes.md")
    with pytest.raises(ValueError, match=r"holds no video; the endings looked for are .*\.mp4"):
        find_videos(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist; give a folder"):
        find_videos(tmp_path / "missing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(PermissionError, match="closed"):
        find_videos(tmp_path)


def test_a_stamp_changes_with_size_and_time_and_is_minus_one_for_no_file(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.mp4")
    first = stamp_of(path)
    os.utime(path, ns=(first[1] + 1000, first[1] + 1000))
    assert stamp_of(path) == (1, first[1] + 1000)
    touch(path, b"xx")
    assert stamp_of(path)[0] == 2
    assert stamp_of(tmp_path / "gone") == (-1, -1)
