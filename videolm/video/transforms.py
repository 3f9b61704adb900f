"""From decoded frames to what an image tower eats, number for number as the model's own preprocessing does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ResizeMode = Literal["short_side", "square"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class Resize:
    """Frames of another size, antialiased on uint8 as Pillow does it; can be written as JSON.

    `short_side` keeps the proportions: the short side becomes `size` pixels, the long one int(size * long /
    short), as transformers rounds. `square` makes both sides `size` and keeps no proportions. Differs from
    Pillow by at most 2 of 255 (by 4 from Pillow 13 where the height shrinks more than the width: it then does
    the columns first). Frames that have the size already come back as they are. Each frame is computed on its
    own, so the result does not depend on how many are given at once.
    """

    size: int
    mode: ResizeMode = "short_side"
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size ({self.size}) must be at least 1 pixel")
        if self.mode not in get_args(ResizeMode):
            raise ValueError(f"mode ({self.mode!r}) must be one of {get_args(ResizeMode)}")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"interpolation ({self.interpolation!r}) must be one of {get_args(Interpolation)}"
            )

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing frames of these."""
        if self.mode == "square":
            return self.size, self.size
        long = int(self.size * max(height, width) / min(height, width))
        return (self.size, long) if height <= width else (long, self.size)

    def __call__(
        self, frames: UInt8[Tensor, "frames height width 3"]
    ) -> UInt8[Tensor, "frames new_height new_width 3"]:
        """The frames, resized."""
        height, width = frames.shape[1:3]
        return resize(frames, *self.shape(height, width), interpolation=self.interpolation)


def resize(
    frames: UInt8[Tensor, "frames height width 3"],
    new_height: int,
    new_width: int,
    *,
    interpolation: Interpolation = "bicubic",
) -> UInt8[Tensor, "frames {new_height} {new_width} 3"]:
    """Frames of these sides; see Resize."""
    if frames.shape[1:3] == (new_height, new_width):
        return frames
    resized = F.interpolate(
        frames.permute(0, 3, 1, 2), size=(new_height, new_width), mode=interpolation, antialias=True
    )
    return resized.permute(0, 2, 3, 1).contiguous()


def center_crop(
    frames: UInt8[Tensor, "frames height width 3"], size: int
) -> UInt8[Tensor, "frames {size} {size} 3"]:
    """The middle `size` x `size` pixels, from (height - size) // 2 as in transformers; torchvision rounds."""
    height, width = frames.shape[1:3]
    if min(height, width) < size:
        raise ValueError(
            f"frames of {width}x{height} are smaller than the crop of {size}x{size}; resize first"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return frames[:, top : top + size, left : left + size]


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop the middle, normalise; can be written as JSON.

    The defaults are CLIP's; SigLIP resizes to a square, of which nothing is cropped. Equals the PIL processors
    of transformers (`CLIPImageProcessorPil`, `SiglipImageProcessorPil`) within 2.5/255 at every pixel. Frames
    that went through `resize` before give the same result as the full ones.
    """

    image_size: int = 224
    mean: list[float] = field(default_factory=lambda: list(CLIP_MEAN))
    std: list[float] = field(default_factory=lambda: list(CLIP_STD))
    resize_mode: ResizeMode = "short_side"
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size ({self.image_size}) must be at least 1 pixel")
        if not all(isinstance(value, int | float) for value in (*self.mean, *self.std)):
            raise ValueError(f"mean {self.mean} and std {self.std} must be numbers")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} must be three numbers each, std positive")
        # Refuses a mode or an interpolation that there is none of.
        _ = self.resize

    @property
    def resize(self) -> Resize:
        """The first step, which a reader can do while it decodes."""
        return Resize(self.image_size, self.resize_mode, self.interpolation)

    def __call__(
        self, frames: UInt8[Tensor, "frames height width 3"]
    ) -> Float[Tensor, "frames 3 {self.image_size} {self.image_size}"]:
        """float32 (pixel / 255 - mean) / std."""
        cropped = center_crop(self.resize(frames), self.image_size)
        pixels = cropped.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        mean = pixels.new_tensor(self.mean).view(3, 1, 1)
        std = pixels.new_tensor(self.std).view(3, 1, 1)
        return pixels.div_(255).sub_(mean).div_(std)


def without_repeats(
    frames: Shaped[Tensor, "frames ..."],
) -> tuple[Shaped[Tensor, "distinct ..."], Int64[Tensor, " distinct"]]:
    """Each frame that differs from the one before it, and how often it stands there in a row."""
    is_new = torch.ones(len(frames), dtype=torch.bool)
    is_new[1:] = (frames[1:] != frames[:-1]).flatten(1).any(dim=1)
    first = is_new.nonzero().squeeze(1)
    return frames[first], torch.diff(first, append=torch.tensor([len(frames)]))


def pad_frames(
    clips: Sequence[Shaped[Tensor, "_frames ..."]],
) -> tuple[Shaped[Tensor, "batch frames ..."], Int64[Tensor, " batch"]]:
    """One batch of clips of different lengths, filled with zeros at the end, and how many frames are real."""
    if not clips:
        raise ValueError("pad_frames needs at least one clip")
    lengths = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
    padded = clips[0].new_zeros((len(clips), int(lengths.max()), *clips[0].shape[1:]))
    for row, clip in zip(padded, clips, strict=True):
        if clip.shape[1:] != padded.shape[2:] or clip.dtype != padded.dtype:
            raise ValueError(
                f"clips must agree in all but their length: {tuple(clip.shape)} {clip.dtype} "
                f"beside {tuple(clips[0].shape)} {padded.dtype}"
            )
        row[: len(clip)] = clip
    return padded, lengths
