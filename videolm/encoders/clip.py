"""CLIP's image and text towers, made of one block with three hooks.

Source: arXiv 2103.00020; numbers equal openai/CLIP's and transformers' CLIPModel with the same weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True, eq=False)
class Grid:
    """What travels from block to block: the tokens of every frame, the class token first."""

    tokens: Float[Tensor, "batch frames tokens width"]
    sizes: Float[Tensor, "batch frames tokens"] | None = None
    """How many original tokens each one stands for; None: one each."""
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
        attended = _attend(query, key, value, bias=bias, is_causal=self.is_causal)
        attended = attended.transpose(1, 2).reshape(batch, frames, num_tokens, width)
        return self.out(attended), qkv[:, :, 1].unflatten(0, (batch, frames))


def _attend(
    query: Float[Tensor, "sequences heads tokens head_dim"],
    key: Float[Tensor, "sequences heads tokens head_dim"],
    value: Float[Tensor, "sequences heads tokens head_dim"],
    *,
    bias: Float[Tensor, "sequences 1 1 tokens"] | None,
    is_causal: bool,
) -> Float[Tensor, "sequences heads tokens head_dim"]:
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
        hidden = F.gelu(hidden) if self.activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
        down: Tensor = self.down(hidden)
        return down


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


class ImageTower(nn.Module):
    """CLIP's vision transformer over every frame of a clip.

    `pre`, `mid` and `tap` map a block's index to the hook that it gets; without one, no frame sees another.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_width: int,
        joint_dim: int,
        activation: Activation,
        layer_norm_eps: float = 1e-5,
        pre: Mapping[int, nn.Module] | None = None,
        mid: Mapping[int, nn.Module] | None = None,
        tap: Mapping[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        num_tokens = (image_size // patch_size) ** 2 + 1
        self.patch = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_token = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(num_tokens, width))
        self.ln_pre = nn.LayerNorm(width, eps=layer_norm_eps)
        blocks = [
            Block(
                width=width,
                num_heads=num_heads,
                mlp_width=mlp_width,
                activation=activation,
                layer_norm_eps=layer_norm_eps,
                pre=(pre or {}).get(i),
                mid=(mid or {}).get(i),
                tap=(tap or {}).get(i),
            )
            for i in range(depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.ln_post = nn.LayerNorm(width, eps=layer_norm_eps)
        self.projection = nn.Linear(width, joint_dim, bias=False)

        nn.init.normal_(self.class_token, std=width**-0.5)
        nn.init.normal_(self.position, std=width**-0.5)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        _init_blocks(blocks, width=width)

    def forward(
        self,
        frames: Float[Tensor, "batch frames 3 height width"],
        *,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Grid:
        """Tokens of every frame after the last block, before the final layer norm."""
        if frames.ndim != 5 or frames.shape[2:] != (3, self.image_size, self.image_size):
            expected = f"(B, T, 3, {self.image_size}, {self.image_size})"
            raise ValueError(f"frames must be {expected} for this tower, got {tuple(frames.shape)}")
        if not frames.is_floating_point():
            raise TypeError(f"frames must be preprocessed to floating point numbers, got {frames.dtype}")
        patches = self.patch(frames.flatten(0, 1).to(self.patch.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2).unflatten(0, frames.shape[:2])
        class_token = self.class_token.to(patches.dtype).expand(*frames.shape[:2], 1, -1)
        tokens = self.ln_pre(torch.cat([class_token, patches], dim=2) + self.position)
        grid = Grid(tokens, lengths=lengths)
        for block in self.blocks:
            grid = block(grid)
        return grid

    def pool(self, grid: Grid) -> Float[Tensor, "batch frames dim"]:
        """Each frame's class token in the joint space, not yet of unit length."""
        pooled: Tensor = self.projection(self.ln_post(grid.tokens[:, :, 0]))
        return pooled


class TextTower(nn.Module):
    """CLIP's causal text transformer; a sentence is read at its first `eos_token_id`."""

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        eos_token_id: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_width: int,
        joint_dim: int,
        activation: Activation,
        layer_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.eos_token_id = eos_token_id
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(torch.empty(context_length, width))
        blocks = [
            Block(
                width=width,
                num_heads=num_heads,
                mlp_width=mlp_width,
                activation=activation,
                layer_norm_eps=layer_norm_eps,
                is_causal=True,
            )
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.ln_final = nn.LayerNorm(width, eps=layer_norm_eps)
        self.projection = nn.Linear(width, joint_dim, bias=False)

        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        _init_blocks(blocks, width=width)

    def forward(self, input_ids: Int[Tensor, "batch words"]) -> Float[Tensor, "batch words dim"]:
        """Every word in the joint space, not of unit length.

        No mask is needed: attention is causal and padding stands on the right, where no word looks.
        """
        tokens = self.token(input_ids) + self.position[: input_ids.shape[1]]
        grid = Grid(tokens.unsqueeze(1))
        for block in self.blocks:
            grid = block(grid)
        words: Tensor = self.projection(self.ln_final(grid.tokens.squeeze(1)))
        return words

    def pool(
        self, words: Float[Tensor, "batch words dim"], input_ids: Int[Tensor, "batch words"]
    ) -> Float[Tensor, "batch dim"]:
        """The row of each sentence's first end token."""
        first_end = (input_ids == self.eos_token_id).int().argmax(dim=1)
        return words[torch.arange(len(words), device=words.device), first_end]


def _init_blocks(blocks: Sequence[Block], *, width: int) -> None:
    """CLIP's start from scratch: what is added to the residual stream is smaller in a deeper tower."""
    residual_std = width**-0.5 * (2 * len(blocks)) ** -0.5
    for block in blocks:
        for layer, std in (
            (block.attention.qkv, width**-0.5),
            (block.attention.out, residual_std),
            (block.mlp.up, (2 * width) ** -0.5),
            (block.mlp.down, residual_std),
        ):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
