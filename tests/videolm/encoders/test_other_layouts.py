"""Weights of OpenAI, open_clip and CLIP4Clip: the same vectors as an independent float64 model, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.videolm.encoders.reference import (
    CONTEXT,
    DEPTH,
    IMAGE,
    JOINT,
    PATCH,
    TEXT_WIDTH,
    VOCABULARY,
    WIDTH,
    FrameLSTM,
    FrameTransformer,
    ReferenceCLIP,
    mean_of_frames,
    sentences,
)
from videolm.encoders.presets import build_video_clip
from videolm.encoders.video_clip import VideoCLIP
from videolm.encoders.weights import Weights, read_weights
from videolm.encoders.weights.shapes import shape_of_state
from videolm.encoders.weights.tables import OPENAI

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": JOINT,
        "vision_cfg": {"image_size": IMAGE, "layers": DEPTH, "width": WIDTH, "patch_size": PATCH},
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": VOCABULARY, "width": TEXT_WIDTH,
            "heads": TEXT_WIDTH // 64, "layers": DEPTH,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]},
}  # fmt: skip


def reference(**options: Any) -> ReferenceCLIP:
    torch.manual_seed(0)
    return ReferenceCLIP(**options).eval()


def write_config(folder: Path, **changes: Any) -> None:
    """open_clip_config.json with these keys of model_cfg, vision_cfg (`vision_`) and text_cfg (`text_`) changed."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        part, _, rest = key.partition("__")
        target = config["model_cfg"] if not rest else config["model_cfg"][f"{part}_cfg"]
        target[rest or part] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def model_of(weights: Weights) -> VideoCLIP:
    model = build_video_clip(weights.shape).eval()
    model.load_state_dict(weights.state)
    return model


def assert_relatively_close(actual: Tensor, expected: Tensor) -> None:
    assert float((actual - expected).abs().max() / expected.abs().max()) <= 1e-5


@torch.no_grad()
def assert_gives_the_vectors_of(weights: Weights, theirs: ReferenceCLIP) -> None:
    model = model_of(weights)
    pictures = torch.randn(3, 3, IMAGE, IMAGE)
    ids, mask = sentences()
    expected = theirs.double()(pictures.double(), ids)
    assert_relatively_close(
        model.encode_video(pictures.unsqueeze(1)).embedding, F.normalize(expected[0], dim=1)
    )
    assert_relatively_close(model.encode_text(ids, mask).embedding, F.normalize(expected[1], dim=1))
    assert model.logit_scale.item() == pytest.approx(theirs.logit_scale.item())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("half", [True, False], ids=["float16", "float32"])
def test_a_torchscript_archive_of_openai_gives_the_same_vectors(half: bool, tmp_path: Path) -> None:
    theirs = FlatCLIP(reference())
    for name, value in (("input_resolution", IMAGE), ("context_length", CONTEXT), ("vocab_size", VOCABULARY)):
        theirs.register_buffer(name, torch.tensor(value))
    traced = torch.jit.trace(theirs, (torch.randn(1, 3, IMAGE, IMAGE), sentences()[0][:1]))
    if half:
        traced = traced.half()
        theirs = theirs.half()
    file = tmp_path / "ViT-tiny.pt"
    torch.jit.save(traced, str(file))
    weights = read_weights(file)
    assert weights.layout == "OpenAI CLIP"
    assert weights.shape.activation == "quick_gelu"
    assert (weights.shape.image_size, weights.shape.eos_token_id) == (IMAGE, VOCABULARY - 1)
    assert all(tensor.dtype == torch.float32 for tensor in weights.state.values())
    assert_gives_the_vectors_of(weights, theirs.as_reference())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_torchscript_of_another_project_is_asked_for_its_activation(tmp_path: Path) -> None:
    theirs = FlatCLIP(reference(activation="gelu"))
    traced = torch.jit.trace(theirs, (torch.randn(1, 3, IMAGE, IMAGE), sentences()[0][:1]))
    torch.jit.save(traced, str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match="nothing says which activation"):
        read_weights(tmp_path)
    assert_gives_the_vectors_of(read_weights(tmp_path, activation="gelu"), theirs.as_reference())
    write_config(tmp_path)
    assert_gives_the_vectors_of(read_weights(tmp_path), theirs.as_reference())


class FlatCLIP(nn.Module):
    """The reference with the attributes of openai/CLIP's module."""

    def __init__(self, theirs: ReferenceCLIP) -> None:
        super().__init__()
        self.visual = theirs.visual
        for name, child in theirs.text.named_children():
            self.add_module(name, child)
        self.positional_embedding = theirs.text.positional_embedding
        self.text_projection = theirs.text.text_projection
        self.logit_scale = theirs.logit_scale
        self._theirs = [theirs]

    def as_reference(self) -> ReferenceCLIP:
        return self._theirs[0]

    def forward(self, pictures: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        theirs = self.as_reference()
        return theirs(pictures, ids)


def test_a_state_dict_of_openai_gives_the_same_vectors(tmp_path: Path) -> None:
    theirs = reference()
    extra = {"input_resolution": torch.tensor(IMAGE), "attn_mask": torch.zeros(CONTEXT, CONTEXT)}
    torch.save(theirs.flat_state() | extra, tmp_path / "state.pt")
    assert_gives_the_vectors_of(read_weights(tmp_path / "state.pt"), theirs)


WRITERS: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "open_clip_model.safetensors": lambda state, path: save_file(state, path),
    "open_clip_pytorch_model.bin": lambda state, path: torch.save(state, path),
    "epoch_32.pt": lambda state, path: torch.save(
        {
            "epoch": 32, "name": "run", "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
            "state_dict": {f"module.{key}": tensor for key, tensor in state.items()},
        },
        path,
    ),
}  # fmt: skip


@pytest.mark.parametrize("custom_text", [False, True], ids=["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("name", WRITERS)
def test_open_clip_gives_the_same_vectors(name: str, custom_text: bool, tmp_path: Path) -> None:
    theirs = reference(activation="gelu")
    state = theirs.state_dict() if custom_text else theirs.flat_state()
    WRITERS[name](state, tmp_path / name)
    write_config(tmp_path)
    weights = read_weights(tmp_path)
    assert weights.layout == ("open_clip CustomTextCLIP" if custom_text else "OpenAI CLIP")
    assert_gives_the_vectors_of(weights, theirs)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"activation": "quick_gelu"}, {"quick_gelu": True}),
        ({"activation": "gelu", "layer_scale": True}, {"vision__ls_init_value": 1.0}),
        (
            {"activation": "gelu", "vision_heads": 4, "text_heads": 8},
            {"vision__head_width": 48, "text__heads": 8},
        ),
    ],
    ids=["QuickGELU", "LayerScale", "heads of other widths"],
)
def test_what_open_clips_config_says_is_done(
    options: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    theirs = reference(**options)
    state = theirs.flat_state()
    # Either a scalar or a list of one.
    torch.save(state | {"logit_scale": state["logit_scale"].reshape(1)}, tmp_path / "model.pt")
    write_config(tmp_path, **changes)
    assert_gives_the_vectors_of(read_weights(tmp_path), theirs)


def test_without_a_config_the_activation_must_be_said(tmp_path: Path) -> None:
    theirs = reference(activation="gelu")
    torch.save(theirs.flat_state(), tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"nothing says which activation .* lay their open_clip_config\.json"
    ):
        read_weights(tmp_path)
    assert_gives_the_vectors_of(read_weights(tmp_path, activation="gelu"), theirs)


@pytest.mark.parametrize("kind", ["OpenAI", "CLIP4Clip", "open_clip"])
def test_an_activation_that_contradicts_the_file_is_refused(kind: str, tmp_path: Path) -> None:
    state = reference().flat_state("clip." if kind == "CLIP4Clip" else "")
    if kind == "OpenAI":
        state |= {"input_resolution": torch.tensor(IMAGE)}
    torch.save(state, tmp_path / "model.pt")
    if kind == "open_clip":
        write_config(tmp_path, quick_gelu=True)
    with pytest.raises(ValueError, match=r"activation \('gelu'\) contradicts .* says 'quick_gelu'"):
        read_weights(tmp_path, activation="gelu")
    assert read_weights(tmp_path, activation="quick_gelu").shape == read_weights(tmp_path).shape


def test_a_tokenizer_that_is_not_clips_must_lie_in_the_folder(tmp_path: Path) -> None:
    theirs = reference(activation="gelu")
    torch.save(theirs.flat_state(), tmp_path / "model.pt")
    write_config(tmp_path, text__hf_tokenizer_name="someone/words")
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").touch()
    with pytest.raises(ValueError, match=r"the words of 'someone/words' .* lay its tokenizer\.json or vocab"):
        read_weights(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    assert_gives_the_vectors_of(read_weights(tmp_path), theirs)


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1280, 16), (1408, 16), (1664, 16), (1792, 16)])
def test_heads_are_those_of_the_published_towers_of_this_width(width: int, heads: int) -> None:
    state = reference().flat_state()
    state["visual.conv1.weight"] = torch.zeros(width, 3, PATCH, PATCH)
    assert shape_of_state(state, layout=OPENAI, activation="gelu").vision_heads == heads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text__tokenizer_kwargs": {"clean": "canonicalize"}}, r"text_cfg asks for .*: tokenizer_kwargs="),
        ({"text__hf_tokenizer_name": 3}, r"hf_tokenizer_name \(3\) must be the id of a tokenizer"),
        ({"vision__timm_model_name": "vit"}, r"vision_cfg asks for .*: timm_model_name='vit'"),
        ({"text__hf_model_name": "roberta-base"}, r"text_cfg asks for .*: hf_model_name='roberta-base'"),
        ({"multimodal_cfg": {"layers": 12}}, r"model_cfg asks for .*: multimodal_cfg="),
        ({"vision__pool_type": "avg"}, r"vision_cfg asks for .*: pool_type='avg'"),
        ({"vision__head_width": 1000}, r"vision_heads \(0\) must be at least 1"),
        ({"text__heads": "two"}, r"heads \('two'\) must be a whole number"),
        ({"vision_cfg": 3}, r"vision_cfg must be a JSON object, got 3"),
    ],
)
def test_an_open_clip_that_is_no_clip_of_ours_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.save(reference().flat_state(), tmp_path / "model.pt")
    write_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"model.pt: (open_clip_config.json: )?{message}"):
        read_weights(tmp_path)


def test_a_text_tower_alone_is_refused(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in reference().state_dict().items() if key.startswith("text.")}
    torch.save(state, tmp_path / "model.pt")
    write_config(tmp_path)
    with pytest.raises(ValueError, match=r"model.pt: 1 keys missing \(visual.conv1.weight\)"):
        read_weights(tmp_path)


def test_a_tower_of_timm_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"visual.trunk.blocks.0.norm1.weight": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"timm model or a ResNet, .* in transformers' layout"):
        read_weights(tmp_path)


AGGREGATORS = {"mean": lambda: None, "transformer": FrameTransformer, "lstm": FrameLSTM}


@pytest.mark.parametrize("kind", AGGREGATORS)
def test_clip4clip_gives_the_same_vectors(kind: str, tmp_path: Path) -> None:
    theirs = reference()
    aggregator = AGGREGATORS[kind]()
    added = {} if aggregator is None else aggregator.state_dict()
    # Its towers are kept in float16.
    state = {key: tensor.half() for key, tensor in theirs.flat_state("clip.").items()} | added
    theirs.half()
    torch.save(state, tmp_path / "pytorch_model.bin.4")
    weights = read_weights(tmp_path)
    assert (weights.layout, weights.shape.aggregator) == ("CLIP4Clip", kind)

    frames = torch.randn(3, 5, 3, IMAGE, IMAGE)
    lengths = [5, 1, 3]
    ids, mask = sentences()
    with torch.no_grad():
        model = model_of(weights)
        videos = model.encode_video(frames, lengths=torch.tensor(lengths)).embedding
        texts = model.encode_text(ids, mask).embedding
        for video, clip, length in zip(videos, frames, lengths, strict=True):
            expected = mean_of_frames(theirs, clip[:length], aggregator=aggregator)
            assert_relatively_close(video, expected)
        assert_relatively_close(texts, F.normalize(theirs.double().text(ids), dim=1))


def test_clip4clips_cross_transformer_is_left_out_with_a_warning(tmp_path: Path) -> None:
    cross = {
        "cross.transformer.resblocks.0.ln_1.weight": torch.ones(4),
        "similarity_dense.weight": torch.ones(1, 4),
    }
    torch.save(reference().flat_state("clip.") | cross, tmp_path / "pytorch_model.bin.0")
    with pytest.warns(UserWarning, match=r"pytorch_model.bin.0: its cross transformer is left out"):
        assert read_weights(tmp_path).shape.aggregator == "mean"


CLIP4CLIP_MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "3d patches": (
        lambda s: s.update({"clip.visual.conv2.weight": torch.ones(1)}),
        r"1 keys unknown \(clip.visual.conv2.weight\)",
    ),
    "positions of nothing": (
        lambda s: s.update({"frame_position_embeddings.weight": torch.ones(7, JOINT)}),
        r"1 keys unknown \(frame_position_embeddings.weight\)",
    ),
    "a layer missing": (
        lambda s: s.pop("clip.visual.transformer.resblocks.1.ln_1.weight"),
        r"keys unknown \(clip.visual.transformer.resblocks.1.attn.in_proj_bias, ",
    ),
    "no text": (
        lambda s: s.pop("clip.token_embedding.weight"),
        r"1 keys missing \(clip.token_embedding.weight\)",
    ),
    "flat patches": (
        lambda s: s.update({"clip.visual.conv1.weight": torch.ones(4)}),
        r"clip.visual.conv1.weight is \(4,\), but must have 4 dimensions",
    ),
    "NaN": (
        lambda s: s["clip.visual.proj"].fill_(torch.nan),
        r"clip.visual.proj holds \d+ NaN or infinite values",
    ),
}


@pytest.mark.parametrize(("change", "message"), CLIP4CLIP_MISFITS.values(), ids=CLIP4CLIP_MISFITS.keys())
def test_keys_that_do_not_fit_are_listed(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    state = reference().flat_state("clip.")
    change(state)
    torch.save(state, tmp_path / "pytorch_model.bin.0")
    with pytest.raises(ValueError, match=rf"pytorch_model.bin.0: .*{message}"):
        read_weights(tmp_path)


def test_a_folder_of_several_checkpoints_asks_which(tmp_path: Path) -> None:
    for epoch in range(2):
        torch.save(reference().flat_state("clip."), tmp_path / f"pytorch_model.bin.{epoch}")
    with pytest.raises(ValueError, match=r"\(pytorch_model.bin.0, pytorch_model.bin.1\); name one of them"):
        read_weights(tmp_path)
    assert read_weights(tmp_path / "pytorch_model.bin.1").layout == "CLIP4Clip"
