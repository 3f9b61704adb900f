"""Temporal attention: checks, the choice of the implementation, and the kernel as an operation of torch."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from videolm_kernels.backend import Backend, choose_backend, without_autocast
from videolm_kernels.temporal_attention.eager import temporal_attention_eager
from videolm_kernels.temporal_attention.reference import temporal_attention_reference

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# By head width. In float32 a thread holds its operands in registers, and more frames would not fit.
_MAX_FRAMES = {16: 128, 32: 128, 64: 128, 128: 128}
_MAX_FRAMES_FLOAT32 = {16: 64, 32: 64, 64: 64, 128: 32}
# Above it scaled_dot_product_attention should win: its tiles are then full as well, and the kernel's of 128 rows take
# more registers than a thread has. A prediction from counted bytes and machine code, not yet measured.
_MAX_FASTER_FRAMES = 64


def temporal_attention(
    qkv: Float[Tensor, "batch frames tokens 3 heads head_dim"],
    *,
    lengths: Int[Tensor, " batch"] | None = None,
    time_bias: Float[Tensor, "heads distances"] | None = None,
    shared_key_value: Float[Tensor, "batch 2 heads head_dim"] | None = None,
    is_causal: bool = False,
    num_skipped: int = 0,
    backend: Backend = "auto",
) -> Float[Tensor, "batch frames tokens heads head_dim"]:
    """Attention over the frames at each token index, read from packed query, key and value.

    Scores are scaled by 1 / sqrt(head_dim). Every option goes with every other and has a gradient where it is
    a floating-point tensor:

    - `lengths`: frames t >= lengths[b] do not exist: nobody attends to them and their own rows are zero, so a
      clip of length 0 is all zeros; what stands in them must be finite, since "eager" multiplies it by zero;
    - `time_bias`, (H, 2T - 1) in float32 or the dtype of `qkv`: time_bias[h, t - s + T - 1] is added to the scaled
      score of query frame t and key frame s; -inf hides the pair, but a row must be left something to see;
    - `shared_key_value`: one more key and value of each clip, without bias, that every row sees whatever the
      lengths and causality, as the class token of Frozen in Time (arXiv 2104.00650);
    - `is_causal`: frame t sees the frames s <= t;
    - `num_skipped`: the first tokens of every frame take no part, and their rows are zero.

    The strides of `qkv` are free. "reference" computes in float32 whatever the dtype; "eager" stays in the
    dtype of `qkv`, "triton" keeps scores and sums in float32.

    Source: the time step of divided space-time attention, arXiv 2102.05095, section 3.
    """
    _check(qkv, lengths, time_bias, shared_key_value, num_skipped)
    choice = choose_backend(
        "temporal_attention", backend=backend, device=qkv.device, cannot=_cannot(qkv), slower=_slower(qkv)
    )
    if choice.backend == "triton":
        out: Tensor = _forward_op(qkv, lengths, time_bias, shared_key_value, is_causal, num_skipped)
        return out
    attend = temporal_attention_reference if choice.backend == "reference" else temporal_attention_eager
    with without_autocast(qkv.device):
        return attend(
            qkv,
            lengths=lengths,
            time_bias=time_bias,
            shared_key_value=shared_key_value,
            is_causal=is_causal,
            num_skipped=num_skipped,
        )


def _check(
    qkv: Tensor,
    lengths: Tensor | None,
    time_bias: Tensor | None,
    shared_key_value: Tensor | None,
    num_skipped: int,
) -> None:
    """Shapes and types alone: reading values would make the host wait for the device in every layer."""
    if qkv.ndim != 6 or qkv.shape[3] != 3:
        raise ValueError(f"qkv must be (B, T, N, 3, H, Dh), got {tuple(qkv.shape)}")
    if qkv.dtype not in _DTYPES:
        raise TypeError(f"qkv must be float64, float32, float16 or bfloat16, got {qkv.dtype}")
    batch, num_frames, num_tokens, _, num_heads, head_dim = qkv.shape
    if head_dim == 0:
        raise ValueError(f"the heads of qkv must be at least 1 wide, got {tuple(qkv.shape)}")
    if not 0 <= num_skipped <= num_tokens:
        raise ValueError(
            f"num_skipped ({num_skipped}) must be between 0 and the {num_tokens} tokens of a frame"
        )
    if lengths is not None:
        if lengths.shape != (batch,):
            raise ValueError(f"lengths must hold one number a clip ({batch},), got {tuple(lengths.shape)}")
        if lengths.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"lengths must be int32 or int64, got {lengths.dtype}")
    if time_bias is not None:
        if time_bias.shape != (num_heads, max(2 * num_frames - 1, 0)):
            raise ValueError(
                f"time_bias must be (H, 2T - 1), here ({num_heads}, {2 * num_frames - 1}), got "
                f"{tuple(time_bias.shape)}"
            )
        if time_bias.dtype not in (torch.float32, qkv.dtype):
            raise TypeError(f"time_bias must be float32 or {qkv.dtype} as qkv, got {time_bias.dtype}")
    if shared_key_value is not None:
        if shared_key_value.shape != (batch, 2, num_heads, head_dim):
            raise ValueError(
                f"shared_key_value must be (B, 2, H, Dh), here {(batch, 2, num_heads, head_dim)}, got "
                f"{tuple(shared_key_value.shape)}"
            )
        if shared_key_value.dtype != qkv.dtype:
            raise TypeError(f"shared_key_value must be {qkv.dtype} as qkv, got {shared_key_value.dtype}")
    named = (("lengths", lengths), ("time_bias", time_bias), ("shared_key_value", shared_key_value))
    for name, tensor in named:
        if tensor is not None and tensor.device != qkv.device:
            raise ValueError(f"{name} is on {tensor.device} but qkv is on {qkv.device}; move one of them")


def _cannot(qkv: Tensor) -> str:
    num_frames, head_dim = qkv.shape[1], qkv.shape[5]
    if qkv.dtype == torch.float64:
        return "the kernel computes in float32, and qkv is float64"
    if head_dim not in _MAX_FRAMES:
        return f"the kernel knows the head widths {', '.join(map(str, _MAX_FRAMES))}, not {head_dim}"
    max_frames = (_MAX_FRAMES_FLOAT32 if qkv.dtype == torch.float32 else _MAX_FRAMES)[head_dim]
    if not 1 <= num_frames <= max_frames:
        return f"the kernel takes 1 to {max_frames} frames in {qkv.dtype} at head width {head_dim}, not {num_frames}"
    return ""


def _slower(qkv: Tensor) -> str:
    if qkv.shape[1] <= _MAX_FASTER_FRAMES:
        return ""
    return f"{qkv.shape[1]} frames fill the tiles of scaled_dot_product_attention"


@torch.library.custom_op("videolm::temporal_attention", mutates_args=())
def _forward_op(
    qkv: Tensor,
    lengths: Tensor | None,
    time_bias: Tensor | None,
    shared_key_value: Tensor | None,
    is_causal: bool,
    num_skipped: int,
) -> Tensor:
    from videolm_kernels.temporal_attention.fused import temporal_attention_forward

    return temporal_attention_forward(qkv, lengths, time_bias, shared_key_value, is_causal, num_skipped)


@torch.library.custom_op("videolm::temporal_attention_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    qkv: Tensor,
    lengths: Tensor | None,
    time_bias: Tensor | None,
    shared_key_value: Tensor | None,
    is_causal: bool,
    num_skipped: int,
    needs_bias: bool,
    needs_shared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, time_bias and shared_key_value, the last two float32; empty where it is not needed."""
    from videolm_kernels.temporal_attention.fused import temporal_attention_backward

    return temporal_attention_backward(
        grad, qkv, lengths, time_bias, shared_key_value, is_causal, num_skipped,
        needs_bias=needs_bias, needs_shared=needs_shared,
    )  # fmt: skip


@_forward_op.register_fake
def _forward_fake(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])


@_backward_op.register_fake
def _backward_fake(
    grad: Tensor,
    qkv: Tensor,
    lengths: Any,
    time_bias: Tensor | None,
    shared_key_value: Tensor | None,
    is_causal: bool,
    num_skipped: int,
    needs_bias: bool,
    needs_shared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_bias, grad_shared = (
        given.new_empty(given.shape, dtype=torch.float32)
        if given is not None and is_needed
        else qkv.new_empty(0)
        for given, is_needed in ((time_bias, needs_bias), (shared_key_value, needs_shared))
    )
    return qkv.new_empty(qkv.shape), grad_bias, grad_shared


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, lengths, time_bias, shared_key_value = ctx.saved_tensors
    needs = ctx.needs_input_grad[2], ctx.needs_input_grad[3]
    grad_qkv, grad_bias, grad_shared = _backward_op(
        grad, qkv, lengths, time_bias, shared_key_value, *ctx.options, *needs
    )
    return (
        grad_qkv,
        None,
        grad_bias.to(time_bias.dtype) if needs[0] else None,
        grad_shared.to(shared_key_value.dtype) if needs[1] else None,
        None,
        None,
    )


_forward_op.register_autograd(_differentiate, setup_context=_save)
