"""The transformer layer that every tower is made of, with three hooks, and what travels through it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Activation = Literal["quick_gelu", "gelu", "gelu_tanh", "silu"]


@dataclass(frozen=True, eq=False)
class Grid:
    """What travels from block to block: the tokens of every frame, the class token first where there is one."""

    tokens: Float[Tensor, "batch frames tokens width"]
    sizes: Float[Tensor, "batch frames tokens"] | None = None
    """How many original tokens each one stands for, 0 for one that no other sees; None: one each."""
    lengths: Int[Tensor, " batch"] | None = None
    """Frames of each clip that exist; None: all of them."""


class Attention(nn.Module):
    """Multi-head self-attention among the tokens of one frame, with packed query, key and value."""

    def __init__(self, *, width: int, num_heads: int, is_causal: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "batch frames tokens width"],
        sizes: Float[Tensor, "batch frames tokens"] | None,
    ) -> tuple[
        Float[Tensor, "batch frames tokens width"], Float[Tensor, "batch frames tokens heads head_dim"]
    ]:
        """Attended tokens, and the keys that a reducer compares tokens by."""
        batch, frames, num_tokens, width = tokens.shape
        qkv = self.qkv(tokens).view(batch * frames, num_tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        # Proportional attention: a key that stands for s tokens counts s times (arXiv 2210.09461, section 3).
        bias = None if sizes is None else sizes.log().to(query.dtype).reshape(-1, 1, 1, num_tokens)
        attended = attend(query, key, value, bias=bias, is_causal=self.is_causal)
        attended = attended.transpose(1, 2).reshape(batch, frames, num_tokens, width)
        return self.out(attended), qkv[:, :, 1].unflatten(0, (batch, frames))


def attend(
    query: Float[Tensor, "sequences heads queries head_dim"],
    key: Float[Tensor, "sequences heads tokens head_dim"],
    value: Float[Tensor, "sequences heads tokens head_dim"],
    *,
    bias: Float[Tensor, "sequences 1 1 tokens"] | None,
    is_causal: bool,
) -> Float[Tensor, "sequences heads queries head_dim"]:
    """Scaled dot-product attention; `bias` is added to the scores, `is_causal` hides later tokens."""
    # In bfloat16 on a CPU plain products win. SDPA's time over theirs on one core with AMX (torch 2.13),
    # forward and forward + backward: 1.2 and 6 for 256 sequences of 17 tokens, 1.7 and 3 for 12 of 197, 1.1
    # and 4 for 96 causal ones of 32. In float32 SDPA is faster forward and about even with the backward pass.
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=is_causal)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    if is_causal:
        num_tokens = query.shape[2]
        is_later = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(is_later, -torch.inf)
    attended: Tensor = scores.softmax(dim=-1) @ value
    return attended


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

    The hooks are modules that take a Grid and return one; `mid` also takes the attention's keys
    (B, T, N, H, Dh). None is the identity, and with three of them the block is CLIP's. What they are for:

    - divided space-time attention is a `pre` that adds attention over the frames (temporal.py);
    - proxy or message tokens: `pre` appends them to every frame, `mid` takes them off again;
    - local temporal convolution, token shift: a `pre` or `tap` that mixes tokens of neighbouring frames;
    - token merging: `mid` joins tokens whose keys are alike and adds up their `sizes`, which the next block's
      attention then counts;
    - a side branch: `tap` keeps the tokens of its layer for a second tower and returns the Grid unchanged.
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
        attended, keys = self.attention(self.ln_1(grid.tokens), grid.sizes)
        grid = replace(grid, tokens=grid.tokens + attended)
        if self.mid is not None:
            grid = self.mid(grid, keys)
        grid = replace(grid, tokens=grid.tokens + self.mlp(self.ln_2(grid.tokens)))
        return grid if self.tap is None else self.tap(grid)


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
