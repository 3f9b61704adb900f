from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from videolm.files import leftovers, read_json, replace_file, write_json, write_text


def test_a_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2, "b": "ä"})
    assert read_json(path) == {"a": 2, "b": "ä"}
    assert list(tmp_path.iterdir()) == [path]


def test_text_keeps_its_ends_of_lines(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "ä\r\nb\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\r\nb\n"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("bug"), KeyboardInterrupt()]
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        replace_file(path, fail)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_an_error_of_the_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.json'") as caught:
        write_text(tmp_path / "a.json", "x")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    code = "import sys; from pathlib import Path; from videolm.files import write_text; "
    code += "write_text(Path(sys.argv[1]), 'x' * 100_000)"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("OSError: [Errno 27] File too large: ")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_what_belongs_to_the_file_is_taken_for_its_leftovers(tmp_path: Path) -> None:
    for name in ("a[1].json.0f.tmp", "a1.json.0f.tmp", "thesis.tmp", "a[1].json"):
        (tmp_path / name).touch()
    assert [path.name for path in leftovers(tmp_path / "a[1].json")] == ["a[1].json.0f.tmp"]


@pytest.mark.parametrize(
    "text",
    ['{"a": NaN}', '{"a": Infinity}', "{", "[1]", "[" * 100_000],
    ids=["nan", "inf", "cut", "list", "deep"],
)
def test_json_that_is_none_is_refused_with_the_name_of_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        read_json(tmp_path / "run.json")


def test_nan_is_not_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []
