"""The numbered files of the package, under the name that the tests of this room know them by."""

from videolm.video.numbered import (
    FPS,
    FRAMES,
    GOP,
    HEIGHT,
    WIDTH,
    Kind,
    encode,
    kinds,
    numbered,
    patched,
    read_number,
)

__all__ = [
    "FPS",
    "FRAMES",
    "GOP",
    "HEIGHT",
    "WIDTH",
    "Kind",
    "encode",
    "kinds",
    "numbered",
    "patched",
    "read_number",
]
