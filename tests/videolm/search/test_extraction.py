from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.videolm.search.fakes import check_complete, encode, recorder, rows_of, run, vector_of
from videolm.search import extraction
from videolm.search.extraction import EncodedVideo, NothingReadError, locked
from videolm.search.failures import read_failures
from videolm.search.shards import read_shard, shard_paths
from videolm.types import Failure

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(7):
        (folder / f"v{number}.mp4").write_text(f"video {number}")
    (folder / "broken.mp4").write_text("bad")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def change(path: Path, content: str) -> None:
    before = path.stat().st_mtime_ns
    path.write_text(content)
    os.utime(path, ns=(before + 1, before + 1))


def test_every_video_has_a_vector_or_a_reason(source: Path, out: Path) -> None:
    result = run(source, out)
    check_complete(source, out)
    assert (result.num_videos, result.num_new) == (7, 7)
    assert result.failures == [Failure("broken.mp4", "open", "not a video", "fake")]


def test_run_json_says_what_made_the_vectors(source: Path, out: Path) -> None:
    run(source, out)
    written = json.loads((out / "run.json").read_text())
    assert written["schema"] == 1
    assert written["model"]["weights_sha256"] == "0" * 64
    assert written["settings"] == {
        "source": str(source),
        "weights_sha256": "0" * 64,
        "sampler": {"num_frames": 4},
        "mean": [0.5, 0.5],
    }
    assert written["counts"] == {"videos": 7, "new": 7, "failed": 1, "ignored": 0}
    assert written["started"] <= written["finished"]


def test_a_second_run_encodes_nothing_and_keeps_everything(source: Path, out: Path) -> None:
    run(source, out)
    seen: list[str] = []
    result = run(source, out, encode=recorder(seen))
    assert seen == []
    assert (result.num_videos, result.num_new, len(result.failures)) == (7, 0, 1)
    check_complete(source, out)


def test_new_and_changed_files_are_encoded_and_deleted_ones_leave(source: Path, out: Path) -> None:
    run(source, out)
    (source / "new.mp4").write_text("video new")
    change(source / "v1.mp4", "video changed")
    (source / "v2.mp4").unlink()
    seen: list[str] = []
    run(source, out, encode=recorder(seen))
    assert seen == ["new.mp4", "v1.mp4"]
    check_complete(source, out)


def test_a_video_that_broke_leaves_and_one_that_was_mended_comes(source: Path, out: Path) -> None:
    run(source, out)
    change(source / "v1.mp4", "bad now")
    change(source / "broken.mp4", "good now")
    run(source, out)
    check_complete(source, out)
    assert read_failures(out / "failures.jsonl").keys() == {"v1.mp4"}


def test_a_failure_is_tried_again_only_on_request(source: Path, out: Path) -> None:
    run(source, out)
    seen: list[str] = []
    run(source, out, encode=recorder(seen), retry_failed=True)
    assert seen == ["broken.mp4"]
    check_complete(source, out)


def test_shards_are_closed_after_so_many_rows(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_ROWS_PER_SHARD", 3)
    run(source, out)
    assert [len(read_shard(path)) for path in shard_paths(out)] == [3, 3, 1]
    check_complete(source, out)


def test_shards_are_closed_after_a_time(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "_SECONDS_PER_SHARD", 0.0)
    run(source, out)
    assert len(shard_paths(out)) == 7


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_keeps_what_it_has_encoded(
    source: Path, out: Path, error: type[BaseException]
) -> None:
    def stop_after_four(paths: Sequence[Path]) -> Iterator[EncodedVideo | Failure]:
        for number, result in enumerate(encode(paths)):
            if number == 4:
                raise error("stop")
            yield result

    with pytest.raises(error):
        run(source, out, encode=stop_after_four)
    assert rows_of(out).keys() == {"v0.mp4", "v1.mp4", "v2.mp4"}
    seen: list[str] = []
    run(source, out, encode=recorder(seen))
    assert seen == ["v3.mp4", "v4.mp4", "v5.mp4", "v6.mp4"]
    check_complete(source, out)


def test_kill_at_every_step_and_at_random_moments_loses_and_doubles_nothing(
    source: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kill_driver.py"), source, tmp_path],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    num_steps, num_kills = map(int, done.stdout.split())
    assert num_steps > 30
    assert num_kills == 15


def test_a_failures_line_cut_short_by_a_kill_is_written_anew(source: Path, out: Path) -> None:
    run(source, out)
    text = (out / "failures.jsonl").read_text()
    (out / "failures.jsonl").write_text(text[:-5])
    seen: list[str] = []
    run(source, out, encode=recorder(seen))
    assert seen == ["broken.mp4"]
    assert (out / "failures.jsonl").read_text() == text


def test_a_line_that_is_no_failure_is_an_error_with_its_number(source: Path, out: Path) -> None:
    run(source, out)
    with (out / "failures.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match=r"failures\.jsonl line 2 is not a failure"):
        run(source, out)


def test_another_model_or_setting_is_refused_by_name(source: Path, out: Path) -> None:
    run(source, out)
    with pytest.raises(ValueError, match=r"sampler\.num_frames is 4 there and 8 now.*--overwrite"):
        run(source, out, num_frames=8)
    with pytest.raises(ValueError, match=r"model is 'model-0' \(weights 0{12}\) there and 'model-1'"):
        run(source, out, weights="1" * 64)
    check_complete(source, out)


def test_another_source_is_refused(source: Path, out: Path, tmp_path: Path) -> None:
    run(source, out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.mp4").write_text("a")
    with pytest.raises(ValueError, match=r"source is '.*videos' there and '.*other' now"):
        run(tmp_path / "other", out)


def test_overwrite_starts_again_and_touches_no_strange_file(source: Path, out: Path) -> None:
    run(source, out)
    (out / "notes.txt").write_text("mine")
    seen: list[str] = []
    run(source, out, encode=recorder(seen), num_frames=8, overwrite=True)
    assert len(seen) == 8
    assert (out / "notes.txt").read_text() == "mine"
    check_complete(source, out)


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(source: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tmp").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"holds 'thesis\.tmp' and no run\.json"):
            run(source, out, overwrite=overwrite)
    assert [path.name for path in out.iterdir()] == ["thesis.tmp"]
    with pytest.raises(ValueError, match="is a file"):
        run(source, out / "thesis.tmp")


def test_a_second_run_at_the_same_time_is_refused(source: Path, out: Path) -> None:
    with locked(out), pytest.raises(RuntimeError, match="another process is writing to"):
        run(source, out)
    run(source, out)


def test_a_damaged_shard_is_named_and_made_again_once_deleted(source: Path, out: Path) -> None:
    run(source, out)
    shard = shard_paths(out)[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"00000\.parquet is damaged .* delete it"):
        run(source, out)
    shard.unlink()
    run(source, out)
    check_complete(source, out)


def test_a_shard_of_another_run_is_refused(source: Path, out: Path, tmp_path: Path) -> None:
    run(source, out)
    run(source, tmp_path / "other", num_frames=8)
    shard_paths(tmp_path / "other")[0].rename(out / "shards/00007.parquet")
    with pytest.raises(ValueError, match=r"00007\.parquet was made with other settings"):
        run(source, out)


def test_a_vector_that_is_not_finite_is_a_failure_of_its_video(source: Path, out: Path) -> None:
    def one_nan(paths: Sequence[Path]) -> Iterator[EncodedVideo | Failure]:
        for path, result in zip(paths, encode(paths), strict=True):
            if path.name == "v3.mp4":
                result = EncodedVideo(np.full(8, np.nan, np.float32), np.zeros(1), 0.0, 1.0, 1.0)
            yield result

    failures = run(source, out, encode=one_nan).failures
    assert ("v3.mp4", "encode") in {(failure.path, failure.stage) for failure in failures}
    assert "v3.mp4" not in rows_of(out)


def test_nothing_read_is_an_error_that_gives_the_first_reason(source: Path, out: Path) -> None:
    for path in source.iterdir():
        path.write_text("bad")
    with pytest.raises(NothingReadError, match=r"none of the 8 videos .* broken\.mp4: not a video"):
        run(source, out)


def test_a_listed_video_that_is_missing_is_tried_again_when_it_appears(source: Path, out: Path) -> None:
    (source / "list.txt").write_text("v0.mp4\nlate.mp4\n")

    def encode_existing(paths: Sequence[Path]) -> Iterator[EncodedVideo | Failure]:
        for path in paths:
            yield from encode([path]) if path.exists() else [Failure(str(path), "open", "no such file")]

    assert [f.path for f in run(source / "list.txt", out, encode=encode_existing).failures] == ["late.mp4"]
    (source / "late.mp4").write_text("late")
    assert run(source / "list.txt", out, encode=encode_existing).failures == []
    np.testing.assert_array_equal(rows_of(out)["late.mp4"], vector_of(source / "late.mp4"))


def test_names_that_are_strange_but_text_are_kept(source: Path, out: Path) -> None:
    for name in ["name\nline.mp4", "\u202e4pm.mp4", "ä ö.mp4", "-rf.mp4"]:
        (source / name).write_text(name)
    run(source, out)
    check_complete(source, out)


def test_a_name_that_is_not_text_is_a_failure(source: Path, out: Path) -> None:
    Path(os.fsdecode(os.fsencode(source) + b"/\xff.mp4")).write_text("video")
    failures = {failure.path: failure.error for failure in run(source, out).failures}
    assert "not valid UTF-8" in failures["\udcff.mp4"]
    assert run(source, out).num_new == 0
