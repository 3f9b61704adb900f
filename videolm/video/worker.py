"""Decoding one file: what is asked of it, and how a worker process answers within its limits."""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import resource
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import torch

from videolm.types import Clip
from videolm.video.readers import DEFAULT_LIMITS, Decoder, Limits, VideoError, open_video
from videolm.video.samplers import Sampler
from videolm.video.transforms import Resize


@dataclass(frozen=True)
class ClipRequest:
    """What is asked of every file."""

    sampler: Sampler
    size: int | Resize | None = None
    """As for `VideoReader.frames_at`."""
    decoder: Decoder = "auto"
    limits: Limits = DEFAULT_LIMITS


def read_clip(path: str | os.PathLike[str], request: ClipRequest) -> Clip | VideoError:
    """The sampled frames of one file, decoded in this process, or why there are none."""
    try:
        with open_video(path, decoder=request.decoder, limits=request.limits) as reader:
            seconds = request.sampler(reader.info, key_seconds=reader.key_pts_seconds)
            clip = reader.frames_at(seconds, size=request.size)
            return replace(clip, start_seconds=reader.info.start_seconds)
    except VideoError as error:
        return error


@dataclass(frozen=True)
class Answer:
    """A clip without its frames, which are in the shared memory."""

    shape: tuple[int, ...]
    pts_seconds: list[float]
    duration_seconds: float
    start_seconds: float

    def clip(self, path: str, memory: int) -> Clip:
        with mmap.mmap(memory, math.prod(self.shape), prot=mmap.PROT_READ) as shared:
            frames = torch.from_numpy(np.array(np.frombuffer(shared, np.uint8)).reshape(self.shape))
        pts_seconds = torch.tensor(self.pts_seconds, dtype=torch.float64)
        return Clip(frames, pts_seconds, self.duration_seconds, path, self.start_seconds)


def prepare_worker(limits: Limits) -> None:
    # Pebble's handler runs in the interpreter, which a decoder may hold for ever.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # found by writing there, which soon nobody can; who asks afterwards is told (torchcodec, when it is imported)
    tempfile.gettempdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * mmap.PAGESIZE + limits.max_memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    # what decoders print; the reason of a failure comes back as a VideoError
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


def _end_with_parent() -> None:
    """The kernel ends this process, whatever it hangs in, as soon as the program that started it is gone."""
    parent = parent_process()
    assert parent is not None
    # a pipe into which nothing is written: the end of its writer is an event, and SIGIO ends a process
    sentinel = parent.sentinel
    fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if not parent.is_alive():
        os._exit(1)


def work(path: str, memory: str, request: ClipRequest) -> Answer | VideoError:
    limits = request.limits
    with _cpu_limit(2 * limits.timeout_seconds):
        try:
            clip = read_clip(path, request)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            return _memory_refusal(path, request.decoder, limits)
        if isinstance(clip, VideoError):
            is_memory = _is_out_of_memory(clip.__cause__)
            return _memory_refusal(path, clip.decoder, limits) if is_memory else clip
        frames = clip.frames.numpy()
        descriptor = os.open(memory, os.O_RDWR)
        try:
            with mmap.mmap(descriptor, frames.nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE) as shared:
                np.copyto(np.frombuffer(shared, np.uint8).reshape(frames.shape), frames)
        finally:
            os.close(descriptor)
        return Answer(frames.shape, clip.pts_seconds.tolist(), clip.duration_seconds, clip.start_seconds)


@contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


def _is_out_of_memory(error: BaseException | None) -> bool:
    is_torchs = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or is_torchs


def _memory_refusal(path: str, decoder: str, limits: Limits) -> VideoError:
    reason = f"{limits.max_memory_bytes:,} bytes of memory allowed (max_memory_bytes), more needed"
    return VideoError(path, "decode", reason, decoder)
