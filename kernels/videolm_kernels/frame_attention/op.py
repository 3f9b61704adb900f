"""Frame attention: checks, the choice of the implementation, and the kernel as an operation of torch."""

import torch
from jaxtyping import Float
from torch import Tensor

from videolm_kernels.backend import Backend, choose_backend, without_autocast
from videolm_kernels.frame_attention.eager import frame_attention_eager, mean_key_eager
from videolm_kernels.frame_attention.reference import frame_attention_reference

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_MAX_HEAD_DIM = 128


def frame_attention(
    qkv: Float[Tensor, "frames tokens 3 heads head_dim"],
    log2_sizes: Float[Tensor, "frames tokens"] | None = None,
    *,
    with_mean_key: bool = False,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "frames tokens heads head_dim"], Float[Tensor, "frames tokens head_dim"] | None]:
    """Attention among the tokens of each frame, and the head-mean key that token merging compares tokens by.

    Scores are scaled by 1 / sqrt(head_dim). `log2_sizes`, float32 or in the dtype of `qkv`, is the base-2
    logarithm of how many tokens each key stands for: its natural logarithm is added to the key's scores. A key
    with -inf is seen by nobody; a frame in which no key is seen is zero and passes no gradient. The mean key is
    None unless asked for, summed in float32 and rounded to the dtype of `qkv`. Neither it nor the sizes have a
    gradient. The strides of `qkv` are free. "reference" computes in float32 whatever the dtype; "eager" stays
    in the dtype of `qkv`, "triton" keeps scores and sums in float32.

    Source: proportional attention, arXiv 2210.09461, section 3.
    """
    _check(qkv, log2_sizes)
    log2_sizes = None if log2_sizes is None else log2_sizes.detach()
    choice = choose_backend(
        "frame_attention",
        backend=backend,
        device=qkv.device,
        cannot=_cannot(qkv),
        slower=_slower(qkv, log2_sizes),
    )
    mean_key: Tensor | None
    if choice.backend == "triton":
        out, _, mean_key = _forward_op(qkv, log2_sizes, with_mean_key)
    else:
        # Autocast would multiply in 16 bits what came in float32.
        with without_autocast(qkv.device):
            if choice.backend == "reference":
                out, mean_key = frame_attention_reference(qkv, log2_sizes)
            else:
                out = frame_attention_eager(qkv, log2_sizes)
                mean_key = mean_key_eager(qkv) if with_mean_key else None
    return out, mean_key if with_mean_key else None


def _check(qkv: Tensor, log2_sizes: Tensor | None) -> None:
    """Shapes and types alone: reading values would make the host wait for the device in every layer."""
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be (F, N, 3, H, Dh), got {tuple(qkv.shape)}")
    if 0 in qkv.shape[3:]:
        raise ValueError(f"qkv must have heads, and heads a width, got (F, N, 3, H, Dh) = {tuple(qkv.shape)}")
    if qkv.dtype not in _DTYPES:
        raise TypeError(f"qkv must be float64, float32, float16 or bfloat16, got {qkv.dtype}")
    if log2_sizes is None:
        return
    if log2_sizes.shape != qkv.shape[:2]:
        expected = tuple(qkv.shape[:2])
        raise ValueError(f"log2_sizes must be (F, N), here {expected}, got {tuple(log2_sizes.shape)}")
    if log2_sizes.dtype not in (torch.float32, qkv.dtype):
        raise TypeError(f"log2_sizes must be float32 or {qkv.dtype} as qkv, got {log2_sizes.dtype}")
    if log2_sizes.device != qkv.device:
        raise ValueError(f"log2_sizes is on {log2_sizes.device} but qkv is on {qkv.device}; move one of them")


def _cannot(qkv: Tensor) -> str:
    if qkv.dtype == torch.float64:
        return "the kernel computes in float32, and qkv is float64"
    if qkv.shape[-1] > _MAX_HEAD_DIM:
        return f"the kernel takes heads up to {_MAX_HEAD_DIM} wide, not {qkv.shape[-1]}"
    return ""


def _slower(qkv: Tensor, log2_sizes: Tensor | None) -> str:
    if log2_sizes is None:
        return "without sizes scaled_dot_product_attention needs no bias and is as good"
    if qkv.dtype == torch.float32:
        return "in float32 the kernel has no tensor cores to multiply with"
    return ""


@torch.library.custom_op("videolm::frame_attention", mutates_args=())
def _forward_op(qkv: Tensor, log2_sizes: Tensor | None, with_mean_key: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp in base 2, mean key: the last without elements where it is not asked for."""
    from videolm_kernels.frame_attention.fused_forward import frame_attention_forward

    return frame_attention_forward(qkv, log2_sizes, with_mean_key=with_mean_key)


@torch.library.custom_op("videolm::frame_attention_backward", mutates_args=())
def _backward_op(grad: Tensor, qkv: Tensor, log2_sizes: Tensor | None, out: Tensor, lse: Tensor) -> Tensor:
    from videolm_kernels.frame_attention.fused_backward import frame_attention_backward

    return frame_attention_backward(grad, qkv, log2_sizes, out, lse)


@_forward_op.register_fake
def _(qkv, log2_sizes, with_mean_key):  # type: ignore[no-untyped-def]
    num_frames, num_tokens, _, num_heads, head_dim = qkv.shape
    return (
        qkv.new_empty(num_frames, num_tokens, num_heads, head_dim),
        qkv.new_empty(num_frames, num_heads, num_tokens, dtype=torch.float32),
        qkv.new_empty(num_frames, num_tokens, head_dim if with_mean_key else 0),
    )


@_backward_op.register_fake
def _(grad, qkv, log2_sizes, out, lse):  # type: ignore[no-untyped-def]
    return qkv.new_empty(qkv.shape)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    qkv, log2_sizes, _ = inputs
    out, lse, mean_key = output
    ctx.save_for_backward(qkv, log2_sizes, out, lse)
    ctx.mark_non_differentiable(lse, mean_key)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, grad_lse, grad_mean_key):  # type: ignore[no-untyped-def]
    return _backward_op(grad, *ctx.saved_tensors), None, None


_forward_op.register_autograd(_differentiate, setup_context=_save)
