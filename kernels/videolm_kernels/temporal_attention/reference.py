"""The truth that every other implementation of temporal attention is held against: plain torch, no tricks."""

import torch
from torch import Tensor


def temporal_attention_reference(
    qkv: Tensor,
    *,
    lengths: Tensor | None,
    time_bias: Tensor | None,
    shared_key_value: Tensor | None,
    is_causal: bool,
    num_skipped: int,
) -> Tensor:
    """Attention over T at each token index n, computed in float32 (float64 for float64 input).

    out[b, t, n, h] = sum_s softmax_s(q[b, t, n, h] · k[b, s, n, h] / sqrt(Dh) + time_bias[h, t - s + T - 1])
    v[b, s, n, h] over the frames s < lengths[b], s <= t if causal, and the shared key without bias;
    rows with t >= lengths[b] or n < num_skipped are zero.
    """
    batch, num_frames, num_tokens, _, _, head_dim = qkv.shape
    exact_dtype = torch.promote_types(qkv.dtype, torch.float32)
    frame = torch.arange(num_frames, device=qkv.device)
    distance = frame[:, None] - frame[None, :]
    exists = frame.expand(batch, -1) < (num_frames if lengths is None else lengths[:, None])
    takes_part = exists[:, :, None] & (torch.arange(num_tokens, device=qkv.device) >= num_skipped)
    takes_part = takes_part[..., None, None]
    # Not even a NaN of what takes no part is seen.
    query, key, value = qkv.to(exact_dtype).masked_fill(~takes_part[..., None], 0).unbind(dim=3)

    scores = torch.einsum("btnhd,bsnhd->bnhts", query, key) / head_dim**0.5
    if time_bias is not None:
        scores = scores + time_bias.to(exact_dtype)[:, distance + num_frames - 1]
    is_seen = exists[:, :, None] & exists[:, None, :]
    if is_causal:
        is_seen = is_seen & (distance >= 0)
    is_seen = is_seen[:, None, None].expand_as(scores)
    if shared_key_value is not None:
        shared_key, shared_value = shared_key_value.to(exact_dtype).unbind(dim=1)
        shared_score = torch.einsum("btnhd,bhd->bnht", query, shared_key) / head_dim**0.5
        scores = torch.cat([scores, shared_score[..., None]], dim=-1)
        sees_shared = exists[:, None, None, :, None].expand(*is_seen.shape[:-1], 1)
        is_seen = torch.cat([is_seen, sees_shared], dim=-1)

    # A softmax over what is seen alone; where nothing is, the sum is 0 and so is the row.
    highest = scores.masked_fill(~is_seen, -torch.inf).amax(dim=-1, keepdim=True)
    powers = (scores - highest).masked_fill(~is_seen, -torch.inf).exp().masked_fill(~is_seen, 0)
    total = powers.sum(dim=-1, keepdim=True)
    weights = powers / total.masked_fill(total == 0, 1)
    out = torch.einsum("bnhts,bsnhd->btnhd", weights[..., :num_frames], value)
    if shared_key_value is not None:
        out = out + torch.einsum("bnht,bhd->btnhd", weights[..., num_frames], shared_value)
    return out.masked_fill(~takes_part, 0).to(qkv.dtype)
