"""Small video files in which every frame carries its number as a bar code: a test sees which one it got."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

HEIGHT, WIDTH, FRAMES, FPS = 64, 96, 48, 24
_BAR = 16


def numbered(
    num_frames: int = FRAMES, *, height: int = HEIGHT, width: int = WIDTH
) -> Iterator[NDArray[np.uint8]]:
    """Frames with a moving pattern and, in the top rows, 8 blocks of which block k is bright for bit k."""
    rows, columns = np.mgrid[:height, :width]
    block = columns[0] * 8 // width
    for number in range(num_frames):
        wave = 128 + 100 * np.sin((columns + 3 * number) / 9) * np.cos((rows - 2 * number) / 7)
        frame = np.stack([wave, wave[::-1], 255 - wave], axis=-1).astype(np.uint8)
        frame[: height * _BAR // HEIGHT] = np.where(number >> block & 1, 235, 16)[None, :, None]
        yield frame


def read_number(frame: Tensor) -> int:
    """The number in the bar code of an upright (height, width, 3) frame of any size."""
    height, width = frame.shape[:2]
    rows = frame[1 : max(2, height * _BAR // HEIGHT // 2), :, 1].float()
    bits = [rows[:, (2 * k + 1) * width // 16].mean() > 126 for k in range(8)]
    return sum(1 << k for k, bit in enumerate(bits) if bit)


def encode(
    path: Path,
    codec: str,
    *,
    pts: Sequence[int] | None = None,
    rate: Fraction | int = FPS,
    time_base: Fraction | None = None,
    num_frames: int = FRAMES,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    store: Callable[[Any], Any] = lambda array: array,
    options: Mapping[str, str] | None = None,
) -> Path:
    """Write numbered frames with any encoder; `pts` are in units of `time_base` (by default 1 / rate).

    `store` makes the stored picture from the upright one, `rotation` is what the file says about it.
    """
    options = {"threads": "1", **(options or {})}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = store(np.zeros(size)).shape
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base or 1 / Fraction(rate)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, array in enumerate(numbered(num_frames, height=size[0], width=size[1])):
            stored = np.ascontiguousarray(store(array))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24").reformat(format=pix_fmt)
            frame.pts = number if pts is None else pts[number]
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def patched(path: Path, out: Path, tag: bytes, offset: int, values: Sequence[int]) -> Path:
    """A copy of an mp4 with big-endian 32-bit values written `offset` bytes after the name of a box."""
    data = bytearray(path.read_bytes())
    at = data.index(tag) + len(tag) + offset
    struct.pack_into(f">{len(values)}i", data, at, *values)
    out.write_bytes(data)
    return out
