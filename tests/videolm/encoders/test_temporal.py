"""The temporal slot: what each kind is at its start, what it hears, and what padding must not change."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videolm.encoders.blocks import Attended, Block, Grid
from videolm.encoders.presets import CLIPShape, build_video_clip, clip_vit_b16
from videolm.encoders.temporal import JointEmbed, MessageToken, SoftAttentive, TokenShift
from videolm.encoders.video_clip import VideoCLIP
from videolm.recipes import read_recipe
from videolm.training.losses import info_nce
from videolm.training.optim import adamw

MINI = Path(__file__).resolve().parents[3] / "configs" / "retrieval" / "synthetic_mini.yaml"
# 49 patches: enough for the shift of the paper.
SMALL = CLIPShape(
    image_size=14, patch_size=2, vision_width=24, vision_depth=3, vision_heads=3, vision_mlp_width=30,
    text_width=16, text_depth=1, text_heads=2, text_mlp_width=20, vocab_size=30, context_length=6,
    eos_token_id=4, joint_dim=10, activation="gelu", max_frames=4,
)  # fmt: skip
SIGLIP = replace(SMALL, family="siglip", joint_dim=24)
KINDS = ["divided", "soft_attentive", "message", "shift", "joint"]
ZERO_INIT = ["divided", "soft_attentive"]
HEARS_ORDER = ["divided", "shift", "joint"]
NUM_TOKENS = 50


def small(temporal: str, shape: CLIPShape = SMALL, **changes: Any) -> VideoCLIP:
    """Of one seed: what two models have in common is equal in both."""
    torch.manual_seed(0)
    plain = build_video_clip(shape)
    model = build_video_clip(replace(shape, temporal=cast(Any, temporal), **changes))
    model.load_state_dict(plain.state_dict(), strict=False)
    return model.eval()


def random_frames(batch: int, num_frames: int) -> Tensor:
    return torch.randn(batch, num_frames, 3, 14, 14, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_frames", [1, 2, 4, 7])
@pytest.mark.parametrize("temporal", ZERO_INIT)
@torch.no_grad()
def test_zero_init_is_the_tower_without(temporal: str, num_frames: int) -> None:
    frames = random_frames(2, num_frames)
    expected = small("none").encode_video(frames)
    actual = small(temporal).encode_video(frames)
    assert torch.equal(actual.tokens, expected.tokens)
    assert torch.equal(actual.embedding, expected.embedding)


@pytest.mark.parametrize("shape", [SMALL, SIGLIP], ids=["clip", "siglip"])
@pytest.mark.parametrize("temporal", ["joint", "shift"])
@torch.no_grad()
def test_one_frame_alone_is_clips_with_joint_attention_and_shift(temporal: str, shape: CLIPShape) -> None:
    frames = random_frames(2, 1)
    expected, actual = small("none", shape).encode_video(frames), small(temporal, shape).encode_video(frames)
    torch.testing.assert_close(actual.tokens, expected.tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(actual.embedding, expected.embedding, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("temporal", "num_frames"), [("message", 1), ("message", 4), ("shift", 4), ("joint", 4)]
)
@torch.no_grad()
def test_these_are_not_clip_at_the_start(temporal: str, num_frames: int) -> None:
    frames = random_frames(2, num_frames)
    difference = small(temporal).encode_video(frames).embedding - small("none").encode_video(frames).embedding
    assert float(difference.norm(dim=1).min()) > 1e-3


@pytest.mark.parametrize("temporal", KINDS)
@torch.no_grad()
def test_the_order_of_frames_is_heard_by_those_that_have_a_sense_of_it(temporal: str) -> None:
    model, frames = small(temporal, temporal_zero_init=False), random_frames(3, 4)
    forward, backward = model.encode_video(frames).embedding, model.encode_video(frames.flip(1)).embedding
    distance = (forward - backward).norm(dim=1)
    if temporal in HEARS_ORDER:
        assert float(distance.min()) > 1e-3
    else:
        assert float(distance.max()) < 1e-6


@pytest.mark.parametrize("temporal", KINDS)
@torch.no_grad()
def test_a_frame_depends_on_the_others(temporal: str) -> None:
    model, frames = small(temporal, temporal_zero_init=False), random_frames(1, 3)
    changed = frames.clone()
    changed[:, 1] += 1.0
    first = slice(0, 1 if temporal == "joint" else NUM_TOKENS)
    difference = model.encode_video(changed).tokens[:, first] - model.encode_video(frames).tokens[:, first]
    assert float(difference.abs().max()) > 1e-3
    assert not model.sees_frames_alone


@pytest.mark.parametrize(
    ("temporal", "family"),
    [
        (kind, family)
        for kind in KINDS
        for family in ("clip", "siglip")
        if (kind, family) != ("message", "siglip")
    ],
)
@torch.no_grad()
def test_a_padded_clip_equals_the_shorter_one_alone(temporal: str, family: str) -> None:
    shape = SIGLIP if family == "siglip" else SMALL
    model, frames = small(temporal, shape, temporal_zero_init=False), random_frames(3, 5)
    lengths = [5, 1, 3]
    for b, length in enumerate(lengths):
        frames[b, length:] = 50.0
    pts_seconds = torch.arange(15.0).view(3, 5)
    together = model.encode_video(frames, lengths=torch.tensor(lengths), pts_seconds=pts_seconds)
    for b, length in enumerate(lengths):
        alone = model.encode_video(frames[b : b + 1, :length], pts_seconds=pts_seconds[b : b + 1, :length])
        torch.testing.assert_close(together.embedding[b : b + 1], alone.embedding, rtol=0, atol=2e-6)
        mask = together.mask[b]
        torch.testing.assert_close(together.tokens[b, mask], alone.tokens[0], rtol=0, atol=2e-5)
        assert torch.equal(together.pts_seconds[b, mask], alone.pts_seconds[0])
        assert mask.sum() == alone.mask.sum()


@pytest.mark.parametrize("temporal", KINDS)
def test_gradients_reach_every_parameter(temporal: str) -> None:
    model = small(temporal, temporal_zero_init=False)
    ids = torch.tensor([[3, 9, 4]])
    video = model.encode_video(random_frames(1, 4), lengths=torch.tensor([3])).embedding
    text = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)).embedding
    (model.logit_scale.exp() * (text * video).sum()).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("temporal", [*ZERO_INIT, "joint"])
def test_zero_init_moves_from_the_first_step(temporal: str) -> None:
    model = small(temporal)
    model.encode_video(random_frames(2, 4)).embedding.sum().backward()
    zeros = [p for p in model.vision.parameters() if p.numel() and not p.any() and p.ndim != 1]
    assert zeros
    assert all(p.grad is not None and p.grad.any() for p in zeros)


@pytest.mark.parametrize("temporal", KINDS)
def test_a_few_steps_tell_four_clips_apart_in_bfloat16_autocast(temporal: str) -> None:
    torch.manual_seed(0)
    model = build_video_clip(replace(SMALL, temporal=cast(Any, temporal), temporal_zero_init=False))
    optimiser = adamw(model, lr=3e-3, weight_decay=0.1)
    frames, lengths = random_frames(4, 3), torch.tensor([3, 2, 3, 1])
    ids = torch.tensor([[3, 5 + i, 4] for i in range(4)])
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            video = model.encode_video(frames, lengths=lengths).embedding
            text = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)).embedding
            loss = info_nce(text, video, logit_scale=model.logit_scale, video_ids=torch.arange(4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("temporal", KINDS)
def test_a_recipe_names_it(temporal: str) -> None:
    recipe = read_recipe(MINI, [f"model.temporal={temporal}"])
    assert recipe.model.temporal == temporal
    build_video_clip(recipe.model)


@pytest.mark.parametrize("temporal", KINDS)
@torch.no_grad()
def test_bfloat16_stays_near_float32(temporal: str) -> None:
    model, frames = small(temporal, temporal_zero_init=False), random_frames(2, 3)
    exact = model.encode_video(frames, lengths=torch.tensor([3, 2])).embedding
    rough = model.to(torch.bfloat16).encode_video(frames, lengths=torch.tensor([3, 2])).embedding
    # Three layers with fifteen roundings each at most: √45 · eps / 2.
    assert float((rough - exact).norm(dim=1).max()) <= 3.4 * torch.finfo(torch.bfloat16).eps


def test_only_the_layers_that_are_named_get_it() -> None:
    for temporal in ("divided", "soft_attentive", "message", "shift"):
        model = small(temporal, temporal_layers=[1, 2])
        has_hook = [block.pre is not None or block.mid is not None for block in model.vision.blocks]
        assert has_hook == [False, True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temporal": "joint", "temporal_layers": [1]}, r"temporal_layers \(\[1\]\) must be left out"),
        (
            {"temporal": "message", "family": "siglip", "joint_dim": 768},
            r"of class tokens, which a siglip has",
        ),
        (
            {"temporal": "soft_attentive", "vision_width": 60, "vision_heads": 6},
            r"vision_width \(60\) must be a multiple of the 8 heads",
        ),
    ],
    ids=["joint in layers", "message without class token", "soft attentive heads"],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(clip_vit_b16(), **change)


# Soft attentive


class AddsNothing(nn.Module):
    """What a block's attention gives, if it gives nothing."""

    def forward(self, tokens: Tensor) -> Attended:
        return Attended(torch.zeros_like(tokens), torch.zeros(*tokens.shape[:3], 3, 1, 1), None)


def test_soft_attention_equals_a_loop_over_positions() -> None:
    torch.manual_seed(0)
    hook = SoftAttentive(width=24, zero_init=False, qk_width=16).double()
    tokens = torch.randn(2, 5, 3, 24, dtype=torch.float64)
    lengths = torch.tensor([5, 2])
    mixed = hook(Grid(tokens, lengths=lengths), AddsNothing()(tokens)).tokens - tokens
    for b, length in enumerate(lengths):
        for n in range(3):
            x = tokens[b, :length, n]
            query, key = hook.query(x), hook.key(x)
            for h in range(8):
                part, of_value = slice(2 * h, 2 * h + 2), slice(3 * h, 3 * h + 3)
                weights = (query[:, part] @ key[:, part].T / 16**0.5).softmax(dim=-1)
                expected = weights @ x[:, of_value]
                torch.testing.assert_close(mixed[b, :length, n, of_value], expected, rtol=0, atol=1e-12)


# Message


def test_a_message_is_dropped_again_and_its_size_too() -> None:
    model = small("message")
    grid = Grid(torch.randn(2, 3, 5, 24), sizes=torch.full((2, 3, 5), 2.0))
    appended = model.vision.blocks[0].pre(grid)
    assert appended.tokens.shape == (2, 3, 6, 24)
    assert torch.equal(appended.tokens[:, :, :5], grid.tokens)
    assert appended.sizes[0, 0].tolist() == [2, 2, 2, 2, 2, 1]
    out = model.vision.blocks[0](grid)
    assert out.tokens.shape == grid.tokens.shape
    assert torch.equal(out.sizes, grid.sizes)


def test_a_message_needs_one_class_token() -> None:
    hook = MessageToken(width=12, num_heads=3)
    with pytest.raises(ValueError, match=r"one class token a frame, but there are 2"):
        hook(Grid(torch.randn(1, 1, 5, 12), num_class_tokens=2))


# Shift


def shifted_by_a_loop(tokens: Tensor, lengths: list[int]) -> Tensor:
    """By the paper's words: whole tokens 1, 1 + fold, ... of the frame before, 4, 4 + fold, ... of the one after."""
    seen = tokens.clone()
    fold = tokens.shape[2] // 7
    for b, length in enumerate(lengths):
        for t in range(tokens.shape[1]):
            for n in range(1, tokens.shape[2]):
                if (n - 1) % fold == 0 and t > 0:
                    seen[b, t, n] = tokens[b, t - 1, n]
                elif (n - 4) % fold == 0 and n >= 4 and t + 1 < length:
                    seen[b, t, n] = tokens[b, t + 1, n]
    return seen


@pytest.mark.parametrize("num_patches", [49, 196], ids=["B/32", "B/16"])
def test_shift_equals_a_loop_and_leaves_the_residual(num_patches: int) -> None:
    tokens = torch.randn(2, 4, 1 + num_patches, 2)
    grid = TokenShift()(Grid(tokens, lengths=torch.tensor([4, 2])))
    assert torch.equal(grid.tokens, tokens)
    seen = shifted_by_a_loop(tokens, [4, 2])
    assert torch.equal(grid.seen[0], seen[0])
    assert torch.equal(grid.seen[1, :2], seen[1, :2])


def test_a_block_with_shift_attends_to_shifted_tokens_and_adds_to_its_own() -> None:
    torch.manual_seed(0)
    block = Block(
        width=12, num_heads=3, mlp_width=20, activation="gelu", layer_norm_eps=1e-5, pre=TokenShift()
    )
    tokens = torch.randn(1, 3, 50, 12)
    seen = shifted_by_a_loop(tokens, [3])
    x = tokens + block.attention(block.ln_1(seen), None).update
    out = block(Grid(tokens))
    assert out.seen is None
    torch.testing.assert_close(out.tokens, x + block.mlp(block.ln_2(x)))


def test_in_small_pictures_no_patch_comes_from_both_sides() -> None:
    frames = torch.arange(3.0).view(1, 3, 1, 1)
    for num_patches in range(1, 64):
        grid = Grid(frames.expand(1, 3, 1 + num_patches, 1))
        seen = TokenShift()(grid).seen[0, 1, :, 0]
        assert seen[0] == 1
        assert (seen != 1).sum() <= max(2, (num_patches + 3) * 2 // 7)
        assert seen.unique().numel() == (2 if num_patches < 4 else 3)


# Joint


@torch.no_grad()
def test_joint_attention_equals_clips_blocks_on_all_patches_of_a_clip() -> None:
    model, frames = small("joint", temporal_zero_init=False), random_frames(2, 4)
    tower = model.vision
    patches = tower.patch(frames.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (2, 4))
    patches = patches + tower.position[1:] + tower.embed.time_position[:, None]
    first = (tower.class_token + tower.position[0]).expand(2, 1, -1)
    x = tower.ln_pre(torch.cat([first, patches.flatten(1, 2)], dim=1))
    for block in tower.blocks:
        qkv = block.attention.qkv(block.ln_1(x)).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        x = x + block.attention.out(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    video = model.encode_video(frames)
    torch.testing.assert_close(video.tokens, x, rtol=0, atol=1e-5)
    expected = F.normalize(tower.projection(tower.ln_post(x[:, 0])), dim=-1)
    torch.testing.assert_close(video.embedding, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_class_tokens", [0, 1])
def test_joint_says_where_every_token_is(num_class_tokens: int) -> None:
    tokens = torch.randn(2, 3, num_class_tokens + 4, 8)
    tokens[:, 1:, :num_class_tokens] = tokens[:, :1, :num_class_tokens]
    hook = JointEmbed(width=8, max_frames=3, zero_init=True)
    grid = hook(Grid(tokens, lengths=torch.tensor([3, 2]), num_class_tokens=num_class_tokens))
    assert grid.lengths is None
    assert grid.tokens.shape == (2, 1, num_class_tokens + 12, 8)
    assert grid.sizes[0].eq(1).all()
    assert grid.sizes[1, 0].tolist() == [1.0] * (num_class_tokens + 8) + [0.0] * 4
    rows = grid.assignment.unflatten(1, (3, -1))
    assert rows[1, 2].eq(-1).all()
    for b, t in ((0, 0), (0, 2), (1, 1)):
        assert torch.equal(grid.tokens[b, 0, rows[b, t].long()], tokens[b, t])


@torch.no_grad()
def test_joint_tokens_keep_their_times() -> None:
    pts_seconds = torch.tensor([[0.0, 1.0, 5.0]])
    video = small("joint").encode_video(random_frames(1, 3), pts_seconds=pts_seconds)
    assert video.tokens.shape == (1, 1 + 3 * 49, 24)
    assert video.mask.all()
    assert video.pts_seconds[0, 0] == 2.0
    assert torch.equal(video.pts_seconds[0, 1:], pts_seconds[0].repeat_interleave(49))
