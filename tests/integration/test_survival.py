"""Extraction with its decode workers, killed and interrupted as users and machines do it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny import tiny_model, write_clip
from videolm.search.shards import read_shard, shard_paths

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(40):
        write_clip(folder / f"naps-{number:02d}.mp4", seed=number)
    return folder


def orphans() -> set[str]:
    """What lies in shared memory and no living process has mapped: other tests may be using some of it."""
    mapped = ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped += maps.read_text(errors="replace")
    return {name for name in os.listdir("/dev/shm") if name not in mapped}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_kills", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_and_double_nothing_and_leave_no_process(
    videos: Path, tmp_path: Path, num_kills: int
) -> None:
    before = orphans()
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kill_extraction.py"), videos, tmp_path, str(num_kills)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    num_midway, num_complete = map(int, done.stdout.split())
    assert num_midway > num_kills / 2
    assert num_complete >= 1
    assert orphans() <= before


def test_ctrl_c_keeps_what_was_encoded_and_the_same_command_goes_on(videos: Path, tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "model")
    code = (
        "import sys; from videolm.search import shards; shards._ROWS_PER_SHARD = int(sys.argv.pop(1)); "
        "from videolm.cli import main; main()"
    )
    arguments = ["encode", videos, tmp_path / "out", "--model", tmp_path / "model", "--batch-size", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "1", *arguments],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(shard_paths(tmp_path / "out")) < 3 and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130, errors
    assert errors == "interrupted; the same command goes on where it was\n"
    before = {path: path.read_bytes() for path in shard_paths(tmp_path / "out")}
    assert 3 <= len(before) < 40
    done = subprocess.run(
        [sys.executable, "-c", code, "1000", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        0,
        f"40 videos ({40 - len(before)} new) into {tmp_path / 'out'}\n",
    )
    assert all(path.read_bytes() == content for path, content in before.items())
    assert sum(len(read_shard(path)) for path in shard_paths(tmp_path / "out")) == 40
