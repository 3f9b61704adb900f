"""torchcodec behind the same guard: the time of each frame that comes back is held against the asked one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from videolm.video.readers.collect import ProbedReader
from videolm.video.readers.guard import (
    ContradictionError,
    GuardedFile,
    Limits,
    describe,
    open_guarded,
    wrap_errors,
)
from videolm.video.readers.probe import TOLERANCE_SECONDS, Probe, check_shape, probe, with_square_pixels

NAME = "torchcodec"
_WAY_OUT = 'decoder="pyav" reads it'
# What it reads wrongly, by the name that FFmpeg gives it. AVI and AV1 only where a file is damaged, without a word.
_CONTAINERS = {"mpegts": "MPEG-TS", "mpeg": "MPEG-PS", "avi": "AVI"}


def version() -> str:
    """Of torchcodec and of the FFmpeg that it found; raises what its import raises where it cannot be used."""
    module = _import_torchcodec()
    return f"{module.__version__} (FFmpeg {module.ffmpeg_major_version})"


def open_reader(path: str, *, limits: Limits, square_pixels: bool) -> ProbedReader:
    """Check the file, walk its packets with PyAV, and open it in torchcodec if both count the same frames."""
    file = open_guarded(path, limits=limits, decoder=NAME)
    try:
        with wrap_errors(path, "open", NAME):
            found = probe(file)
            weakness = _weakness(found)
            if weakness:
                raise file.refusal(f"torchcodec gives wrong frames or none for {weakness}; {_WAY_OUT}")
            decoder = _open_checked(file, found)

        def pictures(wanted: Sequence[int]) -> Iterator[tuple[int, UInt8[Tensor, "height width 3"]]]:
            for index in wanted:
                yield index, _picture_at(index, decoder, found, file)

        return ProbedReader(file, with_square_pixels(found) if square_pixels else found, pictures)
    except BaseException:
        file.close()
        raise


def _import_torchcodec() -> ModuleType:
    # not at the top: it is an extra, takes a second, and fails where the system has no FFmpeg libraries
    import torchcodec.decoders

    module: ModuleType = torchcodec
    return module


def _weakness(found: Probe) -> str | None:
    """What torchcodec 0.12 is known to read wrongly, as measured on files with numbered frames."""
    info = found.info
    if info.container in _CONTAINERS:
        return _CONTAINERS[info.container]
    if info.codec == "av1":
        return "AV1"
    if found.num_hidden:
        return "a file with an edit list that cuts frames off"
    if info.times == "counted":
        return "a file without presentation times"
    if found.orientation.mirrored:
        return "a mirrored picture"
    return None


def _picture_at(index: int, decoder: Any, found: Probe, file: GuardedFile) -> UInt8[Tensor, "height width 3"]:
    start = found.seconds(index)
    try:
        # by number: asked by time it goes by durations, which a file with a variable rate may not have right
        frame = decoder.get_frame_at(index)
    except Exception as error:
        reason = f"torchcodec does not give the frame at {start:.6f} s ({describe(error)}); {_WAY_OUT}"
        raise file.refusal(reason, stage="decode") from error
    if abs(frame.pts_seconds - start) > TOLERANCE_SECONDS:
        reason = (
            f"torchcodec gives the frame at {frame.pts_seconds:.6f} s instead of the one at {start:.6f} s; "
            f"{_WAY_OUT}"
        )
        raise ContradictionError(file.path, "decode", reason, NAME)
    picture: Tensor = frame.data
    check_shape(picture.shape[:2], index, found, file)
    return picture


def _open_checked(file: GuardedFile, found: Probe) -> Any:
    """torchcodec's decoder, if it finds as many frames as the packets say."""
    try:
        torchcodec = _import_torchcodec()
    # a broken installation raises anything: ImportError, OSError for a missing library, RuntimeError
    except Exception as error:
        reason = f'torchcodec cannot be used here ({describe(error)}); use decoder="pyav"'
        raise file.refusal(reason) from error
    try:
        decoder = torchcodec.decoders.VideoDecoder(
            file.source,
            stream_index=found.stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="exact",
        )
        num_frames = decoder.metadata.num_frames_from_content
    except Exception as error:
        reason = f"torchcodec cannot open the file ({describe(error)}); {_WAY_OUT}"
        raise file.refusal(reason) from error
    if num_frames != found.info.num_frames:
        raise file.refusal(
            f"torchcodec finds {num_frames} frames, the packets say {found.info.num_frames}; {_WAY_OUT}"
        )
    return decoder
