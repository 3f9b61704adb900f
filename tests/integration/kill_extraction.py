"""Kills extractions with decode workers at random moments and checks what the next run makes of it.

Run as a program by test_survival.py: the runs are forked from a process without threads.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from tests.tiny import tiny_model
from tests.videolm.video.traps import Trap
from videolm.pipeline import VideoLM
from videolm.search import shards
from videolm.search.shards import read_shard, shard_paths, shard_vectors

shards._ROWS_PER_SHARD = 3


def kill_again_and_again(source: Path, work: Path, *, num_kills: int) -> tuple[int, int]:
    """How many kills met a folder that was neither empty nor complete, and how many folders became complete."""
    model = tiny_model()
    expected = dict(model.encode_videos(sorted(source.iterdir()), workers=0, show_progress_bar=False))
    # takes its time over each file
    model.sampler = Trap("segment_middle", num_frames=3)
    chance = random.Random(0)
    killed = num_midway = num_complete = 0
    while killed < num_kills:
        out = work / f"out{num_complete}"
        pid = start(model, source, out)
        time.sleep(chance.uniform(0.0, 0.4))
        with_its_workers = chance.random() < 0.5
        (os.killpg if with_its_workers else os.kill)(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert_gone(pid)
        if code == 0:
            assert check(out, expected) == len(expected)
            num_complete += 1
            continue
        assert code == -signal.SIGKILL
        killed += 1
        num_midway += 0 < check(out, expected) < len(expected)
    assert os.waitstatus_to_exitcode(os.waitpid(start(model, source, out), 0)[1]) == 0
    assert check(out, expected) == len(expected)
    return num_midway, num_complete + 1


def start(model: VideoLM, source: Path, out: Path) -> int:
    """A run in a process of its own, as soon as it has finished a shard, or all of them."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        sys.addaudithook(lambda event, arguments: tell_of_shard(writer, event, arguments))
        try:
            model.extract(source, out, batch_size=2, show_progress_bar=False)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(2)
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return pid


def tell_of_shard(told: int, event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.rename" and str(arguments[1]).endswith(".parquet"):
        # nobody listens after the first
        with suppress(BrokenPipeError):
            os.write(told, b"1")


def check(out: Path, expected: dict[str, np.ndarray]) -> int:
    """The number of rows; none of them is wrong or doubled."""
    found: dict[str, np.ndarray] = {}
    for path in shard_paths(out):
        table = read_shard(path)
        for name, vector in zip(table["id"].to_pylist(), shard_vectors(table), strict=True):
            assert name not in found, name
            found[name] = vector
    by_name = {Path(path).name: vector for path, vector in expected.items()}
    for name, vector in found.items():
        np.testing.assert_allclose(vector, by_name[name], atol=1e-6)
    return len(found)


def assert_gone(group: int) -> None:
    """No process of the group is left."""
    # the server of the workers may have to load torch before it sees that it is not needed any more
    last = time.monotonic() + 30
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < last, f"processes of {group} are left"
        time.sleep(0.02)


if __name__ == "__main__":
    midway, complete = kill_again_and_again(Path(sys.argv[1]), Path(sys.argv[2]), num_kills=int(sys.argv[3]))
    sys.stdout.write(f"{midway} {complete}\n")
