"""Joint space-time attention: a clip becomes one long frame."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor, nn

from videolm.encoders.blocks import Grid
from videolm.encoders.temporal.position import time_position_of


class JointEmbed(nn.Module):
    """An `embed` hook that joins the frames of a clip into one: every patch sees every other, one class token all.

    Patches get a position in time, of `max_frames` rows that span the clip (see `time_position_of`); with
    `zero_init` it starts at zero, and a clip of one frame is CLIP's. The tokens that come out are (B, 1, 1 + T*P, D):
    the class token, then the patches frame by frame. Those of frames that do not exist have size 0, and the clip's
    one frame always exists. Attention costs T times as much per token as that of T frames alone.

    Source: ViCLIP, arXiv 2307.06942, which has a row for each of 8 frames.
    """

    def __init__(self, *, width: int, max_frames: int, zero_init: bool) -> None:
        super().__init__()
        self.time_position = nn.Parameter(torch.empty(max_frames, width))
        # As loud as the position in the picture, to which it is added.
        nn.init.normal_(self.time_position, std=0.0 if zero_init else width**-0.5)

    def forward(self, grid: Grid) -> Grid:
        batch, num_frames, num_tokens, _ = grid.tokens.shape
        first, num_patches = grid.num_class_tokens, num_tokens - grid.num_class_tokens
        position = time_position_of(self.time_position, num_frames=num_frames, lengths=grid.lengths)
        patches = grid.tokens[:, :, first:] + position.unsqueeze(-2)
        # The class tokens of all frames are the same here.
        tokens = torch.cat([grid.tokens[:, 0, :first], patches.flatten(1, 2)], dim=1)

        sizes, rows = None, self._rows(num_frames, num_patches, first, device=tokens.device)
        assignment = rows.expand(batch, -1, -1)
        if grid.lengths is not None:
            exists = torch.arange(num_frames, device=tokens.device) < grid.lengths[:, None]
            of_patches = exists.float().repeat_interleave(num_patches, dim=1)
            sizes = torch.cat([torch.ones_like(of_patches[:, :first]), of_patches], dim=1).unsqueeze(1)
            assignment = assignment.masked_fill(~exists.unsqueeze(-1), -1)
        return replace(
            grid, tokens=tokens.unsqueeze(1), sizes=sizes, lengths=None, assignment=assignment.flatten(1)
        )

    def _rows(
        self, num_frames: int, num_patches: int, first: int, *, device: torch.device
    ) -> Int[Tensor, "frames tokens"]:
        """Where the tokens of each frame are in the joined one."""
        classes = torch.arange(first, dtype=torch.int32, device=device).expand(num_frames, -1)
        patches = torch.arange(num_frames * num_patches, dtype=torch.int32, device=device)
        return torch.cat([classes, first + patches.view(num_frames, num_patches)], dim=1)
