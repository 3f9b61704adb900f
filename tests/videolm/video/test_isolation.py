from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.videolm.video.traps import HomeLimits, HomeSampler, Trap
from videolm.types import Clip
from videolm.video import isolation
from videolm.video.isolation import open_decoding, read_clips
from videolm.video.processes import KernelLock, WorkerContext
from videolm.video.readers import DEFAULT_LIMITS, VideoError, available_decoders, open_video
from videolm.video.samplers import Sampler
from videolm.video.transforms import Resize
from videolm.video.worker import ClipRequest
from videolm.video.writer import write_video

ROOT = Path(__file__).resolve().parents[3]
SAMPLER = Sampler("segment_middle", num_frames=3)
TRAP = Trap("segment_middle", num_frames=3)
QUICK = replace(DEFAULT_LIMITS, timeout_seconds=0.7)


def write_clip(path: Path, *, seed: int = 0, num_frames: int = 8) -> Path:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 24, 32, 3), dtype=np.uint8)
    write_video(path, frames, fps=5)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture
def named(clip: Path, tmp_path: Path) -> Callable[..., list[Path]]:
    """The same clip under other names."""

    def link(*names: str) -> list[Path]:
        for name in names:
            os.link(clip, tmp_path / f"{name}.mp4")
        return [tmp_path / f"{name}.mp4" for name in names]

    return link


def outcomes(paths: list[Path], **settings: object) -> dict[str, Clip | VideoError]:
    return {Path(path).stem: outcome for path, outcome in read_clips(paths, sampler=TRAP, **settings)}


# Clips come back


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("size", [None, Resize(16)], ids=["whole", "resized"])
def test_clips_equal_those_read_in_this_process_in_order(
    tmp_path: Path, workers: int, size: Resize | None
) -> None:
    paths = [write_clip(tmp_path / f"{n}.mp4", seed=n, num_frames=n + 1) for n in range(6)]
    paths.insert(3, tmp_path / "missing.mp4")
    found = list(read_clips(paths, sampler=SAMPLER, size=size, workers=workers, ahead=2))
    assert [path for path, _ in found] == [str(path) for path in paths]
    for path, outcome in found:
        if path.endswith("missing.mp4"):
            assert isinstance(outcome, VideoError)
            assert (outcome.path, outcome.stage) == (path, "open")
            continue
        with open_video(path) as reader:
            expected = reader.frames_at(SAMPLER(reader.info), size=size)
            start = reader.info.start_seconds
        assert isinstance(outcome, Clip)
        assert torch.equal(outcome.frames, expected.frames)
        assert torch.equal(outcome.pts_seconds, expected.pts_seconds)
        assert outcome.duration_seconds == expected.duration_seconds
        assert (outcome.source, outcome.start_seconds) == (path, start)


def test_a_clip_outlives_the_workers_and_the_clips_after_it(named: Callable[..., list[Path]]) -> None:
    clips = [outcome for _, outcome in read_clips(named("a", "b", "c", "d"), sampler=SAMPLER, ahead=0)]
    assert all(isinstance(clip, Clip) and torch.equal(clip.frames, clips[0].frames) for clip in clips)
    clips[0].frames.zero_()
    assert clips[1].frames.any()


def test_paths_are_taken_only_so_far_ahead(named: Callable[..., list[Path]]) -> None:
    taken: list[Path] = []

    def paths() -> Iterator[Path]:
        for path in named(*map(str, range(30))):
            taken.append(path)
            yield path

    found = read_clips(paths(), sampler=SAMPLER, ahead=3)
    next(found)
    next(found)
    assert len(taken) == 5
    found.close()
    assert len(taken) == 5


def test_a_relative_path_means_what_it_meant_when_it_was_given(
    named: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (path,) = named("a")
    with open_decoding(ClipRequest(SAMPLER), workers=1) as decoding:
        decoding.submit(str(path))
        assert isinstance(decoding.next_clip(), Clip)
        # the worker is there already, in another folder
        monkeypatch.chdir(path.parent)
        decoding.submit("a.mp4")
        monkeypatch.chdir("/")
        clip = decoding.next_clip()
    assert isinstance(clip, Clip)
    assert clip.source == "a.mp4"


# What a file can do to a worker


def test_a_death_is_blamed_on_its_file_and_names_the_signal(named: Callable[..., list[Path]]) -> None:
    bad = ["segfault", "abort", "killed", "exits"]
    good = [f"good{n}" for n in range(6)]
    names = [*good[:2], bad[0], good[2], bad[1], bad[2], *good[3:], bad[3]]
    found = outcomes(named(*names))
    assert list(found) == names
    assert all(isinstance(found[name], Clip) for name in good)
    for name, text in zip(
        bad,
        ("by SIGSEGV, 2 times", r"by SIGABRT.*max_memory_bytes", r"by SIGKILL", "exit code 3"),
        strict=True,
    ):
        error = found[name]
        assert isinstance(error, VideoError)
        assert (Path(error.path).stem, error.stage, error.decoder) == (name, "crash", "auto")
        with pytest.raises(VideoError, match=text):
            raise error


def test_a_file_whose_worker_died_by_chance_is_tried_again(named: Callable[..., list[Path]]) -> None:
    found = outcomes(named("once", "good"))
    assert all(isinstance(outcome, Clip) for outcome in found.values())
    strict = replace(DEFAULT_LIMITS, max_deaths=1)
    error = outcomes(named("once-more"), limits=strict)["once-more"]
    assert isinstance(error, VideoError)
    assert error.stage == "crash"


def test_a_hang_of_any_kind_ends_with_the_time_limit_and_names_it(named: Callable[..., list[Path]]) -> None:
    started = time.monotonic()
    found = outcomes(named("sleeps", "holds", "good", "spins"), limits=QUICK)
    # two workers, three files of 0.7 s
    assert time.monotonic() - started < 2 * (QUICK.timeout_seconds + 1) + 2
    assert isinstance(found["good"], Clip)
    for name in ("sleeps", "holds", "spins"):
        error = found[name]
        assert isinstance(error, VideoError)
        assert (error.stage, error.reason) == ("timeout", "0.7 s allowed (timeout_seconds), it took longer")


@pytest.mark.parametrize("name", ["hoards", "hoards torch"])
def test_memory_beyond_the_limit_is_refused_by_its_name(named: Callable[..., list[Path]], name: str) -> None:
    found = outcomes(named(name, "good"), limits=replace(DEFAULT_LIMITS, max_memory_bytes=10**9))
    error = found[name]
    assert isinstance(error, VideoError)
    assert error.reason == "1,000,000,000 bytes of memory allowed (max_memory_bytes), more needed"
    assert isinstance(found["good"], Clip)


def test_a_worker_writes_nothing_and_what_decoders_print_is_not_seen(
    named: Callable[..., list[Path]], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = outcomes(named("writes", "shouts"))
    assert "File too large" in str(found["writes"])
    assert (tmp_path / "writes.written").stat().st_size == 0
    assert isinstance(found["shouts"], Clip)
    assert capfd.readouterr() == ("", "")


def test_workers_are_replaced_after_so_many_files(named: Callable[..., list[Path]]) -> None:
    paths = named(*(f"process-{n}" for n in range(6)))
    for files, expected in ((2, 3), (100, 1)):
        limits = replace(DEFAULT_LIMITS, files_per_worker=files)
        found = outcomes(paths, limits=limits, workers=1)
        assert len({str(error.reason) for error in found.values()}) == expected
        assert str(os.getpid()) not in {error.reason for error in found.values()}


def test_an_error_that_is_no_fault_of_the_file_is_raised(named: Callable[..., list[Path]]) -> None:
    for workers in (0, 1):
        with pytest.raises(ZeroDivisionError):
            list(read_clips(named(f"bug-{workers}"), sampler=TRAP, workers=workers))


def test_workers_killed_from_outside_cost_nothing_but_time(named: Callable[..., list[Path]]) -> None:
    paths = named(*(f"naps-{n}" for n in range(100)))
    patient = replace(DEFAULT_LIMITS, max_deaths=100)
    chance = random.Random(0)
    num_killed = 0
    is_over = threading.Event()

    def kill() -> None:
        nonlocal num_killed
        while not is_over.wait(chance.uniform(0.02, 0.25)):
            for process in chance.sample(children := workers_of(os.getpid()), min(1, len(children))):
                try:
                    os.kill(process, signal.SIGKILL)
                    num_killed += 1
                except ProcessLookupError:
                    pass

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = outcomes(paths, limits=patient)
    finally:
        is_over.set()
        killer.join()
    assert list(found) == [path.stem for path in paths]
    assert all(isinstance(outcome, Clip) for outcome in found.values())
    assert num_killed >= 10


class NoProcesses(WorkerContext):
    """As where the system has no more, or the server of the workers does not start."""

    def Process(self, *_: object, **__: object) -> None:  # type: ignore[override]  # noqa: N802
        raise OSError("no more processes")


@pytest.mark.parametrize("num_files", [1, 20])
@pytest.mark.parametrize("cause", ["sampler", "limits", "processes"])
def test_workers_that_never_take_a_file_are_an_error_within_seconds(
    named: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch, cause: str, num_files: int
) -> None:
    settings: dict[str, Any] = {"sampler": SAMPLER}
    if cause == "sampler":
        settings["sampler"] = HomeSampler("segment_middle", num_frames=3)
    elif cause == "limits":
        settings["limits"] = HomeLimits()
    else:
        monkeypatch.setattr(isolation, "WorkerContext", NoProcesses)
    paths = named(*map(str, range(num_files)))
    descriptors = len(os.listdir("/proc/self/fd"))
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"decode workers end before they take a file.*must be importable"):
        list(read_clips(paths, **settings))
    assert time.monotonic() - started < 20
    assert workers_of(os.getpid()) == []
    # the server of the workers may have been started
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 3


def test_pools_that_break_while_files_are_given_are_counted(
    named: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the first file breaks the pool long before the second comes
    made = 0

    class Counted(WorkerContext):
        def __init__(self) -> None:
            nonlocal made
            made += 1

    def slowly() -> Iterator[Path]:
        for path in named(*map(str, range(30))):
            yield path
            time.sleep(0.3)

    monkeypatch.setattr(isolation, "WorkerContext", Counted)
    with pytest.raises(RuntimeError, match="decode workers end before they take a file"):
        list(read_clips(slowly(), sampler=SAMPLER, limits=HomeLimits(), ahead=29))
    assert made <= 11


def test_torchcodec_can_be_loaded_in_a_worker(named: Callable[..., list[Path]]) -> None:
    version = available_decoders()["torchcodec"]
    if version.startswith("cannot"):
        pytest.skip(f"torchcodec {version}")
    # it is not loaded by the server of the workers, and asks for a folder that a worker cannot write to
    (clip,) = outcomes(named("good"), decoder="torchcodec", workers=1).values()
    assert isinstance(clip, Clip)


def test_limits_and_workers_below_what_makes_sense_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"timeout_seconds \(0.0\) must be above 0"):
        replace(DEFAULT_LIMITS, timeout_seconds=0.0)
    with pytest.raises(ValueError, match=r"workers \(-1\) must be at least 0"):
        list(read_clips([], sampler=SAMPLER, workers=-1))


# What is left behind


def test_closing_ends_the_workers_at_once_and_leaves_nothing(named: Callable[..., list[Path]]) -> None:
    list(read_clips(named("first"), sampler=SAMPLER))
    descriptors, shared = os.listdir("/proc/self/fd"), os.listdir("/dev/shm")
    found = read_clips(named("good", "holds", "sleeps", "spins"), sampler=TRAP)
    next(found)
    assert workers_of(os.getpid())
    started = time.monotonic()
    found.close()
    assert time.monotonic() - started < 1
    assert workers_of(os.getpid()) == []
    assert multiprocessing.active_children() == []
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)
    assert os.listdir("/dev/shm") == shared


PROGRAM = """
import sys
from videolm.video.worker import ClipRequest
from videolm.video.isolation import read_clips
from tests.videolm.video.traps import HomeLimits, HomeSampler, Trap

print("the main file runs", flush=True)
for path, outcome in read_clips(sys.argv[1:], sampler=Trap("segment_middle", num_frames=3)):
    print(type(outcome).__name__, flush=True)
"""


def start_program(tmp_path: Path, *paths: Path) -> subprocess.Popen[str]:
    """A script without `if __name__ == "__main__"`; all its processes carry the name of its folder."""
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, script, *paths],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "MARK": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_script_without_a_guard_around_its_main_part_can_decode(
    named: Callable[..., list[Path]], tmp_path: Path
) -> None:
    program = start_program(tmp_path, *named("a", "segfault", "b"))
    said, errors = program.communicate()
    assert said.splitlines() == ["the main file runs", "Clip", "VideoError", "Clip"]
    assert (errors, program.returncode) == ("", 0)
    assert processes_with(tmp_path, within=1) == []


@pytest.mark.parametrize(
    ("number", "who"),
    [
        (signal.SIGINT, "group"),
        (signal.SIGKILL, "program"),
        pytest.param(signal.SIGINT, "program", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, "group", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "program", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "group", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("hangs", ["spins", pytest.param("holds", marks=pytest.mark.slow)])
def test_nothing_is_left_of_a_program_that_is_ended_while_a_file_hangs(
    named: Callable[..., list[Path]], tmp_path: Path, number: signal.Signals, who: str, hangs: str
) -> None:
    shared = set(os.listdir("/dev/shm"))
    program = start_program(tmp_path, *named("good", hangs))
    assert program.stdout is not None
    assert program.stderr is not None
    for expected in ("the main file runs", "Clip"):
        assert program.stdout.readline() == f"{expected}\n"
    assert len(processes_with(tmp_path)) >= 3
    (os.kill if who == "program" else os.killpg)(program.pid, number)
    assert program.wait(timeout=5) != 0
    program.stdout.close()
    program.stderr.close()
    assert processes_with(tmp_path, within=3) == []
    assert set(os.listdir("/dev/shm")) <= shared


# The lock


class Duplicate:
    """What a process that is being started is given of a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def detach(self) -> int:
        return os.dup(self._descriptor)


def test_a_lock_excludes_ends_with_its_holder_and_may_be_taken_twice() -> None:
    lock = KernelLock()
    other = KernelLock.__new__(KernelLock)
    other.__setstate__(Duplicate(lock._file))
    assert lock.acquire()
    assert lock.acquire()
    assert not other.acquire(block=False)
    assert not other.acquire(timeout=0.01)
    lock.release()
    assert not other.acquire(block=False)
    lock.release()
    assert other.acquire()
    assert not lock.acquire(block=False)
    # as when the process of its holder ends
    del other
    assert lock.acquire()


def workers_of(parent: int) -> list[int]:
    """Processes forked by a server that the process has started."""
    servers = [pid for pid in children_of(parent) if b"forkserver" in read(f"/proc/{pid}/cmdline")]
    return [pid for server in servers for pid in children_of(server)]


def children_of(parent: int) -> list[int]:
    # a thread of the process may have started them
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in read(str(task)).split()]


def processes_with(mark: Path, *, within: float = 0.0) -> list[int]:
    """Processes of the program with this mark that are still there after so many seconds."""
    last = time.monotonic() + within
    while True:
        found = [
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if f"MARK={mark}\0".encode() in read(f"{folder}/environ")
        ]
        if not found or time.monotonic() > last:
            return found
        time.sleep(0.02)


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
