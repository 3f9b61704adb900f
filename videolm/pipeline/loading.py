"""Finds a model by its name and reads its files; opens an index with the model that made it."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from videolm.encoders.presets import CLIPShape, build_video_clip
from videolm.encoders.video_clip import VideoCLIP
from videolm.encoders.weights import read_clip_folder, weights_sha256
from videolm.pipeline.video_lm import FORMAT_VERSION, VideoLM, to_float32
from videolm.search.index import Index, read_description, read_index
from videolm.search.shards import read_json
from videolm.text.tokenizer import Tokenizer, load_tokenizer
from videolm.types import ModelInfo
from videolm.video.samplers import Sampler
from videolm.video.transforms import Preprocess

_ASSETS = Path(__file__).parent.parent / "assets"
_CARD_KEYS = frozenset({"format", "shape", *ModelInfo.__dataclass_fields__})
# What CLIP4Clip and most of its successors look at.
_CLIP_SAMPLER = Sampler("segment_middle", num_frames=12)


def load(
    name: str | os.PathLike[str] = "mini",
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | Literal["auto"] = "auto",
    revision: str | None = None,
    allow_untrained: bool = False,
) -> VideoLM:
    """A model by name: "mini", which ships with the package; a folder; or the id of a model on the hub.

    Folder and hub (Hugging Face) hold what `VideoLM.save` wrote or a CLIP in transformers' layout.
    `device="auto"` is cuda where there is one; `dtype="auto"` is float32, so that vectors made on one machine
    fit those made on another.
    `revision` is a commit or tag of the hub. With HF_HUB_OFFLINE=1 only what was downloaded before is used.
    A model without trained weights warns, and refuses to index unless `allow_untrained`.
    """
    folder, source = _find_folder(name, revision)
    read = _read_own_folder if (folder / "videolm.json").exists() else _read_clip
    model = read(folder, source, device=device, dtype=dtype, allow_untrained=allow_untrained)
    if not model.trained:
        warnings.warn(
            f"{model.info.name} has untrained weights: what comes out of it means nothing", stacklevel=2
        )
    return model


def list_models() -> list[ModelInfo]:
    """The models that ship with the package."""
    return [_card_info(read_json(path), path) for path in sorted(_ASSETS.glob("*/videolm.json"))]


def open_index(folder: str | os.PathLike[str], model: VideoLM | None = None) -> Index:
    """Open an index with the model that made it, which is loaded if it is not given.

    A model with other weights, shape, preprocessing or vocabulary than the one that made the index is a
    ValueError that names both and what differs.
    """
    description = read_description(folder)
    made_by = description["model"]
    if model is None:
        if made_by["source"] is None:
            raise ValueError(f"{folder} was made by {made_by['name']!r}, which is in no file; give model=")
        try:
            model = load(made_by["source"])
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} was made by a model that is not there any more: {error}; say where it is now with "
                "model= (--model)"
            ) from error
    if model.info.weights_sha256 != made_by["weights_sha256"]:
        raise ValueError(
            f"{folder} was made by {made_by['name']!r} (weights {made_by['weights_sha256'][:12]}), not by "
            f"{model.info.name!r} (weights {model.info.weights_sha256[:12]}); their vectors are of two kinds"
        )
    identity = json.loads(json.dumps(model.identity()))
    if differing := [key for key, value in identity.items() if description["settings"].get(key) != value]:
        raise ValueError(
            f"{folder} was made by {made_by['name']!r}; {model.info.name!r} has the same weights but another "
            f"{' and '.join(differing)}"
        )
    return read_index(folder, encode_text=model.encode_text)


def _find_folder(name: str | os.PathLike[str], revision: str | None) -> tuple[Path, str]:
    """The folder of a model, and what finds it again from anywhere."""
    if name == "mini":
        folder = _ASSETS / "mini"
        if not (folder / "videolm.json").exists():
            raise FileNotFoundError(
                f"the model that ships is not installed: {folder / 'videolm.json'} does not exist; "
                "name a folder, or the id of a CLIP on the Hugging Face hub"
            )
        return folder, "mini"
    if str(name) and Path(name).is_dir():
        return Path(name), os.path.abspath(name)
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(
            f"model {str(name)!r} is neither 'mini', nor a folder, nor a hub id like 'owner/name'"
        )
    return _download(name, revision), name


def _download(name: str, revision: str | None) -> Path:
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=["*.json", "*.txt", "*.safetensors"]
        )
        if not list(Path(folder).glob("*.safetensors")):
            folder = huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=["pytorch_model*.bin"]
            )
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"model {name!r} is no folder here, and cannot be had from the Hugging Face hub"
            f"{f' at revision {revision!r}' if revision else ''}: {error}"
        ) from error
    return Path(folder)


def _read_clip(
    folder: Path,
    source: str,
    *,
    device: str | torch.device,
    dtype: torch.dtype | Literal["auto"],
    allow_untrained: bool,
) -> VideoLM:
    """A CLIP in transformers' layout; its files do not say whether it is trained, so it counts as trained."""
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder} is no model: it has neither videolm.json nor the config.json of a CLIP"
        )
    if (kind := read_json(folder / "config.json").get("model_type")) != "clip":
        raise ValueError(f"{folder / 'config.json'} has model_type {kind!r}, only 'clip' can be read")
    shape, state = read_clip_folder(folder)
    return VideoLM(
        _with_weights(shape, state, folder),
        shape=shape,
        tokenizer=_read_tokenizer(folder, shape),
        preprocess=_clip_preprocess(folder, shape),
        sampler=_CLIP_SAMPLER,
        name=source if "/" in source and not Path(source).is_absolute() else folder.resolve().name,
        trained=True,
        source=source,
        device=device,
        dtype=dtype,
        allow_untrained=allow_untrained,
    )


def _clip_preprocess(folder: Path, shape: CLIPShape) -> Preprocess:
    """The statistics of the folder's processor, CLIP's own where it has none."""
    settings: dict[str, Any] = {}
    path = folder / "preprocessor_config.json"
    if path.exists():
        settings = read_json(path)
    elif (path := folder / "processor_config.json").exists():
        settings = read_json(path).get("image_processor", {})
    for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if settings.get(key) is False:
            raise ValueError(
                f"{path}: {key} is false, but a CLIP is fed resized, cropped and normalised frames"
            )
    if settings.get("resample", 3) != 3:
        raise ValueError(f"{path}: resample is {settings['resample']}, only 3 (bicubic) can be done")
    for key in ("size", "crop_size"):
        sides = settings.get(key, {})
        sides = set(sides.values()) if isinstance(sides, dict) else {sides}
        if sides - {shape.image_size}:
            raise ValueError(f"{path}: {key} is {settings[key]}, the tower takes {shape.image_size} pixels")
    statistics = {name: settings[f"image_{name}"] for name in ("mean", "std") if f"image_{name}" in settings}
    return Preprocess(image_size=shape.image_size, **statistics)


def _read_own_folder(
    folder: Path,
    source: str,
    *,
    device: str | torch.device,
    dtype: torch.dtype | Literal["auto"],
    allow_untrained: bool,
) -> VideoLM:
    path = folder / "videolm.json"
    card = read_json(path)
    info = _card_info(card, path)
    weights = folder / "model.safetensors"
    try:
        state = to_float32(load_file(weights))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{weights} is not readable: {error}") from error
    if (found := weights_sha256(state)) != info.weights_sha256:
        raise ValueError(
            f"{weights} is not the file that {path.name} describes: the hash of its weights is {found[:12]}, "
            f"not {info.weights_sha256[:12]}"
        )
    try:
        shape = CLIPShape(**card["shape"])
        preprocess, sampler = Preprocess(**info.preprocessing), Sampler(**info.sampler)
    except TypeError as error:
        raise ValueError(f"{path} is not of this version: {error}") from error
    return VideoLM(
        _with_weights(shape, state, folder),
        shape=shape,
        tokenizer=_read_tokenizer(folder, shape),
        preprocess=preprocess,
        sampler=sampler,
        name=info.name,
        trained=info.trained,
        licence=info.licence,
        recipe=info.recipe,
        scores=info.scores,
        source=source,
        device=device,
        dtype=dtype,
        allow_untrained=allow_untrained,
    )


def _card_info(card: dict[str, Any], path: Path) -> ModelInfo:
    if missing := sorted(_CARD_KEYS - card.keys()):
        raise ValueError(f"{path} is no model of videolm: {', '.join(missing)} missing")
    if card["format"] != FORMAT_VERSION:
        raise ValueError(f"{path} has format {card['format']}, this version reads {FORMAT_VERSION}")
    return ModelInfo(**{name: card[name] for name in ModelInfo.__dataclass_fields__})


def _with_weights(shape: CLIPShape, state: dict[str, Tensor], folder: Path) -> VideoCLIP:
    # Without memory until it is given the weights, and without a draw from the random generator.
    with torch.device("meta"):
        model = build_video_clip(shape)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its shape: {error}") from error
    return model


def _read_tokenizer(folder: Path, shape: CLIPShape) -> Tokenizer | None:
    """The folder's tokenizer; without one the model still encodes videos."""
    try:
        return load_tokenizer(folder, context_length=shape.context_length, eos_token_id=shape.eos_token_id)
    except FileNotFoundError:
        return None
