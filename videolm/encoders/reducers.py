"""Modules for the reducer slot: hooks that carry out the steps of a plan (reduction_plans.py). None has weights."""

from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from videolm.encoders.blocks import Attended, Grid, add_attended
from videolm.encoders.reduction_plans import Count, ReductionPlan
from videolm_kernels import Match, compose_assignments, match_tokens, max_merged, merge_tokens
from videolm_kernels.backend import Backend


class MergeBefore(nn.Module):
    """A `pre` hook that joins neighbouring frames, then merges tokens whose rows are alike.

    Where the number of frames is no multiple of `num_joined`, frames of size 0 are added behind the last. What
    does not exist, in a clip shorter than the others or in such a frame, has size 0 from the join on: no token
    sees it, and it adds nothing to a group. It is also what is merged first, so that it takes room from nothing.
    """

    def __init__(self, *, num_joined: int, merged: Count, has_unseen: bool) -> None:
        super().__init__()
        self.num_joined = num_joined
        self.merged = merged
        self.has_unseen = has_unseen
        self.sees_frames_alone = num_joined == 1
        self.backend: Backend = "auto"

    def forward(self, grid: Grid) -> Grid:
        if self.num_joined > 1:
            grid = join_frames(grid, self.num_joined)
        num_merged = _num_merged(grid, self.merged)
        if not num_merged:
            return grid
        metric = _without_unseen(grid.tokens, grid) if self.has_unseen else grid.tokens
        return _merge(grid, metric, num_merged, backend=self.backend)

    def extra_repr(self) -> str:
        return f"num_joined={self.num_joined}, merged={self.merged}"


class MergeAfter(nn.Module):
    """A `mid` hook that merges the tokens of a frame that are alike, by their keys or as they are.

    With `by_saliency` a token that is merged counts by its saliency from then on; see `vid_tldr`. With
    `is_aligned` the same tokens are merged in every frame of a clip, those that are alike on average over the
    frames: tokens of one index stay of one place, which a temporal module in a later block relies on.
    """

    def __init__(
        self, *, merged: Count, by_key: bool, by_saliency: bool, has_unseen: bool, is_aligned: bool
    ) -> None:
        super().__init__()
        self.merged = merged
        self.needs_mean_key = by_key
        self.by_saliency = by_saliency
        self.has_unseen = has_unseen
        self.is_aligned = is_aligned
        self.sees_frames_alone = not is_aligned
        self.backend: Backend = "auto"

    def forward(self, grid: Grid, attended: Attended) -> Grid:
        num_merged = _num_merged(grid, self.merged)
        if not num_merged:
            return add_attended(grid, attended)
        residual: Tensor | None = attended.update
        metric = attended.mean_key
        if metric is None:
            grid, residual = add_attended(grid, attended), None
            metric = grid.tokens
        if self.has_unseen:
            metric = _without_unseen(metric, grid)
        weights = saliency(attended.qkv, grid.sizes, grid.num_class_tokens) if self.by_saliency else None
        if weights is not None and self.has_unseen:
            # Background that joins a token which nobody sees is all that there is in its group.
            weights = weights.clamp(min=1e-6)
        return _merge(
            grid,
            metric,
            num_merged,
            residual=residual,
            weights=weights,
            is_aligned=self.is_aligned,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"merged={self.merged}, by_key={self.needs_mean_key}, by_saliency={self.by_saliency}, "
            f"is_aligned={self.is_aligned}"
        )


class KeepAttended(nn.Module):
    """A `mid` hook that keeps the patches to which the class tokens attend most, in their order. Ties: the first.

    With `is_aligned` they are the same in every frame of a clip, by the mean over the frames.
    """

    def __init__(self, *, kept: Count, is_aligned: bool) -> None:
        super().__init__()
        self.kept = kept
        self.is_aligned = is_aligned
        self.sees_frames_alone = not is_aligned

    def forward(self, grid: Grid, attended: Attended) -> Grid:
        batch, frames, num_tokens, width = grid.tokens.shape
        num_class, num_patches = grid.num_class_tokens, num_tokens - grid.num_class_tokens
        num_kept = num_kept_patches(self.kept, num_patches)
        grid = add_attended(grid, attended)
        if num_kept == num_patches:
            return grid
        queries = attended.qkv[:, :, : num_class or num_tokens]
        score = _attention_received(queries, attended.qkv, grid)[:, :, num_class:]
        if self.is_aligned:
            score = score.masked_fill(~_exists(grid)[:, :, None], 0).sum(dim=1, keepdim=True).expand_as(score)
        best = score.sort(dim=-1, descending=True, stable=True).indices[:, :, :num_kept]
        class_rows = torch.arange(num_class, device=best.device).expand(batch, frames, -1)
        rows = torch.cat([class_rows, num_class + best.sort(dim=-1).values], dim=2)

        new_row = torch.full((batch, frames, num_tokens), -1, dtype=torch.int32, device=rows.device)
        in_order = torch.arange(frames * rows.shape[2], dtype=torch.int32, device=rows.device)
        new_row.scatter_(2, rows, in_order.view(frames, -1).expand(batch, -1, -1))
        return replace(
            grid,
            tokens=grid.tokens.gather(2, rows.unsqueeze(-1).expand(-1, -1, -1, width)),
            sizes=None if grid.sizes is None else grid.sizes.gather(2, rows),
            assignment=_compose(grid.assignment, new_row.flatten(1)),
        )

    def extra_repr(self) -> str:
        return f"kept={self.kept}, is_aligned={self.is_aligned}"


def hooks_of(
    plan: ReductionPlan, *, has_unseen: bool, num_aligned: int
) -> tuple[dict[int, nn.Module], dict[int, nn.Module]]:
    """The `pre` and `mid` hooks of a plan, by layer; none for a step in which nothing happens.

    `has_unseen` says that a frame may have tokens of size 0 beside others before the first join already. In the
    first `num_aligned` layers the same is done in every frame of a clip.
    """
    pre: dict[int, nn.Module] = {}
    mid: dict[int, nn.Module] = {}
    for layer, step in enumerate(plan.steps):
        has_unseen = has_unseen or step.join > 1
        if step.acts_before:
            pre[layer] = MergeBefore(num_joined=step.join, merged=step.before, has_unseen=has_unseen)
        if step.keep is not None:
            mid[layer] = KeepAttended(kept=step.keep, is_aligned=layer < num_aligned)
        elif step.after:
            mid[layer] = MergeAfter(
                merged=step.after,
                by_key=step.metric == "key",
                by_saliency=step.weight == "saliency",
                has_unseen=has_unseen,
                is_aligned=layer < num_aligned,
            )
    return pre, mid


def join_frames(grid: Grid, num_joined: int) -> Grid:
    """Every `num_joined` neighbouring frames as one: class tokens first, then patches, each in the order of frames."""
    batch, frames, num_tokens, _ = grid.tokens.shape
    groups = -(-frames // num_joined)
    missing = groups * num_joined - frames
    tokens, sizes, lengths = grid.tokens, grid.sizes, grid.lengths
    if sizes is None and (missing or lengths is not None):
        sizes = torch.ones(batch, frames, num_tokens, device=tokens.device)
    if sizes is not None and lengths is not None:
        exists = torch.arange(frames, device=tokens.device) < lengths[:, None]
        sizes = sizes * exists.unsqueeze(-1)
    rows = torch.arange((frames + missing) * num_tokens, dtype=torch.int32, device=tokens.device)
    rows = rows.view(groups, num_joined, num_tokens)
    num_class = grid.num_class_tokens
    order = torch.cat([rows[:, :, :num_class].flatten(1), rows[:, :, num_class:].flatten(1)], dim=1).long()
    new_row = torch.empty_like(rows.flatten())
    new_row[order.flatten()] = rows.flatten()
    return replace(
        grid,
        tokens=F.pad(tokens, (0, 0, 0, 0, 0, missing)).flatten(1, 2)[:, order],
        sizes=None if sizes is None else F.pad(sizes, (0, 0, 0, missing)).flatten(1, 2)[:, order],
        lengths=None if lengths is None else -(-lengths // num_joined),
        num_class_tokens=num_joined * num_class,
        assignment=_compose(grid.assignment, new_row[: frames * num_tokens].expand(batch, -1)),
    )


@torch.no_grad()
def saliency(
    qkv: Float[Tensor, "batch frames tokens 3 heads head_dim"],
    sizes: Float[Tensor, "batch frames tokens"] | None,
    num_class_tokens: int,
) -> Float[Tensor, "batch frames tokens"]:
    """float32 in [0, 1]; of each patch among those of its frame that are seen, see `vid_tldr`; class tokens have 1.

    Of `sizes` it only matters which are 0. Where all patches attend alike, all have 1.
    """
    probability = _head_mean_attention(qkv, qkv, None if sizes is None else (sizes > 0).float())
    score = torch.xlogy(probability, probability).sum(dim=-1)
    is_patch = torch.arange(score.shape[-1], device=score.device) >= num_class_tokens
    counts = is_patch.expand_as(score) if sizes is None else is_patch & (sizes > 0)
    mean = (score * counts).sum(dim=-1, keepdim=True) / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    above = (score - mean).masked_fill(~counts, 0).clamp(min=0)
    highest = above.amax(dim=-1, keepdim=True)
    return torch.where(counts & (highest > 0), above / highest.clamp(min=1e-30), 1.0)


def num_merged_tokens(merged: Count, num_tokens: int, num_class_tokens: int) -> int:
    """How many tokens of a frame a step merges: as many as it says, or as many as can be."""
    wanted = int(merged * num_tokens) if isinstance(merged, float) else merged
    return min(wanted, max_merged(num_tokens, num_class_tokens))


def num_kept_patches(kept: Count, num_patches: int) -> int:
    """How many patches of a frame a step keeps, one at least where there is one."""
    return min(max(int(kept * num_patches) if isinstance(kept, float) else kept, 1), num_patches)


def _num_merged(grid: Grid, merged: Count) -> int:
    return num_merged_tokens(merged, grid.tokens.shape[2], grid.num_class_tokens)


def _without_unseen(
    metric: Float[Tensor, "batch frames tokens channels"], grid: Grid
) -> Float[Tensor, "batch frames tokens channels"]:
    """One row for all tokens that no other sees: they merge with each other first, whatever they hold.

    Their cosine is exactly 1, so that ties are broken alike in every batch: which of them remain decides where
    the others stand, and so who is matched in the next layer.
    """
    if grid.sizes is None:
        return metric
    row = torch.zeros(metric.shape[-1], dtype=metric.dtype, device=metric.device)
    row[0] = 1
    return torch.where((grid.sizes == 0).unsqueeze(-1), row, metric)


def _merge(
    grid: Grid,
    metric: Float[Tensor, "batch frames tokens channels"],
    num_merged: int,
    *,
    residual: Float[Tensor, "batch frames tokens width"] | None = None,
    weights: Float[Tensor, "batch frames tokens"] | None = None,
    is_aligned: bool = False,
    backend: Backend,
) -> Grid:
    """The grid with tokens + residual merged; sizes of the tokens that go count times their `weights`."""
    batch, frames, num_tokens, _ = grid.tokens.shape
    if is_aligned:
        metric = _side_by_side(metric, grid)
    match = match_tokens(metric.flatten(0, 1), num_merged, grid.num_class_tokens, backend=backend)
    if is_aligned:
        match = Match(*(getattr(match, f.name).repeat_interleave(frames, dim=0) for f in fields(match)))
    old_sizes = None if grid.sizes is None else grid.sizes.flatten(0, 1)
    if weights is not None:
        src_idx, flat = match.src_idx.long(), weights.flatten(0, 1)
        flat = torch.ones_like(flat).scatter(1, src_idx, flat.gather(1, src_idx))
        old_sizes = flat if old_sizes is None else flat * old_sizes
    tokens, sizes = merge_tokens(
        grid.tokens.flatten(0, 1),
        old_sizes,
        match,
        residual=None if residual is None else residual.flatten(0, 1),
        backend=backend,
    )
    first_row = torch.arange(frames, dtype=torch.int32, device=tokens.device) * (num_tokens - num_merged)
    return replace(
        grid,
        tokens=tokens.view(batch, frames, *tokens.shape[1:]),
        sizes=sizes.view(batch, frames, -1),
        assignment=_compose(
            grid.assignment, (match.assignment.view(batch, frames, -1) + first_row[:, None]).flatten(1)
        ),
    )


def _side_by_side(
    metric: Float[Tensor, "batch frames tokens channels"], grid: Grid
) -> Float[Tensor, "batch 1 tokens all_channels"]:
    """Of each token its rows in all frames that exist: their cosine is the mean of those of the frames."""
    unit = F.normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)
    unit = unit.masked_fill(~_exists(grid)[:, :, None, None], 0).to(metric.dtype)
    return unit.transpose(1, 2).flatten(2).unsqueeze(1)


def _exists(grid: Grid) -> Bool[Tensor, "batch frames"]:
    frame = torch.arange(grid.tokens.shape[1], device=grid.tokens.device).expand(len(grid.tokens), -1)
    return frame >= 0 if grid.lengths is None else frame < grid.lengths[:, None]


def _compose(
    first: Int[Tensor, "batch originals"] | None, then: Int[Tensor, "batch rows"]
) -> Int[Tensor, "batch originals"]:
    return then if first is None else compose_assignments(first, then)


@torch.no_grad()
def _attention_received(
    queries: Float[Tensor, "batch frames queries 3 heads head_dim"],
    qkv: Float[Tensor, "batch frames tokens 3 heads head_dim"],
    grid: Grid,
) -> Float[Tensor, "batch frames tokens"]:
    """Mean over the heads, and over those of the queries that are seen, of the attention that each token gets."""
    received = _head_mean_attention(queries, qkv, grid.sizes)
    if grid.sizes is None:
        return received.mean(dim=2)
    is_seen = (grid.sizes[:, :, : queries.shape[2]] > 0).unsqueeze(-1)
    return (received * is_seen).sum(dim=2)


def _head_mean_attention(
    queries: Float[Tensor, "batch frames queries 3 heads head_dim"],
    qkv: Float[Tensor, "batch frames tokens 3 heads head_dim"],
    sizes: Float[Tensor, "batch frames tokens"] | None,
) -> Float[Tensor, "batch frames queries tokens"]:
    """float32; the block's attention, a head at a time: all heads at once would fill the memory.

    Among the tokens that are given: a message, which the block's attention saw too, is not there any more.
    """
    num_heads, head_dim = qkv.shape[4:]
    bias = None if sizes is None else sizes.log().clamp(min=torch.finfo(torch.float32).min).unsqueeze(2)
    mean = torch.zeros(1, device=qkv.device)
    for head in range(num_heads):
        scores = queries[:, :, :, 0, head].float() @ qkv[:, :, :, 1, head].float().transpose(-1, -2)
        scores = scores * head_dim**-0.5
        mean = mean + (scores if bias is None else scores + bias).softmax(dim=-1) / num_heads
    return mean
