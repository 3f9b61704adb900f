"""Token shift: a frame's attention reads some patches of its neighbours."""

from dataclasses import replace

import torch
from torch import nn

from videolm.encoders.blocks import Grid

# That of a ViT-B/32, the largest share of patches that the source shifts.
_MIN_SPACING = 7


class TokenShift(nn.Module):
    """A `pre` hook without parameters: attention reads some patches of the frame before and of the one after.

    Of P patches, number 0 and each (1 + P) // 7 further is the previous frame's, number 3 and on likewise the next
    frame's; class tokens stay. Only the attention sees it (`Grid.seen`), the residual is the frame's own. Where
    there is no such frame, or none that exists, a patch stays as well, so that one frame alone is CLIP's; several
    are not, from the start.

    Source: TS2-Net, arXiv 2207.07852, in the last two blocks. Pictures of fewer than 48 patches, which it has not,
    are shifted at every seventh.
    """

    def forward(self, grid: Grid) -> Grid:
        tokens, first = grid.tokens, grid.num_class_tokens
        num_patches = tokens.shape[2] - first
        spacing = max((1 + num_patches) // 7, _MIN_SPACING)
        from_previous, from_next = slice(first, None, spacing), slice(first + 3, None, spacing)
        seen = tokens.clone()
        seen[:, 1:, from_previous] = tokens[:, :-1, from_previous]
        after = tokens[:, 1:, from_next]
        if grid.lengths is not None:
            frame = torch.arange(1, tokens.shape[1], device=tokens.device)
            exists = frame < grid.lengths[:, None]
            after = torch.where(exists[:, :, None, None], after, tokens[:, :-1, from_next])
        seen[:, :-1, from_next] = after
        return replace(grid, seen=seen)
