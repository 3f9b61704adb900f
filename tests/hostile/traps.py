"""Proof that nobody went anywhere: a port that counts calls, sockets that are looked for, a file that is watched."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

_IN_ACCESS, _IN_OPEN = 0x1, 0x20


class Listener:
    """A TCP port of this machine that takes every call, counts it, and hangs up."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                call, _ = self._socket.accept()
                self.num_calls += 1
                call.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        # close() alone does not wake a thread that waits in accept()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


class UdpWatch:
    """Looks every few milliseconds whether anybody on this machine has this UDP port open."""

    def __init__(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            # RTP takes an even port, and the next one for RTCP
            self.port: int = probe.getsockname()[1] & ~1
        self.num_seen = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        wanted = {f"{port:04X}" for port in (self.port, self.port + 1)}
        while not self._stop.wait(0.005):
            for table in ("/proc/net/udp", "/proc/net/udp6"):
                with contextlib.suppress(OSError):
                    rows = Path(table).read_text().splitlines()[1:]
                    self.num_seen += any(row.split()[1].rpartition(":")[2] in wanted for row in rows)

    def __enter__(self) -> UdpWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def watch_reads(folder: Path) -> Iterator[list[str]]:
    """The names of files of a folder that any process opens or reads meanwhile (Linux: inotify).

    The list is filled when the context ends. Unlike an audit hook it sees what FFmpeg opens.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0 or libc.inotify_add_watch(descriptor, bytes(folder), _IN_ACCESS | _IN_OPEN) < 0:
        raise OSError(ctypes.get_errno(), "inotify cannot watch", str(folder))
    seen: list[str] = []
    try:
        yield seen
        with contextlib.suppress(BlockingIOError):
            while events := os.read(descriptor, 65536):
                seen.extend(_names(events))
    finally:
        os.close(descriptor)


class Traps:
    """All of them around a folder with the secret; `sprung` says, when the context is left, what was touched."""

    def __init__(self, secrets: Path) -> None:
        self.secrets = secrets
        self.sprung: list[str] = []
        self._listener = Listener()
        self._udp = UdpWatch()
        self._stack = contextlib.ExitStack()

    @property
    def tcp_port(self) -> int:
        """Where calls are counted."""
        return self._listener.port

    @property
    def udp_port(self) -> int:
        """Which nobody has open, unless he follows a playlist."""
        return self._udp.port

    def __enter__(self) -> Traps:
        for trap in (self._listener, self._udp):
            self._stack.enter_context(trap)
        self._reads = self._stack.enter_context(watch_reads(self.secrets))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self._listener.num_calls:
            self.sprung.append(f"{self._listener.num_calls} calls to the TCP port")
        if self._udp.num_seen:
            self.sprung.append("somebody had the UDP port open")
        if self._reads:
            self.sprung.append(f"the secret was opened: {sorted(set(self._reads))}")


def _names(events: bytes) -> Iterator[str]:
    """Events are four numbers of 32 bits, the last of which is the length of the name that follows."""
    at = 0
    while at < len(events):
        length = int.from_bytes(events[at + 12 : at + 16], "little")
        yield events[at + 16 : at + 16 + length].rstrip(b"\0").decode(errors="replace")
        at += 16 + length
