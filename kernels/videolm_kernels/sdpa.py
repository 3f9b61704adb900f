"""torch's own attention, for any number of sequences."""

import torch
import torch.nn.functional as F
from torch import Tensor

# The kernels behind scaled_dot_product_attention take no more on CUDA: it is the limit of a grid's second axis.
MAX_SEQUENCES = 65_535


def attend_in_chunks(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, is_causal: bool = False
) -> Tensor:
    """scaled_dot_product_attention on (sequences, H, tokens, Dh), at most MAX_SEQUENCES at once."""
    # Not one chunk by the loop: torch.compile would make a graph for every number of sequences.
    if len(query) <= MAX_SEQUENCES:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=is_causal)
    chunks = [slice(start, start + MAX_SEQUENCES) for start in range(0, len(query), MAX_SEQUENCES)]
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                query[chunk],
                key[chunk],
                value[chunk],
                attn_mask=None if bias is None else bias[chunk],
                is_causal=is_causal,
            )
            for chunk in chunks
        ]
    )
