"""Message tokens: frames tell each other what they hold."""

from dataclasses import replace

import torch
from torch import nn

from videolm.encoders.blocks import Attended, Grid, add_attended
from videolm_kernels import temporal_attention
from videolm_kernels.backend import Backend


class MessageToken(nn.Module):
    """A `pre` hook that appends one token to each frame, for this block's attention; DropMessage takes it off.

    message = fc(class token); message + out(attention over the frames of ln(message)). It changes what CLIP
    computes from the start, and has no position in time: reversed frames give reversed tokens.

    Source: X-CLIP for recognition, arXiv 2208.02816, which transformers calls XCLIPModel; X-CLIP for retrieval
    (arXiv 2207.07285) is another model of the same name.
    """

    def __init__(self, *, width: int, num_heads: int, layer_norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend: Backend = "auto"
        self.fc = nn.Linear(width, width)
        self.ln = nn.LayerNorm(width, eps=layer_norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

        for layer in (self.fc, self.qkv, self.out):
            nn.init.normal_(layer.weight, std=width**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, grid: Grid) -> Grid:
        if grid.num_class_tokens != 1:
            raise ValueError(
                f"a message is made from one class token a frame, but there are {grid.num_class_tokens}"
            )
        message = self.fc(grid.tokens[:, :, :1])
        qkv = self.qkv(self.ln(message)).unflatten(-1, (3, self.num_heads, -1))
        attended = temporal_attention(qkv, lengths=grid.lengths, backend=self.backend)
        message = message + self.out(attended.flatten(-2))
        sizes = grid.sizes
        if sizes is not None:
            sizes = torch.cat([sizes, torch.ones_like(sizes[:, :, :1])], dim=2)
        return replace(grid, tokens=torch.cat([grid.tokens, message], dim=2), sizes=sizes)


class DropMessage(nn.Module):
    """A `mid` hook that takes the last token of each frame off; `then` is another, which never sees it."""

    def __init__(self, *, then: nn.Module | None = None) -> None:
        super().__init__()
        self.then = then
        self.needs_mean_key = getattr(then, "needs_mean_key", False)

    def forward(self, grid: Grid, attended: Attended) -> Grid:
        grid = replace(
            grid,
            tokens=grid.tokens[:, :, :-1],
            sizes=None if grid.sizes is None else grid.sizes[:, :, :-1],
        )
        attended = Attended(
            update=attended.update[:, :, :-1],
            qkv=attended.qkv[:, :, :-1],
            mean_key=None if attended.mean_key is None else attended.mean_key[:, :, :-1],
        )
        return (add_attended if self.then is None else self.then)(grid, attended)
