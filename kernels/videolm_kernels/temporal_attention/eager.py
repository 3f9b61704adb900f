"""Temporal attention from torch's own operations: what runs where no kernel does."""

import torch
import torch.nn.functional as F
from torch import Tensor

from videolm_kernels.sdpa import attend_in_chunks


def temporal_attention_eager(
    qkv: Tensor,
    *,
    lengths: Tensor | None,
    time_bias: Tensor | None,
    shared_key_value: Tensor | None,
    is_causal: bool,
    num_skipped: int,
) -> Tensor:
    """Attention over T at each token index n, in the dtype of `qkv`; the formula is reference.py's."""
    batch, num_frames, num_tokens = qkv.shape[:3]
    query, key, value = qkv[:, :, num_skipped:].permute(3, 0, 2, 4, 1, 5)  # each (B, N, H, T, Dh)
    exists = bias = None
    frame = torch.arange(num_frames, device=qkv.device)
    if time_bias is not None:
        bias = time_bias[:, frame[:, None] - frame[None, :] + num_frames - 1].to(qkv.dtype)[None, None]
    if is_causal:
        bias = _hide(bias, frame[:, None] < frame[None, :], qkv)
    if lengths is not None:
        exists = frame < lengths[:, None]
        bias = _hide(bias, ~exists[:, None, None, None, :], qkv)
        # The row of a missing frame is thrown away; if it saw nothing it would be NaN before, also in its gradient.
        bias = bias.masked_fill(~exists[:, None, None, :, None], 0)
    if shared_key_value is not None:
        shared_key, shared_value = shared_key_value[:, :, None, :, None].unbind(dim=1)
        per_token = (batch, num_tokens - num_skipped, -1, -1, -1)
        key = torch.cat([shared_key.expand(per_token), key], dim=-2)
        value = torch.cat([shared_value.expand(per_token), value], dim=-2)
        bias = None if bias is None else F.pad(bias, (1, 0))

    attend = _attend_by_products if _are_products_faster(query, key, bias) else _attend_by_sdpa
    out = attend(query, key, value, bias).permute(0, 3, 1, 2, 4)
    if exists is not None:
        out = out.masked_fill(~exists[:, :, None, None, None], 0)
    return F.pad(out, (0, 0, 0, 0, num_skipped, 0)) if num_skipped else out


def _hide(bias: Tensor | None, is_hidden: Tensor, like: Tensor) -> Tensor:
    if bias is None:
        bias = like.new_zeros((1,) * (5 - is_hidden.ndim) + is_hidden.shape)
    return bias.masked_fill(is_hidden, -torch.inf)


# A problem is one position of T frames, too small for the tiles of scaled_dot_product_attention on a CPU. Its
# time over that of plain products on one core with AVX512-BF16 (torch 2.13), at (B, T, N, H, Dh) =
# (1, 12, 197, 12, 64), (1, 12, 50, 12, 64) and (32, 8, 17, 4, 48), without a mask:
#   float32   forward 0.5, 0.6, 0.8   with backward 1.1, 1.0, 1.2
#   bfloat16  forward 1.2, 1.2, 1.7   with backward 7.2, 7.8, 2.3
# and about 0.2 more with one. Without the permutation, on strided views, it takes longer in nearly every case.
def _are_products_faster(*inputs: Tensor | None) -> bool:
    tensors = [tensor for tensor in inputs if tensor is not None]
    if tensors[0].device.type != "cpu":
        return False
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return needs_gradient or tensors[0].dtype in (torch.bfloat16, torch.float16)


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    attended: Tensor = scores.softmax(dim=-1) @ value
    return attended


def _attend_by_sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    batch, num_tokens = query.shape[:2]
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    if bias is not None:
        bias = bias.expand(batch, num_tokens, *bias.shape[2:]).flatten(0, 1)
    attended = attend_in_chunks(query, key, value, bias)
    return attended.view(batch, num_tokens, *attended.shape[1:])
