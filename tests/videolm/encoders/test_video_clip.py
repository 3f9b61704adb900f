"""The temporal slot, clips of several lengths, and the dual encoder's contract."""

from dataclasses import replace
from inspect import unwrap
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from videolm.encoders.presets import CLIPShape, build_video_clip, clip_vit_b16, clip_vit_l14
from videolm.encoders.temporal import time_position_of
from videolm.encoders.video_clip import VideoCLIP

TINY = CLIPShape(
    image_size=8, patch_size=4, vision_width=24, vision_depth=2, vision_heads=3, vision_mlp_width=30,
    text_width=16, text_depth=1, text_heads=2, text_mlp_width=20, vocab_size=30, context_length=6,
    eos_token_id=4, joint_dim=10, activation="gelu", temporal="divided", max_frames=4,
    temporal_zero_init=False,
)  # fmt: skip


def tiny(**changes: Any) -> VideoCLIP:
    torch.manual_seed(0)
    return build_video_clip(replace(TINY, **changes)).eval()


def random_frames(batch: int, num_frames: int) -> torch.Tensor:
    return torch.randn(batch, num_frames, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_without_temporal_module_the_order_of_frames_is_nothing() -> None:
    model, frames = tiny(temporal="none"), random_frames(3, 4)
    torch.testing.assert_close(
        model.encode_video(frames.flip(1)).embedding, model.encode_video(frames).embedding, rtol=0, atol=1e-6
    )


def test_divided_attention_hears_the_order_of_frames() -> None:
    model, frames = tiny(), random_frames(3, 4)
    cosine = (model.encode_video(frames.flip(1)).embedding * model.encode_video(frames).embedding).sum(dim=1)
    assert (cosine < 1 - 1e-4).all()


def test_gradients_reach_every_parameter() -> None:
    model = tiny()
    ids = torch.tensor([[3, 9, 4]])
    video = model.encode_video(random_frames(1, 4)).embedding
    text = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)).embedding
    (model.logit_scale.exp() * (text * video).sum()).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_zero_init_moves_from_the_first_step() -> None:
    model = tiny(temporal_zero_init=True)
    model.encode_video(random_frames(2, 4)).embedding.sum().backward()
    out = model.vision.blocks[0].pre.out
    assert not out.weight.any()
    assert out.weight.grad.any()


@pytest.mark.parametrize("temporal", ["none", "divided"])
def test_padded_clip_equals_the_shorter_clip_alone(temporal: str) -> None:
    model, frames = tiny(temporal=temporal), random_frames(3, 7)
    lengths = [7, 1, 3]
    for b, length in enumerate(lengths):
        frames[b, length:] = 50.0
    together = model.encode_video(frames, lengths=torch.tensor(lengths))
    num_tokens = 5
    for b, length in enumerate(lengths):
        alone = model.encode_video(frames[b : b + 1, :length])
        torch.testing.assert_close(together.embedding[b : b + 1], alone.embedding, rtol=0, atol=2e-6)
        torch.testing.assert_close(together.tokens[b, together.mask[b]], alone.tokens[0], rtol=0, atol=2e-5)
        assert together.mask[b].sum() == length * num_tokens


@settings(deadline=None, max_examples=50)
@given(max_frames=st.integers(1, 12), num_frames=st.integers(1, 20))
def test_time_position_is_torch_linear_interpolation(max_frames: int, num_frames: int) -> None:
    table = torch.randn(max_frames, 3, generator=torch.Generator().manual_seed(max_frames))
    expected = F.interpolate(table.T[None], size=num_frames, mode="linear", align_corners=False)[0].T
    ours = time_position_of(table, num_frames=num_frames, lengths=None)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    padded = time_position_of(table, num_frames=num_frames + 3, lengths=torch.tensor([num_frames]))
    torch.testing.assert_close(padded[0, :num_frames], expected, rtol=0, atol=1e-5)


def test_time_position_at_its_own_length_is_the_table() -> None:
    table = torch.randn(8, 3)
    assert torch.equal(time_position_of(table, num_frames=8, lengths=None), table)
    assert torch.equal(time_position_of(table, num_frames=1, lengths=None), (table[3:4] + table[4:5]) / 2)


def test_video_tokens_keep_their_contract() -> None:
    model, frames = tiny(), random_frames(2, 3)
    pts_seconds = torch.tensor([[0.0, 0.5, 1.0], [2.0, 2.5, 3.0]], dtype=torch.float64)
    tokens = model.encode_video(frames, lengths=torch.tensor([3, 2]), pts_seconds=pts_seconds)
    assert tokens.tokens.shape == (2, 15, 24)
    assert tokens.mask.tolist() == [[True] * 15, [True] * 10 + [False] * 5]
    assert tokens.sizes.eq(1).all()
    assert torch.equal(tokens.pts_seconds, pts_seconds.repeat_interleave(5, dim=1))
    torch.testing.assert_close(tokens.embedding.norm(dim=1), torch.ones(2))
    assert model.encode_video(frames).pts_seconds.isnan().all()


def test_one_clip_does_not_depend_on_the_others() -> None:
    model, frames = tiny(), random_frames(3, 4)
    torch.testing.assert_close(
        model.encode_video(frames).embedding[1:2],
        model.encode_video(frames[1:2]).embedding,
        rtol=0,
        atol=2e-6,
    )


def test_text_is_read_at_its_first_end_token_whatever_follows() -> None:
    model = tiny()
    short = model.encode_text(torch.tensor([[3, 9, 4]]), torch.ones(1, 3, dtype=torch.bool))
    padded_ids = torch.tensor([[3, 9, 4, 0, 4, 0]])
    padded = model.encode_text(padded_ids, torch.arange(6)[None] < 3)
    torch.testing.assert_close(padded.embedding, short.embedding, rtol=0, atol=1e-6)
    torch.testing.assert_close(F.normalize(padded.tokens[:, 2], dim=1), padded.embedding, rtol=0, atol=1e-6)


def test_bfloat16_autocast_trains() -> None:
    model = tiny()
    ids = torch.tensor([[3, 9, 4]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        video = model.encode_video(random_frames(1, 4), lengths=torch.tensor([3]))
        text = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))
        loss = -(text.embedding * video.embedding).sum()
    loss.backward()
    exact = model.encode_video(random_frames(1, 4), lengths=torch.tensor([3]))
    # Two layers with about fifteen roundings each: √30 · eps / 2.
    assert float((video.embedding - exact.embedding).detach().norm()) <= 2.7 * torch.finfo(torch.bfloat16).eps
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("shape", "num_parameters"),
    # openai's published sizes; the numbers are those of transformers' CLIPModel at these configs.
    [(clip_vit_b16(), 149_620_737), (clip_vit_l14(), 427_616_513)],
    ids=["b16", "l14"],
)
def test_presets_have_the_published_size(shape: CLIPShape, num_parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build_video_clip(shape).parameters()) == num_parameters


@pytest.mark.parametrize(
    ("frames", "lengths", "message"),
    [
        (
            random_frames(1, 2)[..., :7, :7],
            None,
            r"frames must be \(B, T, 3, 8, 8\) for this tower, got \(1, 2, 3, 7, 7\)",
        ),
        (
            random_frames(2, 2),
            torch.tensor([2, 0]),
            r"lengths \(\[2, 0\]\) must be from 1 to the 2 frames given",
        ),
        (
            random_frames(2, 2),
            torch.tensor([3, 1]),
            r"lengths \(\[3, 1\]\) must be from 1 to the 2 frames given",
        ),
    ],
)
def test_wrong_frames_are_refused(frames: torch.Tensor, lengths: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny().encode_video(frames, lengths=lengths)


def test_frames_that_are_not_preprocessed_are_refused() -> None:
    model = tiny()
    with pytest.raises(
        TypeError, match=r"frames must be preprocessed to floating point numbers, got torch.uint8"
    ):
        unwrap(type(model.vision).forward)(model.vision, torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("input_ids", "message"),
    [
        (torch.full((1, 7), 4), r"input_ids has 7 words, but the context_length of this tower is 6"),
        (torch.tensor([[3, 30, 4]]), r"input_ids \(3 to 30\) must be in \[0, 30\)"),
        (torch.tensor([[3, 4, 0], [3, 5, 6]]), r"input_ids\[1\] has no end token \(4\)"),
    ],
)
def test_wrong_ids_are_refused(input_ids: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unwrap(VideoCLIP.encode_text)(tiny(), input_ids, torch.ones_like(input_ids, dtype=torch.bool))


def test_an_end_token_that_is_padding_is_none() -> None:
    input_ids = torch.tensor([[3, 9, 4]])
    with pytest.raises(ValueError, match=r"input_ids\[0\] has no end token"):
        tiny().encode_text(input_ids, torch.tensor([[True, True, False]]))
