"""Kills extractions with decode workers at random moments and checks what the next run makes of it.

Run as a program by test_survival.py: the runs are forked from a process without threads.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from tests.tiny import tiny_model
from tests.videolm.video.traps import Trap
from videolm.pipeline import VideoLM
from videolm.search import extraction
from videolm.search.shards import read_shard, shard_paths, shard_vectors

extraction._ROWS_PER_SHARD = 3


def kill_again_and_again(source: Path, work: Path, *, num_kills: int) -> tuple[int, int]:
    """How many runs were killed, and how many folders became complete in spite of it."""
    model = tiny_model()
    expected = dict(model.encode_videos(sorted(source.iterdir()), workers=0, show_progress_bar=False))
    # takes its time over each file
    model.sampler = Trap("segment_middle", num_frames=3)
    chance = random.Random(0)
    num_complete = 0
    killed = 0
    while killed < num_kills:
        out = work / f"out{num_complete}"
        pid = start(model, source, out)
        # a second goes by before the workers are there
        time.sleep(chance.uniform(0.5, 2.0))
        if os.waitpid(pid, os.WNOHANG)[0]:
            check(out, expected, is_complete=True)
            num_complete += 1
            continue
        with_its_workers = chance.random() < 0.5
        (os.killpg if with_its_workers else os.kill)(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed += 1
        check(out, expected, is_complete=False)
        assert_gone(pid)
    os.waitpid(start(model, source, out), 0)
    check(out, expected, is_complete=True)
    return killed, num_complete + 1


def start(model: VideoLM, source: Path, out: Path) -> int:
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        model.extract(source, out, batch_size=2, show_progress_bar=False)
        os._exit(0)
    return pid


def check(out: Path, expected: dict[str, np.ndarray], *, is_complete: bool) -> None:
    """No row is wrong or doubled; in a complete folder none is missing."""
    found: dict[str, np.ndarray] = {}
    for path in shard_paths(out):
        table = read_shard(path)
        for name, vector in zip(table["id"].to_pylist(), shard_vectors(table), strict=True):
            assert name not in found, name
            found[name] = vector
    by_name = {Path(path).name: vector for path, vector in expected.items()}
    for name, vector in found.items():
        np.testing.assert_allclose(vector, by_name[name], atol=1e-6)
    assert not is_complete or found.keys() == by_name.keys()


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
    killed, complete = kill_again_and_again(Path(sys.argv[1]), Path(sys.argv[2]), num_kills=int(sys.argv[3]))
    sys.stdout.write(f"{killed} {complete}\n")
