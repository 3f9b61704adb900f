"""A contact sheet: one row of pictures a video, its sentence above."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

_HEIGHT, _GAP, _LINE = 96, 4, 17
_CHARACTERS = 110
"""Of a line of text on the narrowest sheet."""
_PAPER, _INK = (250, 250, 248), (20, 20, 20)


@dataclass(frozen=True)
class SheetRow:
    """One video on a sheet."""

    title: str
    frames: UInt8[np.ndarray, "frames height width 3"]


def contact_sheet(rows: Sequence[SheetRow]) -> Image.Image:
    """All rows below each other, every frame scaled to the same height."""
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    strips = [_strip(row.frames) for row in rows]
    titles = [textwrap.wrap(row.title, _CHARACTERS) for row in rows]
    heights = [_LINE * len(lines) + _HEIGHT + 2 * _GAP for lines in titles]
    width = max(max(strip.width for strip in strips) + 2 * _GAP, 820)
    sheet = Image.new("RGB", (width, sum(heights) + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    top = _GAP
    for lines, strip, height in zip(titles, strips, heights, strict=True):
        for number, line in enumerate(lines):
            draw.text((_GAP, top + number * _LINE), line, fill=_INK, font=font)
        sheet.paste(strip, (_GAP, top + _LINE * len(lines)))
        top += height
    return sheet


def _strip(frames: UInt8[np.ndarray, "frames height width 3"]) -> Image.Image:
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures = [picture.resize((picture.width * _HEIGHT // picture.height, _HEIGHT)) for picture in pictures]
    step = pictures[0].width + _GAP
    strip = Image.new("RGB", (step * len(pictures) - _GAP, _HEIGHT), _PAPER)
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index * step, 0))
    return strip
