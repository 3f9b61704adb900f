"""The look at a file before a decoder touches it, the limits of a reader, and the one error of this room."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Stage = Literal["open", "decode", "timeout", "crash"]
Decoder = Literal["auto", "pyav", "decord", "torchcodec"]

_MAX_TIMEOUT_SECONDS = 7 * 24 * 3600


class VideoError(Exception):
    """A file that cannot be read as asked: which one, at which stage, why, and by which decoder."""

    def __init__(self, path: str, stage: Stage, reason: str, decoder: str) -> None:
        # all four are arguments of the exception, so that it survives the way out of a worker process
        super().__init__(path, stage, reason, decoder)
        self.path = path
        self.stage = stage
        self.reason = reason
        self.decoder = decoder

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} (decoder {self.decoder})"


class ContradictionError(VideoError):
    """Frames come back at other times than the packets say: another decoder may still be right."""


@dataclass(frozen=True)
class Limits:
    """How much one file may ask for. Each limit is named in the refusal and can be raised."""

    max_bytes: int = 4 * 1024**3
    max_pixels: int = 2 * 4096 * 2160
    """Of a stored picture."""
    max_packets: int = 500_000
    """Looked at in the first pass: 4.6 hours at 30 frames a second."""
    max_walked_frames: int = 36_000
    """Decoded in order for one call where seeking is not possible: 20 minutes at 30 frames a second."""
    max_duration_seconds: float = 6 * 3600.0
    """Of the packets; what a header claims is not looked at."""
    max_frames: int = 1024
    """Returned by one call."""
    max_result_bytes: int = 10**9
    """Of the frames that one call returns; smaller with a `size`."""
    max_streams: int = 16
    timeout_seconds: float = 60.0
    """Wall clock of one file in a worker process; its processor time may be twice as long."""
    max_memory_bytes: int = 4 * 1024**3
    """Address space that one file may take in a worker process, beyond what the process starts with."""
    max_deaths: int = 2
    """Worker processes that one file may kill before it is given up."""
    files_per_worker: int = 200
    """After so many a worker process is replaced: decoders lose memory."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} ({value}) must be above 0")
        if self.timeout_seconds > _MAX_TIMEOUT_SECONDS:
            raise ValueError(
                f"timeout_seconds ({self.timeout_seconds}) must be at most {_MAX_TIMEOUT_SECONDS:,}, a week"
            )


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class GuardedFile:
    """An open, checked, regular file. `source` is for the decoder: no name, no neighbours, no swap."""

    path: str
    decoder: str
    limits: Limits
    descriptor: int
    source: str

    def refusal(self, reason: str, *, stage: Stage = "open") -> VideoError:
        """The error to raise for this file."""
        return VideoError(self.path, stage, reason, self.decoder)

    def close(self) -> None:
        """Give the descriptor back; only once."""
        os.close(self.descriptor)


def open_guarded(path: str | os.PathLike[str], *, limits: Limits, decoder: str) -> GuardedFile:
    """Open a local regular file that begins as a known video container does; VideoError for all else.

    A link is followed once, here, and the file behind it opened without following another. Nothing waits: a
    FIFO or a device is refused. The first bytes keep out playlists and scripts, which a decoder would follow.
    """
    name = os.fspath(path)
    with wrap_errors(name, "open", decoder):
        resolved = Path(name).resolve(strict=True)
        # a link that appears after resolve() is not followed; O_NONBLOCK: opening a FIFO must not wait
        descriptor = os.open(resolved, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    by_descriptor = f"/proc/self/fd/{descriptor}"
    source = by_descriptor if os.path.exists(by_descriptor) else str(resolved)
    file = GuardedFile(name, decoder, limits, descriptor, source)
    try:
        _check(file)
    except BaseException:
        file.close()
        raise
    return file


def _check(file: GuardedFile) -> None:
    status = os.fstat(file.descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise file.refusal("not a regular file")
    if status.st_size == 0:
        raise file.refusal("the file is empty")
    allowed = file.limits.max_bytes
    if status.st_size > allowed:
        raise file.refusal(f"{allowed:,} bytes allowed (max_bytes), {status.st_size:,} found")
    if not is_video_container(os.pread(file.descriptor, 512, 0)):
        raise file.refusal(
            "not a video: the first bytes are not those of mp4, mov, mkv, webm, avi, ts, gif, ..."
        )


def is_video_container(head: bytes) -> bool:
    """Whether a file that begins with these 512 bytes can be a video; pictures, text and XML cannot."""
    return (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
        or head[:4] in (b"\x1a\x45\xdf\xa3", b"OggS", b"\x00\x00\x01\xba")
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or head[:6] in (b"GIF87a", b"GIF89a")
        or head[:3] == b"FLV"
        # packets of a transport stream: 188 bytes, or 192 with four bytes of time before each
        or head[0:377:188] == b"GGG"
        or head[4:389:192] == b"GGG"
    )


@contextmanager
def wrap_errors(path: str, stage: Stage, decoder: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a VideoError: on damaged files that is any class at all."""
    try:
        yield
    except VideoError:
        raise
    except Exception as error:
        raise VideoError(path, stage, describe(error), decoder) from error


def describe(error: Exception) -> str:
    """Class and first line of an error; further lines are addresses of functions inside a decoder."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
