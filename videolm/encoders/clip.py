"""CLIP's and SigLIP's image and text towers.

Source: arXiv 2103.00020 and 2303.15343; numbers equal transformers' CLIPModel and SiglipModel with the same
weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from videolm.encoders.blocks import MLP, Activation, Block, Grid, init_blocks, init_layers
from videolm.encoders.stem import ConvStem
from videolm_kernels.frame_attention.eager import attend


class AttentionPool(nn.Module):
    """One vector for all tokens of a frame: a learned query attends to them, then an MLP. Source: SigLIP's head."""

    def __init__(
        self, *, width: int, num_heads: int, mlp_width: int, activation: Activation, layer_norm_eps: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.empty(width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ln = nn.LayerNorm(width, eps=layer_norm_eps)
        self.mlp = MLP(width=width, mlp_width=mlp_width, activation=activation)

        nn.init.normal_(self.probe, std=width**-0.5)
        init_layers(self.qkv, self.out, self.mlp, width=width, residual_std=width**-0.5)

    def forward(
        self,
        tokens: Float[Tensor, "batch frames tokens width"],
        sizes: Float[Tensor, "batch frames tokens"] | None,
    ) -> Float[Tensor, "batch frames width"]:
        batch, frames, num_tokens, width = tokens.shape
        head_dim = width // self.num_heads
        weight, bias = self.qkv.weight, self.qkv.bias
        pooled: Tensor
        query = F.linear(self.probe.to(tokens.dtype), weight[:width], bias[:width])
        key_value = F.linear(tokens, weight[width:], bias[width:])
        key_value = key_value.view(batch * frames, num_tokens, 2, self.num_heads, head_dim)
        key, value = key_value.permute(2, 0, 3, 1, 4)
        log_sizes = None if sizes is None else sizes.log().reshape(-1, 1, 1, num_tokens)
        attended = attend(
            query.view(1, self.num_heads, 1, head_dim).expand(batch * frames, -1, -1, -1),
            key,
            value,
            bias=log_sizes,
            is_causal=False,
        )
        pooled = self.out(attended.reshape(batch, frames, width))
        pooled = pooled + self.mlp(self.ln(pooled))
        return pooled


class ImageTower(nn.Module):
    """A vision transformer over every frame of a clip.

    With `pooling="class_token"` it is CLIP's, in which with `first_norm=False` the patches have a bias instead of the
    first norm, as in BLIP-2's ViT-g, and with `joint_dim=None` the class token itself is the embedding. With
    "attention" it is SigLIP's, where the patches have a bias, no class token and no first norm, and the pooled
    vector is the embedding (`joint_dim` is `width`).
    `stem` takes the place of the linear layer that makes a vector of each patch.
    `pre`, `mid` and `tap` map a block's index to the hook that it gets; `embed` is one, from Grid to Grid, before
    the first norm and block. Without any, no frame sees another.
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
        joint_dim: int | None,
        activation: Activation,
        layer_norm_eps: float = 1e-5,
        pooling: Literal["class_token", "attention"] = "class_token",
        first_norm: bool = True,
        stem: ConvStem | None = None,
        embed: nn.Module | None = None,
        pre: Mapping[int, nn.Module] | None = None,
        mid: Mapping[int, nn.Module] | None = None,
        tap: Mapping[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size = image_size, patch_size
        has_class_token = pooling == "class_token"
        first_norm = first_norm and has_class_token
        num_tokens = (image_size // patch_size) ** 2 + has_class_token
        self.patch: nn.Conv2d | ConvStem = stem or nn.Conv2d(
            3, width, kernel_size=patch_size, stride=patch_size, bias=not first_norm
        )
        self.class_token = nn.Parameter(torch.empty(width)) if has_class_token else None
        self.position = nn.Parameter(torch.empty(num_tokens, width))
        self.embed = embed
        self.ln_pre = nn.LayerNorm(width, eps=layer_norm_eps) if first_norm else None
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
        self.projection: nn.Linear | AttentionPool | None
        if has_class_token:
            self.projection = None if joint_dim is None else nn.Linear(width, joint_dim, bias=False)
        else:
            self.projection = AttentionPool(
                width=width,
                num_heads=num_heads,
                mlp_width=mlp_width,
                activation=activation,
                layer_norm_eps=layer_norm_eps,
            )

        if self.class_token is not None:
            nn.init.normal_(self.class_token, std=width**-0.5)
        nn.init.normal_(self.position, std=width**-0.5)
        if isinstance(self.projection, nn.Linear):
            nn.init.normal_(self.projection.weight, std=width**-0.5)
        init_blocks(blocks, width=width)

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
        frames = frames.to(self.patch.weight.dtype)
        patches: Tensor
        if isinstance(self.patch, ConvStem):
            patches = self.patch(frames, lengths=lengths)
        else:
            patches = self.patch(frames.flatten(0, 1)).flatten(2).transpose(1, 2)
            patches = patches.view(*frames.shape[:2], *patches.shape[1:])
        if self.class_token is not None:
            class_token = self.class_token.to(patches.dtype).expand(*frames.shape[:2], 1, -1)
            patches = torch.cat([class_token, patches], dim=2)
        num_class_tokens = 0 if self.class_token is None else 1
        grid = Grid(patches + self.position, lengths=lengths, num_class_tokens=num_class_tokens)
        if self.embed is not None:
            grid = self.embed(grid)
        if self.ln_pre is not None:
            grid = replace(grid, tokens=self.ln_pre(grid.tokens))
        for block in self.blocks:
            grid = block(grid)
        return grid

    def pool(self, grid: Grid) -> Float[Tensor, "batch vectors dim"]:
        """Each class token in the joint space, or else each frame, in order; not yet of unit length."""
        if isinstance(self.projection, AttentionPool):
            frames: Tensor = self.projection(self.ln_post(grid.tokens), grid.sizes)
            return frames
        pooled: Tensor = self.ln_post(grid.tokens[:, :, : grid.num_class_tokens].flatten(1, 2))
        return pooled if self.projection is None else self.projection(pooled)


class TextTower(nn.Module):
    """A text transformer.

    With `pooling="end_token"` it is CLIP's: causal, a sentence is read at its first `eos_token_id`. With "last"
    it is SigLIP's: every word sees every other and the padding, so sentences are always padded to
    `context_length`, and read at the last place.
    """

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
        pooling: Literal["end_token", "last"] = "end_token",
    ) -> None:
        super().__init__()
        self.eos_token_id = eos_token_id
        self.pooling = pooling
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(torch.empty(context_length, width))
        blocks = [
            Block(
                width=width,
                num_heads=num_heads,
                mlp_width=mlp_width,
                activation=activation,
                layer_norm_eps=layer_norm_eps,
                is_causal=pooling == "end_token",
            )
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.ln_final = nn.LayerNorm(width, eps=layer_norm_eps)
        self.projection = nn.Linear(width, joint_dim, bias=pooling == "last")

        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        init_blocks(blocks, width=width)

    def forward(self, input_ids: Int[Tensor, "batch words"]) -> Float[Tensor, "batch words dim"]:
        """Every word in the joint space, not of unit length.

        CLIP needs no mask: attention is causal and padding stands on the right, where no word looks. SigLIP
        was trained without one.
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
        """The row where each sentence is read."""
        if self.pooling == "last":
            return words[:, -1]
        first_end = (input_ids == self.eos_token_id).int().argmax(dim=1)
        return words[torch.arange(len(words), device=words.device), first_end]
