"""Frames to an H.264 file: the same bytes from the same frames, never half a file under its final name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from videolm.files import replace_file

# With the tree one file in twenty came out different from the same frames (x264 build 165, busy machine).
_REPEATABLE = "mbtree=0"
# Every picture an IDR of its own, at one quantiser, with nothing that looks at a neighbour: then a picture
# decodes to the same pixels wherever it stands in the file. ipratio=1: `qp` is the quantiser of I-frames too.
_INTRA_ONLY = (
    f"{_REPEATABLE}:keyint=1:bframes=0:scenecut=0:rc-lookahead=0:sync-lookahead=0:aq-mode=0:ipratio=1"
)


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[NDArray[np.uint8]] | Tensor,
    *,
    fps: Fraction | int,
    crf: int = 20,
    gop: int | None = None,
    intra_only: bool = False,
) -> int:
    """Write RGB frames, uint8 (height, width, 3) each, as a constant-rate H.264 mp4; returns how many.

    `frames` may be a generator, so a long video need not be in memory. `crf` is x264's quality: 0 is
    lossless, 51 the worst. `gop` is the largest distance between key frames (x264's own choice without it).
    With `intra_only` every frame is a key frame at the constant quantiser `crf`: a frame then decodes to the
    same pixels whatever stands before or after it, so a reversed list gives the reversed video bit for bit.

    The file appears under `path` when it is whole and synced, and replaces what was there. One thread, no
    dates and no names of programs in the container.
    """
    path = Path(path)
    if fps <= 0:
        raise ValueError(f"fps ({fps}) must be positive")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf ({crf}) must be in 0..51")
    if gop is not None and (gop < 1 or intra_only):
        raise ValueError(f"gop ({gop}) must be at least 1 and cannot be combined with intra_only")
    num_frames = 0

    def write(temporary: Path) -> None:
        nonlocal num_frames
        num_frames = _encode(str(temporary), _checked(frames, path), Fraction(fps), crf, gop, intra_only)
        if num_frames == 0:
            raise ValueError(f"{path}: no frames to write")

    replace_file(path, write)
    return num_frames


def _encode(
    path: str, frames: Iterator[NDArray[np.uint8]], fps: Fraction, crf: int, gop: int | None, intra_only: bool
) -> int:
    num_frames = 0
    with av.open(path, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: VideoStream | None = None
        for array in frames:
            if stream is None:
                stream = _add_stream(container, array, fps, crf, gop, intra_only)
            frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = num_frames, 1 / fps
            container.mux(stream.encode(frame))
            num_frames += 1
        if stream is not None:
            container.mux(stream.encode(None))
    return num_frames


def _add_stream(
    container: av.container.OutputContainer,
    array: NDArray[np.uint8],
    fps: Fraction,
    crf: int,
    gop: int | None,
    intra_only: bool,
) -> VideoStream:
    options = {"preset": "medium", "threads": "1", "flags": "+bitexact"}
    if intra_only:
        options |= {"qp": str(crf), "x264-params": _INTRA_ONLY}
    else:
        options |= {"crf": str(crf), "x264-params": _REPEATABLE}
    if gop is not None:
        options["g"] = str(gop)
    stream = container.add_stream("libx264", rate=fps, options=options)
    assert isinstance(stream, VideoStream)
    stream.height, stream.width = array.shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = 1 / fps
    stream.time_base = 1 / fps
    return stream


def _checked(frames: Iterable[NDArray[np.uint8]] | Tensor, path: Path) -> Iterator[NDArray[np.uint8]]:
    shape: tuple[int, ...] | None = None
    for index, frame in enumerate(frames):
        array = frame.numpy(force=True) if isinstance(frame, Tensor) else np.asarray(frame)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(
                f"{path}: frame {index} is {array.dtype} {array.shape}, it must be uint8 (height, width, 3)"
            )
        height, width = array.shape[:2]
        if height % 2 or width % 2:
            raise ValueError(
                f"{path}: frame {index} is {width}x{height}; H.264 with 4:2:0 colour needs an even width and "
                "height, crop or pad one pixel"
            )
        if shape is not None and array.shape != shape:
            raise ValueError(
                f"{path}: frame {index} is {width}x{height}, the first was {shape[1]}x{shape[0]}"
            )
        shape = array.shape
        yield np.ascontiguousarray(array)
