"""Token merging: checks, the choice of the implementation, and the kernels as operations of torch."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from videolm_kernels.backend import Backend, choose_backend, without_autocast
from videolm_kernels.token_merging.eager import match_tokens_eager, merge_tokens_eager
from videolm_kernels.token_merging.match import Match, max_merged
from videolm_kernels.token_merging.reference import match_tokens_reference, merge_tokens_reference

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def match_tokens(
    metric: Float[Tensor, "batch tokens channels"],
    num_merged: int,
    num_protected: int = 0,
    *,
    backend: Backend = "auto",
) -> Match:
    """Choose the `num_merged` tokens of each sequence that join the token most like them.

    Even token indices are set a, odd ones set b, both without the first `num_protected`. Each a is matched with
    the b of highest cosine, and the num_merged a's of highest cosine are merged away; ties go to the lowest
    index, and a cosine that is NaN counts as the lowest. Several a's may join one b. No gradient goes through.

    Source: bipartite soft matching, arXiv 2210.09461, section 3.
    """
    _check_metric(metric, num_merged, num_protected)
    metric = metric.detach()
    choice = choose_backend(
        "match_tokens", backend=backend, device=metric.device, cannot=_cannot("metric", metric)
    )
    if choice.backend == "triton":
        return Match(*_match_op(metric, num_merged, num_protected))
    match = match_tokens_reference if choice.backend == "reference" else match_tokens_eager
    with without_autocast(metric.device):
        return match(metric, num_merged, num_protected)


def merge_tokens(
    tokens: Float[Tensor, "batch tokens width"],
    sizes: Float32[Tensor, "batch tokens"] | None,
    match: Match,
    *,
    residual: Float[Tensor, "batch tokens width"] | None = None,
    weights: Float32[Tensor, "batch tokens"] | None = None,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "batch kept width"], Float32[Tensor, "batch kept"]]:
    """Weighted mean of the tokens of every group of `match`, and the sums of their sizes.

    Row o is Σ w x / Σ w over its group, with x = tokens + residual and w = sizes * weights; without sizes each
    token counts 1, and a group whose Σ w is 0 keeps the value of the token that remains. Weights must be finite: a
    NaN makes its whole group NaN, and of a group of one token only in some backends. Sums are kept in float32
    (float64 for float64 tokens). The gradient reaches tokens and residual; sizes and weights have none.

    Sources: arXiv 2210.09461 (sizes), arXiv 2403.13347 (vid-TLDR: saliency as `weights`).
    """
    _check_tokens(tokens, match)
    _check_beside(tokens, sizes=sizes, residual=residual, weights=weights)
    sizes = None if sizes is None else sizes.detach()
    weights = None if weights is None else weights.detach()
    choice = choose_backend(
        "merge_tokens", backend=backend, device=tokens.device, cannot=_cannot("tokens", tokens)
    )
    if choice.backend == "triton":
        indices = (match.src_idx, match.dst_idx, match.keep_idx, match.assignment)
        merged, new_sizes, _ = _merge_op(tokens, sizes, residual, weights, *indices)
        return merged, new_sizes.detach()
    merge = merge_tokens_reference if choice.backend == "reference" else merge_tokens_eager
    with without_autocast(tokens.device):
        return merge(tokens, sizes, match, residual, weights)


def unmerge_tokens(
    merged: Float[Tensor, "batch kept width"], match: Match
) -> Float[Tensor, "batch tokens width"]:
    """Give every token the output row that it went into: the inverse of merging where tokens of a group are equal."""
    batch, num_kept = match.keep_idx.shape
    if merged.ndim != 3 or merged.shape[:2] != (batch, num_kept):
        raise ValueError(f"merged must be ({batch}, {num_kept}, D) for this match, got {tuple(merged.shape)}")
    rows = match.assignment + torch.arange(batch, device=merged.device)[:, None] * num_kept
    width = merged.shape[2]
    return merged.reshape(batch * num_kept, width).index_select(0, rows.flatten()).view(*rows.shape, width)


def _check_metric(metric: Tensor, num_merged: int, num_protected: int) -> None:
    if metric.ndim != 3:
        raise ValueError(f"metric must be (B, N, C), got {tuple(metric.shape)}")
    if metric.dtype not in _DTYPES:
        raise TypeError(f"metric must be float64, float32, float16 or bfloat16, got {metric.dtype}")
    num_tokens = metric.shape[1]
    if not 0 <= num_protected <= num_tokens:
        raise ValueError(
            f"num_protected ({num_protected}) must be from 0 to the {num_tokens} tokens of metric"
        )
    most = max_merged(num_tokens, num_protected)
    if not 0 <= num_merged <= most:
        raise ValueError(
            f"num_merged ({num_merged}) must be from 0 to {most}, the most that {num_tokens} tokens with "
            f"{num_protected} protected can lose; max_merged gives that number"
        )


def _check_tokens(tokens: Tensor, match: Match) -> None:
    if tokens.ndim != 3 or tokens.shape[:2] != match.assignment.shape:
        batch, num_tokens = match.assignment.shape
        raise ValueError(
            f"tokens must be ({batch}, {num_tokens}, D) for this match, got {tuple(tokens.shape)}"
        )
    if tokens.dtype not in _DTYPES:
        raise TypeError(f"tokens must be float64, float32, float16 or bfloat16, got {tokens.dtype}")
    if match.assignment.device != tokens.device:
        raise ValueError(
            f"match is on {match.assignment.device} but tokens is on {tokens.device}; move one of them"
        )


def _check_beside(
    tokens: Tensor, *, sizes: Tensor | None, residual: Tensor | None, weights: Tensor | None
) -> None:
    """Residual of any floating dtype: under autocast the update of a float32 stream is in 16 bits."""
    for name, tensor, shape, dtypes in (
        ("sizes", sizes, tokens.shape[:2], (torch.float32,)),
        ("residual", residual, tokens.shape, _DTYPES),
        ("weights", weights, tokens.shape[:2], (torch.float32,)),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {tuple(shape)} beside these tokens, got {tuple(tensor.shape)}")
        if tensor.dtype not in dtypes:
            allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise TypeError(f"{name} must be {allowed}, got {tensor.dtype}")
        if tensor.device != tokens.device:
            raise ValueError(
                f"{name} is on {tensor.device} but tokens is on {tokens.device}; move one of them"
            )


def _cannot(name: str, tensor: Tensor) -> str:
    if tensor.dtype == torch.float64:
        return f"the kernel computes in float32, and {name} is float64"
    return ""


@torch.library.custom_op("videolm::match_tokens", mutates_args=())
def _match_op(metric: Tensor, num_merged: int, num_protected: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of a Match."""
    from videolm_kernels.token_merging.fused_match import match_tokens_forward

    return match_tokens_forward(metric, num_merged, num_protected)


@torch.library.custom_op("videolm::merge_tokens", mutates_args=())
def _merge_op(
    tokens: Tensor,
    sizes: Tensor | None,
    residual: Tensor | None,
    weights: Tensor | None,
    src_idx: Tensor,
    dst_idx: Tensor,
    keep_idx: Tensor,
    assignment: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merged tokens, their sizes, the sums of their weights; `assignment` is there for the backward pass."""
    from videolm_kernels.token_merging.fused_merge import merge_tokens_forward

    return merge_tokens_forward(tokens, sizes, residual, weights, src_idx, dst_idx, keep_idx)


@torch.library.custom_op("videolm::merge_tokens_backward", mutates_args=())
def _merge_backward_op(
    grad_merged: Tensor,
    sizes: Tensor | None,
    weights: Tensor | None,
    totals: Tensor,
    keep_idx: Tensor,
    assignment: Tensor,
) -> Tensor:
    from videolm_kernels.token_merging.fused_merge import merge_tokens_backward

    return merge_tokens_backward(grad_merged, sizes, weights, totals, keep_idx, assignment)


@_match_op.register_fake
def _(metric, num_merged, num_protected):  # type: ignore[no-untyped-def]
    batch, num_tokens, _ = metric.shape
    counts = (num_merged, num_merged, num_tokens - num_merged, num_tokens)
    return tuple(metric.new_empty(batch, count, dtype=torch.int32) for count in counts)


@_merge_op.register_fake
def _(tokens, sizes, residual, weights, src_idx, dst_idx, keep_idx, assignment):  # type: ignore[no-untyped-def]
    new_sizes, totals = (tokens.new_empty(keep_idx.shape, dtype=torch.float32) for _ in range(2))
    return tokens.new_empty(*keep_idx.shape, tokens.shape[2]), new_sizes, totals


@_merge_backward_op.register_fake
def _(grad_merged, sizes, weights, totals, keep_idx, assignment):  # type: ignore[no-untyped-def]
    return grad_merged.new_empty(*assignment.shape, grad_merged.shape[2])


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, sizes, residual, weights, _, _, keep_idx, assignment = inputs
    ctx.save_for_backward(sizes, weights, output[2], keep_idx, assignment)
    ctx.residual_dtype = None if residual is None else residual.dtype


def _differentiate(ctx, grad_merged, grad_sizes, grad_totals):  # type: ignore[no-untyped-def]
    grad_tokens = _merge_backward_op(grad_merged, *ctx.saved_tensors)
    grad_residual = None if ctx.residual_dtype is None else grad_tokens.to(ctx.residual_dtype)
    return grad_tokens, None, grad_residual, None, None, None, None, None


_merge_op.register_autograd(_differentiate, setup_context=_save)
