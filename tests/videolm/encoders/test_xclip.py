"""X-CLIP for recognition against transformers' XCLIPModel with the same random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import XCLIPConfig, XCLIPModel

import videolm
from tests.videolm.encoders.test_clip import assert_relatively_close, padded_sentences
from videolm.encoders.presets import build_video_clip
from videolm.encoders.video_clip import VideoCLIP
from videolm.encoders.weights import Weights, load_clip_state, read_weights
from videolm.encoders.weights.convert import to_state
from videolm.encoders.weights.tables import TRANSFORMERS_XCLIP

TEXT: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 61, "max_position_embeddings": 11,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3, "num_attention_heads": 3,
    "image_size": 20, "patch_size": 5, "num_frames": 4,
    "mit_hidden_size": 18, "mit_intermediate_size": 72, "mit_num_attention_heads": 2,
}  # fmt: skip
PROMPTS = ["prompts_generator", "prompts_visual_layernorm", "prompts_visual_projection"]


def random_xclip(*, activation: str = "quick_gelu", **vision: Any) -> XCLIPModel:
    """transformers' model, with biases and norms that are not at their starting values."""
    torch.manual_seed(0)
    config = XCLIPConfig(
        text_config=TEXT | {"hidden_act": activation},
        vision_config=VISION | {"hidden_act": activation} | vision,
        projection_dim=18,
        prompt_num_attention_heads=2,
    )
    theirs = XCLIPModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return theirs


def ours_from(theirs: XCLIPModel, folder: Path) -> tuple[VideoCLIP, Weights]:
    theirs.save_pretrained(folder)
    weights = read_weights(folder)
    model = build_video_clip(weights.shape).eval()
    load_clip_state(model, weights.state)
    return model, weights


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers that integrate": {"mit_num_hidden_layers": 2},
    "gelu": {"activation": "gelu"},
    "one frame": {"num_frames": 1},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_tower_and_vectors_equal_xclip(variant: dict[str, Any], tmp_path: Path) -> None:
    theirs = random_xclip(**variant)
    model, _ = ours_from(theirs, tmp_path)
    num_frames = theirs.config.vision_config.num_frames
    frames = torch.randn(3, num_frames, 3, 20, 20)
    video = model.encode_video(frames)
    expected = theirs.get_video_features(pixel_values=frames)
    tokens = expected.last_hidden_state.unflatten(0, (3, num_frames)).flatten(1, 2)
    assert_relatively_close(video.tokens, tokens, 1e-5)
    video_embeds = expected.pooler_output / expected.pooler_output.norm(dim=-1, keepdim=True)
    assert_relatively_close(video.embedding, video_embeds, 1e-5)

    input_ids, mask = padded_sentences(model)
    text = theirs.get_text_features(input_ids=input_ids, attention_mask=mask.long()).pooler_output
    assert_relatively_close(
        model.encode_text(input_ids, mask).embedding, text / text.norm(dim=-1, keepdim=True), 1e-5
    )
    assert float(model.logit_scale) == float(theirs.logit_scale)


@torch.no_grad()
def test_a_padded_clip_equals_the_shorter_one(tmp_path: Path) -> None:
    model, _ = ours_from(random_xclip(), tmp_path)
    frames = torch.randn(2, 4, 3, 20, 20)
    frames[1, 2:] = 50.0
    together = model.encode_video(frames, lengths=torch.tensor([4, 2])).embedding
    assert_relatively_close(together[1:], model.encode_video(frames[1:, :2]).embedding, 1e-5)


def test_what_is_read_is_all_but_the_prompts(tmp_path: Path) -> None:
    _, weights = ours_from(random_xclip(), tmp_path)
    assert (weights.shape.temporal, weights.shape.aggregator) == ("message", "multiframe")
    assert weights.layout == "transformers X-CLIP"
    assert weights.left_out == weights.left_out_tensors == PROMPTS
    theirs = load_file(tmp_path / "model.safetensors")
    back = to_state(weights.state, layout=TRANSFORMERS_XCLIP)
    assert back.keys() == {key for key in theirs if not key.startswith("prompts_")}
    assert all(torch.equal(back[key], theirs[key]) for key in back)


def test_load_takes_as_many_frames_as_it_was_trained_with_and_names_what_is_left_out(tmp_path: Path) -> None:
    random_xclip().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=f"which are left out: {', '.join(PROMPTS)}"):
        model = videolm.load(tmp_path, device="cpu")
    assert model.sampler.num_frames == 4
    model.save(tmp_path / "own")
    again = videolm.load(tmp_path / "own", device="cpu")
    assert again.info.weights_sha256 == model.info.weights_sha256
    assert again.shape == model.shape


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("vision_config", "mit_intermediate_size", 71, r"mit_intermediate_size \(18, 71\) must be .* \(18\)"),
        ("vision_config", "mit_hidden_size", 12, r"mit_intermediate_size \(12, 72\) must be"),
        ("vision_config", "mit_num_hidden_layers", 9, r"9 keys|keys missing"),
        ("vision_config", "mit_num_hidden_layers", 1000, r"asks for 3 \+ 2 \+ 1000 layers"),
        ("vision_config", "num_frames", 5, r"mit.position_embedding is \(1, 4, 18\), but .* \(1, 5, 18\)"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    part: str, key: str, value: int, message: str, tmp_path: Path
) -> None:
    random_xclip().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[part][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path)
