"""Towers that carry out a plan: what is conserved, what a published algorithm says, what padding changes."""

import re
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from videolm.encoders import presets
from videolm.encoders.blocks import Attended, Grid
from videolm.encoders.clip import ImageTower
from videolm.encoders.presets import CLIPShape, build_video_clip
from videolm.encoders.reducers import (
    KeepAttended,
    MergeAfter,
    hooks_of,
    join_frames,
    saliency,
)
from videolm.encoders.reduction_plans import ReductionPlan, Step
from videolm.encoders.video_clip import VideoCLIP

TINY = CLIPShape(
    image_size=16, patch_size=4, vision_width=24, vision_depth=4, vision_heads=3, vision_mlp_width=30,
    text_width=16, text_depth=1, text_heads=2, text_mlp_width=20, vocab_size=30, context_length=6,
    eos_token_id=4, joint_dim=24, activation="gelu", max_frames=4, temporal_zero_init=False,
)  # fmt: skip
PLANS = ["tome:r=3", "tome:r=0.2", "tempme:r=1", "vid_tldr:r=4/3", "top_k:keep=0.5", "drop_repeats"]


def tiny(plan: ReductionPlan | None = None, **changes: Any) -> VideoCLIP:
    """With `plan`, one that no text stands for."""
    torch.manual_seed(0)
    with nullcontext() if plan is None else patch(f"{presets.__name__}.parse_plan", return_value=plan):
        reduce = changes if plan is None else changes | {"reduce": "drawn"}
        model = build_video_clip(replace(TINY, **reduce)).eval()
    # Larger than at the start of a training, so that tokens differ and attention has a preference.
    for block in model.vision.blocks:
        torch.nn.init.normal_(block.attention.qkv.weight, std=0.5)
    return model


def random_frames(batch: int, num_frames: int) -> Tensor:
    return torch.randn(batch, num_frames, 3, 16, 16, generator=torch.Generator().manual_seed(1))


# no plan


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("reduce", ["none", "tome:r=0", "tome:r=0/0", "top_k:keep=1.0"])
def test_a_plan_that_does_nothing_changes_no_bit(family: str, reduce: str) -> None:
    frames, lengths = random_frames(2, 3), torch.tensor([3, 2])
    whole = tiny(family=family).encode_video(frames, lengths=lengths)
    planned = tiny(family=family, reduce=reduce).encode_video(frames, lengths=lengths)
    for name in ("tokens", "mask", "sizes", "embedding"):
        assert torch.equal(getattr(planned, name), getattr(whole, name))


@pytest.mark.parametrize("reduce", PLANS)
def test_a_plan_has_no_weights(reduce: str) -> None:
    assert tiny(reduce=reduce).state_dict().keys() == tiny().state_dict().keys()


# what is conserved


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("reduce", ["tome:r=3", "tome:r=100", "tempme:r=1", "vid_tldr:r=4/3"])
def test_sizes_sum_to_the_tokens_that_went_in(family: str, reduce: str) -> None:
    video = tiny(family=family, reduce=reduce).encode_video(random_frames(2, 5))
    assert (video.sizes * video.mask).sum(dim=1).tolist() == [5 * (17 if family == "clip" else 16)] * 2


@pytest.mark.parametrize("num_merged", [1, 5, 8])
def test_merging_conserves_the_sum_of_the_tokens(num_merged: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, update = torch.randn(2, 2, 3, 17, 12, generator=generator, dtype=torch.float64)
    qkv = torch.randn(2, 3, 17, 3, 2, 6, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 5, (2, 3, 17), generator=generator).float()
    hook = MergeAfter(merged=num_merged, by_key=True, by_saliency=False, has_unseen=False, is_aligned=False)
    grid = hook(Grid(tokens, sizes=sizes), Attended(update, qkv, qkv[:, :, :, 1].mean(dim=3)))
    assert grid.tokens.shape == (2, 3, 17 - num_merged, 12)
    before = ((tokens + update) * sizes.unsqueeze(-1)).sum(dim=2)
    torch.testing.assert_close((grid.tokens * grid.sizes.unsqueeze(-1)).sum(dim=2), before)
    assert torch.equal(grid.tokens[:, :, 0], (tokens + update)[:, :, 0])
    of_originals = grid.tokens.flatten(1, 2).gather(1, grid.assignment.long()[..., None].expand(-1, -1, 12))
    once = sizes.flatten(1)[..., None]
    torch.testing.assert_close((of_originals * once).view(2, 3, 17, 12).sum(dim=2), before)


def test_joined_frames_hold_class_tokens_first_and_then_patches() -> None:
    tokens = torch.arange(10.0).view(1, 5, 2, 1)
    grid = join_frames(Grid(tokens, lengths=torch.tensor([4])), 3)
    assert grid.num_class_tokens == 3
    assert grid.lengths.tolist() == [2]
    assert grid.tokens[..., 0].tolist() == [[[0, 2, 4, 1, 3, 5], [6, 8, 0, 7, 9, 0]]]
    assert grid.sizes.tolist() == [[[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 0, 0]]]
    assert grid.assignment.tolist() == [[0, 3, 1, 4, 2, 5, 6, 9, 7, 10]]


def test_twelve_frames_of_tempme_end_as_one_with_twelve_class_tokens() -> None:
    model = tiny(reduce="tempme:r=0,across=0.0,within=0.0")
    frames = random_frames(1, 12)
    grid = model.vision(frames)
    assert grid.tokens.shape == (1, 1, 12 * 17, 24)
    assert grid.num_class_tokens == 12
    # Before the first join no frame has seen another: with one layer less the order would be that of frames.
    pooled = model.vision.pool(grid)
    assert pooled.shape == (1, 12, 24)
    flipped = model.vision.pool(model.vision(frames.flip(1)))
    torch.testing.assert_close(flipped.flip(1), pooled, rtol=0, atol=2e-5)


# published algorithms, written again


def plain_tome(tower: ImageTower, frame: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens and sizes of one frame (3, H, W), from the formulas of arXiv 2210.09461, a pair at a time."""
    patches = tower.patch(frame[None]).flatten(2)[0].T
    tokens = tower.ln_pre(torch.cat([tower.class_token[None], patches]) + tower.position)
    sizes = torch.ones(len(tokens), dtype=tokens.dtype)
    for block, count in zip(tower.blocks, counts, strict=True):
        normed = block.ln_1(tokens)
        query, key, value = block.attention.qkv(normed).view(len(tokens), 3, 3, 8).permute(1, 2, 0, 3)
        scores = query @ key.mT / 8**0.5 + sizes.log()
        attended = (scores.softmax(dim=-1) @ value).transpose(0, 1).reshape(len(tokens), -1)
        tokens = tokens + block.attention.out(attended)
        if count:
            tokens, sizes = plain_merge(tokens, sizes, key.mean(dim=0), count)
        tokens = tokens + block.mlp(block.ln_2(tokens))
    return tokens, sizes


def plain_merge(tokens: Tensor, sizes: Tensor, metric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    set_a, set_b = range(2, len(tokens), 2), range(1, len(tokens), 2)
    edges = []
    for a in set_a:
        cosines = [float(F.cosine_similarity(metric[a], metric[b], dim=0)) for b in set_b]
        edges.append((max(cosines), a, set_b[cosines.index(max(cosines))]))
    groups = {i: [i] for i in range(len(tokens))}
    for _, a, b in sorted(edges, reverse=True)[:count]:
        groups[b] += groups.pop(a)
    rows = [0, *(a for a in set_a if a in groups), *set_b]
    merged = [
        sum(sizes[i] * tokens[i] for i in groups[row]) / sum(sizes[i] for i in groups[row]) for row in rows
    ]
    return torch.stack(merged), torch.stack([sizes[groups[row]].sum() for row in rows])


@torch.no_grad()
def test_tome_is_the_published_algorithm_on_a_whole_tower() -> None:
    model = tiny(reduce="tome:r=3/2/4").double()
    frames = random_frames(2, 2).double()
    grid = model.vision(frames)
    assert grid.tokens.shape == (2, 2, 8, 24)
    for clip in range(2):
        for frame in range(2):
            tokens, sizes = plain_tome(model.vision, frames[clip, frame], [3, 2, 4, 0])
            torch.testing.assert_close(grid.tokens[clip, frame], tokens)
            assert torch.equal(grid.sizes[clip, frame], sizes.float())


def source_of_vid_tldr(model: VideoCLIP, frames: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens and sizes of clips seen jointly, without a class token, after arXiv 2403.13347 and its code."""
    tower = model.vision
    patches = tower.patch(frames.flatten(0, 1)).flatten(2).mT + tower.position
    clips = patches.unflatten(0, frames.shape[:2]) + tower.embed.time_position[: frames.shape[1], None]
    tokens, sizes = clips.flatten(1, 2), torch.ones(len(frames), frames.shape[1] * 16, 1).double()
    for block, count in zip(tower.blocks, counts, strict=True):
        qkv = block.attention.qkv(block.ln_1(tokens)).unflatten(-1, (3, 3, 8))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = query @ key.mT / 8**0.5
        attention = (scores + sizes.log()[:, None, None, :, 0]).softmax(dim=-1)
        tokens = tokens + block.attention.out((attention @ value).transpose(1, 2).flatten(2))
        if count:
            mean = scores.softmax(dim=-1).mean(dim=1)
            above = (mean * mean.log()).sum(dim=2, keepdim=True)
            above = (above - above.mean(dim=1, keepdim=True)).clamp(min=0)
            saliency_of = above / above.amax(dim=1, keepdim=True)
            normed = F.normalize(tokens, dim=-1)
            highest, partner = (normed[:, ::2] @ normed[:, 1::2].mT).max(dim=-1)
            order = highest.argsort(dim=-1, descending=True).unsqueeze(-1)
            left, gone = order[:, count:].sort(dim=1).values, order[:, :count]
            # The size goes through the same sum as the tokens.
            rows = torch.cat([tokens * sizes, sizes], dim=-1)
            even, odd = rows[:, ::2], rows[:, 1::2]
            added = even.take_along_dim(gone, dim=1) * saliency_of[:, ::2].take_along_dim(gone, dim=1)
            into = partner.unsqueeze(-1).gather(1, gone).expand_as(added)
            rows = torch.cat([even.take_along_dim(left, dim=1), odd.scatter_add(1, into, added)], dim=1)
            sizes = rows[..., -1:]
            tokens = rows[..., :-1] / sizes
        tokens = tokens + block.mlp(block.ln_2(tokens))
    return tokens, sizes[..., 0]


@pytest.mark.parametrize("counts", [[16, 16, 16, 8], [24, 12, 0, 0], [0, 0, 0, 24]])
@torch.no_grad()
def test_vid_tldr_is_the_published_code_on_a_whole_tower(counts: list[int]) -> None:
    reduce = f"vid_tldr:r={'/'.join(map(str, counts))}"
    model = tiny(family="siglip", temporal="joint", reduce=reduce).double()
    frames = random_frames(2, 4).double()
    grid = model.vision(frames)
    tokens, sizes = source_of_vid_tldr(model, frames, counts)
    torch.testing.assert_close(grid.tokens[:, 0], tokens, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(grid.sizes[:, 0], sizes.float(), rtol=1e-4, atol=0)
    assert (sizes.sum(dim=1) < 50).all()


def test_saliency_is_the_scaled_entropy_of_a_loop() -> None:
    qkv = torch.randn(1, 2, 7, 3, 2, 4, generator=torch.Generator().manual_seed(0)) * 2
    sizes = torch.tensor([[[1, 2, 1, 3, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]]]).float()
    ours = saliency(qkv, sizes, num_class_tokens=1)
    for frame in range(2):
        score = {}
        for i in range(1, 7):
            of_heads = []
            for head in range(2):
                query, key = qkv[0, frame, i, 0, head], qkv[0, frame, :, 1, head]
                weight = (key @ query / 2).exp() * (sizes[0, frame] > 0)
                of_heads.append(weight / weight.sum())
            mean = torch.stack(of_heads).mean(dim=0)
            if sizes[0, frame, i] > 0:
                score[i] = float(sum(p * p.log() for p in mean if p > 0))
        middle = sum(score.values()) / len(score)
        above = {i: max(value - middle, 0) for i, value in score.items()}
        expected = [above[i] / max(above.values()) if i in above else 1.0 for i in range(7)]
        torch.testing.assert_close(ours[0, frame], torch.tensor(expected), rtol=0, atol=1e-5)
        assert ours[0, frame].max() == 1


def test_tokens_that_attend_alike_are_equally_salient() -> None:
    assert saliency(torch.zeros(1, 1, 5, 3, 2, 4), None, 1).eq(1).all()


def test_background_vanishes_from_its_group() -> None:
    """A token of saliency 0 leaves the token that it joins as it was, and as heavy as it was."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 1, 9, 8, generator=generator)
    qkv = torch.randn(1, 1, 9, 3, 2, 4, generator=generator) * 2
    hook = MergeAfter(merged=4, by_key=False, by_saliency=True, has_unseen=False, is_aligned=False)
    grid = hook(Grid(tokens), Attended(torch.zeros_like(tokens), qkv, None))
    weights = saliency(qkv, None, 1)[0, 0]
    for row in range(1, 5):
        group = [i for i in range(9) if grid.assignment[0, i] == row]
        (kept,) = [i for i in group if i % 2]
        share = torch.tensor([1.0 if i == kept else float(weights[i]) for i in group])
        expected = (tokens[0, 0, group] * share[:, None]).sum(dim=0) / share.sum()
        torch.testing.assert_close(grid.tokens[0, 0, row], expected)
        torch.testing.assert_close(grid.sizes[0, 0, row], share.sum())
    assert (weights == 0).any()


@pytest.mark.parametrize("num_class_tokens", [0, 1, 2])
def test_the_patches_that_are_kept_are_those_attended_to_most(num_class_tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 2, 12, 8, generator=generator)
    qkv = torch.randn(2, 2, 12, 3, 2, 4, generator=generator)
    sizes = torch.randint(1, 4, (2, 2, 12), generator=generator).float()
    sizes[0, 1, 9] = 0
    grid = KeepAttended(kept=4, is_aligned=False)(
        Grid(tokens, sizes=sizes, num_class_tokens=num_class_tokens),
        Attended(torch.zeros_like(tokens), qkv, None),
    )
    scores = torch.einsum("btqhd,btkhd->bthqk", qkv[:, :, :, 0], qkv[:, :, :, 1]) / 2
    received = (scores + sizes.log()[:, :, None, None]).softmax(dim=-1).mean(dim=2)
    is_query = torch.arange(12) < (num_class_tokens or 12)
    received = (received * (is_query & (sizes > 0)).unsqueeze(-1)).sum(dim=2)
    received[:, :, :num_class_tokens] = torch.inf
    best = received.topk(4 + num_class_tokens, dim=-1).indices.sort(dim=-1).values
    assert torch.equal(grid.tokens, tokens.gather(2, best[..., None].expand(-1, -1, -1, 8)))
    assert torch.equal(grid.sizes, sizes.gather(2, best))
    rows = torch.full((2, 2, 12), -1)
    rows.scatter_(2, best, torch.arange(2 * best.shape[2]).view(2, -1).expand(2, -1, -1))
    assert torch.equal(grid.assignment, rows.flatten(1).int())


# what does not exist


COUNTS = st.one_of(st.integers(0, 20), st.sampled_from([0.1, 0.3, 0.9]))
STEPS = st.fixed_dictionaries(
    {
        "join": st.sampled_from([1, 1, 2, 3]),
        "before": COUNTS,
        "metric": st.sampled_from(["key", "tokens"]),
        "weight": st.sampled_from(["size", "saliency"]),
    }
).flatmap(
    lambda step: st.one_of(
        COUNTS.map(lambda after: step | {"after": after}),
        st.one_of(st.integers(1, 20), st.sampled_from([0.4, 1.0])).map(lambda keep: step | {"keep": keep}),
    )
)


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(STEPS, min_size=4, max_size=4),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    family=st.sampled_from(["clip", "siglip"]),
    temporal=st.sampled_from(["none", "none", "divided", "shift", "message", "joint", "soft_attentive"]),
    aggregator=st.sampled_from(["mean", "transformer", "lstm", "multiframe"]),
)
# Which of the tokens that do not exist are merged moves the others, and so had to be the same in every batch.
@example(
    steps=[{"after": 8, "before": 0.9}, {"join": 3, "before": 5}, {"join": 2, "before": 0.9, "after": 1}, {}],
    lengths=[2, 1],
    family="clip",
    temporal="none",
    aggregator="mean",
)
# Background that joined a token that does not exist took its value.
@example(
    steps=[
        {"join": 3, "before": 0.9, "after": 0.9, "weight": "saliency"},
        {"before": 0.9, "keep": 0.4},
        {},
        {},
    ],
    lengths=[2, 1],
    family="clip",
    temporal="none",
    aggregator="mean",
)
# As many tokens were merged as if the frames that do not exist did.
@example(steps=[{"after": 0.3}] * 4, lengths=[5, 2], family="clip", temporal="joint", aggregator="mean")
# Frames that were added for a join took positions.
@example(steps=[{"join": 3}] * 4, lengths=[4], family="clip", temporal="none", aggregator="transformer")
@torch.no_grad()
def test_any_plan_on_any_batch(
    steps: list[dict[str, Any]], lengths: list[int], family: str, temporal: str, aggregator: str
) -> None:
    """Finite, of unit length, all tokens accounted for, and each clip as if it were alone and without padding."""
    assume(not (temporal == "message" and family == "siglip"))
    if temporal in ("divided", "shift", "message", "joint"):
        steps = [{key: value for key, value in step.items() if key != "join"} for step in steps]
    if temporal in ("divided", "shift", "message"):
        steps = [{key: value for key, value in step.items() if key != "before"} for step in steps]
    if temporal == "soft_attentive":
        steps = [{}, {}, *steps[2:]]
    model = tiny(
        ReductionPlan(tuple(Step(**step) for step in steps)),
        family=family,
        temporal=temporal,
        temporal_layers=[0, 1] if temporal == "soft_attentive" else None,
        aggregator=aggregator,
        aggregator_heads=3,
        aggregator_frames=5,
    ).double()
    frames = random_frames(len(lengths), max(lengths)).double()
    for clip, length in zip(frames, lengths, strict=True):
        clip[length:] = 40 * torch.randn(clip[length:].shape)
    together = model.encode_video(frames, lengths=torch.tensor(lengths), pts_seconds=seconds_of(frames))
    assert together.tokens.isfinite().all()
    torch.testing.assert_close(together.embedding.norm(dim=1), torch.ones(len(lengths)).double())
    num_tokens = 17 if family == "clip" else 16
    for b, length in enumerate(lengths):
        clip = frames[b : b + 1, :length]
        alone = model.encode_video(clip, pts_seconds=seconds_of(clip))
        torch.testing.assert_close(together.embedding[b], alone.embedding[0])
        mask, alone_mask = together.mask[b], alone.mask[0]
        for name in ("tokens", "sizes", "pts_seconds"):
            torch.testing.assert_close(getattr(together, name)[b, mask], getattr(alone, name)[0, alone_mask])
        total = float(alone.sizes[0, alone_mask].sum())
        # Joint frames have one class token for all.
        went_in = 16 * length + num_tokens - 16 if temporal == "joint" else length * num_tokens
        assert total == went_in or (total < went_in and any("keep" in step for step in steps))


# the same tokens in every frame


ALIGNED = ["tome:r=3", "tome:r=0.2", "vid_tldr:r=4/3", "top_k:keep=0.5"]


def rows_of(model: VideoCLIP, frames: Tensor, **given: Any) -> Tensor:
    """Where each token of a frame is among those that are left of it, (B, T, N)."""
    grid = model.vision(frames, **given)
    start = torch.arange(frames.shape[1])[:, None] * grid.tokens.shape[2]
    rows = grid.assignment.unflatten(1, (frames.shape[1], -1))
    return torch.where(rows < 0, rows, rows - start)


@pytest.mark.parametrize("temporal", ["divided", "shift"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("reduce", ALIGNED)
@torch.no_grad()
def test_behind_a_temporal_module_all_frames_of_a_clip_lose_the_same_tokens(
    reduce: str, family: str, temporal: str
) -> None:
    frames = 3 * random_frames(2, 4)
    model = tiny(family=family, temporal=temporal, temporal_layers=[0, 3], reduce=reduce)
    assert not model.sees_frames_alone
    # Behind the last temporal layer each frame may lose its own.
    assert not getattr(model.vision.blocks[3].mid, "is_aligned", False)
    model.vision.blocks[3].mid = None
    rows = rows_of(model, frames)
    assert (rows >= -1).all()
    assert (rows == rows[:, :1]).all()
    for block in model.vision.blocks[:3]:
        if block.mid is not None:
            block.mid.is_aligned = False
    rows = rows_of(model, frames)
    assert not (rows == rows[:, :1]).all()


@pytest.mark.parametrize("reduce", ALIGNED)
@torch.no_grad()
def test_frames_that_are_equal_lose_the_same_tokens_with_and_without_alignment(reduce: str) -> None:
    frames = random_frames(2, 1).double().expand(-1, 4, -1, -1, -1)
    model = tiny(reduce=reduce).double()
    alone = model.vision(frames)
    for hook in (block.mid for block in model.vision.blocks):
        if hook is not None:
            hook.is_aligned = True
    aligned = model.vision(frames)
    assert torch.equal(aligned.assignment, alone.assignment)
    torch.testing.assert_close(aligned.tokens, alone.tokens)


@torch.no_grad()
def test_tokens_that_lie_alike_are_chosen_by_the_mean_over_the_frames_that_exist() -> None:
    hook = MergeAfter(merged=2, by_key=True, by_saliency=False, has_unseen=False, is_aligned=True)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 3, 7, 8, generator=generator)
    key = torch.randn(1, 3, 7, 4, generator=generator) * torch.tensor([1.0, 5, 100])[:, None, None]
    qkv = torch.zeros(1, 3, 7, 3, 2, 4)
    grid = hook(Grid(tokens, lengths=torch.tensor([2])), Attended(torch.zeros_like(tokens), qkv, key))
    unit = F.normalize(key[0, :2], dim=-1)
    cosine = (unit @ unit.mT).mean(dim=0)
    # Even and odd places, without the class token: 2, 4, 6 go into 1, 3, 5.
    best, partner = cosine[2::2, 1::2].max(dim=1)
    gone = best.topk(2).indices
    groups = grid.assignment.view(3, 7) - torch.arange(3)[:, None] * 5
    for source in gone.tolist():
        assert (groups[:, 2 + 2 * source] == groups[:, 1 + 2 * int(partner[source])]).all()
    assert (groups.unique(dim=1).shape[1]) == 5


def seconds_of(frames: Tensor) -> Tensor:
    return 0.5 * torch.arange(frames.shape[1], dtype=torch.float64).expand(len(frames), -1)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_gradients_are_finite_where_frames_do_not_exist(family: str) -> None:
    model = tiny(reduce="tempme:r=2", family=family)
    model.encode_video(random_frames(2, 5), lengths=torch.tensor([1, 5])).embedding.sum().backward()
    still = [
        name for name, p in model.vision.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert still == []
    assert all(p.grad.any() for name, p in model.vision.named_parameters() if "bias" not in name)


def test_bfloat16_autocast_trains_with_a_plan() -> None:
    model = tiny(reduce="tome:r=3")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.encode_video(random_frames(1, 3)).embedding.sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.vision.parameters())


# times


def test_a_merged_token_stands_at_the_mean_time_of_its_originals() -> None:
    model, frames = tiny(reduce="tempme:r=3"), random_frames(2, 6)
    lengths = torch.tensor([6, 3])
    pts_seconds = torch.tensor([[0.0, 1, 2, 3, 4, 5], [10.0, 11, 12, torch.nan, torch.nan, torch.nan]])
    video = model.encode_video(frames, lengths=lengths, pts_seconds=pts_seconds)
    assignment = model.vision(frames, lengths=lengths).assignment
    for clip, length in enumerate(lengths.tolist()):
        times: dict[int, list[float]] = {}
        for original in range(length * 17):
            times.setdefault(int(assignment[clip, original]), []).append(
                float(pts_seconds[clip, original // 17])
            )
        for row in video.mask[clip].nonzero()[:, 0].tolist():
            assert len(times[row]) == video.sizes[clip, row]
            assert abs(float(video.pts_seconds[clip, row]) - sum(times[row]) / len(times[row])) < 1e-5
    assert not video.pts_seconds.isnan().any()


def test_repeated_frames_may_be_computed_once() -> None:
    model, frames = tiny(reduce="tome:r=4"), random_frames(1, 3)
    assert model.sees_frames_alone
    order = torch.tensor([0, 0, 0, 1, 2, 2])
    once = model.encode_video(frames, repeats=torch.tensor([[3, 1, 2]]))
    whole = model.encode_video(frames[:, order])
    torch.testing.assert_close(once.embedding, whole.embedding, rtol=0, atol=1e-6)
    assert once.sizes.sum() == whole.sizes.sum()


@pytest.mark.parametrize("reduce", ["tempme", "drop_repeats"])
def test_frames_that_are_compared_are_not_alone(reduce: str) -> None:
    model = tiny(reduce=reduce)
    assert not model.sees_frames_alone
    with pytest.raises(ValueError, match="repeats were given, but this model lets frames see each other"):
        model.encode_video(random_frames(1, 2), repeats=torch.tensor([[1, 2]]))


# with a temporal module


@pytest.mark.parametrize("num_frames", [1, 4])
def test_messages_are_never_merged(num_frames: int) -> None:
    model, frames = tiny(temporal="message", reduce="tome:r=3"), random_frames(2, num_frames)
    video = model.encode_video(frames)
    assert video.tokens.shape[1] == num_frames * (17 - 12)
    assert (video.sizes.sum(dim=1) == num_frames * 17).all()
    if num_frames > 1:
        flipped = model.encode_video(torch.stack([frames[0], frames[0]])[:, [0, 2, 1, 3]])
        torch.testing.assert_close(flipped.embedding[0], model.encode_video(frames[:1]).embedding[0])


def test_joint_frames_merge_across_the_clip() -> None:
    model, frames = tiny(temporal="joint", reduce="vid_tldr:r=24/12"), random_frames(3, 4)
    frames[1, 2:] = 30.0
    video = model.encode_video(
        frames, lengths=torch.tensor([4, 2, 3]), pts_seconds=seconds_of(frames).float()
    )
    assert video.tokens.shape[1] == 1 + 64 - 36
    assert (video.sizes * video.mask).sum(dim=1).tolist() == [65, 33, 49]
    assert (video.pts_seconds[1, video.mask[1]] <= 0.5).all()
    frames[1, 2:] = -7.0
    again = model.encode_video(frames, lengths=torch.tensor([4, 2, 3]))
    torch.testing.assert_close(again.embedding, video.embedding)


@pytest.mark.parametrize(
    ("temporal", "layers", "reduce"),
    [
        ("divided", None, "tome:r=0/0/0/0/0/4"),
        ("divided", [0, 1], "tome:r=0/4"),
        ("divided", [0, 1], "tempme:r=0"),
        ("shift", [0], "tome:r=4"),
        ("soft_attentive", [0, 1], "tome:r=0/0/4"),
        ("divided", None, "drop_repeats"),
        ("divided", None, "tome:r=2"),
        ("shift", None, "top_k:keep=0.5"),
    ],
)
def test_merging_that_leaves_the_temporal_module_what_it_needs_is_allowed(
    temporal: str, layers: list[int] | None, reduce: str
) -> None:
    model = tiny(temporal=temporal, temporal_layers=layers, reduce=reduce, vision_depth=6)
    video = model.encode_video(random_frames(1, 4))
    assert video.embedding.isfinite().all()


@pytest.mark.parametrize(
    ("temporal", "layers", "reduce", "message"),
    [
        (
            "divided",
            [2],
            "tempme:r=0",
            "from layer 2 on, but temporal 'divided' in layer 2 needs.*like 'tome:r=8'",
        ),
        ("shift", None, "tempme", "from layer 2 on, but temporal 'shift' in layer 5 needs.*like 'tome:r=8'"),
        (
            "soft_attentive",
            [0, 1],
            "tome:r=0/4",
            "from layer 1 on, but temporal 'soft_attentive' in layer 1 .* as in 'tome:r=0/0/8'",
        ),
        ("soft_attentive", None, "tome:r=4", "but temporal 'soft_attentive' in layer 5 .*; take 'none'"),
        ("message", None, "tempme", "joins frames or merges before attention, which cannot be with temporal"),
        ("joint", None, "tempme", "joins frames or merges before attention, which cannot be with temporal"),
        ("none", None, "tome:r=a", "must be a number"),
    ],
)
def test_a_plan_that_cannot_be_with_a_temporal_module_is_refused_with_one_that_can(
    temporal: Any, layers: list[int] | None, reduce: str, message: str
) -> None:
    shape = replace(TINY, temporal=temporal, temporal_layers=layers, vision_depth=6)
    with pytest.raises(ValueError, match=message) as refused:
        replace(shape, reduce=reduce)
    if advised := re.search(r"(?:like|as in|take) '(.*?)'$", str(refused.value)):
        assert replace(shape, reduce=advised[1])


def test_none_has_one_name() -> None:
    assert replace(TINY, reduce="none") == TINY
    for wrong in (5, None, ["tome:r=1"]):
        shape = replace(TINY)
        object.__setattr__(shape, "reduce", wrong)
        with pytest.raises(ValueError, match=r"reduce \(.*\) must be a text like 'tome:r=8', or 'none'"):
            shape.__post_init__()


def test_no_tower_is_deeper_than_any() -> None:
    for name in ("vision_depth", "text_depth", "aggregator_depth"):
        with pytest.raises(ValueError, match=rf"{name} \(1001\) must be at most 1,000"):
            replace(TINY, **{name: 1001})


def test_hooks_stand_where_the_plan_says() -> None:
    plan = ReductionPlan((Step(), Step(join=2, before=3), Step(after=2), Step(keep=0.5)))
    pre, mid = hooks_of(plan, has_unseen=False, num_aligned=3)
    assert {layer: str(hook) for layer, hook in (pre | mid).items()} == {
        1: "MergeBefore(num_joined=2, merged=3)",
        2: "MergeAfter(merged=2, by_key=True, by_saliency=False, is_aligned=True)",
        3: "KeepAttended(kept=0.5, is_aligned=False)",
    }
