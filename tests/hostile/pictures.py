"""Pictures that carry their number as a bar code, and the `ffmpeg` program that makes videos of them.

Block k of 8 along the top is bright where bit k of the number is set; bars in the middle and at the bottom hold two
other numbers that follow from it. Whoever gets a frame back reads which one it is, and sees when it is torn. The code
survives lossy coding; between the bars lies a moving pattern, so that frames depend on others.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEIGHT, FPS = 160, 120, 25
NUM_FRAMES = 100
TORN, TOO_SMALL = -2, -1
"""What is read from a picture whose bars contradict each other, and from one without room for bars."""

_MIN_CODED_SIDE = 40

Picture = np.ndarray[Any, np.dtype[np.uint8]]


def planes(number: int, *, code: int | None, height: int = HEIGHT, width: int = WIDTH) -> list[Picture]:
    """Y, U and V of frame `number` of the pattern, with `code` in the bars (None: no bars)."""
    rows, columns = np.mgrid[:height, :width]
    wave = np.sin((columns + 3 * number) / 9) * np.cos((rows - 2 * number) / 7)
    grain = np.random.default_rng(number).integers(-6, 7, (height, width))
    luma = (128 + 80 * wave + grain).astype(np.uint8)
    if code is not None:
        draw_bars(luma, code)
    half = (slice(None, None, 2), slice(None, None, 2))
    return [luma, luma[::-1][half], (255 - luma)[half]]


def read_code(picture: Picture) -> int:
    """The number in the bars of an upright (height, width, 3) picture of any size, or TORN, or TOO_SMALL."""
    height, width = picture.shape[:2]
    if min(height, width) < _MIN_CODED_SIDE:
        return TOO_SMALL
    numbers = [_number(picture[bar]) for bar in _bars(height)]
    return numbers[0] if numbers == _numbers(numbers[0]) else TORN


def draw_bars(luma: Picture, code: int) -> None:
    """Write the number into a (height, width, ...) picture."""
    height, width = luma.shape[:2]
    block = np.arange(width) * 8 // width
    for bar, number in zip(_bars(height), _numbers(code), strict=True):
        # wider than what is read: encoders smear edges
        bright = np.where(number >> block & 1, 235, 16).astype(np.uint8)
        margin = height // 40
        rows = slice(bar.start - margin, bar.stop + margin)
        luma[rows] = bright.reshape(1, width, *[1] * (luma.ndim - 2))


def _bars(height: int) -> list[slice]:
    """The rows that are read."""
    middles = (height // 16, height // 2, height - height // 16)
    return [slice(middle - height // 40, middle + height // 40) for middle in middles]


def _numbers(code: int) -> list[int]:
    """From top to bottom. Odd factors: each code has its own, and one other bit changes several of them."""
    return [code, (91 * code + 142) % 256, (37 * code + 85) % 256]


def _number(bar: Picture) -> int:
    width = bar.shape[1]
    blocks = [bar[:, (4 * k + 1) * width // 32 : (4 * k + 3) * width // 32, 1] for k in range(8)]
    return sum(1 << k for k, block in enumerate(blocks) if block.mean() > 126)


def raw_video(
    codes: Sequence[int | None], *, height: int = HEIGHT, width: int = WIDTH, turns: int = 0, first: int = 0
) -> bytes:
    """The frames one after another as yuv420p, each turned by so many quarters counter-clockwise."""
    frames = (
        planes(first + number, code=code, height=height, width=width) for number, code in enumerate(codes)
    )
    return b"".join(np.rot90(plane, turns).tobytes() for frame in frames for plane in frame)


def ffmpeg_version() -> str | None:
    """First line of what the `ffmpeg` program says of itself; None where there is no such program."""
    if shutil.which("ffmpeg") is None:
        return None
    return _run(["-version"]).splitlines()[0]


def encode(out: Path, options: str, raw: bytes, *, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bool:
    """Write a video of these yuv420p frames at 25 Hz; False where this ffmpeg has no such encoder."""
    words = options.split()
    if "-c:v" in words and words[words.index("-c:v") + 1] not in _encoders():
        return False
    source = f"-f rawvideo -pix_fmt yuv420p -s {size[0]}x{size[1]} -r {FPS} -i -"
    exact = "-threads 1 -fflags +bitexact -flags:v +bitexact"
    _run(["-v", "error", "-y", *source.split(), *words, *exact.split(), str(out)], raw)
    return True


def ffmpeg(arguments: str, out: Path, *, source: Path | None = None, before: str = "") -> None:
    """Run the program on a file, or on the inputs that the arguments name."""
    inputs = [] if source is None else [*before.split(), "-i", str(source)]
    _run(["-v", "error", "-y", *inputs, *arguments.split(), "-fflags", "+bitexact", str(out)])


@functools.cache
def _encoders() -> frozenset[str]:
    return frozenset(
        line.split()[1] for line in _run(["-hide_banner", "-encoders"]).splitlines() if line.split()[1:]
    )


def _run(arguments: list[str], data: bytes = b"") -> str:
    done = subprocess.run(["ffmpeg", *arguments], input=data, capture_output=True, timeout=300)
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"ffmpeg {' '.join(arguments)} failed with {done.returncode}: {message}")
    return done.stdout.decode(errors="replace")
