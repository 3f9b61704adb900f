"""Reads and writes the weights of other CLIPs: one table of names per layout, strict in both directions."""

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig

from videolm.encoders.presets import CLIPShape, build_video_clip
from videolm.encoders.video_clip import VideoCLIP

_LAYER = r"\1_model.encoder.layers.\2"

# transformers' CLIPModel: our name → its name, or its three names whose rows are stacked into ours.
_TRANSFORMERS_CLIP: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"logit_scale", ("logit_scale",)),
    (r"vision\.patch\.weight", ("vision_model.embeddings.patch_embedding.weight",)),
    (r"vision\.class_token", ("vision_model.embeddings.class_embedding",)),
    (r"text\.token\.weight", ("text_model.embeddings.token_embedding.weight",)),
    (r"(vision|text)\.position", (r"\1_model.embeddings.position_embedding.weight",)),
    # Spelt like this there.
    (r"vision\.ln_pre\.(\w+)", (r"vision_model.pre_layrnorm.\1",)),
    (r"vision\.ln_post\.(\w+)", (r"vision_model.post_layernorm.\1",)),
    (r"text\.ln_final\.(\w+)", (r"text_model.final_layer_norm.\1",)),
    (r"vision\.projection\.weight", ("visual_projection.weight",)),
    (r"text\.projection\.weight", ("text_projection.weight",)),
    (r"(vision|text)\.blocks\.(\d+)\.ln_([12])\.(\w+)", (rf"{_LAYER}.layer_norm\3.\4",)),
    (
        r"(vision|text)\.blocks\.(\d+)\.attention\.qkv\.(\w+)",
        tuple(rf"{_LAYER}.self_attn.{part}_proj.\3" for part in "qkv"),
    ),
    (r"(vision|text)\.blocks\.(\d+)\.attention\.out\.(\w+)", (rf"{_LAYER}.self_attn.out_proj.\3",)),
    (r"(vision|text)\.blocks\.(\d+)\.mlp\.up\.(\w+)", (rf"{_LAYER}.mlp.fc1.\3",)),
    (r"(vision|text)\.blocks\.(\d+)\.mlp\.down\.(\w+)", (rf"{_LAYER}.mlp.fc2.\3",)),
)

# Buffers that older files carry and that hold no weights.
_NO_WEIGHTS = re.compile(r"(vision|text)_model\.embeddings\.position_ids")

_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def read_clip_folder(folder: str | Path) -> tuple[CLIPShape, dict[str, Tensor]]:
    """Shape and float32 weights, in our names, of a CLIP folder in transformers' layout.

    Reads config.json and the first of model.safetensors, its sharded form and pytorch_model.bin (tensors
    only, never objects). ValueError names the file and what is wrong: keys missing or left over, a shape that
    does not fit the config, a value that is not finite.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    try:
        shape = shape_of_clip_config(_read_json(config_file))
    except ValueError as error:
        raise ValueError(f"{config_file}: {error}") from error
    file, theirs = _read_tensors(folder)
    try:
        return shape, from_clip_state(theirs, shape=shape)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def load_clip_state(model: VideoCLIP, state: Mapping[str, Tensor]) -> None:
    """Fills a model with CLIP's weights; temporal modules, which CLIP does not have, stay as they are."""
    result = model.load_state_dict(dict(state), strict=False)
    missing = [name for name in result.missing_keys if not _is_temporal(name)]
    if missing or result.unexpected_keys:
        raise ValueError(_describe(missing=missing, unknown=result.unexpected_keys))


def shape_of_clip_config(config: Mapping[str, Any]) -> CLIPShape:
    """The shape that a transformers CLIP config.json describes; its defaults are transformers' own."""
    if config.get("model_type") != "clip":
        raise ValueError(f"model_type ({config.get('model_type')!r}) must be 'clip'")
    try:
        clip = CLIPConfig.from_dict(dict(config))
    except StrictDataclassError as error:
        raise ValueError(f"not a CLIP config ({error})") from error
    vision, text = clip.vision_config, clip.text_config
    if vision.num_channels != 3:
        raise ValueError(f"num_channels ({vision.num_channels}) must be 3, for RGB")
    for name in ("hidden_act", "layer_norm_eps"):
        if getattr(vision, name) != getattr(text, name):
            both = f"{getattr(vision, name)!r} and {getattr(text, name)!r}"
            raise ValueError(f"{name} must be the same in the vision and the text tower, got {both}")
    return CLIPShape(
        image_size=_side(vision.image_size, name="image_size"),
        patch_size=_side(vision.patch_size, name="patch_size"),
        vision_width=vision.hidden_size,
        vision_depth=vision.num_hidden_layers,
        vision_heads=vision.num_attention_heads,
        vision_mlp_width=vision.intermediate_size,
        text_width=text.hidden_size,
        text_depth=text.num_hidden_layers,
        text_heads=text.num_attention_heads,
        text_mlp_width=text.intermediate_size,
        vocab_size=text.vocab_size,
        context_length=text.max_position_embeddings,
        eos_token_id=_eos_token_id(text.eos_token_id, vocab_size=text.vocab_size),
        joint_dim=clip.projection_dim,
        activation=vision.hidden_act,
        layer_norm_eps=vision.layer_norm_eps,
    )


def from_clip_state(theirs: Mapping[str, Tensor], *, shape: CLIPShape) -> dict[str, Tensor]:
    """Weights of transformers' CLIPModel in our names, as float32."""
    # A config comes from outside: it must not make us build more layers than there are weights for.
    if shape.vision_depth + shape.text_depth > len(theirs):
        depth = f"{shape.vision_depth} + {shape.text_depth} layers"
        raise ValueError(f"the config asks for {depth}, but there are only {len(theirs)} tensors")
    with torch.device("meta"):
        ours = build_video_clip(replace(shape, temporal="none")).state_dict()
    sources = {name: _sources(name) for name in ours}
    wanted = {source for names in sources.values() for source in names}
    missing = sorted(wanted - theirs.keys())
    unknown = sorted(key for key in theirs.keys() - wanted if not _NO_WEIGHTS.fullmatch(key))
    if missing or unknown:
        raise ValueError(_describe(missing=missing, unknown=unknown))

    state = {}
    for name, names in sources.items():
        rows = ours[name].shape[:1].numel() // len(names)
        expected = torch.Size([rows, *ours[name].shape[1:]]) if ours[name].ndim else torch.Size()
        parts = [_checked(source, theirs[source], expected=expected) for source in names]
        state[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return state


def to_clip_state(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back from `from_clip_state`; temporal modules are left out: CLIP has no place for them."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if not _is_temporal(name):
            names = _sources(name)
            parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
            theirs.update(zip(names, (part.clone() for part in parts), strict=True))
    return theirs


def weights_sha256(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and bytes, in the order of the names and whatever the device."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sources(name: str) -> list[str]:
    """Names under which transformers keeps our parameter."""
    for pattern, templates in _TRANSFORMERS_CLIP:
        if match := re.fullmatch(pattern, name):
            return [match.expand(template) for template in templates]
    raise ValueError(f"{name} has no counterpart in transformers' CLIPModel")


def _is_temporal(name: str) -> bool:
    return re.match(r"vision\.blocks\.\d+\.pre\.", name) is not None


def _checked(key: str, tensor: Tensor, *, expected: torch.Size) -> Tensor:
    if tensor.shape != expected:
        raise ValueError(f"{key} is {tuple(tensor.shape)}, but the config asks for {tuple(expected)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{key} is {tensor.dtype}, but weights are floating point numbers")
    if not bool(tensor.isfinite().all()):
        raise ValueError(
            f"{key} holds {int((~tensor.isfinite()).sum())} NaN or infinite values; the file is damaged"
        )
    return tensor.to(torch.float32)


def _describe(*, missing: list[str], unknown: list[str]) -> str:
    parts = [f"{len(missing)} keys missing ({', '.join(missing)})"] if missing else []
    parts += [f"{len(unknown)} keys unknown ({', '.join(unknown)})"] if unknown else []
    return " and ".join(parts)


def _eos_token_id(value: int | list[int] | None, *, vocab_size: int) -> int:
    """Where sentences are read.

    Configs written before 2023 say 2, which is not CLIP's end token: transformers then reads at the highest
    id of the sentence. That is the end token, the last of the vocabulary unless tokens were added after it.
    """
    if not isinstance(value, int):
        raise ValueError(f"eos_token_id ({value}) must be one number")
    return min(49407, vocab_size - 1) if value == 2 else value


def _side(value: int | list[int] | tuple[int, int], *, name: str) -> int:
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"{name} ({value}) must be square")
    return sides.pop()


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist; a CLIP folder holds config.json and one of {', '.join(_FILES)}"
        )
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    return content


def _read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file that was read and its tensors."""
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has no weights; looked for {', '.join(_FILES)}")
    try:
        if file.suffix == ".safetensors":
            return file, load_file(file)
        if file.suffix == ".json":
            return file, _read_shards(file)
        return file, _read_pickle(file)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        # The index comes from outside: a shard is a file beside it, not a path.
        if Path(shard).name != shard:
            raise ValueError(f"shard {shard!r} must be the name of a file in the same folder")
        tensors.update(load_file(index.parent / shard))
    return tensors


def _read_pickle(file: Path) -> dict[str, Tensor]:
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("expected a dictionary of tensors")
    return content
