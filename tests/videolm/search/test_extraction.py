from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.videolm.search.fakes import check_complete, encode, recorder, rows_of, run, vector_of
from videolm.search import shards
from videolm.search.extraction import EncodedVideo, NothingReadError, TooManyFailuresError
from videolm.search.failures import read_failures
from videolm.search.parts import belongs_to
from videolm.search.progress import Progress
from videolm.search.run import BusyError, locked
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
    assert written["speed"]["videos_per_second"] > 0
    assert 0 <= written["speed"]["waiting_share"] <= 1


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
    monkeypatch.setattr(shards, "_ROWS_PER_SHARD", 3)
    run(source, out)
    assert [len(read_shard(path)) for path in shard_paths(out)] == [3, 3, 1]
    check_complete(source, out)


def test_shards_are_closed_after_a_time(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SECONDS_PER_SHARD", 0.0)
    run(source, out)
    assert len(shard_paths(out)) == 7


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_keeps_what_it_has_encoded(
    source: Path, out: Path, error: type[BaseException]
) -> None:
    def stop_after_four(
        paths: Sequence[Path], progress: Progress
    ) -> Generator[EncodedVideo | Failure, None, None]:
        for number, result in enumerate(encode(paths, progress)):
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
    num_steps, num_midway = map(int, done.stdout.split())
    assert num_steps > 30
    # of 30
    assert num_midway > 20


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


def test_nothing_read_is_an_error_that_gives_the_first_reason(source: Path, out: Path) -> None:
    for path in source.iterdir():
        path.write_text("bad")
    with pytest.raises(NothingReadError, match=r"none of the 8 videos .* broken\.mp4: not a video"):
        run(source, out)


def test_a_listed_video_that_is_missing_is_tried_again_when_it_appears(source: Path, out: Path) -> None:
    (source / "list.txt").write_text("v0.mp4\nlate.mp4\n")

    def encode_existing(
        paths: Sequence[Path], progress: Progress
    ) -> Generator[EncodedVideo | Failure, None, None]:
        for path in paths:
            yield from (
                encode([path], progress) if path.exists() else [Failure(str(path), "open", "no such file")]
            )

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


# Too many failures


def test_more_failures_than_allowed_stop_the_run_and_keep_what_was_encoded(source: Path, out: Path) -> None:
    for number in (2, 4, 5):
        (source / f"v{number}.mp4").write_text("bad")
    with pytest.raises(TooManyFailuresError, match=r"3 videos failed, 2 allowed .* v4\.mp4: not a video"):
        run(source, out, max_failures=2)
    assert rows_of(out).keys() == {"v0.mp4", "v1.mp4", "v3.mp4"}
    # those stand in the list now, and the one that is left is allowed
    run(source, out, max_failures=2)
    check_complete(source, out)
    with pytest.raises(TooManyFailuresError, match="1 videos failed, 0 allowed"):
        run(source, out, max_failures=0, retry_failed=True)


def test_twenty_failures_in_a_row_stop_the_run_but_not_twenty_in_all(source: Path, out: Path) -> None:
    for number in range(38):
        (source / f"bad{number:02d}{'v' if number == 19 else ''}.mp4").write_text("bad")
    (source / "bad19.mp4").write_text("good")
    with pytest.raises(TooManyFailuresError, match="stopped: 20 videos failed in a row; the last: broken"):
        run(source, out)
    assert rows_of(out).keys() == {"bad19.mp4"}
    run(source, out)
    check_complete(source, out)


def test_earlier_failures_are_tried_after_the_new_videos_and_stop_nothing(source: Path, out: Path) -> None:
    for number in range(30):
        (source / f"bad{number:02d}.mp4").write_text("bad")
    with pytest.raises(TooManyFailuresError):
        run(source, out)
    run(source, out)
    (source / "z.mp4").write_text("new")
    change(source / "bad29.mp4", "good now")
    run(source, out, encode=recorder(seen := []), retry_failed=True)
    assert seen == ["bad29.mp4", "z.mp4", *(f"bad{number:02d}.mp4" for number in range(29)), "broken.mp4"]
    check_complete(source, out)
    # new ones still stop it
    for number in range(20):
        (source / f"worse{number:02d}.mp4").write_text("bad")
    with pytest.raises(TooManyFailuresError, match="20 videos failed in a row; the last: worse19"):
        run(source, out, retry_failed=True)


# Jobs


def test_jobs_share_a_folder_and_a_run_over_all_gathers_what_they_made(source: Path, out: Path) -> None:
    names: list[str] = []
    for index in range(3):
        seen: list[str] = []
        part = run(source, out, encode=recorder(seen), shard=(index, 3))
        assert part.out == out / "parts" / f"{index}-of-3"
        assert {*rows_of(part.out), *(failure.path for failure in part.failures)} == set(seen)
        names += seen
    assert sorted(names) == sorted(path.name for path in source.iterdir())
    result = run(source, out, encode=recorder(again := []))
    assert (again, result.num_videos, result.num_new, len(result.failures)) == ([], 7, 0, 1)
    check_complete(source, out)
    # a job that runs again finds all of its videos there
    run(source, out, encode=recorder(again), shard=(0, 3))
    assert again == []
    run(source, out, encode=recorder(again))
    assert again == []
    check_complete(source, out)


def test_what_jobs_have_left_over_is_encoded_by_the_run_over_all(source: Path, out: Path) -> None:
    run(source, out, shard=(1, 2))
    done = set(rows_of(out / "parts/1-of-2"))
    run(source, out, encode=recorder(seen := []))
    assert done
    assert not done & set(seen)
    check_complete(source, out)


def test_a_job_without_videos_is_no_error_but_one_with_none_readable_is(source: Path, out: Path) -> None:
    num_jobs = 25
    jobs = {path.name: belongs_to_job(path.name, num_jobs) for path in source.iterdir()}
    alone = jobs.pop("broken.mp4")
    assert alone not in jobs.values()
    empty = next(index for index in range(num_jobs) if index not in {alone, *jobs.values()})
    assert run(source, out, shard=(empty, num_jobs)).num_videos == 0
    with pytest.raises(NothingReadError, match="none of the 1 videos"):
        run(source, out, shard=(alone, num_jobs))
    run(source, out)
    check_complete(source, out)


def belongs_to_job(name: str, num_jobs: int) -> int:
    (index,) = (index for index in range(num_jobs) if belongs_to(name, (index, num_jobs)))
    return index


def test_jobs_that_were_counted_in_two_ways_double_nothing(source: Path, out: Path) -> None:
    for shard in [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]:
        run(source, out, shard=shard)
    run(source, out)
    check_complete(source, out)


def test_a_video_keeps_its_job_when_others_come(source: Path) -> None:
    before = {path.name: belongs_to(path.name, (0, 2)) for path in source.iterdir()}
    assert set(before.values()) == {True, False}
    assert all(
        sum(belongs_to(f"video{n}.mp4", (index, 4)) for n in range(1000)) in range(200, 300)
        for index in range(4)
    )


def test_a_gather_with_other_settings_changes_nothing_and_names_the_part(source: Path, out: Path) -> None:
    for index in range(2):
        run(source, out, shard=(index, 2))
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError, match=r"parts/0-of-2 was made otherwise: sampler\.num_frames") as refusal:
        run(source, out, num_frames=8)
    assert "remove that folder" in str(refusal.value)
    assert "overwrite" not in str(refusal.value)
    assert sorted({*before, out / ".lock"}) == sorted(out.rglob("*"))
    # the right one finds all that the jobs have made
    run(source, out, encode=recorder(seen := []))
    assert seen == []
    check_complete(source, out)


def test_one_part_with_other_settings_or_at_work_keeps_all_parts_where_they_are(
    source: Path, out: Path
) -> None:
    run(source, out, shard=(0, 2))
    run(source, out, num_frames=8, shard=(1, 2))
    done = set(rows_of(out / "parts/0-of-2"))
    with pytest.raises(ValueError, match="parts/1-of-2 was made otherwise"):
        run(source, out)
    with locked(out / "parts/1-of-2"), pytest.raises(BusyError, match="parts/1-of-2"):
        run(source, out)
    assert not (out / "run.json").exists()
    assert set(rows_of(out / "parts/0-of-2")) == done
    shutil.rmtree(out / "parts/1-of-2")
    run(source, out, encode=recorder(seen := []))
    assert not done & set(seen)
    check_complete(source, out)


def test_a_job_with_other_settings_is_refused_without_a_word_of_overwrite(source: Path, out: Path) -> None:
    run(source, out, shard=(0, 2))
    with pytest.raises(ValueError, match=r"0-of-2 was made otherwise: .* remove that folder"):
        run(source, out, num_frames=8, shard=(0, 2))
    run(source, out)
    with pytest.raises(
        ValueError, match=r"out was made otherwise: .* Choose another folder, or the settings"
    ):
        run(source, out, num_frames=8, shard=(1, 2))
    with pytest.raises(ValueError, match="overwrite does not go with shard"):
        run(source, out, shard=(1, 2), overwrite=True)


def test_overwrite_starts_without_the_parts_too(source: Path, out: Path) -> None:
    run(source, out, shard=(0, 2))
    run(source, out, encode=recorder(seen := []), num_frames=8, overwrite=True)
    assert len(seen) == 8
    check_complete(source, out)
    assert not list(out.glob("parts/*/run.json"))


def test_a_run_over_all_waits_for_no_job_that_is_at_work(source: Path, out: Path) -> None:
    run(source, out, shard=(0, 2))
    with locked(out / "parts/0-of-2"):
        with pytest.raises(BusyError, match="parts/0-of-2"):
            run(source, out)
        run(source, out, shard=(1, 2))
    run(source, out)
    check_complete(source, out)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_job_that_there_is_not_is_refused(source: Path, out: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"must be i/n with i from 0 to n - 1"):
        run(source, out, shard=shard)


# The disk


def test_a_disk_that_fails_at_any_step_is_an_error_and_the_next_run_completes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_ROWS_PER_SHARD", 3)
    steps: list[int] = []

    def fail_at(step: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            steps.append(step)
            if len(steps) == step:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments, **settings)

        return call

    for step in itertools.count(1):
        out = tmp_path / f"step{step}"
        steps.clear()
        with monkeypatch.context() as patch:
            for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "open"), (Path, "unlink")):
                patch.setattr(owner, name, fail_at(step, getattr(owner, name)))
            try:
                run(source, out)
                break
            except OSError as error:
                number = error.errno
        assert number == errno.ENOSPC
        assert all(len(read_shard(path)) for path in shard_paths(out))
        run(source, out)
        check_complete(source, out)
    assert step > 30


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        run(source, tmp_path / "file" / "out")


def test_a_folder_whose_name_is_not_text_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with pytest.raises(ValueError, match=r"\\udcff' is not valid UTF-8"):
        run(source, out)
    assert not out.exists()


def test_the_folder_is_held_until_it_is_searchable(source: Path, out: Path) -> None:
    def finish(folder: Path) -> None:
        with pytest.raises(BusyError), locked(folder):
            pass
        seen.append(folder)

    seen: list[Path] = []
    run(source, out, finish=finish)
    assert seen == [out]
