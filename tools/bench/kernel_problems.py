"""What tools/bench/kernels.py compares: for each op the problem, its floor, and the ways to solve it.

A floor counts what has to be moved and computed at least: every input read once, every output written once, and
the FLOPs of the matrix products alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rivals import (
    blocked_einsum_interaction,
    compiled,
    einsum_interaction,
    flex_over_clip,
    flex_with_sizes,
    mean_key,
    published_merge,
    sdpa_variants,
    token_orders,
)
from torch import Tensor

from videolm_kernels import frame_attention, match_tokens, merge_tokens, temporal_attention, token_interaction
from videolm_kernels.backend import Backend

# Tokens of a frame, heads; every head is 64 wide.
TOWERS = {"B/32": (50, 12), "B/16": (197, 12), "L/14": (257, 16)}
HEAD_DIM = 64
Tensors = tuple[Tensor, ...]
NO_RIVAL = "(does less)"


@dataclass(frozen=True)
class Floor:
    """Of one direction."""

    num_bytes: int
    num_flops: int

    def seconds(self, *, bytes_per_second: float, flops_per_second: float) -> float:
        return max(self.num_bytes / bytes_per_second, self.num_flops / flops_per_second)


def same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Way:
    """One way to solve a problem. Its inputs lie as it wants them; making them so is not timed."""

    inputs: Tensors
    run: Callable[..., Tensor | Tensors]
    """The output, or several, of which the first has a gradient."""
    output: Callable[[Tensor], Tensor] = same
    """From the first output to what is compared with the truth."""
    gradients: Callable[[Tensor], Tensor] = same
    """Each input's, likewise."""


@dataclass(frozen=True)
class Problem:
    forward: Floor
    backward: Floor
    truth: Way
    """Run on its inputs in float64 or float32."""
    ways: dict[str, Way]


def ours(device: torch.device, inputs: Tensors, run: Callable[..., Any]) -> dict[str, Way]:
    """What a user gets, and the other implementations of this project; `run` takes the backend first."""
    others: tuple[Backend, ...] = ("reference",)
    if device.type == "cuda":
        others = ("triton", "eager", "reference")
    ways = {f"videolm {backend}": Way(inputs, partial(run, backend)) for backend in others}
    return {"videolm": Way(inputs, partial(run, "auto")), **ways}


def temporal_attention_problem(
    tower: str, frames: int, batch: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    num_tokens, heads = TOWERS[tower]
    qkv = torch.randn(batch, frames, num_tokens, 3, heads, HEAD_DIM, device=device, dtype=dtype)
    by_token = qkv.transpose(1, 2).contiguous()  # (B, N, T, 3, H, Dh)
    activation = torch.randn(batch, frames, num_tokens, heads * HEAD_DIM, device=device, dtype=dtype)

    def run(backend: Backend, x: Tensor) -> Tensor:
        return temporal_attention(x, backend=backend)

    def in_order(attended: Tensor) -> Tensor:
        """(B * N, H, T, Dh) → (B, T, N, H, Dh), a view."""
        return attended.view(batch, num_tokens, heads, frames, HEAD_DIM).permute(0, 3, 1, 2, 4)

    def permute_qkv(x: Tensor) -> Tensor:
        query, key, value = x.permute(3, 0, 2, 4, 1, 5).reshape(3, -1, heads, frames, HEAD_DIM)
        return in_order(F.scaled_dot_product_attention(query, key, value)).contiguous()

    def no_permute(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*x.flatten(0, 1).permute(2, 0, 3, 1, 4))

    def permute_x(x: Tensor) -> Tensor:
        # Before the qkv projection the tower's activation has to be turned too.
        activation.transpose(1, 2).contiguous()
        return in_order(no_permute(x)).contiguous()

    ways = ours(device, (qkv,), run)
    turned = partial(torch.transpose, dim0=1, dim1=2)
    for name, attend in sdpa_variants(device).items():
        ways[f"{name}, permute qkv"] = Way((qkv,), attend(permute_qkv))
        ways[f"{name}, permute x"] = Way((by_token,), attend(permute_x), gradients=turned)
        ways[f"{name}, no permute"] = Way((by_token,), attend(no_permute), output=in_order, gradients=turned)
    ways["compile"] = Way((qkv,), compiled(partial(run, "eager")))
    if device.type == "cuda":
        apart, beside = (flex_over_clip(*order, device=device) for order in token_orders(frames, num_tokens))
        ways["flex"] = Way((qkv,), apart)
        ways["flex, no permute"] = Way((by_token,), beside, output=turned, gradients=turned)
    unit = qkv.nbytes // 3
    flops = 4 * batch * num_tokens * heads * frames**2 * HEAD_DIM
    truth = Way((qkv,), partial(run, "reference"))
    return Problem(Floor(4 * unit, flops), Floor(7 * unit, flops * 5 // 2), truth, ways)


def token_merging_problem(
    tower: str, frames: int, batch: int, dtype: torch.dtype, device: torch.device, *, num_merged: int = 16
) -> Problem:
    """Residual addition, match and merge, as between a block's attention and its MLP."""
    num_tokens, heads = TOWERS[tower]
    num_merged = min(num_merged, num_tokens // 4)
    shape = (batch * frames, num_tokens, heads * HEAD_DIM)
    inputs = tuple(torch.randn(2, *shape, device=device, dtype=dtype))
    metric = clear_metric(*shape[:2], num_merged=num_merged, device=device).to(dtype)
    sizes = torch.randint(1, 4, shape[:2], device=device).float()

    def step(backend: Backend, x: Tensor, residual: Tensor) -> Tensors:
        match = match_tokens(metric, num_merged, 1, backend=backend)
        return merge_tokens(x, sizes, match, residual=residual, backend=backend)

    def published(x: Tensor, residual: Tensor) -> Tensors:
        return published_merge(x + residual, sizes, metric, num_merged=num_merged)

    ways = ours(device, inputs, step)
    ways["published steps"] = Way(inputs, published)
    ways["published steps, compile"] = Way(inputs, compiled(published))
    unit = inputs[0].nbytes
    merged = unit * (num_tokens - num_merged) // num_tokens
    flops = 2 * shape[0] * (num_tokens // 2) ** 2 * HEAD_DIM
    truth = Way(inputs, partial(step, "reference"))
    return Problem(Floor(metric.nbytes + 2 * unit + merged, flops), Floor(merged + unit, 0), truth, ways)


def clear_metric(num_frames: int, num_tokens: int, *, num_merged: int, device: torch.device) -> Tensor:
    """Random vectors, except that `num_merged` of each frame are nearly another's: every dtype finds the same."""
    metric = torch.randn(num_frames, num_tokens, HEAD_DIM, device=device)
    evens, odds = (num_tokens - 1) // 2, num_tokens // 2
    chosen = torch.rand(num_frames, evens, device=device).argsort(dim=1)[:, :num_merged]
    twins = torch.randint(odds, (num_frames, num_merged), device=device)
    frame = torch.arange(num_frames, device=device)[:, None]
    noise = torch.randn(num_frames, num_merged, HEAD_DIM, device=device)
    metric[frame, 2 * chosen + 2] = metric[frame, 2 * twins + 1] + 0.2 * noise
    return metric


def frame_attention_problem(
    tower: str, frames: int, batch: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    """With sizes, and the mean key beside; the ways without show what these cost and are no rivals."""
    num_tokens, heads = TOWERS[tower]
    num_frames = batch * frames
    qkv = torch.randn(num_frames, num_tokens, 3, heads, HEAD_DIM, device=device, dtype=dtype)
    log2_sizes = torch.randint(1, 5, (num_frames, num_tokens), device=device).float().log2()

    def run(backend: Backend, x: Tensor) -> Tensors:
        out, key = frame_attention(x, log2_sizes, with_mean_key=True, backend=backend)
        assert key is not None
        return out, key

    def bias() -> Tensor:
        return (log2_sizes * math.log(2)).to(dtype)[:, None, None, :]

    def materialised(x: Tensor) -> Tensors:
        query, key, value = x.permute(2, 0, 3, 1, 4)
        scores = (query * HEAD_DIM**-0.5) @ key.transpose(-1, -2) + bias()
        return (scores.softmax(dim=-1) @ value).transpose(1, 2), mean_key(x)

    def masked(x: Tensor) -> Tensors:
        out = F.scaled_dot_product_attention(*x.permute(2, 0, 3, 1, 4), attn_mask=bias())
        return out.transpose(1, 2), mean_key(x)

    def unbiased(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*x.permute(2, 0, 3, 1, 4)).transpose(1, 2)

    ways = ours(device, (qkv,), run)
    ways["materialised bias"] = Way((qkv,), materialised)
    ways["materialised bias, compile"] = Way((qkv,), compiled(materialised))
    for name, attend in sdpa_variants(device).items():
        # Flash attention takes no mask.
        if "flash" not in name:
            ways[f"{name}, bias as mask"] = Way((qkv,), attend(masked))
        ways[f"{name}, no bias {NO_RIVAL}"] = Way((qkv,), attend(unbiased))
    if device.type == "cuda":
        ways["flex"] = Way((qkv,), flex_with_sizes(log2_sizes))
    unit = qkv.nbytes // 3
    mean_key_bytes = unit // heads
    flops = 4 * num_frames * heads * num_tokens**2 * HEAD_DIM
    truth = Way((qkv,), partial(run, "reference"))
    # Backward reads q, k, v and the gradient and writes three gradients; the output can be computed again.
    return Problem(Floor(4 * unit + mean_key_bytes, flops), Floor(7 * unit, flops * 5 // 2), truth, ways)


def token_interaction_problem(
    tower: str, frames: int, batch: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    """WTI of `batch` texts of 32 words with as many videos; tokens are 512 wide whatever the tower."""
    num_words, width = 32, 512
    inputs = clear_tokens(batch, num_words, frames, width=width, dtype=dtype, device=device)
    weights = {
        "word_weights": torch.rand(batch, num_words, device=device).softmax(dim=-1),
        "frame_weights": torch.rand(batch, frames, device=device).softmax(dim=-1),
    }

    def run(backend: Backend, words: Tensor, videos: Tensor) -> Tensor:
        return token_interaction(words, videos, **weights, backend=backend)

    whole = partial(einsum_interaction, **weights)
    ways = ours(device, inputs, run)
    ways["blocked einsum"] = Way(inputs, partial(blocked_einsum_interaction, **weights))
    if batch**2 * num_words * frames * 4 <= 2**31:
        ways["whole einsum"] = Way(inputs, whole)
        ways["whole einsum, compile"] = Way(inputs, compiled(whole))
    flops = 2 * batch**2 * num_words * frames * width
    moved = sum(tokens.nbytes for tokens in inputs)
    truth = Way(inputs, partial(run, "reference"))
    # A word gets its gradient from one frame of each video, and a frame from one word of each text. Ways that do not
    # keep which one, as the kernel, compute the products again.
    sparse = 2 * 2 * batch**2 * (num_words + frames) * width
    return Problem(Floor(moved + 4 * batch**2, flops), Floor(2 * moved + 4 * batch**2, sparse), truth, ways)


def clear_tokens(
    batch: int, num_words: int, num_frames: int, *, width: int, dtype: torch.dtype, device: torch.device
) -> Tensors:
    """Words and frames of which each has one clear best partner in every video or text, the same in every dtype.

    Between equally good partners a maximum may send its gradient anywhere, and with random tokens there are always
    some that 16 bits cannot tell apart. Here tokens lie along few directions that both sides share, with noise, and
    one of each direction is longer than the rest.
    """
    num_directions = min(num_words, num_frames)
    directions = torch.linalg.qr(torch.randn(width, num_directions)).Q.T.to(device)

    def tokens(count: int) -> Tensor:
        kind = torch.rand(batch, count, device=device).argsort(dim=1)
        lengths = torch.where(kind < num_directions, 1.0, 0.7) * (0.5 + torch.rand(batch, 1, device=device))
        noise = torch.randn(batch, count, width, device=device) * 0.3 * width**-0.5
        return ((directions[kind % num_directions] + noise) * lengths[:, :, None]).to(dtype)

    return tokens(num_words), tokens(num_frames)


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "temporal_attention": temporal_attention_problem,
    "token_merging": token_merging_problem,
    "frame_attention": frame_attention_problem,
    "token_interaction": token_interaction_problem,
}
