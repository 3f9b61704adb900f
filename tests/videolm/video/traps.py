"""A sampler that does in a worker what hostile files make decoders do; the file's name says what."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from videolm.types import VideoInfo
from videolm.video.readers import Limits, VideoError
from videolm.video.samplers import Sampler


@dataclass(frozen=True)
class Trap(Sampler):
    """As a Sampler, but springs on files whose name begins with the name of a trap."""

    def __call__(
        self,
        info: VideoInfo,
        *,
        generator: torch.Generator | None = None,
        key_seconds: Tensor | None = None,
    ) -> Tensor:
        path = Path(info.path)
        spring = TRAPS.get(path.stem.partition("-")[0])
        if spring is not None:
            spring(path)
        return super().__call__(info, generator=generator, key_seconds=key_seconds)


@dataclass(frozen=True)
class HomeSampler(Sampler):
    """Can be given to a worker, but not loaded there, as if it came from the main file."""

    def __reduce__(self) -> tuple[object, ...]:
        return refuse_to_load, (os.getpid(), Sampler, "segment_middle")


@dataclass(frozen=True)
class HomeLimits(Limits):
    """As HomeSampler: what a worker gets before its first file."""

    def __reduce__(self) -> tuple[object, ...]:
        return refuse_to_load, (os.getpid(), Limits)


def refuse_to_load(home: int, make: Callable[..., object], *arguments: object) -> object:
    """Only the process that it comes from can load it."""
    if os.getpid() != home:
        raise ImportError("no such module in a worker")
    return make(*arguments)


def die_once(path: Path) -> None:
    """The first worker that takes the file dies; an empty file beside it remembers that."""
    mark = path.with_suffix(".died")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSEGV)


def hold_the_interpreter(_: Path) -> None:
    """Sleeps in C without letting go of the interpreter, so that no signal handler of Python runs."""
    ctypes.PyDLL(None).sleep(1000)


def spin(_: Path) -> None:
    while True:
        pass


def say_process(path: Path) -> None:
    raise VideoError(str(path), "decode", str(os.getpid()), "trap")


def write_to_disk(path: Path) -> None:
    """What a worker must not be able to do."""
    try:
        with path.with_suffix(".written").open("wb") as file:
            file.write(bytes(10_000))
    except OSError as error:
        raise VideoError(str(path), "decode", str(error), "trap") from error


def shout(_: Path) -> None:
    for descriptor in (1, 2):
        os.write(descriptor, b"[h264 @ 0x5581] error while decoding MB 3 4\n")


TRAPS = {
    "segfault": lambda _: ctypes.string_at(0),
    "abort": lambda _: os.abort(),
    "killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "exits": lambda _: os._exit(3),
    "once": die_once,
    "naps": lambda _: time.sleep(0.03),
    "sleeps": lambda _: time.sleep(1000),
    "holds": hold_the_interpreter,
    "spins": spin,
    "hoards": lambda _: bytearray(10**11),
    "hoards torch": lambda _: torch.empty(10**11, dtype=torch.uint8),
    "process": say_process,
    "writes": write_to_disk,
    "shouts": shout,
    "bug": lambda _: 1 // 0,
}
