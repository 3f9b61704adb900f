"""Soft attentive merging of frames."""

from dataclasses import replace

import torch
from torch import nn

from videolm.encoders.blocks import Attended, Grid


class SoftAttentive(nn.Module):
    """A `mid` hook that mixes the tokens of all frames at each token index, softly: no value or output layer.

    tokens + alpha * softmax(query(tokens) · key(tokens)) @ tokens over the frames, in `num_heads` parts of the
    width, on the tokens after the block's own attention. The scores are divided by sqrt(qk_width), as the
    source does, and not by that of a head. With `zero_init` alpha starts at 0 and the tower computes what it did
    without; else at 1. There is no position in time: reversed frames give reversed tokens.

    Source: EVLGen (SimVLG), arXiv 2310.03291; after its tower it averages the frames.
    """

    def __init__(self, *, width: int, zero_init: bool, num_heads: int = 8, qk_width: int = 256) -> None:
        super().__init__()
        if width % num_heads or qk_width % num_heads:
            raise ValueError(
                f"width ({width}) and qk_width ({qk_width}) must be multiples of {num_heads} heads"
            )
        self.num_heads = num_heads
        self.query = nn.Linear(width, qk_width)
        self.key = nn.Linear(width, qk_width)
        self.alpha = nn.Parameter(torch.zeros(()) if zero_init else torch.ones(()))

        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=width**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, grid: Grid, attended: Attended) -> Grid:
        tokens = grid.tokens + attended.update
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1))
            for part in (self.query(tokens) * self.query.out_features**-0.5, self.key(tokens), tokens)
        )
        scores = torch.einsum("btnhe,bsnhe->bnhts", query, key)
        if grid.lengths is not None:
            frame = torch.arange(tokens.shape[1], device=tokens.device)
            is_missing = frame >= grid.lengths[:, None]
            scores = scores.masked_fill(is_missing[:, None, None, None, :], -torch.inf)
        mixed = torch.einsum("bnhts,bsnhe->btnhe", scores.softmax(dim=-1), value).flatten(-2)
        return replace(grid, tokens=tokens + self.alpha * mixed)
