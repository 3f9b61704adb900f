"""Opening a video: one protocol, a table of back ends, frames asked for by seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from videolm.types import Clip, VideoInfo
from videolm.video.readers.guard import DEFAULT_LIMITS, Limits, VideoError

__all__ = [
    "DECODERS",
    "DEFAULT_LIMITS",
    "Limits",
    "VideoError",
    "VideoReader",
    "available_decoders",
    "open_video",
]

DECODERS = {
    "pyav": "videolm.video.readers.pyav",
    "decord": "videolm.video.readers.decord",
}
"""Back ends by name. Each module has `open_reader(path, *, limits, square_pixels) -> VideoReader`, which
raises VideoError for a file it cannot read, and `version() -> str`, which raises where it cannot be used.
"""


@runtime_checkable
class VideoReader(Protocol):
    """An open video file; a context manager."""

    @property
    def info(self) -> VideoInfo:
        """What is known before a frame is decoded."""

    @property
    def pts_seconds(self) -> Float[Tensor, " n"]:
        """float64; the times at which a new frame is shown, ascending."""

    def frames_at(self, seconds: Sequence[float] | Tensor, *, size: int | None = None) -> Clip:
        """The frames shown at these moments, in the order asked for; a moment may be asked for twice.

        The frame shown at t is the last whose presentation time is not later than t (a microsecond is
        forgiven); before the first frame and after the end of the last there is none, which is an error. With
        `size` the short side is resized to that many pixels while decoding, as in `transforms`.
        Every asked frame comes back whole and with exactly its time, or VideoError says why not.
        """

    def close(self) -> None:
        """Give the file back."""

    def __enter__(self) -> VideoReader: ...

    def __exit__(self, *_: object) -> None: ...


def open_video(
    path: str | os.PathLike[str],
    *,
    decoder: Literal["auto", "decord", "pyav"] = "auto",
    limits: Limits = DEFAULT_LIMITS,
    square_pixels: bool = False,
) -> VideoReader:
    """Open a local video file; VideoError if it is none, points elsewhere, or asks for more than the limits.

    "auto" is pyav, which is right for every file that it does not refuse. "decord" is for reproducing numbers
    that were made with it; it refuses the files that it is known to read wrongly. The stored rotation is
    applied. Pixels that are not square are left as stored, unless `square_pixels` asks to widen them.
    """
    name = "pyav" if decoder == "auto" else decoder
    if name not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is unknown; it must be auto or one of {', '.join(DECODERS)}")
    reader: VideoReader = import_module(DECODERS[name]).open_reader(
        os.fspath(path), limits=limits, square_pixels=square_pixels
    )
    return reader


def available_decoders() -> dict[str, str]:
    """Each back end with its version, or with "cannot be used: " and the reason."""
    return {name: _version(module) for name, module in DECODERS.items()}


def _version(module: str) -> str:
    try:
        version: str = import_module(module).version()
    # a broken installation raises anything: ImportError, OSError for a missing library, RuntimeError
    except Exception as error:
        return f"cannot be used: {type(error).__name__}: {error}"
    return version
