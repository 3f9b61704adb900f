"""Image towers without a text tower, as in models that caption, against transformers' with the same weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.videolm.heads.git_models import random_blip2, random_git
from videolm.encoders.cost import count_macs
from videolm.encoders.presets import CLIPShape, build_video_clip
from videolm.encoders.video_clip import VideoCLIP
from videolm.encoders.weights import export_folder, read_weights

ALONE: dict[str, Any] = {
    "text_width": 0, "text_depth": 0, "text_heads": 0, "text_mlp_width": 0, "vocab_size": 0, "context_length": 0,
    "eos_token_id": 0, "has_text": False,
}  # fmt: skip
SHAPE = CLIPShape(
    image_size=16, patch_size=4, vision_width=24, vision_depth=3, vision_heads=3, vision_mlp_width=30, joint_dim=24,
    **ALONE,
)  # fmt: skip


def tower_of(folder: Path) -> VideoCLIP:
    weights = read_weights(folder)
    tower = build_video_clip(weights.shape).eval()
    tower.load_state_dict(weights.state)
    return tower


@pytest.mark.parametrize("kind", ["git", "blip2"])
@torch.no_grad()
def test_tokens_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs: Any = random_git() if kind == "git" else random_blip2()
    theirs.save_pretrained(tmp_path)
    tower = tower_of(tmp_path)
    frames = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    encoder = theirs.git.image_encoder if kind == "git" else theirs.vision_model
    expected = encoder(frames.flatten(0, 1)).last_hidden_state
    video = tower.encode_video(frames)
    # Theirs come with the last norm, ours without.
    tokens = tower.vision.ln_post(video.tokens).unflatten(1, (3, -1)).flatten(0, 1)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    of_frames = F.normalize(expected[:, 0], dim=1).unflatten(0, (2, 3))
    torch.testing.assert_close(
        video.embedding, F.normalize(of_frames.mean(dim=1), dim=1), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("family", ["clip", "blip2"])
def test_there_is_nothing_of_a_text_tower(family: Any) -> None:
    tower = build_video_clip(replace(SHAPE, family=family))
    names = {name.partition(".")[0] for name in tower.state_dict()}
    assert names == {"vision"}
    assert tower.vision.projection is None
    assert (tower.vision.ln_pre is None) == (tower.vision.patch.bias is not None) == (family == "blip2")
    assert tower.logit_scale is None
    with pytest.raises(ValueError, match="no text tower: it has no temperature"):
        _ = tower.scale
    with pytest.raises(ValueError, match="no text tower: it has no vectors of sentences"):
        tower.encode_text(torch.tensor([[3, 4]]), torch.ones(1, 2, dtype=torch.bool))


def test_without_a_projection_it_costs_that_much_less() -> None:
    with_text = replace(
        SHAPE, has_text=True, text_width=8, text_depth=1, text_heads=1, text_mlp_width=8, vocab_size=9,
        context_length=4, eos_token_id=1,
    )  # fmt: skip
    assert count_macs(with_text, num_frames=2) - count_macs(SHAPE, num_frames=2) == 2 * 24 * 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 9, "text_width": 8}, "text_width, vocab_size must be 0 where has_text is false"),
        ({"family": "siglip"}, r"family \('siglip'\) must have one"),
        ({"joint_dim": 8}, r"joint_dim \(8\) be vision_width \(24\)"),
        ({"has_text": True}, r"text_width \(0\) must be at least 1"),
    ],
    ids=["text", "siglip", "joint", "none"],
)
def test_a_shape_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SHAPE, **changes)


def test_transformers_has_no_place_for_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no CLIPModel of transformers"):
        export_folder(tmp_path, shape=SHAPE, state=build_video_clip(SHAPE).state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_merged_tokens_of_one_frame_have_exactly_its_time(dtype: torch.dtype) -> None:
    tower = build_video_clip(replace(SHAPE, reduce="tome:r=3")).eval()
    times = torch.tensor([[0.1, 4321.7, 7.3]], dtype=dtype)
    video = tower.encode_video(torch.randn(1, 3, 3, 16, 16), pts_seconds=times)
    assert (video.sizes > 2).any()
    assert video.pts_seconds.tolist() == [times[0].repeat_interleave(video.tokens.shape[1] // 3).tolist()]
