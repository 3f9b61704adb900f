"""decord behind the same guard, for numbers that were made with it; it refuses what it reads wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from videolm.video.readers.collect import ProbedReader
from videolm.video.readers.guard import GuardedFile, Limits, describe, open_guarded, wrap_errors
from videolm.video.readers.probe import Probe, check_shape, probe, with_square_pixels
from videolm.video.readers.walks import key_frames_hold

NAME = "decord"
_WAY_OUT = 'decoder="pyav" reads it'
# What it reads wrongly, by the name that FFmpeg gives it. AVI and VP9 only where a file is damaged, without a word.
_CONTAINERS = {"mpegts": "MPEG-TS", "avi": "AVI"}


def version() -> str:
    """Of decord; raises what its import raises where it cannot be used."""
    return str(_import_decord().__version__)


def open_reader(path: str, *, limits: Limits, square_pixels: bool) -> ProbedReader:
    """Check the file, walk its packets with PyAV, and open it in decord if both agree on its times.

    decord says no times of the frames it returns: they are those of its table.
    """
    file = open_guarded(path, limits=limits, decoder=NAME)
    try:
        with wrap_errors(path, "open", NAME):
            found = probe(file)
            weakness = _weakness(found, file)
            if weakness:
                raise file.refusal(f"decord gives wrong frames or none for {weakness}; {_WAY_OUT}")
            reader = _open_checked(file, found)

        def pictures(wanted: Sequence[int]) -> Iterator[tuple[int, UInt8[Tensor, "height width 3"]]]:
            for index in wanted:
                with wrap_errors(path, "decode", NAME):
                    # one frame at a time and by number: a slice of decord's reader is not what it seems
                    picture = torch.from_numpy(_to_numpy(reader[index]))
                    check_shape(picture.shape[:2], index, found, file)
                    if picture.shape[2:] != (3,):
                        shape = "x".join(map(str, picture.shape))
                        raise file.refusal(
                            f"decord gives a picture of {shape} values; {_WAY_OUT}", stage="decode"
                        )
                yield index, picture

        return ProbedReader(file, with_square_pixels(found) if square_pixels else found, pictures)
    except BaseException:
        file.close()
        raise


def _import_decord() -> ModuleType:
    # not at the top: decord has no wheel for some machines, and this module must be importable to say so
    import decord

    module: ModuleType = decord
    return module


def _weakness(found: Probe, file: GuardedFile) -> str | None:
    """What decord 0.6 is known to read wrongly, as measured on files with numbered frames."""
    info = found.info
    if info.container in _CONTAINERS:
        return _CONTAINERS[info.container]
    if info.codec in ("vp9", "av1", "gif"):
        return info.codec.upper()
    if found.num_hidden:
        return "a file with an edit list that cuts frames off"
    if info.times == "counted":
        return "a file without presentation times"
    if found.orientation.mirrored:
        return "a mirrored picture"
    if found.has_open_groups:
        return "frames that stand behind a key frame and are shown before it (open groups of pictures)"
    if not key_frames_hold(found, file):
        return "key frames that decoding cannot start from (intra refresh, or a false table)"
    return None


def _open_checked(file: GuardedFile, found: Probe) -> Any:
    """decord's reader, if its tables of times and key frames are what the packets say (decord counts from 0)."""
    try:
        decord = _import_decord()
    # a broken installation raises anything: ImportError, OSError for a missing library, RuntimeError
    except Exception as error:
        reason = f'decord cannot be used here ({describe(error)}); use decoder="pyav"'
        raise file.refusal(reason) from error
    try:
        reader = decord.VideoReader(file.source, ctx=decord.cpu(0), num_threads=1)
        times = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)[:, 0]
        keys = list(reader.get_key_indices())
    except Exception as error:
        reason = f"decord cannot open the file ({describe(error)}); {_WAY_OUT}"
        raise file.refusal(reason) from error
    expected = found.pts_seconds().numpy() - found.info.start_seconds
    # float32 seconds
    if times.shape != expected.shape or not np.allclose(times, expected, rtol=1e-6, atol=1e-4):
        reason = f"decord's {len(times)} frame times are not those of the {len(expected)} packets; {_WAY_OUT}"
        raise file.refusal(reason)
    # it jumps to these, whatever comes out there
    if keys != list(found.key_indices):
        reason = (
            f"decord's {len(keys)} key frames are not the {len(found.key_indices)} of the packets; {_WAY_OUT}"
        )
        raise file.refusal(reason)
    return reader


def _to_numpy(picture: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # a torch tensor where the program has called decord.bridge.set_bridge
    return picture.asnumpy() if hasattr(picture, "asnumpy") else np.asarray(picture)
