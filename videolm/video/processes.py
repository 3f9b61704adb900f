"""How decode workers are started: from a server of their own, without the program's own file. Linux only.

`multiprocessing` would run the program's main file again in each worker, so that a script without
`if __name__ == "__main__"` could not decode, and each worker would import all that the script imports.
"""

from __future__ import annotations

import fcntl
import io
import os
import time
from functools import cache
from multiprocessing import context, popen_forkserver, reduction, spawn, util
from multiprocessing.forkserver import ForkServer, read_signed
from multiprocessing.process import BaseProcess, current_process
from typing import Any

# What a worker needs, loaded once by the server: a worker starts in 20 ms, and not in a second.
_PRELOAD = ["torch", "av", "pebble", "videolm.video.readers.pyav", "videolm.video.worker"]
_LOCK_POLL_SECONDS = 0.001


@cache
def _server(process: int) -> ForkServer:
    """One for the life of the program; it ends with the program, however that ends.

    `process` is this one: a child that was forked from it cannot use its server.
    """
    del process
    server = ForkServer()
    server.set_forkserver_preload(_PRELOAD)
    return server


class _Popen(popen_forkserver.Popen):
    """As multiprocessing's own, but with our server and without the main file."""

    _fds: list[int]

    def _launch(self, process_obj: BaseProcess) -> None:
        preparation = spawn.get_preparation_data(process_obj.name)
        for key in ("init_main_from_name", "init_main_from_path"):
            preparation.pop(key, None)
        message = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(preparation, message)
            reduction.dump(process_obj, message)
        finally:
            context.set_spawning_popen(None)
        self.sentinel, writer = _server(os.getpid()).connect_to_new_process(self._fds)
        # while it is open the worker knows that this process lives
        parent = os.dup(writer)
        self.finalizer = util.Finalize(self, _close, (parent, self.sentinel))
        with open(writer, "wb") as file:
            file.write(message.getbuffer())
        self.pid = read_signed(self.sentinel)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Process(context.ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> _Popen:  # noqa: N802 - multiprocessing's name
        return _Popen(process_obj)


class KernelLock:
    """A lock between processes that ends with its holder, and that leaves no name behind.

    A semaphore stays taken when its holder is killed, and its file stays when all are. For one thread of a
    process at a time; the same process may take it again.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("videolm-lock")
        self._times_held = 0

    def __getstate__(self) -> Any:
        # into a process that is being started
        return reduction.DupFd(self._file)

    def __setstate__(self, duplicate: Any) -> None:
        descriptor = duplicate.detach()
        # opened anew: a duplicate would hold the same lock
        self._file = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        os.close(descriptor)
        self._times_held = 0

    def __del__(self) -> None:
        os.close(self._file)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """As of `multiprocessing.RLock`."""
        last = time.monotonic() + (timeout or 0.0)
        while self._times_held == 0:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not block or (timeout is not None and time.monotonic() > last):
                    return False
                time.sleep(_LOCK_POLL_SECONDS)
        self._times_held += 1
        return True

    def release(self) -> None:
        """Give it back, once for each time that it was taken."""
        self._times_held -= 1
        if self._times_held == 0:
            fcntl.flock(self._file, fcntl.LOCK_UN)


class WorkerContext(context.ForkServerContext):
    """What pebble takes for a multiprocessing context; RuntimeError where no process can be started from here."""

    Process = _Process

    def __init__(self) -> None:
        if current_process().daemon:
            raise RuntimeError(
                f"{current_process().name} is a daemonic process, as the workers of a torch DataLoader are, and may "
                "start no others: say workers=0 (--workers 0) to decode in it"
            )

    def RLock(self) -> KernelLock:  # type: ignore[override]  # noqa: N802 - multiprocessing's name
        return KernelLock()
