"""Decoding in worker processes: a file that crashes, hangs or takes all memory costs a worker and is named.

The workers are forked by a server that has loaded PyAV and torch, but holds no CUDA and no threads. Frames come
back resized, through anonymous shared memory: 12 of 224 x 300 in 1 ms, through a pipe in 5 to 9.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from pebble import ProcessExpired, ProcessPool

from videolm.types import Clip
from videolm.video.processes import WorkerContext
from videolm.video.readers import DEFAULT_LIMITS, Decoder, Limits, VideoError
from videolm.video.samplers import Sampler
from videolm.video.transforms import Resize
from videolm.video.worker import Answer, ClipRequest, prepare_worker, read_clip, work

# Pools that may break in a row without an answer: beyond that it is not the files. Each costs a quarter of a second.
_MAX_BROKEN_POOLS = 10
# How often a look is taken whether a file that does not come has got lost.
_LOOK_SECONDS = 0.2
# So long all workers may be idle although there are files, once: the first ones may have to load torch.
_IDLE_SECONDS = 60.0
_NO_WORKERS = (
    "decode workers end before they take a file: the reason may be on the error stream. What they are given, the "
    "sampler too, must be importable, so not from the main file; workers=0 (--workers 0) decodes in this process"
)


def read_clips(
    paths: Iterable[str | os.PathLike[str]],
    *,
    sampler: Sampler,
    size: int | Resize | None = None,
    decoder: Decoder = "auto",
    limits: Limits = DEFAULT_LIMITS,
    workers: int = 2,
    ahead: int = 8,
) -> Generator[tuple[str, Clip | VideoError], None, None]:
    """Each path and its sampled frames, or why there are none, in their order; see `open_decoding`.

    At most `ahead` files are decoded before they are asked for, and `paths` is read no further than that.
    Closing the generator ends the workers at once.
    """
    with open_decoding(ClipRequest(sampler, size, decoder, limits), workers=workers) as decoding:
        waiting: deque[str] = deque()
        for path in paths:
            waiting.append(os.fspath(path))
            decoding.submit(waiting[-1])
            if len(waiting) > ahead:
                yield waiting.popleft(), decoding.next_clip()
        while waiting:
            yield waiting.popleft(), decoding.next_clip()


@runtime_checkable
class Decoding(Protocol):
    """Files go in, their clips come out in the same order; a context manager."""

    def submit(self, path: str, sampler: Sampler | None = None) -> None:
        """Give the next file; `sampler` takes the place of the request's for it alone."""

    def next_clip(self) -> Clip | VideoError:
        """The clip of the file that was given first, or why there is none."""

    def __enter__(self) -> Decoding: ...

    def __exit__(self, *_: object) -> None: ...


def open_decoding(request: ClipRequest, *, workers: int) -> Decoding:
    """Decoding in so many worker processes, or for 0 in this one.

    In a worker, a file that takes longer than `limits.timeout_seconds`, or kills `limits.max_deaths` workers,
    is a VideoError of the stage "timeout" or "crash" that names the limit or the signal. The first call of a
    program starts the server of the workers, which takes a second; leaving the context ends the workers, not
    the server. In this process there is nothing to start, but a file can hang or crash the program.
    """
    return Workers(request, workers) if workers else ThisProcess(request)


class ThisProcess:
    """Decodes a file when its clip is asked for."""

    def __init__(self, request: ClipRequest) -> None:
        self._request = request
        self._waiting: deque[tuple[str, ClipRequest]] = deque()

    def submit(self, path: str, sampler: Sampler | None = None) -> None:
        self._waiting.append((path, _with_sampler(self._request, sampler)))

    def next_clip(self) -> Clip | VideoError:
        return read_clip(*self._waiting.popleft())

    def __enter__(self) -> ThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()


@dataclass(eq=False)
class _Job:
    path: str
    request: ClipRequest
    memory: int
    """Descriptor of the shared memory that the frames are written to."""
    future: Future[Answer | VideoError]
    number: int = 0
    """Jobs are started in the order of their numbers."""
    num_deaths: int = 0

    @property
    def has_started(self) -> bool:
        return self.future.running() or self.future.done()


class Workers:
    """A pool of worker processes.

    Pebble knows which worker took which file, so a death is blamed on the right one. What it does not survive
    is a worker that is killed between two files: it gives up the pool, and all that is not done has to go to a
    new one; or between taking a file and saying so: then the file is lost, and has to be given again.
    """

    def __init__(self, request: ClipRequest, num_workers: int) -> None:
        if num_workers < 1:
            raise ValueError(f"workers ({num_workers}) must be at least 0")
        if not sys.platform.startswith("linux"):
            raise RuntimeError(
                "decode workers need Linux; say workers=0 (--workers 0) to decode in this process, where a file "
                "can hang or crash the program"
            )
        self._request = request
        self._num_workers = num_workers
        self._jobs: deque[_Job] = deque()
        self._free_memory: list[int] = []
        self._num_scheduled = 0
        self._num_broken = 0
        self._num_idle = 0
        # what broke the last pool
        self._cause: BrokenProcessPool | None = None
        self._pool = self._new_pool()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        for descriptor in [*self._free_memory, *(job.memory for job in self._jobs)]:
            os.close(descriptor)
        self._jobs.clear()
        self._free_memory.clear()

    def submit(self, path: str, sampler: Sampler | None = None) -> None:
        memory = self._free_memory.pop() if self._free_memory else self._new_memory()
        self._jobs.append(_Job(path, _with_sampler(self._request, sampler), memory, Future()))
        self._give(self._jobs[-1])

    def next_clip(self) -> Clip | VideoError:
        job = self._jobs[0]
        while (outcome := self._outcome(job)) is None:
            pass
        self._jobs.popleft()
        self._free_memory.append(job.memory)
        return outcome

    def _outcome(self, job: _Job) -> Clip | VideoError | None:
        """What became of a file; None: it is tried again."""
        limits, decoder = self._request.limits, self._request.decoder
        try:
            self._wait_for(job)
            if _has_outcome(job):
                self._num_broken = self._num_idle = 0
            answer = job.future.result()
        except TimeoutError:
            reason = f"{limits.timeout_seconds:g} s allowed (timeout_seconds), it took longer"
            return VideoError(job.path, "timeout", reason, decoder)
        except ProcessExpired as death:
            job.num_deaths += 1
            if death.exitcode == -signal.SIGXCPU:
                reason = f"{2 * limits.timeout_seconds:g} s of processor time allowed (twice timeout_seconds)"
                return VideoError(job.path, "timeout", reason, decoder)
            if job.num_deaths >= limits.max_deaths:
                return VideoError(job.path, "crash", _cause_of_death(death.exitcode, limits), decoder)
            self._give(job)
            return None
        except BrokenProcessPool as error:
            self._cause = error
            self._renew()
            return None
        if isinstance(answer, VideoError):
            return VideoError(job.path, answer.stage, answer.reason, answer.decoder)
        return answer.clip(job.path, job.memory)

    def _wait_for(self, job: _Job) -> None:
        last_sign_of_life = time.monotonic()
        while not wait([job.future], timeout=_LOOK_SECONDS).done:
            if not self._pool.active:
                raise BrokenProcessPool
            if not job.has_started and any(j.number > job.number and j.has_started for j in self._jobs):
                self._give(job)
            if any(other.future.running() for other in self._jobs):
                last_sign_of_life = time.monotonic()
            elif time.monotonic() - last_sign_of_life > _IDLE_SECONDS:
                self._num_idle += 1
                if self._num_idle > 1:
                    raise RuntimeError(f"twice {_IDLE_SECONDS:.0f} s without a sign of life; {_NO_WORKERS}")
                raise BrokenProcessPool

    def _give(self, job: _Job) -> None:
        """Hand a file to the pool; where that is broken, all that is not done moves to a new one, this file too."""
        job.future = Future()
        if not self._schedule(job):
            self._renew()

    def _schedule(self, job: _Job) -> bool:
        """Whether the pool took the file."""
        # absolute: a worker does not see when this process changes its folder
        arguments = (os.path.abspath(job.path), f"/proc/{os.getpid()}/fd/{job.memory}", job.request)
        try:
            job.future = self._pool.schedule(
                work, args=arguments, timeout=self._request.limits.timeout_seconds
            )
        # it breaks while its first workers are started
        except BrokenProcessPool as error:
            self._cause = error
            return False
        except RuntimeError:
            # pebble's word for a pool that has broken before
            if self._pool.active:
                raise
            return False
        self._num_scheduled += 1
        job.number = self._num_scheduled
        return True

    def _renew(self) -> None:
        """A new pool for all that is not done; RuntimeError where pools break whatever they are given."""
        is_complete = False
        while not is_complete:
            self._num_broken += 1
            if self._num_broken > _MAX_BROKEN_POOLS:
                raise RuntimeError(_NO_WORKERS) from self._cause
            self._stop()
            left = [job for job in self._jobs if not _has_outcome(job)]
            self._pool = self._new_pool()
            is_complete = all(self._schedule(job) for job in left)

    def _new_pool(self) -> ProcessPool:
        # its processes start with the first file
        return ProcessPool(
            max_workers=self._num_workers,
            max_tasks=self._request.limits.files_per_worker,
            initializer=prepare_worker,
            initargs=(self._request.limits,),
            context=WorkerContext(),
        )

    def _new_memory(self) -> int:
        descriptor = os.memfd_create("videolm-frames")
        # takes no memory before it is written to
        os.ftruncate(descriptor, self._request.limits.max_result_bytes)
        return descriptor

    def _stop(self) -> None:
        self._pool.stop()
        self._pool.join()


def _with_sampler(request: ClipRequest, sampler: Sampler | None) -> ClipRequest:
    return request if sampler is None else replace(request, sampler=sampler)


def _has_outcome(job: _Job) -> bool:
    return job.future.done() and not isinstance(job.future.exception(), BrokenProcessPool)


def _cause_of_death(exit_code: int, limits: Limits) -> str:
    if exit_code >= 0:
        return f"the decoder ended its process with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = ""
    if name in ("SIGABRT", "SIGKILL"):
        hint = f"; it may have needed more than {limits.max_memory_bytes:,} bytes (max_memory_bytes)"
    return f"the decoder was ended by {name}, {limits.max_deaths} times{hint}"
