"""Temporal attention: checks and the choice of the implementation."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from videolm_kernels.backend import Backend, choose_backend
from videolm_kernels.temporal_attention.eager import temporal_attention_eager
from videolm_kernels.temporal_attention.reference import temporal_attention_reference

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def temporal_attention(
    qkv: Float[Tensor, "batch frames tokens 3 heads head_dim"],
    *,
    lengths: Int[Tensor, " batch"] | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "batch frames tokens heads head_dim"]:
    """Attention over the frames at each token index, read from packed query, key and value.

    Scores are scaled by 1 / sqrt(head_dim). Frames t >= lengths[b] do not exist: nobody attends to them and
    their own rows are zero, so a clip of length 0 is all zeros. The strides of `qkv` are free. "reference"
    computes in float32 whatever the dtype; "eager" stays in the dtype of `qkv`.

    Source: the time step of divided space-time attention, arXiv 2102.05095, section 3.
    """
    if qkv.ndim != 6 or qkv.shape[3] != 3:
        raise ValueError(f"qkv must be (B, T, N, 3, H, Dh), got {tuple(qkv.shape)}")
    if qkv.dtype not in _DTYPES:
        raise TypeError(f"qkv must be float64, float32, float16 or bfloat16, got {qkv.dtype}")
    if lengths is not None:
        _check_lengths(lengths, qkv)
    choice = choose_backend("temporal_attention", backend=backend, device=qkv.device)
    if choice.backend == "reference":
        return temporal_attention_reference(qkv, lengths)
    return temporal_attention_eager(qkv, lengths)


def _check_lengths(lengths: Tensor, qkv: Tensor) -> None:
    """The shape alone: reading the values would make the host wait for the device in every layer."""
    if lengths.shape != qkv.shape[:1]:
        raise ValueError(f"lengths must hold one number a clip ({qkv.shape[0]},), got {tuple(lengths.shape)}")
    if lengths.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"lengths must be int32 or int64, got {lengths.dtype}")
    if lengths.device != qkv.device:
        raise ValueError(f"lengths is on {lengths.device} but qkv is on {qkv.device}; move one of them")
