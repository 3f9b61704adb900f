"""Token merging from torch's own operations: what runs where no kernel does."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from videolm_kernels.token_merging.match import Match, sets

# Compiled, a sum over all sources of which some count (r² D) beats r D atomic additions as far as about this r. Its
# time over theirs for a merge of 12 frames in bfloat16 on two cores: 0.4 for r = 16, 0.7 for 64, 0.9 for 98 of 197
# tokens and for 128 of 600, 1.9 for 256.
_MOST_SUMMED = 128


@torch.no_grad()
def match_tokens_eager(metric: Tensor, num_merged: int, num_protected: int) -> Match:
    """Bipartite soft matching by cosine, scores in float32 (float64 for float64 input)."""
    batch, num_tokens, _ = metric.shape
    first_a, first_b, num_a, num_b = sets(num_tokens, num_protected)
    index = torch.arange(num_tokens, device=metric.device)
    set_b = index[first_b::2]
    num_left = num_a - num_merged
    if num_merged:
        unit = F.normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=2)
        scores = unit[:, first_a::2] @ unit[:, first_b::2].transpose(1, 2)
        scores = scores.nan_to_num_(nan=-torch.inf)
        by_score = scores.amax(dim=2).sort(dim=1, descending=True, stable=True).indices
        chosen = by_score[:, :num_merged]
        left = by_score[:, num_merged:].sort(dim=1).values
        # Who the partner is matters for the chosen rows alone, and argmax takes longer than amax does.
        partner = scores.gather(1, chosen[:, :, None].expand(-1, -1, num_b)).argmax(dim=2)
        key = (partner * num_a + chosen).sort(dim=1).values
        partner, chosen = key // num_a, key % num_a
    else:
        left = index[:num_a].expand(batch, -1)
        partner = chosen = left[:, :0]

    src_idx, dst_idx = first_a + 2 * chosen, first_b + 2 * partner
    keep_idx = torch.cat(
        [index[:num_protected].expand(batch, -1), first_a + 2 * left, set_b.expand(batch, -1)], dim=1
    )
    assignment = torch.empty(batch, num_tokens, dtype=torch.int64, device=metric.device)
    assignment.scatter_(1, keep_idx, index[: num_tokens - num_merged].expand(batch, -1))
    assignment.scatter_(1, src_idx, num_protected + num_left + partner)
    return Match(src_idx.int(), dst_idx.int(), keep_idx.int(), assignment.int())


# Groups of more than one token are at most r rows of a sequence: gathered, weighted and written over, they cost little
# beside the pass that copies the kept rows. The time of the paper's formula, sums by scatter_add over all rows, over
# this one's on one core with AVX512-BF16 (torch 2.13), for 12 frames of 197 tokens of 768 with residual and sizes,
# 4 and 16 of them merged: bfloat16 4.7 and 3.6 forward, 6.8 and 5 with the backward pass; float32 above 8 and 2.6, 3.7
# and 3.5. In bfloat16 with 4 merged a match takes 0.33 ms, half of it the product, and a merge 0.45 to 0.5 ms, of which
# the addition of the residual, which every block does, is 0.24.
def merge_tokens_eager(
    tokens: Tensor, sizes: Tensor | None, match: Match, residual: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weighted mean of every group, sums in float32 (float64 for float64 tokens); differentiable in two of them."""
    indices = (match.src_idx, match.dst_idx, match.keep_idx, match.assignment)
    needs_gradient = tokens.requires_grad or (residual is not None and residual.requires_grad)
    if torch.is_grad_enabled() and needs_gradient:
        merged, new_sizes = _Merge.apply(tokens, residual, sizes, weights, *indices)  # type: ignore[no-untyped-call]
        return merged, new_sizes
    merged, new_sizes, _ = _merge(tokens, residual, sizes, weights, *indices)
    return merged, new_sizes


def _merge(
    tokens: Tensor,
    residual: Tensor | None,
    sizes: Tensor | None,
    weights: Tensor | None,
    src_idx: Tensor,
    dst_idx: Tensor,
    keep_idx: Tensor,
    assignment: Tensor,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """The merged tokens, their sizes, and what the backward pass reads: the tokens of the groups, their coefficients.

    A row whose group is one token is copied. The others, at most r of a sequence, are computed beside it in float32
    and written over it.
    """
    batch, num_tokens, width = tokens.shape
    num_kept = keep_idx.shape[1]
    exact = torch.promote_types(tokens.dtype, torch.float32)
    # Rows of all sequences, one after the other.
    sequence = torch.arange(batch, device=tokens.device)[:, None]
    src, dst, keep = ((idx + sequence * num_tokens).flatten() for idx in (src_idx, dst_idx, keep_idx))
    dst_rows = (assignment.gather(1, src_idx.long()) + sequence * num_kept).flatten()
    joined = torch.cat([dst, src])

    if sizes is None:
        sizes = torch.ones(batch, num_tokens, device=tokens.device)
    new_sizes = _sums(sizes, src, dst_rows, keep)
    shares = sizes if weights is None else sizes.to(exact) * weights
    totals = new_sizes if weights is None else _sums(shares, src, dst_rows, keep)
    totals = totals.index_select(0, dst_rows).to(exact)
    shares = shares.flatten().index_select(0, joined).view(2, -1) / totals
    shares.masked_fill_(totals == 0, 0)
    shares[0].masked_fill_(totals == 0, 1)
    shares = shares.view(-1, 1)

    tokens = tokens.reshape(batch * num_tokens, width)
    residual = None if residual is None else residual.reshape(batch * num_tokens, width)
    summed = tokens if residual is None else tokens + residual
    merged = summed.index_select(0, keep).to(tokens.dtype)
    # Added before it is rounded: a merged row is rounded once.
    rows = tokens.index_select(0, joined).to(exact)
    if residual is not None:
        rows += residual.index_select(0, joined)
    rows *= shares
    groups = _group_sums(rows[: len(dst)], rows[len(dst) :], dst_idx)
    merged.index_copy_(0, dst_rows, groups.to(tokens.dtype))
    return merged.view(batch, num_kept, width), new_sizes.view(batch, num_kept), (joined, shares)


def _group_sums(destinations: Tensor, sources: Tensor, dst_idx: Tensor) -> Tensor:
    """The sum of the group that each source is in, (B * merged, D) as are the weighted rows; may write into them."""
    batch, num_merged = dst_idx.shape
    if torch.compiler.is_compiling() and num_merged <= _MOST_SUMMED:
        # index_add_ would be compiled to an atomic addition for each number.
        is_one_group = (dst_idx[:, :, None] == dst_idx[:, None, :]).unsqueeze(-1)
        sources = sources.view(batch, 1, num_merged, -1)
        return destinations + torch.where(is_one_group, sources, 0).sum(dim=2).flatten(0, 1)
    # `dst_idx` ascends: a group is gathered in the slot of the first of its sources.
    dst_idx = dst_idx.contiguous()
    first = torch.arange(batch, device=dst_idx.device)[:, None] * num_merged
    slot = (torch.searchsorted(dst_idx, dst_idx) + first).flatten()
    return destinations.index_add_(0, slot, sources).index_select(0, slot)


class _Merge(torch.autograd.Function):
    """_merge with its gradient, a gather: dx_i = share_i * dy_row(i). Autograd's own would be a scatter per row."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        residual: Tensor | None,
        sizes: Tensor | None,
        weights: Tensor | None,
        src_idx: Tensor,
        dst_idx: Tensor,
        keep_idx: Tensor,
        assignment: Tensor,
    ) -> tuple[Tensor, Tensor]:
        merged, new_sizes, groups = _merge(
            tokens, residual, sizes, weights, src_idx, dst_idx, keep_idx, assignment
        )
        ctx.save_for_backward(assignment, *groups)
        ctx.dtypes = (tokens.dtype, None if residual is None else residual.dtype)
        ctx.mark_non_differentiable(new_sizes)
        return merged, new_sizes

    @staticmethod
    def backward(ctx: Any, d_merged: Tensor, d_sizes: Tensor) -> tuple[Tensor | None, ...]:
        assignment, joined, shares = ctx.saved_tensors
        batch, num_kept, width = d_merged.shape
        rows = assignment + torch.arange(batch, device=assignment.device)[:, None] * num_kept
        d_tokens = d_merged.reshape(batch * num_kept, width).index_select(0, rows.flatten())
        scaled = d_tokens.index_select(0, joined) * shares
        d_tokens.index_copy_(0, joined, scaled.to(d_tokens.dtype))
        d_tokens = d_tokens.view(*assignment.shape, width)
        dtype, residual_dtype = ctx.dtypes
        d_residual = None if residual_dtype is None else d_tokens.to(residual_dtype)
        return d_tokens.to(dtype), d_residual, None, None, None, None, None, None


def _sums(values: Tensor, src: Tensor, dst_rows: Tensor, keep: Tensor) -> Tensor:
    """Sum of (B, N) values over each group, flat."""
    values = values.flatten()
    return values.index_select(0, keep).index_add_(0, dst_rows, values.index_select(0, src))
