"""Opening a video: one protocol, a table of back ends, frames asked for by seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from videolm.types import Clip, VideoInfo
from videolm.video.readers.auto import AutoReader
from videolm.video.readers.collect import ProbedReader
from videolm.video.readers.guard import DEFAULT_LIMITS, Decoder, Limits, VideoError
from videolm.video.transforms import Resize

__all__ = [
    "DECODERS",
    "DEFAULT_LIMITS",
    "Decoder",
    "Limits",
    "VideoError",
    "VideoReader",
    "available_decoders",
    "open_video",
]

DECODERS: dict[Decoder, str] = {
    "pyav": "videolm.video.readers.pyav",
    "decord": "videolm.video.readers.decord",
    "torchcodec": "videolm.video.readers.torchcodec",
}
"""Back ends by name. Each module has `open_reader(path, *, limits, square_pixels) -> VideoReader`, which
raises VideoError for a file it cannot read, and `version() -> str`, which raises where it cannot be used.
"""

# Fastest first. Milliseconds of one core from file to 12 frames at short side 224 (H.264 640x360, 30 s of
# filmed scenes): with key frames every 12 frames pyav 80, torchcodec 85, decord 123; with one every 250 frames
# pyav 218, torchcodec 299, decord 338. decord is not among them: it says no times, so what it gives cannot be
# held against what was asked.
AUTO_ORDER: tuple[Decoder, ...] = ("pyav", "torchcodec")


@runtime_checkable
class VideoReader(Protocol):
    """An open video file; a context manager."""

    @property
    def info(self) -> VideoInfo:
        """What is known before a frame is decoded."""

    @property
    def pts_seconds(self) -> Float[Tensor, " n"]:
        """float64; the times at which a new frame is shown, ascending."""

    @property
    def key_pts_seconds(self) -> Float[Tensor, " n"]:
        """float64; of `pts_seconds` those from which decoding can start, ascending: the cheap ones to ask for.

        The first frame stands alone where no such frame is shown, or the file has no times.
        """

    def frames_at(self, seconds: Sequence[float] | Tensor, *, size: int | Resize | None = None) -> Clip:
        """The frames shown at these moments, in the order asked for; a moment may be asked for twice.

        The frame shown at t is the last whose presentation time is not later than t (a microsecond is
        forgiven); before the first frame and after the end of the last there is none, which is an error. With
        `size` each frame is resized as soon as it is decoded; a number stands for Resize(number).
        Every asked frame comes back whole and with exactly its time, or VideoError says why not.
        """

    def close(self) -> None:
        """Give the file back."""

    def __enter__(self) -> VideoReader: ...

    def __exit__(self, *_: object) -> None: ...


def open_video(
    path: str | os.PathLike[str],
    *,
    decoder: Decoder = "auto",
    limits: Limits = DEFAULT_LIMITS,
    square_pixels: bool = False,
) -> VideoReader:
    """Open a local video file; VideoError if it is none, points elsewhere, or asks for more than the limits.

    "auto" is the fastest back end that is right for the file: pyav, which is right for every file that it
    does not refuse, and the next that can be used where frames come back at other times than the packets say.
    "decord" is for reproducing numbers that were made with it. decord and torchcodec refuse the files that
    they are known to read wrongly. The stored rotation is applied. Pixels that are not square are left as
    stored, unless `square_pixels` asks to widen them.
    """
    names: tuple[Decoder, ...] = AUTO_ORDER if decoder == "auto" else (decoder,)
    if names[0] not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is unknown; it must be auto or one of {', '.join(DECODERS)}")
    openers = [
        partial(_open, name, os.fspath(path), limits=limits, square_pixels=square_pixels) for name in names
    ]
    return AutoReader(openers) if decoder == "auto" else openers[0]()


def _open(name: Decoder, path: str, *, limits: Limits, square_pixels: bool) -> ProbedReader:
    # the module of a back end is imported when it is used: the libraries behind them are large
    reader: ProbedReader = import_module(DECODERS[name]).open_reader(
        path, limits=limits, square_pixels=square_pixels
    )
    return reader


def available_decoders() -> dict[Decoder, str]:
    """Each back end with its version, or with "cannot be used: " and the reason."""
    return {name: _version(module) for name, module in DECODERS.items()}


def _version(module: str) -> str:
    try:
        version: str = import_module(module).version()
    # a broken installation raises anything: ImportError, OSError for a missing library, RuntimeError
    except Exception as error:
        return f"cannot be used: {type(error).__name__}: {error}"
    return version
