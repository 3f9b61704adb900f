"""The truth that every other implementation of frame attention is held against: plain torch, no tricks."""

import math

import torch
from torch import Tensor


def frame_attention_reference(qkv: Tensor, log2_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention among the tokens of a frame and the mean key, in float32 (float64 for float64 input).

    out[f, n, h] = sum_m softmax_m(q[f, n, h] · k[f, m, h] / sqrt(Dh) + ln(size[f, m])) v[f, m, h], zero where
    every size is 0; mean_key[f, n] = mean_h k[f, n, h], without gradient.
    """
    exact = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    query, key, value = exact.unbind(dim=2)
    scores = torch.einsum("fnhd,fmhd->fhnm", query, key) / qkv.shape[-1] ** 0.5
    if log2_sizes is not None:
        scores = scores + math.log(2) * log2_sizes.to(exact.dtype)[:, None, None, :]
    # Finite where nothing is seen: -inf - -inf is not a number.
    highest = scores.amax(dim=-1, keepdim=True).clamp(min=-1e30)
    powers = (scores - highest).exp()
    total = powers.sum(dim=-1, keepdim=True)
    weights = powers / total.masked_fill(total == 0, 1)
    out = torch.einsum("fhnm,fmhd->fnhd", weights, value)
    return out.to(qkv.dtype), key.detach().mean(dim=2).to(qkv.dtype)
