"""decord behind the same guard, for numbers that were made with it; it refuses what it reads wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from videolm.types import Clip, VideoInfo
from videolm.video.readers.collect import collect
from videolm.video.readers.guard import GuardedFile, Limits, describe, open_guarded, wrap_errors
from videolm.video.readers.probe import Probe, probe, with_square_pixels

NAME = "decord"
_WAY_OUT = 'decoder="pyav" reads it'


def version() -> str:
    """Of decord; raises what its import raises where it cannot be used."""
    return str(_import_decord().__version__)


def open_reader(path: str, *, limits: Limits, square_pixels: bool) -> DecordReader:
    """Check the file, walk its packets with PyAV, and open it in decord if both agree on its times."""
    file = open_guarded(path, limits=limits, decoder=NAME)
    try:
        with wrap_errors(path, "open", NAME):
            found = probe(file)
            weakness = _weakness(found)
            if weakness:
                reason = f"decord gives wrong frames or none for {weakness}; {_WAY_OUT}"
                raise file.refusal(reason)
            reader = _open_checked(file, found)
        return DecordReader(file, with_square_pixels(found) if square_pixels else found, reader)
    except BaseException:
        file.close()
        raise


class DecordReader:
    """See VideoReader. decord says no times of the frames it returns: they are those of its table."""

    def __init__(self, file: GuardedFile, found: Probe, reader: Any) -> None:
        self._file = file
        self._probe = found
        self._reader = reader

    @property
    def info(self) -> VideoInfo:
        """What the first pass found."""
        return self._probe.info

    @property
    def pts_seconds(self) -> Float[Tensor, " n"]:
        """All times at which a new frame is shown."""
        return self._probe.pts_seconds()

    def frames_at(
        self, seconds: Sequence[float] | Float[Tensor, " frames"], *, size: int | None = None
    ) -> Clip:
        """The frames shown at these moments; see VideoReader."""
        return collect(self._probe, seconds, size=size, limits=self._file.limits, pictures=self._pictures)

    def close(self) -> None:
        """Give the file back; a second call does nothing."""
        if self._reader is not None:
            self._reader = None
            self._file.close()

    def __enter__(self) -> DecordReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pictures(self, wanted: Sequence[int]) -> Iterator[tuple[int, UInt8[Tensor, "height width 3"]]]:
        if self._reader is None:
            raise ValueError(f"{self.info.path}: the reader is closed")
        height, width = self._probe.orientation.apply(*self._probe.stored_size)
        for index in wanted:
            with wrap_errors(self.info.path, "decode", NAME):
                # one frame at a time and by number: a slice of decord's reader is not what it seems
                picture = _to_numpy(self._reader[index])
                if picture.shape != (height, width, 3):
                    found = f"{picture.shape[1]}x{picture.shape[0]}"
                    reason = f"decord gives pictures of {found} instead of {width}x{height}; {_WAY_OUT}"
                    raise self._file.refusal(reason, stage="decode")
            yield index, torch.from_numpy(picture)


def _import_decord() -> ModuleType:
    # not at the top: decord has no wheel for some machines, and this module must be importable to say so
    import decord

    module: ModuleType = decord
    return module


def _weakness(found: Probe) -> str | None:
    """What decord 0.6 is known to read wrongly, as measured on files with numbered frames."""
    info = found.info
    if info.container == "mpegts":
        return "MPEG-TS"
    if info.codec in ("av1", "gif"):
        return info.codec.upper()
    if info.codec == "hevc" and len(found.key_indices) > 1:
        return "HEVC with several key frames (open groups of pictures)"
    if found.num_hidden:
        return "a file with an edit list that cuts frames off"
    if info.times == "counted":
        return "a file without presentation times"
    if found.orientation.mirrored:
        return "a mirrored picture"
    return None


def _open_checked(file: GuardedFile, found: Probe) -> Any:
    """decord's reader, if its table of times is the one that the packets say (decord counts from 0)."""
    try:
        decord = _import_decord()
    # a broken installation raises anything: ImportError, OSError for a missing library, RuntimeError
    except Exception as error:
        reason = f'decord cannot be used here ({describe(error)}); use decoder="pyav"'
        raise file.refusal(reason) from error
    try:
        reader = decord.VideoReader(file.source, ctx=decord.cpu(0), num_threads=1)
        times = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)[:, 0]
    except Exception as error:
        reason = f"decord cannot open the file ({describe(error)}); {_WAY_OUT}"
        raise file.refusal(reason) from error
    expected = found.pts_seconds().numpy() - found.info.start_seconds
    # float32 seconds
    if times.shape != expected.shape or not np.allclose(times, expected, rtol=1e-6, atol=1e-4):
        reason = f"decord's {len(times)} frame times are not those of the {len(expected)} packets; {_WAY_OUT}"
        raise file.refusal(reason)
    return reader


def _to_numpy(picture: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # a torch tensor where the program has called decord.bridge.set_bridge
    return picture.asnumpy() if hasattr(picture, "asnumpy") else np.asarray(picture)
