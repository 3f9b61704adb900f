"""CLIP folders in transformers' layout: what is read, what is refused, and the way back."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from videolm.encoders.presets import build_video_clip, clip_vit_b32
from videolm.encoders.weights import load_clip_state, read_weights, weights_sha256
from videolm.encoders.weights.convert import from_state, to_state
from videolm.encoders.weights.shapes import shape_of_transformers_config
from videolm.encoders.weights.tables import TRANSFORMERS_CLIP

LAYER = "vision_model.encoder.layers.1"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    text = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 20, "max_position_embeddings": 5, "bos_token_id": 0, "eos_token_id": 19}
    vision = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision |= {"image_size": 8, "patch_size": 4}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((pristine / file).read_bytes())
    return tmp_path


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_round_trip_gives_every_key_and_bit_back(pristine: Path) -> None:
    theirs = load_file(pristine / "model.safetensors")
    back = to_state(read_weights(pristine).state, layout=TRANSFORMERS_CLIP)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


def test_packed_rows_are_query_key_value(pristine: Path) -> None:
    theirs = load_file(pristine / "model.safetensors")
    qkv = read_weights(pristine).state["vision.blocks.1.attention.qkv.weight"]
    for rows, part in zip(qkv.split(12), "qkv", strict=True):
        assert torch.equal(rows, theirs[f"{LAYER}.self_attn.{part}_proj.weight"])


@pytest.mark.parametrize(
    "layout", ["sharded", "bin", "bin of torch before 1.6", "float16", "state_dict", "module.", "old buffers"]
)
def test_other_files_give_the_same_weights(layout: str, pristine: Path, tmp_path: Path) -> None:
    theirs = load_file(pristine / "model.safetensors")
    (tmp_path / "config.json").write_bytes((pristine / "config.json").read_bytes())
    if layout == "sharded":
        CLIPModel.from_pretrained(pristine).save_pretrained(tmp_path, max_shard_size="3KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    elif layout == "bin":
        torch.save(theirs, tmp_path / "pytorch_model.bin")
    elif layout == "bin of torch before 1.6":
        torch.save(theirs, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif layout == "state_dict":
        torch.save({"state_dict": theirs, "epoch": 3}, tmp_path / "pytorch_model.bin")
        assert read_weights(tmp_path).left_out == ["epoch"]
    elif layout == "module.":
        parallel = {f"module.{key}": tensor for key, tensor in theirs.items()}
        torch.save(parallel, tmp_path / "pytorch_model.bin")
    elif layout == "float16":
        theirs = {key: tensor.half() for key, tensor in theirs.items()}
        save_file(theirs, tmp_path / "model.safetensors")
    else:
        ids = {
            f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("text", "vision")
        }
        save_file(theirs | ids, tmp_path / "model.safetensors")
    state = read_weights(tmp_path).state
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    back = to_state(state, layout=TRANSFORMERS_CLIP)
    assert all(torch.equal(tensor, theirs[key].float()) for key, tensor in back.items())


def test_a_pickle_with_objects_is_refused_before_it_runs(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(folder / "went off"),)

    (folder / "model.safetensors").unlink()
    torch.save({"logit_scale": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin: cannot be read"):
        read_weights(folder)
    assert not (folder / "went off").exists()


def test_a_bin_of_something_else_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model": {"logit_scale": torch.zeros(())}}, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin: cannot be read \(expected a dictionary of tensors"
    ):
        read_weights(folder)


# What is done to a good file's keys, and what the error must say.
MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda s: s.pop("logit_scale"), r"1 keys missing \(logit_scale\)"),
    "a third of qkv missing": (
        lambda s: s.pop(f"{LAYER}.self_attn.k_proj.bias"),
        r"1 keys missing \(vision_model\.encoder\.layers\.1\.self_attn\.k_proj\.bias\)",
    ),
    "unknown": (lambda s: s.update(extra=torch.zeros(1)), r"1 keys unknown \(extra\)"),
    "misspelt": (
        lambda s: s.update({"vision_model.pre_layernorm.bias": s.pop("vision_model.pre_layrnorm.bias")}),
        r"missing \(vision_model.pre_layrnorm.bias\) and 1 keys unknown \(vision_model.pre_layernorm.bias\)",
    ),
    "another shape": (
        lambda s: s.update({"visual_projection.weight": torch.zeros(6, 11)}),
        r"visual_projection.weight is \(6, 11\), but the config asks for \(6, 12\)",
    ),
    "another shape in qkv": (
        lambda s: s.update({f"{LAYER}.self_attn.q_proj.weight": torch.zeros(24, 12)}),
        r"q_proj.weight is \(24, 12\), but the config asks for \(12, 12\)",
    ),
    "another shape of a scalar": (
        lambda s: s.update(logit_scale=torch.ones(2)),
        r"logit_scale is \(2,\), but the config asks for \(\)",
    ),
    "integers": (lambda s: s.update(logit_scale=torch.tensor(3)), r"logit_scale is torch.int64"),
    "NaN": (
        lambda s: s["text_projection.weight"][0].fill_(torch.nan),
        r"text_projection.weight holds 8 NaN or infinite values",
    ),
    "infinity": (
        lambda s: s["text_projection.weight"][0].fill_(-torch.inf),
        r"text_projection.weight holds 8 NaN or infinite values",
    ),
}


@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_weights_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Tensor]], None], message: str, folder: Path
) -> None:
    change_weights(folder, change)
    with pytest.raises(ValueError, match=f"model.safetensors: .*{message}"):
        read_weights(folder)


@pytest.mark.parametrize("added", [{"temporal": "divided"}, {"aggregator": "lstm"}], ids=str)
def test_loading_ours_is_strict_but_for_what_is_added(added: dict[str, Any], pristine: Path) -> None:
    weights = read_weights(pristine)
    model = build_video_clip(replace(weights.shape, **added))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_clip_state(model, weights.state)
    after = model.state_dict()
    new = after.keys() - weights.state.keys()
    assert new
    assert all(torch.equal(after[name], before[name]) for name in new)
    with pytest.raises(
        ValueError, match=r"1 keys missing \(text.position\) and 1 keys unknown \(text.postion\)"
    ):
        load_clip_state(
            model, {name.replace("text.position", "text.postion"): t for name, t in weights.state.items()}
        )


def test_damaged_and_absent_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"model.safetensors: cannot be read"):
        read_weights(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights; looked for model.safetensors"):
        read_weights(folder)


def test_a_damaged_or_absent_config_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config.json is not readable as JSON"):
        read_weights(folder)
    (folder / "config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"config.json does not exist; weights of transformers need it"
    ):
        read_weights(folder)


def test_an_index_cannot_point_out_of_its_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"logit_scale": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"shard '../elsewhere.safetensors' must be the name of a file"):
        read_weights(folder)


def test_config_of_vit_b32_is_the_preset() -> None:
    assert shape_of_transformers_config(CLIPConfig().to_dict()) == clip_vit_b32()


def test_end_token_of_configs_before_2023_is_clips() -> None:
    # The text part of openai/clip-vit-base-patch32's config.json.
    config = {
        "model_type": "clip",
        "text_config": {"bos_token_id": 0, "eos_token_id": 2},
        "projection_dim": 512,
    }
    assert shape_of_transformers_config(config).eos_token_id == 49407
    config["text_config"] = {"eos_token_id": 2, "vocab_size": 49410}
    assert shape_of_transformers_config(config).eos_token_id == 49407


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, r"model_type \('bert'\) must be one of 'clip', 'metaclip_2', 'siglip'"),
        ({"model_type": "siglip2"}, r"'siglip2' is the NaFlex variant"),
        (
            {"vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act": "relu"}},
            r"hidden_act \('relu'\)",
        ),
        ({"vision_config": {"num_channels": 4}}, r"num_channels \(4\) must be 3"),
        (
            {"vision_config": {"hidden_act": "gelu"}},
            r"hidden_act must be the same .* got 'gelu' and 'quick_gelu'",
        ),
        ({"vision_config": {"image_size": [224, 160]}}, r"image_size \(\[224, 160\]\) must be square"),
        ({"text_config": {"eos_token_id": [3, 4]}}, r"eos_token_id \(\[3, 4\]\) must be one number"),
        ({"text_config": 3}, r"not a config of 'clip'"),
        ({"text_config": {"hidden_size": 500}}, r"not a config of 'clip' (.|\n)*500"),
        ({"text_config": {"num_hidden_layers": "many"}}, r"not a config of 'clip' .*num_hidden_layers"),
    ],
)
def test_a_config_that_is_no_clip_of_ours_is_refused(
    change: dict[str, Any], message: str, folder: Path
) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"} | change))
    with pytest.raises(ValueError, match=rf"config.json: (.|\n)*{message}"):
        read_weights(folder)


def test_hash_knows_names_types_shapes_and_values_and_no_order() -> None:
    state = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(1.0)}
    same = weights_sha256(dict(reversed(state.items())))
    assert same == weights_sha256(state)
    others = [
        {"d" if name == "a" else name: tensor for name, tensor in state.items()},
        state | {"a": torch.arange(6.0).view(2, 3)},
        state | {"a": torch.arange(6.0).double()},
        state | {"a": torch.arange(6.0).view(torch.int32)},
        state | {"c": torch.tensor(1.0 + 2**-23)},
    ]
    assert len({same, *map(weights_sha256, others)}) == 6
    assert weights_sha256({"a": torch.arange(6.0).view(2, 3).T}) == weights_sha256(
        {"a": torch.arange(6.0).view(2, 3).T.contiguous()}
    )


def test_hash_is_the_same_on_every_machine() -> None:
    assert weights_sha256({"w": torch.tensor([1.0, -2.0])}) == (
        "153589d5246687faac7865716b3c233a462314ccd8ba97ea60fc1f994a563925"
    )


def test_hash_of_a_module_is_that_of_its_weights(pristine: Path) -> None:
    weights = read_weights(pristine)
    model = build_video_clip(weights.shape)
    load_clip_state(model, weights.state)
    assert weights_sha256(model) == weights_sha256(weights.state)


def test_an_unknown_layout_names_some_keys_and_the_known_ones(folder: Path) -> None:
    save_file({f"backbone.{i}": torch.zeros(1) for i in range(9)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"9 keys like backbone.0, .*no layout .*CLIP4Clip, OpenAI CLIP"):
        read_weights(folder)


def test_two_towers_saved_one_by_one_need_no_temperature(folder: Path) -> None:
    change_weights(folder, lambda state: state.pop("logit_scale"))
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"1 keys missing \(logit_scale\)"):
        read_weights(folder)
    for architectures in (None, [], ["SiglipModel"], ["MetaClip2Model"]):
        (folder / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
        with pytest.raises(ValueError, match=r"1 keys missing \(logit_scale\)"):
            read_weights(folder)
    config |= {"architectures": ["CLIPTextModelWithProjection"], "logit_scale_init_value": 3.5}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_weights(folder).state["logit_scale"] == 3.5


def test_a_config_with_more_layers_than_tensors_is_refused_at_once(pristine: Path) -> None:
    shape = replace(read_weights(pristine).shape, vision_depth=1000)
    with pytest.raises(ValueError, match=r"asks for 1000 \+ 1 layers, but there are only 1 tensors"):
        from_state({"logit_scale": torch.zeros(())}, layout=TRANSFORMERS_CLIP, shape=shape)
