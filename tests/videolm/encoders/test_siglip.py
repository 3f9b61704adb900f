"""SigLIP's and MetaCLIP 2's towers against transformers' models with the same random weights, and the way back."""

from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
)

from videolm.encoders.clip import AttentionPool
from videolm.encoders.presets import CLIPShape, build_video_clip, clip_vit_b32
from videolm.encoders.video_clip import VideoCLIP
from videolm.encoders.weights import Weights, export_folder, read_weights

TEXT: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 61, "max_position_embeddings": 9, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 3,
    "image_size": 20, "patch_size": 5,
}  # fmt: skip


def shaken(theirs: PreTrainedModel) -> PreTrainedModel:
    """With biases and norms that are not at their starting values."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return theirs.eval()


def random_siglip() -> SiglipModel:
    torch.manual_seed(0)
    text = TEXT | {"projection_size": VISION["hidden_size"]}
    return shaken(SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)))


def random_metaclip() -> MetaClip2Model:
    torch.manual_seed(0)
    text = TEXT | {"eos_token_id": 2}
    return shaken(MetaClip2Model(MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=17)))


def loaded(theirs: PreTrainedModel, folder: Path) -> tuple[VideoCLIP, Weights]:
    theirs.save_pretrained(folder)
    weights = read_weights(folder)
    model = build_video_clip(weights.shape).eval()
    model.load_state_dict(weights.state)
    return model, weights


def full_sentences(end: int) -> tuple[Tensor, Tensor]:
    """Sentences padded to the context with 0; the end token stands behind the last word, and once before it too."""
    num_words = torch.tensor([2, 5, 9])
    ids = torch.randint(5, 61, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < num_words[:, None]
    ids = ids.masked_fill(~mask, 0)
    ids[torch.arange(3), num_words - 1] = end
    return ids, mask


def assert_relatively_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max() / expected.abs().max()) <= 1e-5


@torch.no_grad()
def test_siglip_equals_transformers(tmp_path: Path) -> None:
    theirs = random_siglip()
    model, weights = loaded(theirs, tmp_path)
    assert (weights.layout, weights.shape.family, weights.shape.activation) == (
        "transformers SigLIP", "siglip", "gelu_tanh",
    )  # fmt: skip
    pictures = torch.randn(3, 3, 20, 20)
    ids, mask = full_sentences(end=1)
    expected = theirs(input_ids=ids, pixel_values=pictures)
    video, text = model.encode_video(pictures.unsqueeze(1)), model.encode_text(ids, mask)
    assert video.tokens.shape == (3, 16, 36)
    assert_relatively_close(video.embedding, expected.image_embeds)
    assert_relatively_close(text.embedding, expected.text_embeds)
    assert_relatively_close(text.tokens, theirs.text_model.head(expected.text_model_output.last_hidden_state))
    logits = model.logit_scale.exp() * text.embedding @ video.embedding.T + model.logit_bias
    assert_relatively_close(logits, expected.logits_per_text)


@torch.no_grad()
def test_metaclip_2_equals_transformers_and_reads_at_token_2(tmp_path: Path) -> None:
    theirs = random_metaclip()
    model, weights = loaded(theirs, tmp_path)
    assert weights.shape.eos_token_id == 2
    pictures = torch.randn(3, 3, 20, 20)
    ids, mask = full_sentences(end=2)
    expected = theirs(input_ids=ids, pixel_values=pictures, attention_mask=mask.long())
    assert_relatively_close(model.encode_video(pictures.unsqueeze(1)).embedding, expected.image_embeds)
    assert_relatively_close(model.encode_text(ids, mask).embedding, expected.text_embeds)


@torch.no_grad()
def test_siglips_temporal_module_starts_as_nothing_and_is_heard_later(tmp_path: Path) -> None:
    _, weights = loaded(random_siglip(), tmp_path)
    frames = torch.randn(2, 4, 3, 20, 20)
    plain = build_video_clip(weights.shape)
    plain.load_state_dict(weights.state)
    timed = build_video_clip(replace(weights.shape, temporal="divided"))
    timed.load_state_dict(weights.state, strict=False)
    expected = plain.encode_video(frames).embedding
    assert_relatively_close(timed.encode_video(frames).embedding, expected)
    for block in timed.vision.blocks:
        block.pre.out.weight.normal_(std=0.2)
    lengths = torch.tensor([4, 2])
    together = timed.encode_video(frames, lengths=lengths).embedding
    assert_relatively_close(together[1:], timed.encode_video(frames[1:, :2]).embedding)
    assert (together - expected).abs().max() > 1e-3


@torch.no_grad()
def test_in_the_pool_a_token_of_size_three_counts_as_three_equal_tokens() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(width=12, num_heads=3, mlp_width=20, activation="gelu_tanh", layer_norm_eps=1e-6)
    few = torch.randn(2, 2, 4, 12)
    many = torch.cat([few, few[:, :, -1:], few[:, :, -1:]], dim=2)
    sizes = torch.tensor([1.0, 1.0, 1.0, 3.0]).expand(2, 2, 4)
    assert_relatively_close(pool(few, sizes), pool(many, None))


@torch.no_grad()
def test_what_is_pooled_of_a_frame_without_tokens_is_what_no_attention_gives() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(width=12, num_heads=3, mlp_width=20, activation="gelu_tanh", layer_norm_eps=1e-6)
    torch.nn.init.normal_(pool.out.bias)
    sizes = torch.ones(1, 2, 4)
    sizes[0, 1] = 0
    pooled = pool(torch.randn(1, 2, 4, 12), sizes)[0, 1]
    torch.testing.assert_close(pooled, pool.out.bias + pool.mlp(pool.ln(pool.out.bias)))


def test_gradients_reach_every_parameter_of_siglip(tmp_path: Path) -> None:
    model, _ = loaded(random_siglip(), tmp_path)
    ids, mask = full_sentences(end=1)
    video = model.encode_video(torch.randn(3, 2, 3, 20, 20)).embedding
    logits = model.logit_scale.exp() * model.encode_text(ids, mask).embedding @ video.T + model.logit_bias
    logits.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    model, _ = loaded(random_siglip(), tmp_path)
    ids, mask = full_sentences(end=1)
    frames = torch.randn(2, 3, 3, 20, 20)
    exact = [model.encode_video(frames).embedding, model.encode_text(ids, mask).embedding]
    model = model.to(torch.bfloat16)
    rough = [model.encode_video(frames).embedding, model.encode_text(ids, mask).embedding]
    for few, many in zip(rough, exact, strict=True):
        assert float((few * many).sum(dim=1).min()) > 0.999


def test_a_sentence_that_does_not_fill_the_context_is_refused(tmp_path: Path) -> None:
    model, _ = loaded(random_siglip(), tmp_path)
    ids, mask = full_sentences(end=1)
    with pytest.raises(
        ValueError, match=r"input_ids has 5 words, .* at the last of 9 places; pad in the tokenizer"
    ):
        unwrap(VideoCLIP.encode_text)(model, ids[:, :5], mask[:, :5])


@pytest.mark.parametrize(
    ("make", "model_class"),
    [(random_siglip, SiglipModel), (random_metaclip, MetaClip2Model)],
    ids=lambda it: it.__name__,
)
def test_an_exported_folder_is_the_same_model_of_transformers(
    make: Any, model_class: type[PreTrainedModel], tmp_path: Path
) -> None:
    theirs = make()
    model, weights = loaded(theirs, tmp_path / "theirs")
    export_folder(tmp_path / "exported", shape=weights.shape, state=model.state_dict())
    again = model_class.from_pretrained(tmp_path / "exported")
    state = theirs.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in state.items())
    ids, _ = full_sentences(end=weights.shape.eos_token_id)
    features = [m.eval().get_text_features(input_ids=ids).pooler_output for m in (theirs, again)]
    assert torch.equal(*features)
    assert read_weights(tmp_path / "exported").shape == weights.shape
    files = [tmp_path / name / "model.safetensors" for name in ("theirs", "exported")]
    assert load_file(files[0]).keys() == load_file(files[1]).keys()


SMALL = replace(
    clip_vit_b32(), vision_width=64, vision_heads=2, vision_depth=1, text_width=32, text_heads=2, text_depth=1,
    vocab_size=50, eos_token_id=49, joint_dim=16, image_size=32,
)  # fmt: skip


def test_a_model_of_ours_is_exported_to_clip(tmp_path: Path) -> None:
    model = build_video_clip(SMALL)
    export_folder(tmp_path, shape=SMALL, state=model.state_dict())
    theirs = CLIPModel.from_pretrained(tmp_path).eval()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = theirs.get_image_features(pixel_values=pictures).pooler_output
        expected = torch.nn.functional.normalize(features, dim=-1)
        assert_relatively_close(model.encode_video(pictures.unsqueeze(1)).embedding, expected)


@pytest.mark.parametrize("added", [{"temporal": "divided"}, {"aggregator": "lstm"}], ids=str)
def test_what_transformers_has_no_place_for_is_not_exported(added: dict[str, Any], tmp_path: Path) -> None:
    shape = replace(SMALL, **added)
    with pytest.raises(ValueError, match=r"transformers has no place for temporal .* aggregator"):
        export_folder(tmp_path / "out", shape=shape, state=build_video_clip(shape).state_dict())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "siglip"}, r"joint_dim \(16\) must be vision_width \(64\) in a siglip"),
        (
            {"aggregator": "transformer", "aggregator_heads": 5},
            r"joint_dim \(16\) must be a multiple of aggreg",
        ),
        ({"aggregator_depth": 0}, r"aggregator_depth \(0\) must be at least 1"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize("name", ["family", "aggregator", "temporal", "activation"])
def test_a_choice_that_there_is_none_of_is_refused(name: str) -> None:
    # By the shape checker where it is switched on, by the class itself where it is not.
    with pytest.raises((ValueError, TypeError), match="nothing of the kind"):
        CLIPShape(**{**SMALL.__dict__, name: "nothing of the kind"})
