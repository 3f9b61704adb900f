"""The truth that every other implementation of temporal attention is held against: plain torch, no tricks."""

import torch
from torch import Tensor


def temporal_attention_reference(qkv: Tensor, lengths: Tensor | None) -> Tensor:
    """Attention over T at each token index n, computed in float32 (float64 for float64 input).

    out[b, t, n, h] = sum_s softmax_s(q[b, t, n, h] · k[b, s, n, h] / sqrt(Dh)) v[b, s, n, h], s < lengths[b];
    rows with t >= lengths[b] are zero.
    """
    num_frames, head_dim = qkv.shape[1], qkv.shape[5]
    exact = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    query, key, value = exact.unbind(dim=3)
    scores = torch.einsum("btnhd,bsnhd->bnhts", query, key) / head_dim**0.5
    if lengths is None:
        weights = scores.softmax(dim=-1)
        return torch.einsum("bnhts,bsnhd->btnhd", weights, value).to(qkv.dtype)

    exists = torch.arange(num_frames, device=qkv.device) < lengths[:, None]
    pair_exists = (exists[:, :, None] & exists[:, None, :])[:, None, None]
    # A softmax over the existing frames alone; without any, the sum is 0 and so is the row.
    highest = scores.masked_fill(~pair_exists, -torch.inf).amax(dim=-1, keepdim=True)
    shifted = (scores - highest).masked_fill(~pair_exists, -torch.inf)
    powers = shifted.exp().masked_fill(~pair_exists, 0)
    total = powers.sum(dim=-1, keepdim=True)
    weights = powers / total.masked_fill(total == 0, 1)
    return torch.einsum("bnhts,bsnhd->btnhd", weights, value).to(qkv.dtype)
