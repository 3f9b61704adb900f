"""The truth that every other implementation of token merging is held against: plain torch, no tricks."""

import torch
from torch import Tensor

from videolm_kernels.token_merging.match import Match


def match_tokens_reference(metric: Tensor, num_merged: int, num_protected: int) -> Match:
    """Bipartite soft matching by cosine, computed in float32 (float64 for float64 input)."""
    num_tokens = metric.shape[1]
    index = torch.arange(num_tokens, device=metric.device)
    set_a = index[(index >= num_protected) & (index % 2 == 0)]
    set_b = index[(index >= num_protected) & (index % 2 == 1)]
    exact = metric.detach().to(torch.promote_types(metric.dtype, torch.float32))
    unit = exact / exact.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    matches = []
    for tokens in unit:
        if num_merged:
            scores = torch.einsum("ac,bc->ab", tokens[set_a], tokens[set_b])
            scores = torch.where(scores.isnan(), -torch.inf, scores)
            best, partner = scores.sort(dim=1, descending=True, stable=True)
            a_by_score = best[:, 0].argsort(descending=True, stable=True)
            src_idx = set_a[a_by_score[:num_merged].sort().values]
            joins = set_b[partner[:, 0]][a_by_score[:num_merged].sort().values]
            by_destination = joins.argsort(stable=True)
            src_idx, dst_idx = src_idx[by_destination], joins[by_destination]
        else:
            src_idx = dst_idx = index[:0]
        is_left = ~torch.isin(set_a, src_idx)
        keep_idx = torch.cat([index[:num_protected], set_a[is_left], set_b])
        assignment = torch.empty_like(index)
        assignment[keep_idx] = torch.arange(len(keep_idx), device=metric.device)
        assignment[src_idx] = assignment[dst_idx]
        matches.append((src_idx, dst_idx, keep_idx, assignment))
    if not matches:
        counts = (num_merged, num_merged, num_tokens - num_merged, num_tokens)
        return Match(*(index.new_empty(0, count).int() for count in counts))
    return Match(*(torch.stack(rows).int() for rows in zip(*matches, strict=True)))


def merge_tokens_reference(
    tokens: Tensor, sizes: Tensor | None, match: Match, residual: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weighted mean of every group as a product with the (B, N - r, N) matrix of its coefficients."""
    exact = torch.promote_types(tokens.dtype, torch.float32)
    summed = tokens.to(exact) if residual is None else tokens.to(exact) + residual.to(exact)
    num_kept, num_tokens = match.keep_idx.shape[1], tokens.shape[1]
    row, token = (torch.arange(num, device=tokens.device) for num in (num_kept, num_tokens))
    belongs = (match.assignment[:, None, :] == row[:, None]).to(exact)
    is_kept = (match.keep_idx[:, :, None] == token).to(exact)

    counts = torch.ones_like(match.assignment, dtype=exact) if sizes is None else sizes.detach().to(exact)
    share = counts if weights is None else counts * weights.detach().to(exact)
    weighted = belongs * share[:, None, :]
    total = weighted.sum(dim=-1, keepdim=True)
    coefficients = torch.where(total == 0, is_kept, weighted / total.masked_fill(total == 0, 1))
    merged = (coefficients @ summed).to(tokens.dtype)
    return merged, (belongs @ counts[..., None])[..., 0].float()
