"""Divided space-time attention."""

from dataclasses import replace

import torch
from torch import nn

from videolm.encoders.blocks import Grid
from videolm.encoders.temporal.position import time_position_of
from videolm_kernels import temporal_attention
from videolm_kernels.backend import Backend


class DividedTemporal(nn.Module):
    """A `pre` hook that adds attention over the frames at each token index, class tokens included.

    tokens + out(temporal_attention(qkv(ln(tokens + time_position)))). With `zero_init` the output layer
    starts at zero, so that a tower with this hook computes what it did without: for starting from CLIP. From
    scratch that costs the first hundreds of steps, and `zero_init=False` starts it like any other layer.

    `time_position` has `max_frames` rows that span the clip: a clip of another length reads it by linear
    interpolation, each clip by its own length. Source: arXiv 2102.05095 and 2104.00650; here every frame has
    its own class token, and the sum is the input of the spatial step *and* of its residual.
    """

    def __init__(
        self, *, width: int, num_heads: int, max_frames: int, zero_init: bool, layer_norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend: Backend = "auto"
        self.time_position = nn.Parameter(torch.empty(max_frames, width))
        self.ln = nn.LayerNorm(width, eps=layer_norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

        # Tokens have about unit variance where this is added. From scratch the order of frames has to be
        # audible from the first step; a start from CLIP grows it.
        nn.init.normal_(self.time_position, std=0.02 if zero_init else 0.5)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.zeros_(self.qkv.bias)
        nn.init.normal_(self.out.weight, std=0.0 if zero_init else width**-0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, grid: Grid) -> Grid:
        batch, frames, num_tokens, width = grid.tokens.shape
        position = time_position_of(self.time_position, num_frames=frames, lengths=grid.lengths)
        timed = self.ln(grid.tokens + position.unsqueeze(-2))
        qkv = self.qkv(timed).view(batch, frames, num_tokens, 3, self.num_heads, width // self.num_heads)
        attended = temporal_attention(qkv, lengths=grid.lengths, backend=self.backend)
        return replace(grid, tokens=grid.tokens + self.out(attended.flatten(-2)))
