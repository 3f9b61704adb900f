"""Our towers against transformers' CLIPModel with the same random weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from videolm.encoders.blocks import Attended, Block, Grid
from videolm.encoders.clip import ImageTower
from videolm.encoders.presets import CLIPShape, build_video_clip, clip_vit_b32
from videolm.encoders.video_clip import VideoCLIP
from videolm.encoders.weights import load_clip_state, read_weights

BASE: dict[str, dict[str, Any]] = {
    "text": {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
        "vocab_size": 61, "max_position_embeddings": 11, "bos_token_id": 59, "eos_token_id": 60,
        "pad_token_id": 0,
    },
    "vision": {
        "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 3,
        "image_size": 20, "patch_size": 5,
    },
}  # fmt: skip

ODD = {
    "plain": ({}, {}),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "epsilon": ({"layer_norm_eps": 1e-2}, {"layer_norm_eps": 1e-2}),
    "patches that do not fill the picture": ({}, {"image_size": 23, "patch_size": 7}),
    "one patch, one layer": ({"num_hidden_layers": 1}, {"image_size": 5, "num_hidden_layers": 1}),
    "end token inside the vocabulary": ({"eos_token_id": 7}, {}),
    "end token of configs before 2023": ({"eos_token_id": 2}, {}),
}


def random_clip(text: dict[str, Any], vision: dict[str, Any], *, projection_dim: int = 17) -> CLIPModel:
    """transformers' model, with biases and norms that are not at their starting values."""
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=BASE["text"] | text, vision_config=BASE["vision"] | vision, projection_dim=projection_dim
    )
    theirs = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return theirs


def ours_from(theirs: CLIPModel, folder: Path, **changes: Any) -> VideoCLIP:
    theirs.save_pretrained(folder)
    weights = read_weights(folder)
    model = build_video_clip(replace(weights.shape, **changes)).eval()
    load_clip_state(model, weights.state)
    return model


def padded_sentences(model: VideoCLIP) -> tuple[Tensor, Tensor]:
    """Sentences of several lengths, of the end token and padding behind it."""
    end, context_length = model.text.eos_token_id, len(model.text.position)
    num_words = torch.tensor([2, 5, context_length])
    input_ids = torch.randint(8, 59, (3, context_length), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(context_length) < num_words[:, None]
    input_ids = input_ids.masked_fill(~mask, 0)
    input_ids[torch.arange(3), num_words - 1] = end
    return input_ids, mask


def assert_relatively_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max() / expected.abs().max()) <= tolerance


def assert_equals_clip(model: VideoCLIP, theirs: CLIPModel, frames: Tensor) -> None:
    """Last hidden states, both embeddings and the logits; `frames` is (B, 3, S, S)."""
    input_ids, mask = padded_sentences(model)
    with torch.no_grad():
        video = model.encode_video(frames.unsqueeze(1))
        text = model.encode_text(input_ids, mask)
        expected = theirs(input_ids=input_ids, pixel_values=frames, attention_mask=mask.long())
        words = theirs.text_projection(expected.text_model_output.last_hidden_state)
        logits = model.logit_scale.exp() * text.embedding @ video.embedding.T
    assert_relatively_close(video.tokens, expected.vision_model_output.last_hidden_state, 1e-5)
    assert_relatively_close(text.tokens[mask], words[mask], 1e-5)
    assert_relatively_close(video.embedding, expected.image_embeds, 1e-5)
    assert_relatively_close(text.embedding, expected.text_embeds, 1e-5)
    assert_relatively_close(logits, expected.logits_per_text, 1e-5)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_default_plan_equals_clip(odd: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    theirs = random_clip(*odd)
    model = ours_from(theirs, tmp_path)
    size = model.vision.image_size
    assert_equals_clip(model, theirs, torch.randn(3, 3, size, size))


@pytest.mark.slow
def test_default_plan_equals_clip_at_the_size_of_vit_b32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = CLIPModel(CLIPConfig()).eval()
    model = ours_from(theirs, tmp_path)
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in build_video_clip(clip_vit_b32()).named_parameters()
    }
    assert_equals_clip(model, theirs, torch.randn(2, 3, 224, 224))


@pytest.mark.parametrize("layers", [None, [1]], ids=["all layers", "the last layer"])
@pytest.mark.parametrize("num_frames", [1, 4, 13])
def test_zero_init_temporal_equals_clip(num_frames: int, layers: list[int] | None, tmp_path: Path) -> None:
    theirs = random_clip({}, {})
    model = ours_from(theirs, tmp_path, temporal="divided", temporal_layers=layers, max_frames=4)
    frames = torch.randn(2, num_frames, 3, 20, 20)
    with torch.no_grad():
        each = theirs.get_image_features(pixel_values=frames.flatten(0, 1)).pooler_output
        each = nn.functional.normalize(each, dim=-1).unflatten(0, (2, num_frames))
        expected = nn.functional.normalize(each.mean(dim=1), dim=-1)
        assert_relatively_close(model.encode_video(frames).embedding, expected, 1e-5)


class Recorder(nn.Module):
    """A hook that keeps what it saw and changes the tokens, or nothing."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda tokens: tokens) -> None:
        super().__init__()
        self.change = change
        self.seen: list[Any] = []

    def forward(self, grid: Grid, attended: Attended | None = None) -> Grid:
        self.seen.append((grid, attended))
        tokens = grid.tokens if attended is None else grid.tokens + attended.update
        return replace(grid, tokens=self.change(tokens))


def small_block(**hooks: nn.Module) -> Block:
    torch.manual_seed(0)
    return Block(width=12, num_heads=3, mlp_width=20, activation="gelu", layer_norm_eps=1e-5, **hooks).eval()


def test_hooks_are_called_where_the_block_says() -> None:
    hooks = {name: Recorder() for name in ("pre", "mid", "tap")}
    block = small_block(**hooks)
    tokens = torch.randn(2, 3, 5, 12)
    out = block(Grid(tokens)).tokens
    (pre, _), (mid, attended), (tap, _) = (hooks[name].seen[0] for name in ("pre", "mid", "tap"))
    expected = block.attention(block.ln_1(tokens), None)
    assert torch.equal(pre.tokens, tokens)
    assert torch.equal(mid.tokens, tokens)
    assert attended.qkv.shape == (2, 3, 5, 3, 3, 4)
    assert torch.equal(attended.qkv, expected.qkv)
    assert torch.equal(attended.update, expected.update)
    assert attended.mean_key is None
    assert torch.equal(tap.tokens, out)
    assert torch.equal(out, small_block()(Grid(tokens)).tokens)


def test_pre_and_mid_can_add_and_take_off_tokens() -> None:
    message = torch.randn(2, 3, 1, 12)
    block = small_block(
        pre=Recorder(lambda tokens: torch.cat([tokens, message], dim=2)),
        mid=Recorder(lambda tokens: tokens[:, :, :-1]),
    )
    out = block(Grid(torch.randn(2, 3, 5, 12))).tokens
    assert out.shape == (2, 3, 5, 12)


def test_tower_gives_each_hook_to_its_block() -> None:
    tap = Recorder()
    tower = ImageTower(
        image_size=8, patch_size=4, width=12, depth=3, num_heads=2, mlp_width=8, joint_dim=5,
        activation="gelu", tap={1: tap},
    )  # fmt: skip
    tower(torch.randn(2, 3, 3, 8, 8), lengths=torch.tensor([3, 1]))
    assert [block.tap for block in tower.blocks] == [None, tap, None]
    assert tap.seen[0][0].lengths.tolist() == [3, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_of_size_three_counts_as_three_equal_tokens(dtype: torch.dtype) -> None:
    block = small_block().to(dtype)
    few = torch.randn(2, 1, 4, 12, dtype=dtype)
    many = torch.cat([few, few[:, :, -1:], few[:, :, -1:]], dim=2)
    sizes = torch.tensor([1.0, 1.0, 1.0, 3.0]).expand(2, 1, 4)
    with torch.no_grad():
        merged = block(Grid(few, sizes=sizes)).tokens
        apart = block(Grid(many)).tokens
    assert_relatively_close(merged, apart[:, :, :4], 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("num_frames", [1, 3])
def test_bfloat16_stays_near_float32(num_frames: int, tmp_path: Path) -> None:
    model = ours_from(random_clip({}, {}), tmp_path)
    frames = torch.randn(2, num_frames, 3, 20, 20)
    input_ids, mask = padded_sentences(model)
    with torch.no_grad():
        video, text = model.encode_video(frames), model.encode_text(input_ids, mask)
        model = model.to(torch.bfloat16)
        rough_video, rough_text = model.encode_video(frames), model.encode_text(input_ids, mask)
    assert rough_video.tokens.dtype == rough_text.tokens.dtype == torch.bfloat16
    for rough, exact in ((rough_video, video), (rough_text, text)):
        assert rough.embedding.dtype == torch.float32
        torch.testing.assert_close(rough.embedding.norm(dim=1), torch.ones(len(exact.embedding)))
        # Two or three layers with about ten roundings each: their errors add up like a walk, √30 · eps / 2.
        error = (rough.embedding - exact.embedding).norm(dim=1)
        assert float(error.max()) <= 2.7 * torch.finfo(torch.bfloat16).eps
    assert not torch.equal(rough_video.embedding, video.embedding)


def test_shape_is_json(tmp_path: Path) -> None:
    import json
    from dataclasses import asdict

    from omegaconf import OmegaConf

    shape = replace(clip_vit_b32(), temporal="divided", temporal_layers=[0, 11])
    assert CLIPShape(**json.loads(json.dumps(asdict(shape)))) == shape
    assert OmegaConf.to_object(OmegaConf.structured(shape)) == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_depth": 0}, r"vision_depth \(0\) must be at least 1"),
        ({"vision_heads": 5}, r"vision_width \(768\) must be a multiple of vision_heads \(5\)"),
        ({"text_heads": 5}, r"text_width \(512\) must be a multiple of text_heads \(5\)"),
        ({"eos_token_id": 49408}, r"eos_token_id \(49408\) must be in \[0, 49408\)"),
        ({"image_size": 31}, r"image_size \(31\) must be at least patch_size \(32\)"),
        ({"layer_norm_eps": 0.0}, r"layer_norm_eps \(0.0\) must be above 0"),
        ({"temporal_layers": [0, 12]}, r"temporal_layers \(\[0, 12\]\) must be in \[0, 12\)"),
    ],
)
def test_a_shape_out_of_range_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(clip_vit_b32(), **change)
