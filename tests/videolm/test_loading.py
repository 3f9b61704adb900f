"""`load` on weights of every layout: the whole way from frames and sentences to vectors, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import videolm
from tests.tiny import TINY, tiny_model, write_clip, write_folder, write_random_clip
from tests.videolm.encoders.reference import (
    CONTEXT,
    DEPTH,
    IMAGE,
    JOINT,
    PATCH,
    TEXT_WIDTH,
    VOCABULARY,
    WIDTH,
    FrameTransformer,
    ReferenceCLIP,
    mean_of_frames,
)
from videolm.encoders.presets import build_video_clip, clip_vit_b16, clip_vit_b32, clip_vit_l14
from videolm.pipeline.processors import read_preprocess, write_preprocess
from videolm.types import Clip
from videolm.video.samplers import Sampler
from videolm.video.transforms import Preprocess

SENTENCES = ["a red circle", "moves", "a a a a a a a a a"]


def write_tokenizer(folder: Path, *, vocab_size: int, start: int | None, end: int, pad: int) -> None:
    """Words in lower case between a start (if any) and an end token of these ids."""
    special = {end: "<end>", pad: "<pad>"} | ({} if start is None else {start: "<start>"})
    words = iter(["<unk>", "a", "red", "circle", "moves", *(f"word{i}" for i in range(vocab_size))])
    vocab = {special.get(i) or next(words): i for i in range(vocab_size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    named = [(special[i], i) for i in special]
    before = "" if start is None else "<start> "
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{before}$A <end>", special_tokens=named
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))


def random_clip(num_frames: int, *, height: int = 30, width: int = 41) -> Clip:
    generator = torch.Generator().manual_seed(num_frames)
    # Large squares of colour: of noise the processors' filters would leave nothing.
    small = torch.randint(0, 256, (num_frames, 3, 3, 3), generator=generator).float()
    frames = F.interpolate(small.permute(0, 3, 1, 2), size=(height, width)).permute(0, 2, 3, 1)
    times = torch.arange(num_frames, dtype=torch.float64)
    return Clip(frames.to(torch.uint8).contiguous(), times, float(num_frames), f"clip{num_frames}")


def write_clip4clip(folder: Path) -> tuple[ReferenceCLIP, FrameTransformer, Path]:
    torch.manual_seed(0)
    theirs, aggregator = ReferenceCLIP().eval(), FrameTransformer()
    folder.mkdir(exist_ok=True)
    torch.save(theirs.flat_state("clip.") | aggregator.state_dict(), folder / "pytorch_model.bin.4")
    write_tokenizer(folder, vocab_size=VOCABULARY, start=VOCABULARY - 2, end=VOCABULARY - 1, pad=0)
    return theirs, aggregator, folder / "pytorch_model.bin.4"


@torch.no_grad()
def test_a_clip4clip_file_gives_the_vectors_of_its_own_code(tmp_path: Path) -> None:
    theirs, aggregator, file = write_clip4clip(tmp_path / "clip4clip")
    model = videolm.load(file, device="cpu")
    assert (model.info.name, model.source, model.trained) == (file.name, str(file), True)
    assert model.sampler == Sampler("one_fps_then_uniform", num_frames=12)
    clips = [random_clip(5), random_clip(2)]
    vectors = model.encode_videos(clips).vectors
    for clip, vector in zip(clips, vectors, strict=True):
        expected = mean_of_frames(theirs, Preprocess(IMAGE)(clip.frames), aggregator=aggregator)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-6)

    ids, mask = model.tokenizer(SENTENCES)
    assert ids.shape == (3, CONTEXT)
    assert ids[:, 0].eq(VOCABULARY - 2).all()
    # CLIP4Clip pads with 0.
    expected = F.normalize(theirs.double().text(ids.masked_fill(~mask, 0)), dim=1)
    np.testing.assert_allclose(model.encode_texts(SENTENCES).vectors, expected.numpy(), atol=1e-6)


def write_siglip(folder: Path) -> SiglipModel:
    torch.manual_seed(0)
    small = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 24}
    text = {
        "vocab_size": 30,
        "max_position_embeddings": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = SiglipConfig(text_config=small | text, vision_config=small | {"image_size": 16, "patch_size": 4})
    theirs = SiglipModel(config).eval()
    # as after training
    torch.nn.init.normal_(theirs.vision_model.post_layernorm.weight.data, mean=1.0, std=0.1)
    theirs.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}, resample=2).save_pretrained(folder)
    write_tokenizer(folder, vocab_size=30, start=None, end=1, pad=0)
    return theirs


def test_weights_that_no_training_touched_are_called_untrained(tmp_path: Path) -> None:
    theirs = write_siglip(tmp_path)
    assert videolm.load(tmp_path, device="cpu").trained
    torch.nn.init.ones_(theirs.vision_model.post_layernorm.weight)
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has untrained weights"):
        model = videolm.load(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="untrained weights, its vectors mean nothing"):
        model.index(tmp_path)


@torch.no_grad()
def test_a_siglip_folder_gives_the_vectors_of_transformers(tmp_path: Path) -> None:
    theirs = write_siglip(tmp_path)
    model = videolm.load(tmp_path, device="cpu")
    assert (model.preprocess.resize_mode, model.preprocess.interpolation) == ("square", "bilinear")
    assert model.sampler == Sampler("segment_middle", num_frames=12)
    clip = random_clip(3)
    processor = SiglipImageProcessorPil.from_pretrained(tmp_path)
    pixels = processor(list(clip.frames.numpy()), return_tensors="pt")["pixel_values"]
    features = theirs.get_image_features(pixel_values=pixels).pooler_output
    expected = F.normalize(F.normalize(features, dim=1).mean(dim=0), dim=0)
    assert float(torch.from_numpy(model.encode_videos(clip).vectors)[0] @ expected) >= 0.9999
    ids = model.tokenizer(["A RED circle"])[0]
    assert ids.tolist() == [[3, 4, 5, 1, 0, 0, 0, 0]]
    features = theirs.get_text_features(input_ids=ids).pooler_output
    vectors = model.encode_texts(["A RED circle"]).vectors
    np.testing.assert_allclose(vectors, F.normalize(features, dim=1), atol=1e-5)


@pytest.mark.parametrize("layout", ["clip4clip", "siglip"])
def test_a_model_of_another_layout_saved_in_our_format_is_the_same(layout: str, tmp_path: Path) -> None:
    if layout == "clip4clip":
        path = write_clip4clip(tmp_path / "theirs")[2]
    else:
        write_siglip(path := tmp_path / "theirs")
    model = videolm.load(path, device="cpu")
    model.save(tmp_path / "ours")
    again = videolm.load(tmp_path / "ours", device="cpu")
    assert again.info == model.info
    assert again.shape == model.shape
    clip = random_clip(3)
    # Where in memory the weights lie decides the order of a sum.
    np.testing.assert_allclose(
        again.encode_texts(SENTENCES).vectors, model.encode_texts(SENTENCES).vectors, atol=1e-6
    )
    np.testing.assert_allclose(
        again.encode_videos(clip).vectors, model.encode_videos(clip).vectors, atol=1e-6
    )


def open_clip_config(**preprocess: Any) -> str:
    model = {
        "embed_dim": JOINT,
        "vision_cfg": {"image_size": IMAGE, "layers": DEPTH, "width": WIDTH, "patch_size": PATCH},
        "text_cfg": {
            "vocab_size": VOCABULARY,
            "width": TEXT_WIDTH,
            "heads": TEXT_WIDTH // 64,
            "layers": DEPTH,
        },
    }
    return json.dumps({"model_cfg": model, "preprocess_cfg": preprocess})


def test_an_open_clip_folder_is_preprocessed_as_its_config_says(tmp_path: Path) -> None:
    save_file(ReferenceCLIP().flat_state(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(
        open_clip_config(
            mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2], resize_mode="squash", interpolation="bilinear"
        )
    )
    model = videolm.load(tmp_path, device="cpu")
    expected = Preprocess(
        IMAGE, [0.5, 0.4, 0.3], [0.2, 0.2, 0.2], resize_mode="square", interpolation="bilinear"
    )
    assert model.preprocess == expected
    assert model.shape.activation == "gelu"
    with pytest.raises(ValueError, match=r"cannot encode texts without a tokenizer: lay tokenizer\.json"):
        model.encode_texts("a red circle")


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(32),
        Preprocess(32, [0.5, 0.4, 0.3], [0.1, 0.2, 0.3], resize_mode="square", interpolation="bilinear"),
    ],
    ids=["CLIP", "square"],
)
def test_the_settings_of_a_processor_survive_the_way_to_transformers(
    preprocess: Preprocess, tmp_path: Path
) -> None:
    shape = replace(TINY, image_size=32)
    write_preprocess(tmp_path, preprocess)
    assert read_preprocess(tmp_path, shape) == preprocess


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop is false"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize is false"),
        ("preprocessor_config.json", {"resample": 1}, r"resample is 1, only 2 \(bilinear\) and 3"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor is 1.0, only 1/255"),
        (
            "preprocessor_config.json",
            {"size": {"shortest_edge": 99}},
            "size is .*99.*, the tower takes 16 pixels",
        ),
        (
            "processor_config.json",
            {"image_processor": {"crop_size": 99}},
            "crop_size is 99, the tower takes 16",
        ),
        ("open_clip_config.json", {"preprocess_cfg": {"resize_mode": "longest"}}, "resize_mode is 'longest'"),
        (
            "open_clip_config.json",
            {"preprocess_cfg": {"interpolation": "random"}},
            "interpolation is 'random'",
        ),
    ],
)
def test_preprocessing_that_cannot_be_done_is_refused_with_the_file(
    file: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"{file}: {message}"):
        read_preprocess(tmp_path, TINY)


def test_a_square_processor_needs_no_crop(tmp_path: Path) -> None:
    settings = {"size": {"height": 16, "width": 16}, "do_center_crop": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert read_preprocess(tmp_path, TINY).resize_mode == "square"


def test_a_git_lfs_pointer_in_our_own_folder_is_called_so(tmp_path: Path) -> None:
    tiny_model().save(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(
        ValueError, match=r"model\.safetensors is not readable: .* is a git-lfs pointer; fetch"
    ):
        videolm.load(tmp_path)


def test_tensors_that_are_left_out_are_warned_of(tmp_path: Path) -> None:
    state = ReferenceCLIP().flat_state("clip.")
    content = {"epoch": 3, "state_dict": state, "state_dict_ema": state, "best": {"R@1": 0.5}}
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.warns(UserWarning, match=r"checkpoint\.pt holds other tensors too, .*: state_dict_ema$"):
        videolm.load(tmp_path / "checkpoint.pt", device="cpu")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A hub with one repository of open_clip's weights only; gives the patterns that it was asked for."""
    asked: list[list[str]] = []
    (tmp_path / "open_clip_config.json").write_text(open_clip_config())

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) in (("laion/tiny", None), ("laion/tiny", "v1/a"))
        asked.append(allow_patterns)
        if any(pattern.startswith("open_clip_model") for pattern in allow_patterns):
            torch.manual_seed(0)
            save_file(ReferenceCLIP().flat_state(), tmp_path / "open_clip_model.safetensors")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return asked


@pytest.mark.parametrize("name", ["laion/tiny", "hf-hub:laion/tiny"])
def test_the_hub_is_asked_for_one_file_of_weights_after_the_other(name: str, hub: list[list[str]]) -> None:
    model = videolm.load(name, device="cpu")
    assert (model.info.name, model.source) == ("laion/tiny", "laion/tiny")
    assert [patterns[-1] for patterns in hub] == ["model*.safetensors", "open_clip_model*.safetensors"]
    assert not any(re.search(r"\.py|\*$", pattern) for patterns in hub for pattern in patterns)


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("laion/tiny", "v1/a"),
        ("laion/tiny@v1/a", None),
        ("hf-hub:laion/tiny@v1/a", None),
        ("laion/tiny@v1/a", "v1/a"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_the_source_names_the_revision_and_finds_it_again(name: str, revision: str | None) -> None:
    model = videolm.load(name, revision=revision, device="cpu")
    assert (model.info.name, model.source) == ("laion/tiny", "laion/tiny@v1/a")
    again = videolm.load(model.source, device="cpu")
    assert (again.info, again.source) == (model.info, model.source)


def test_a_revision_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    tiny_model().save(tmp_path)
    for path in ("mini", tmp_path, str(tmp_path)):
        with pytest.raises(ValueError, match=r"revision \('v1'\) is for models of the hub"):
            videolm.load(path, revision="v1")
    with pytest.raises(ValueError, match=r"revision \('v1'\) must be the one of 'laion/tiny@v2'"):
        videolm.load("laion/tiny@v2", revision="v1")


def test_an_index_finds_the_file_of_its_model_again(tmp_path: Path) -> None:
    write_clip(tmp_path / "videos/a.mp4")
    file = write_clip4clip(tmp_path / "clip4clip")[2]
    videolm.load(file, device="cpu").index(tmp_path / "videos", tmp_path / "index", num_frames=2, workers=0)
    opened = videolm.open_index(tmp_path / "index")
    assert opened.search("a red circle", k=1)[0].id == "a.mp4"


def test_an_index_made_before_a_setting_existed_stays_open(tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "model")
    model = videolm.load(tmp_path / "model", device="cpu")
    model.index(write_folder(tmp_path / "videos", num_videos=2), tmp_path / "index", workers=0)
    path = tmp_path / "index/index.json"
    description = json.loads(path.read_text())
    for part, added in (
        ("shape", ["family", "aggregator"]),
        ("preprocessing", ["resize_mode", "interpolation"]),
    ):
        for key in added:
            del description["settings"][part][key]
    path.write_text(json.dumps(description))
    assert len(videolm.open_index(tmp_path / "index")) == 2
    description["settings"]["preprocessing"]["interpolation"] = "bilinear"
    path.write_text(json.dumps(description))
    with pytest.raises(
        ValueError,
        match=r"has the same weights but another interpolation \('bilinear' there, 'bicubic' here\)",
    ):
        videolm.open_index(tmp_path / "index")
    description["settings"]["preprocessing"]["interpolation"] = "bicubic"
    description["settings"]["shape"]["of_a_later_version"] = 1
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"another of_a_later_version \(1 there, None here\)"):
        videolm.open_index(tmp_path / "index")


def test_known_models_say_what_must_be_known_before_use() -> None:
    models = videolm.list_models()
    names = [model.name for model in models]
    assert names[0] == "mini"
    assert len(set(names)) == len(names)
    for model in models[1:]:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.name)
        is_openai = model.name.startswith("openai/")
        page = "https://github.com/openai/CLIP" if is_openai else f"https://huggingface.co/{model.name}"
        assert model.source == page
        assert model.num_parameters > 100_000_000
        assert model.licence
        # Nothing was downloaded, so nothing can be known.
        assert (model.weights_sha256, model.scores) == (None, {})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("openai/clip-vit-base-patch32", clip_vit_b32()),
        ("openai/clip-vit-base-patch16", clip_vit_b16()),
        ("openai/clip-vit-large-patch14", clip_vit_l14()),
    ],
)
def test_the_listed_sizes_are_those_of_the_presets(name: str, shape: Any) -> None:
    with torch.device("meta"):
        expected = sum(parameter.numel() for parameter in build_video_clip(shape).parameters())
    assert {model.name: model.num_parameters for model in videolm.list_models()}[name] == expected


def test_a_file_and_its_folder_are_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "no tokenizer").mkdir()
    folder = write_random_clip(tmp_path / "clip", tokenizer=tmp_path / "no tokenizer")
    models = [videolm.load(path, device="cpu") for path in (folder, folder / "model.safetensors")]
    assert models[0].info.weights_sha256 == models[1].info.weights_sha256
