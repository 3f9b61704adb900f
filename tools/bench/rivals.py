"""Other ways to compute what the operations of videolm_kernels compute, as far as they are not one line of torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Function = Callable[..., Any]


def compiled(function: Function) -> Function:
    """Whole or not at all: half of a function in torch's own operations would be no measurement of the compiler."""
    return torch.compile(function, dynamic=False, fullgraph=True)


def sdpa_variants(device: torch.device) -> dict[str, Callable[[Function], Function]]:
    """scaled_dot_product_attention by itself, and on CUDA with each back end."""
    if device.type != "cuda":
        return {"sdpa": lambda function: function}

    def forced(backend: SDPBackend, function: Function) -> Function:
        def run(*inputs: Tensor) -> Any:
            with sdpa_kernel(backend):
                return function(*inputs)

        return run

    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    return {f"sdpa {name}": partial(forced, backend) for name, backend in backends.items()}


def flex_over_clip(shape: tuple[int, int], sees: Function, *, device: torch.device) -> Function:
    """FlexAttention over (B, *shape, 3, H, Dh), all tokens of a clip in a row, where `sees` is its mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length = shape[0] * shape[1]
    mask = create_block_mask(sees, None, None, length, length, device=str(device))
    attend = compiled(flex_attention)

    def run(qkv: Tensor) -> Tensor:
        query, key, value = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4)
        out: Tensor = attend(query, key, value, block_mask=mask)
        return out.transpose(1, 2).unflatten(1, shape)

    return run


def token_orders(
    num_frames: int, num_tokens: int
) -> tuple[tuple[tuple[int, int], Function], tuple[tuple[int, int], Function]]:
    """Shape and mask of temporal attention over a whole clip.

    Frame by frame, as tokens come, what one sees lies far apart; token by token it lies side by side, and nearly
    all blocks are skipped.
    """
    return (
        ((num_frames, num_tokens), lambda _b, _h, q, k: q % num_tokens == k % num_tokens),
        ((num_tokens, num_frames), lambda _b, _h, q, k: q // num_frames == k // num_frames),
    )


def flex_with_sizes(log2_sizes: Tensor) -> Function:
    """FlexAttention within a frame; it cannot give the mean key, which is a pass of its own."""
    from torch.nn.attention.flex_attention import flex_attention

    bias = log2_sizes * math.log(2)
    attend = compiled(flex_attention)

    def add_size(score: Tensor, frame: Tensor, _h: Tensor, _query: Tensor, key: Tensor) -> Tensor:
        return score + bias[frame, key]

    def run(qkv: Tensor) -> tuple[Tensor, Tensor]:
        out = attend(*qkv.permute(2, 0, 3, 1, 4), score_mod=add_size).transpose(1, 2)
        return out, mean_key(qkv)

    return run


def mean_key(qkv: Tensor) -> Tensor:
    return qkv.detach()[:, :, 1].mean(dim=2)


def published_merge(
    tokens: Tensor, sizes: Tensor, metric: Tensor, *, num_merged: int
) -> tuple[Tensor, Tensor]:
    """Token merging in the steps of arXiv 2210.09461, appendix D: sort, gather, scatter, concatenate.

    Sizes are in the dtype of the tokens, as in the paper's steps.
    """
    with torch.no_grad():
        metric = metric / metric.norm(dim=-1, keepdim=True)
        scores = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
        scores[:, 0] = -torch.inf
        best, to = scores.max(dim=-1)
        order = best.argsort(dim=-1, descending=True).unsqueeze(-1)
        merged, kept = order[:, :num_merged], order[:, num_merged:].sort(dim=1).values
        to = to.unsqueeze(-1).gather(1, merged)

    def merge(x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        width = (-1, -1, x.shape[-1])
        b = b.scatter_add(1, to.expand(width), a.gather(1, merged.expand(width)))
        return torch.cat([a.gather(1, kept.expand(width)), b], dim=1)

    weights = sizes.to(tokens.dtype).unsqueeze(-1)
    new_sizes = merge(weights)
    return merge(tokens * weights) / new_sizes, new_sizes.squeeze(-1)


def einsum_interaction(
    words: Tensor, frames: Tensor, *, word_weights: Tensor, frame_weights: Tensor
) -> Tensor:
    """WTI from the whole tensor of products (A, V, L, T)."""
    products = torch.einsum("awd,vfd->avwf", words, frames)
    by_word = torch.einsum("avw,aw->av", products.amax(dim=3).float(), word_weights)
    by_frame = torch.einsum("avf,vf->av", products.amax(dim=2).float(), frame_weights)
    return (by_word + by_frame) / 2


def blocked_einsum_interaction(
    words: Tensor, frames: Tensor, *, word_weights: Tensor, frame_weights: Tensor
) -> Tensor:
    """The same for a few texts at a time."""
    rows = max(1, 2**26 // (len(frames) * words.shape[1] * frames.shape[1]))
    blocks = zip(words.split(rows), word_weights.split(rows), strict=True)
    return torch.cat(
        [einsum_interaction(x, frames, word_weights=w, frame_weights=frame_weights) for x, w in blocks]
    )
