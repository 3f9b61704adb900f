"""The transformer layer that every tower is made of, with three hooks, and what travels through it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from videolm_kernels import frame_attention
from videolm_kernels.backend import Backend
from videolm_kernels.frame_attention.eager import attend

Activation = Literal["quick_gelu", "gelu", "gelu_tanh", "silu"]


@dataclass(frozen=True, eq=False)
class Grid:
    """What travels from block to block: the tokens of every frame, class tokens first where there are any."""

    tokens: Float[Tensor, "batch frames tokens width"]
    sizes: Float[Tensor, "batch frames tokens"] | None = None
    """float32; how often each one counts as a key, and in the group that it is merged into: once for each original
    token, or less where a plan weighs them by saliency; 0 for one that no other sees; None: once each."""
    lengths: Int[Tensor, " batch"] | None = None
    """Frames of each clip that exist; None: all of them."""
    num_class_tokens: int = 1
    """Class tokens of each frame; more than one where frames were joined, in the order of the frames."""
    seen: Float[Tensor, "batch frames tokens width"] | None = None
    """What the attention of the next block reads instead of `tokens`, to which its result is added all the same."""
    assignment: Int[Tensor, "batch originals"] | None = None
    """int32; where each token that entered the first block is now, as a row of frames * tokens, -1 where it was
    dropped; None: where it was."""


@dataclass(frozen=True, eq=False)
class Attended:
    """What a block's attention gives to its `mid` hook."""

    update: Float[Tensor, "batch frames tokens width"]
    """To be added to the tokens, by the hook."""
    qkv: Float[Tensor, "batch frames tokens 3 heads head_dim"]
    mean_key: Float[Tensor, "batch frames tokens head_dim"] | None
    """Mean of the keys over the heads, without gradient, where the hook `needs_mean_key`."""


class Attention(nn.Module):
    """Multi-head self-attention among the tokens of one frame, with packed query, key and value."""

    def __init__(self, *, width: int, num_heads: int, is_causal: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.backend: Backend = "auto"
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "batch frames tokens width"],
        sizes: Float[Tensor, "batch frames tokens"] | None,
        *,
        with_mean_key: bool = False,
    ) -> Attended:
        batch, frames, num_tokens, width = tokens.shape
        qkv = self.qkv(tokens).view(batch * frames, num_tokens, 3, self.num_heads, width // self.num_heads)
        mean_key = None
        if self.is_causal:
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            attended = attend(query, key, value, bias=None, is_causal=True).transpose(1, 2)
        else:
            # Proportional attention: a key that stands for s tokens counts s times (arXiv 2210.09461, section 3).
            log2_sizes = None if sizes is None else sizes.flatten(0, 1).log2()
            attended, mean_key = frame_attention(
                qkv, log2_sizes, with_mean_key=with_mean_key, backend=self.backend
            )
        return Attended(
            update=self.out(attended.reshape(batch, frames, num_tokens, width)),
            qkv=qkv.view(batch, frames, *qkv.shape[1:]),
            mean_key=None if mean_key is None else mean_key.view(batch, frames, *mean_key.shape[1:]),
        )


class MLP(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, *, width: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)
        self.activation = activation

    def forward(self, tokens: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        hidden: Tensor = self.up(tokens)
        if self.activation in ("gelu", "gelu_tanh"):
            hidden = F.gelu(hidden, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        elif self.activation == "quick_gelu":
            hidden = hidden * torch.sigmoid(1.702 * hidden)
        else:
            hidden = F.silu(hidden)
        down: Tensor = self.down(hidden)
        return down

    @torch.no_grad()
    def fold_quick_gelu(self) -> None:
        """Compute the same with one pass less over the hidden values: x·σ(ax) = SiLU(ax)/a, a in the weights.

        Changes the weights, in place: for inference only, and before they are rounded to a shorter format.
        """
        if self.activation == "quick_gelu":
            self.up.weight.mul_(1.702)
            self.up.bias.mul_(1.702)
            self.down.weight.div_(1.702)
            self.activation = "silu"


class Block(nn.Module):
    """One transformer layer: pre → attention(bias = log size) → mid → MLP → tap.

    The hooks are modules that take a Grid and return one; `mid` also takes what the attention gave (Attended)
    and adds it. None is the identity, and with three of them the block is CLIP's. What they are for:

    - divided space-time attention is a `pre` that adds attention over the frames (all built-in ones: temporal/);
    - token shift is a `pre` that sets `seen`: the attention reads shifted tokens, the residual stays;
    - message tokens: `pre` appends them to every frame, `mid` takes them off again;
    - proxy tokens, that see all frames (CLIP-ViP): the tower's `embed` gives every frame a copy, `mid` replaces
      what the copies get by what they gather from the whole clip, from `qkv` and the block's `attention.out`;
    - soft attentive merging, local temporal convolution: a `mid` or `tap` that mixes tokens of neighbouring frames;
    - token merging: `mid` joins tokens whose keys are alike and adds up their `sizes`, which the next block's
      attention then counts; a `pre` may join frames first (reducers.py);
    - a side branch (STAN): `tap` takes the tokens of its layer to a second tower, whose own travel in a subclass
      of Grid.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_width: int,
        activation: Activation,
        layer_norm_eps: float,
        is_causal: bool = False,
        pre: nn.Module | None = None,
        mid: nn.Module | None = None,
        tap: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.pre = pre
        self.ln_1 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.attention = Attention(width=width, num_heads=num_heads, is_causal=is_causal)
        self.mid = mid
        self.ln_2 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.mlp = MLP(width=width, mlp_width=mlp_width, activation=activation)
        self.tap = tap

    def forward(self, grid: Grid) -> Grid:
        if self.pre is not None:
            grid = self.pre(grid)
        attended = self.attention(
            self.ln_1(grid.tokens if grid.seen is None else grid.seen),
            grid.sizes,
            with_mean_key=getattr(self.mid, "needs_mean_key", False),
        )
        if grid.seen is not None:
            grid = replace(grid, seen=None)
        grid = (add_attended if self.mid is None else self.mid)(grid, attended)
        grid = replace(grid, tokens=grid.tokens + self.mlp(self.ln_2(grid.tokens)))
        return grid if self.tap is None else self.tap(grid)


def add_attended(grid: Grid, attended: Attended) -> Grid:
    """What a block does where no `mid` hook does it: the residual connection around attention."""
    return replace(grid, tokens=grid.tokens + attended.update)


def init_blocks(blocks: Sequence[Block], *, width: int) -> None:
    """CLIP's start from scratch: what is added to the residual stream is smaller in a deeper tower."""
    residual_std = width**-0.5 * (2 * len(blocks)) ** -0.5
    for block in blocks:
        attention = block.attention
        init_layers(attention.qkv, attention.out, block.mlp, width=width, residual_std=residual_std)


def init_layers(qkv: nn.Linear, out: nn.Linear, mlp: MLP, *, width: int, residual_std: float) -> None:
    """Random weights of one layer: attention's two linear layers and the MLP."""
    for layer, std in (
        (qkv, width**-0.5),
        (out, residual_std),
        (mlp.up, (2 * width) ** -0.5),
        (mlp.down, residual_std),
    ):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
