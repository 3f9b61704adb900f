"""Temporal attention from torch's own operations: what runs where no kernel does."""

import torch
from torch import Tensor


# Plain products instead of scaled_dot_product_attention: a problem is one position of T frames, too small for
# SDPA's tiles. SDPA's time over this one's, forward + backward on one CPU core with AMX (torch 2.13), at
# (B, T, N, H, Dh) = (32, 8, 17, 4, 48) and (1, 12, 50, 12, 64): float32 1.2 and 1.1, bfloat16 1.6 and 1.8.
# On CUDA, SDPA also refuses more than 65,535 sequences (B * N).
def temporal_attention_eager(qkv: Tensor, lengths: Tensor | None) -> Tensor:
    """Attention over T at each token index n, in the dtype of `qkv`; the formula is reference.py's."""
    num_frames, head_dim = qkv.shape[1], qkv.shape[5]
    query, key, value = qkv.permute(3, 0, 2, 4, 1, 5)  # each (B, N, H, T, Dh)
    scores = (query * head_dim**-0.5) @ key.transpose(-1, -2)
    if lengths is None:
        attended: Tensor = scores.softmax(dim=-1) @ value
        return attended.permute(0, 3, 1, 2, 4)

    exists = torch.arange(num_frames, device=qkv.device) < lengths[:, None]
    # The lowest finite value, not -inf: a clip without frames would give NaN in the backward pass.
    scores = scores.masked_fill(~exists[:, None, None, None, :], torch.finfo(qkv.dtype).min)
    attended = scores.softmax(dim=-1) @ value
    return attended.permute(0, 3, 1, 2, 4).masked_fill(~exists[:, :, None, None, None], 0)
