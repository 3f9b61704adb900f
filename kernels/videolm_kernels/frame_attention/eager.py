"""Frame attention from torch's own operations: what runs where no kernel does."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from videolm_kernels.sdpa import attend_in_chunks


def frame_attention_eager(qkv: Tensor, log2_sizes: Tensor | None) -> Tensor:
    """Attention among the tokens of a frame, in the dtype of `qkv`; the formula is reference.py's."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    bias = None
    if log2_sizes is not None:
        exact = log2_sizes.to(torch.promote_types(log2_sizes.dtype, qkv.dtype))
        bias = (exact * math.log(2))[:, None, None, :]
    return attend(query, key, value, bias=bias, is_causal=False).transpose(1, 2)


# Pooling's time over that of `mean` on two cores (torch 2.13), for 12 frames of 197 and 50 tokens and 96 of 17 that are
# in no cache: 0.8, 0.8 and 0.6 in bfloat16, where `mean` makes a float32 copy, 0.95, 0.95 and 0.85 in float32; within a
# ViT-B/16 in bfloat16 0.5.
def mean_key_eager(qkv: Tensor) -> Tensor:
    """Mean of the keys over the heads, summed in float32, without gradient."""
    num_frames, num_tokens, _, num_heads, head_dim = qkv.shape
    qkv = qkv.detach()
    is_eager_on_cpu = qkv.device.type == "cpu" and not torch.compiler.is_compiling()
    if not (is_eager_on_cpu and qkv.is_contiguous() and qkv.numel()):
        return qkv[:, :, 1].mean(dim=2)
    # One tall picture, a pixel for each head of each query, key and value, pooled where the keys are.
    pixels = qkv.view(1, num_frames * num_tokens * 3 * num_heads, 1, head_dim)[:, num_heads:]
    mean = F.avg_pool2d(pixels.permute(0, 3, 1, 2), (num_heads, 1), stride=(3 * num_heads, 1))
    return mean.permute(0, 2, 3, 1).reshape(num_frames, num_tokens, head_dim)


def attend(query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, is_causal: bool) -> Tensor:
    """Scaled dot-product attention on (sequences, H, tokens, Dh), with a bias on the keys or causal, not both.

    `bias` (sequences, 1, 1, tokens) is added to the scores; a key with -inf is not seen, and a sequence in which
    no key is seen gives zeros. `is_causal` hides later tokens.
    """
    if bias is not None and is_causal:
        raise ValueError("attend takes a bias or is_causal, not both")
    if bias is None:
        return _attend(query, key, value, None, is_causal)
    is_seen = (bias > -torch.inf).any(dim=-1, keepdim=True)
    # Low, but finite with any score added: a softmax over nothing but -inf is not a number.
    bias = bias.to(query.dtype).clamp(min=torch.finfo(query.dtype).min / 2)
    attended = _attend(query, key, value, bias, False)
    # A CPU can look, and nearly always spare itself a pass.
    if query.device.type == "cpu" and not torch.compiler.is_compiling() and bool(is_seen.all()):
        return attended
    return attended * is_seen.to(query.dtype)


# In bfloat16 on a CPU plain products win. SDPA's time over theirs on one core with AVX-512 and bfloat16
# instructions (torch 2.13), forward and forward + backward, at (sequences, H, tokens, Dh): 2.2 and 3.1 for
# (12, 12, 197, 64), 1.7 and 6.3 for (12, 12, 50, 64), 1.7 and 7.4 for (256, 4, 17, 48). In float32 SDPA takes
# 0.5 to 1.0 of their time forward, and 0.9 to 1.3 with the backward pass.
def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, is_causal: bool) -> Tensor:
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _attend_by_products(query, key, value, bias, is_causal)
    return attend_in_chunks(query, key, value, bias, is_causal=is_causal)


def _padding(num_keys: int) -> int:
    """Keys to add so that a row of scores is a multiple of 32 numbers, where that is faster than the row itself.

    Forward on one core, time with over without: 0.7 for 189 keys, 0.8 for 173 and 149, 0.75 for 50, 0.9 for 17;
    1.0 to 1.1 for 197, 5 more than a multiple.
    """
    return -num_keys % 32 if num_keys % 32 > 8 else 0


def _padded(part: Tensor, padding: int) -> Tensor:
    """(sequences, H, tokens, Dh) as (sequences * H, tokens + padding, Dh), zeros behind.

    `F.pad` fills the whole with zeros first, and copies a part that it adds nothing to.
    """
    if padding:
        sequences, heads, _, head_dim = part.shape
        part = torch.cat([part, part.new_zeros(sequences, heads, padding, head_dim)], dim=2)
    return part.flatten(0, 1)


def _attend_by_products(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, is_causal: bool
) -> Tensor:
    sequences, heads, num_queries, head_dim = query.shape
    num_keys = key.shape[2]
    padding = _padding(num_keys)
    query, key, value = query.flatten(0, 1), _padded(key, padding), _padded(value, padding)
    # Scale and bias ride along with the product. As passes of their own they cost a tenth to a quarter more.
    if bias is not None:
        added = F.pad(bias, (0, padding), value=-torch.inf).expand(-1, heads, -1, -1).flatten(0, 1)
    elif is_causal:
        added = query.new_full((num_queries, num_keys + padding), -torch.inf).triu(1)
    else:
        added = F.pad(query.new_zeros(1, num_keys), (0, padding), value=-torch.inf)
    beta = 0 if bias is None and not is_causal and not padding else 1
    scores = torch.baddbmm(added, query, key.transpose(1, 2), beta=beta, alpha=head_dim**-0.5)
    attended: Tensor = scores.softmax(dim=-1) @ value
    return attended.view(sequences, heads, num_queries, head_dim)
