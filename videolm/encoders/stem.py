"""The patches of a tower that is trained from scratch: a few convolutions instead of one linear layer."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

_LEAST_WIDTH = 32


class ConvStem(nn.Module):
    """One vector for each patch, by convolutions that halve the picture until a patch is one pixel.

    Each halving but the last is followed by a residual convolution of the same size. With `sees_time` each but the
    first is also followed by a residual convolution over three neighbouring frames, so that a patch tells what moves
    through it and which way; a clip's ends, and frames that do not exist, count as zeros.

    What one linear layer a patch learns in thousands of steps from scratch, small shapes and short movements, is
    learned here in hundreds, which is due to the batch normalisation as much as to the convolutions. Sources: arXiv
    2106.14881 (the stem), 1711.11248 (space and time apart).
    """

    def __init__(self, *, width: int, patch_size: int, sees_time: bool) -> None:
        super().__init__()
        num_stages = patch_size.bit_length() - 1
        if patch_size != 1 << num_stages or num_stages == 0:
            raise ValueError(
                f"patch_size ({patch_size}) must be a power of 2 above 1 for a stem of convolutions"
            )
        widths = [max(width >> (num_stages - 1 - stage), _LEAST_WIDTH) for stage in range(num_stages)]
        self.sees_time = sees_time
        self.halve = nn.ModuleList(
            _Convolution(before, after, stride=2)
            for before, after in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.refine = nn.ModuleList(_Convolution(inner, inner) for inner in widths[:-1])
        self.time = nn.ModuleList(
            _Convolution(inner, inner, kernel_size=(3, 1)) for inner in (widths[1:] if sees_time else ())
        )
        self.out = nn.Conv2d(widths[-1], width, kernel_size=1)

    @property
    def weight(self) -> Tensor:
        """The last convolution's, which has the dtype and the device of all."""
        return self.out.weight

    def forward(
        self,
        frames: Float[Tensor, "batch frames 3 height width"],
        *,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch frames patches vector"]:
        batch, num_frames = frames.shape[:2]
        exists = None
        if lengths is not None:
            exists = torch.arange(num_frames, device=frames.device) < lengths[:, None]
        hidden = frames.flatten(0, 1)
        for stage, halve in enumerate(self.halve):
            hidden = halve(hidden)
            if stage < len(self.refine):
                hidden = hidden + self.refine[stage](hidden)
            if self.sees_time and stage > 0:
                hidden = hidden + _over_time(self.time[stage - 1], hidden, batch, exists)
        patches: Tensor = self.out(hidden)
        return patches.flatten(2).transpose(1, 2).reshape(batch, num_frames, -1, patches.shape[1])


class _Convolution(nn.Sequential):
    """A convolution that keeps the size, but for its stride, normalised over the batch."""

    def __init__(
        self, before: int, after: int, *, kernel_size: tuple[int, int] = (3, 3), stride: int = 1
    ) -> None:
        padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        super().__init__(
            nn.Conv2d(before, after, kernel_size, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(after),
            nn.GELU(),
        )


def _over_time(
    convolution: nn.Module,
    maps: Float[Tensor, "all_frames channels rows columns"],
    batch: int,
    exists: Bool[Tensor, "batch frames"] | None,
) -> Float[Tensor, "all_frames channels rows columns"]:
    """The convolution along the frames of each clip: a picture of T x (rows columns)."""
    clips = maps.view(batch, -1, maps.shape[1], maps.shape[2] * maps.shape[3])
    if exists is not None:
        clips = clips * exists[:, :, None, None].to(clips.dtype)
    mixed: Tensor = convolution(clips.transpose(1, 2))
    return mixed.transpose(1, 2).reshape(maps.shape)
