"""Kills extractions in child processes and checks what the next run makes of what they left.

Run as a program by test_extraction.py: the children are forked from a process without threads.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.videolm.search import fakes
from videolm.search import extraction

extraction._ROWS_PER_SHARD = 3


def kill_at_every_step(source: Path, work: Path) -> int:
    """The child dies just before its n-th opening, renaming or removal of a file, for every n."""
    for step in range(1, 10_000):
        out = work / f"step{step}"
        if _child(lambda out=out, step=step: _run_and_die_at(source, out, step)) == 0:
            return step - 1
        assert _child(lambda out=out: fakes.run(source, out)) == 0, step
        fakes.check_complete(source, out)
    raise AssertionError("the run never ends")


def kill_at_random_moments(source: Path, out: Path, *, num_kills: int) -> int:
    """The child gets SIGKILL, again and again in the same folder, until a last one may finish."""
    chance = random.Random(0)
    for _ in range(num_kills):
        pid = os.fork()
        if pid == 0:
            fakes.run(source, out, encode=_slow_encode)
            os._exit(0)
        time.sleep(chance.uniform(0.01, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert _child(lambda: fakes.run(source, out)) == 0
    fakes.check_complete(source, out)
    return num_kills


def _child(work: object) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run_and_die_at(source: Path, out: Path, step: int) -> None:
    seen = 0

    def count(event: str, _: object) -> None:
        nonlocal seen
        if event in {"open", "os.rename", "os.remove", "os.mkdir"}:
            seen += 1
            if seen == step:
                os._exit(1)

    sys.addaudithook(count)
    fakes.run(source, out)


def _slow_encode(paths, progress):
    for result in fakes.encode(paths, progress):
        time.sleep(0.003)
        yield result


if __name__ == "__main__":
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    num_steps = kill_at_every_step(source, work)
    num_kills = kill_at_random_moments(source, work / "random", num_kills=30)
    sys.stdout.write(f"{num_steps} {num_kills}\n")
