"""Kills extractions in child processes and checks what the next run makes of what they left.

Run as a program by test_extraction.py: the children are forked from a process without threads.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from tests.videolm.search import fakes
from videolm.search import shards
from videolm.search.extraction import EncodedVideo, EncodeFunction
from videolm.search.progress import Progress
from videolm.types import Failure

shards._ROWS_PER_SHARD = 3


def kill_at_every_step(source: Path, work: Path, *, overwrite: bool) -> int:
    """The child dies just before its n-th opening, renaming or removal of a file, for every n.

    With `overwrite` it starts again from nothing where a run with other settings, and a part of one, have been.
    """
    if overwrite:
        assert _child(lambda: _fill_otherwise(source, work / "otherwise")) == 0
    for step in range(1, 10_000):
        out = work / f"step{step}{overwrite}"
        if overwrite:
            shutil.copytree(work / "otherwise", out)
        if _child(lambda out=out, step=step: _run_and_die_at(source, out, step, overwrite=overwrite)) == 0:
            return step - 1
        assert _child(lambda out=out: fakes.run(source, out, overwrite=overwrite)) == 0, step
        fakes.check_complete(source, out)
    raise AssertionError("the run never ends")


def kill_at_random_moments(work: Path, *, num_kills: int) -> int:
    """The child gets SIGKILL some time after its first file, again and again in the same folder until that is
    complete, and then in another; how many of the kills met a folder that was neither empty nor complete.
    """
    source = work / "many"
    source.mkdir()
    for number in range(60):
        (source / f"v{number:02d}.mp4").write_text(f"video {number}")
    chance = random.Random(0)
    killed = num_midway = num_complete = 0
    while killed < num_kills:
        out = work / f"random{num_complete}"
        reader, writer = os.pipe()
        pid = _fork(lambda out=out, writer=writer: fakes.run(source, out, encode=_slow_encode(writer)))
        os.close(writer)
        # nothing where all files have been encoded before
        os.read(reader, 1)
        os.close(reader)
        time.sleep(chance.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            fakes.check_complete(source, out)
            num_complete += 1
            continue
        assert code == -signal.SIGKILL
        killed += 1
        num_midway += 0 < len(fakes.rows_of(out)) < 60
    assert _child(lambda: fakes.run(source, out)) == 0
    fakes.check_complete(source, out)
    return num_midway


def _child(work: Callable[[], object]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(_fork(work), 0)[1])


def _fork(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(2)
        os._exit(0)
    return pid


def _fill_otherwise(source: Path, out: Path) -> None:
    fakes.run(source, out, num_frames=8)
    fakes.run(source, out, num_frames=8, shard=(0, 2))


def _run_and_die_at(source: Path, out: Path, step: int, *, overwrite: bool) -> None:
    seen = 0

    def count(event: str, _: object) -> None:
        nonlocal seen
        if event in {"open", "os.rename", "os.remove", "os.mkdir"}:
            seen += 1
            if seen == step:
                os._exit(1)

    sys.addaudithook(count)
    fakes.run(source, out, overwrite=overwrite)


def _slow_encode(told: int) -> EncodeFunction:
    """Takes its time over each file, and writes to `told` when it has the first."""

    def encode(paths: Sequence[Path], progress: Progress) -> Generator[EncodedVideo | Failure, None, None]:
        for number, result in enumerate(fakes.encode(paths, progress)):
            if number == 0:
                os.write(told, b"1")
            time.sleep(0.003)
            yield result

    return encode


if __name__ == "__main__":
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    num_steps = [kill_at_every_step(source, work, overwrite=overwrite) for overwrite in (False, True)]
    sys.stdout.write(f"{min(num_steps)} {kill_at_random_moments(work, num_kills=30)}\n")
