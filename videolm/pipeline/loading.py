"""Finds a model by its name and reads its files; opens an index with the model that made it."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from videolm.encoders.presets import CLIPShape, build_video_clip
from videolm.encoders.video_clip import VideoCLIP
from videolm.encoders.weights import Weights, read_weights, weights_sha256
from videolm.encoders.weights.files import refuse_pointer
from videolm.files import read_json
from videolm.heads.speaker_weights import SpeakerWeights, load_speaker, read_speaker
from videolm.pipeline.head_files import read_heads, read_prompt_tokenizer
from videolm.pipeline.known import KNOWN_MODELS, KnownModel
from videolm.pipeline.processors import read_preprocess
from videolm.pipeline.settings import differences, with_new_defaults
from videolm.pipeline.speaking import HeadName, Speaker
from videolm.pipeline.video_lm import FORMAT_VERSION, VideoLM, to_float32
from videolm.search.index import Index, read_description, read_index
from videolm.text.tokenizer import Tokenizer, load_tokenizer
from videolm.types import ModelInfo
from videolm.video.samplers import Sampler
from videolm.video.transforms import Preprocess

_ASSETS = Path(__file__).parent.parent / "assets"
# What a download asks for: the small files, and the first of these weights that the model has.
_SMALL_FILES = ["*.json", "*.txt", "*.txt.gz"]
_WEIGHTS = [
    "model*.safetensors",
    "open_clip_model*.safetensors",
    "pytorch_model*.bin",
    "open_clip_pytorch_model.bin",
]
_CARD_KEYS = frozenset({"format", "shape", *ModelInfo.__dataclass_fields__})
# What CLIP4Clip looks at; and what Frozen in Time, X-Pool and STAN do, for weights that do not say whose they are.
_CLIP4CLIP_SAMPLER = Sampler("one_fps_then_uniform", num_frames=12)
_SAMPLER = Sampler("segment_middle", num_frames=12)


def load(
    name: str | os.PathLike[str] = "mini",
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | Literal["auto"] = "auto",
    revision: str | None = None,
    reduce: str | None = None,
    allow_untrained: bool = False,
) -> VideoLM:
    """A model by name: "mini", which ships with the package; a path; or the id of a model on the hub.

    Path and hub (Hugging Face; `hf-hub:` before the id is open_clip's way to say it) hold what `VideoLM.save`
    wrote, or weights of CLIP, MetaCLIP, SigLIP, X-CLIP, CLIP4Clip, GIT or BLIP-2 (before OPT) in the layout of
    transformers, OpenAI, open_clip or CLIP4Clip: a file, or the folder it lies in. What it is its content says.
    `device="auto"` is cuda where there is one; `dtype="auto"` is bfloat16 for a model of some size where the
    device is faster with it, else float32 (see `pipeline.precision`).
    `reduce`, as in "tome:r=16", has the vision tower go on with fewer tokens, without training (see
    `encoders.reduction_plans` for the plans); "none" is without, and None as the model was saved. Before a
    later layer of divided attention or token shift the same tokens are merged in every frame of a clip; a plan that
    cannot be with the model's temporal module is a ValueError. Which tokens are most alike is decided in `dtype`: in
    bfloat16, where cosines keep three digits, other ones may be merged than in float32.
    `revision` is a commit, tag or branch of the hub, also written "owner/name@revision". With HF_HUB_OFFLINE=1 only
    what was downloaded before is used.
    A model without trained weights warns, and refuses to index unless `allow_untrained`. Warned of are, too, tensors
    in the file that are left out, like a second set of weights.
    """
    path, source = _find(name, revision)
    read = _read_own_folder if (path / "videolm.json").exists() else _read_foreign
    model = read(path, source, reduce=reduce, device=device, dtype=dtype, allow_untrained=allow_untrained)
    if not model.trained:
        warnings.warn(
            f"{model.info.name} has untrained weights: what comes out of it means nothing", stacklevel=2
        )
    return model


def list_models() -> list[KnownModel]:
    """The models that ship with the package, and then those of others that are known to load."""
    return [*(_shipped(path) for path in sorted(_ASSETS.glob("*/videolm.json"))), *KNOWN_MODELS]


def of_weights(
    weights: Weights,
    *,
    name: str,
    licence: str = "unknown",
    source: str | None = None,
    reduce: str | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | Literal["auto"] = "auto",
    allow_untrained: bool = False,
) -> VideoLM:
    """A model of weights in another project's layout, with the tokenizer and processor settings beside them.

    The files do not say whether it is trained. It counts as such unless every layer norm is as it was made,
    ones and zeros, which no training leaves.
    """
    folder = weights.file.parent
    shape = _reduced(weights.shape, reduce)
    model = _with_weights(shape, weights.state, weights.file)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    speaker = read_speaker(weights.file)
    return VideoLM(
        model,
        shape=shape,
        tokenizer=_read_tokenizer(folder, shape),
        preprocess=read_preprocess(folder, shape),
        sampler=_sampler(weights) if speaker is None else replace(_SAMPLER, num_frames=speaker.num_frames),
        name=name,
        trained=not all(bool((norm.weight == 1).all() and (norm.bias == 0).all()) for norm in norms),
        licence=licence,
        source=source,
        heads={} if speaker is None else _foreign_heads(speaker, folder),
        device=device,
        dtype=dtype,
        allow_untrained=allow_untrained,
    )


def _foreign_heads(weights: SpeakerWeights, folder: Path) -> dict[HeadName, Speaker]:
    """One for captions and answers: nothing in the files of a GIT or BLIP-2 says for which of them it was trained."""
    tokenizer = read_prompt_tokenizer(folder / "tokenizer.json", weights.shape)
    speaker = Speaker(load_speaker(weights), tokenizer, weights.shape)
    return {"captioning": speaker, "videoqa": speaker}


def _sampler(weights: Weights) -> Sampler:
    if weights.layout == "CLIP4Clip":
        return _CLIP4CLIP_SAMPLER
    if weights.shape.aggregator == "multiframe":
        # X-CLIP has a position for each frame that it was trained with, and for no more.
        return replace(_SAMPLER, num_frames=weights.shape.aggregator_frames)
    return _SAMPLER


def open_index(
    folder: str | os.PathLike[str], model: VideoLM | str | os.PathLike[str] | None = None
) -> Index:
    """Open an index with the model that made it, which is loaded if it is not given, or from where it is now.

    A model with other weights, shape, preprocessing or vocabulary than the one that made the index is a
    ValueError that names both and what differs.
    """
    description = read_description(folder)
    made_by = description["model"]
    settings = with_new_defaults(description["settings"])
    reduce = settings["shape"].get("reduce") if isinstance(settings.get("shape"), dict) else None
    if not isinstance(reduce, str):
        reduce = None
    if isinstance(model, str | os.PathLike):
        model = _load_for(folder, made_by, model, reduce=reduce)
    if model is None:
        if made_by["source"] is None:
            raise ValueError(f"{folder} was made by {made_by['name']!r}, which is in no file; give model=")
        try:
            model = _load_for(folder, made_by, made_by["source"], reduce=reduce)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} was made by a model that is not there any more: {error}; say where it is now with "
                "model= (--model)"
            ) from error
    _check_same_weights(folder, made_by, model)
    identity = json.loads(json.dumps(model.identity()))
    if differing := differences(settings, identity):
        raise ValueError(
            f"{folder} was made by {made_by['name']!r}; {model.info.name!r} has the same weights but another "
            f"{' and another '.join(differing)}"
        )
    return read_index(folder, encode_text=model.encode_text)


def _load_for(
    folder: str | os.PathLike[str],
    made_by: dict[str, Any],
    name: str | os.PathLike[str],
    *,
    reduce: str | None,
) -> VideoLM:
    """The model with the plan of an index."""
    try:
        return load(name, reduce=reduce)
    except ValueError:
        # Where the plan does not fit, it may be because this is another model.
        _check_same_weights(folder, made_by, load(name, reduce="none"))
        raise


def _check_same_weights(folder: str | os.PathLike[str], made_by: dict[str, Any], model: VideoLM) -> None:
    if model.info.weights_sha256 != made_by["weights_sha256"]:
        raise ValueError(
            f"{folder} was made by {made_by['name']!r} (weights {made_by['weights_sha256'][:12]}), not by "
            f"{model.info.name!r} (weights {model.info.weights_sha256[:12]}); their vectors are of two kinds"
        )


def _find(name: str | os.PathLike[str], revision: str | None) -> tuple[Path, str]:
    """The folder or file of a model, and what finds it again from anywhere."""
    is_local = name == "mini" or (str(name) != "" and Path(name).exists())
    if is_local and revision is not None:
        raise ValueError(
            f"revision ({revision!r}) is for models of the hub, but {str(name)!r} is here; leave it out"
        )
    if name == "mini":
        folder = _ASSETS / "mini"
        if not (folder / "videolm.json").exists():
            raise FileNotFoundError(
                f"the model that ships is not installed: {folder / 'videolm.json'} does not exist; "
                "name a folder, or the id of a CLIP on the Hugging Face hub"
            )
        return folder, "mini"
    if is_local:
        return Path(name), os.path.abspath(name)
    match = re.fullmatch(r"(?:hf-hub:)?([\w.-]+/[\w.-]+)(?:@(.+))?", str(name))
    if not isinstance(name, str) or match is None:
        raise FileNotFoundError(
            f"model {str(name)!r} is neither 'mini', nor a folder, nor a hub id like 'owner/name', nor a file"
        )
    hub_id, named = match.groups()
    if named is not None and revision not in (None, named):
        raise ValueError(f"revision ({revision!r}) must be the one of {name!r}, or not be given")
    revision = named or revision
    return _download(hub_id, revision), f"{hub_id}@{revision}" if revision else hub_id


def _download(name: str, revision: str | None) -> Path:
    try:
        for weights in _WEIGHTS:
            folder = Path(
                huggingface_hub.snapshot_download(
                    name, revision=revision, allow_patterns=[*_SMALL_FILES, weights]
                )
            )
            if list(folder.glob(weights)):
                break
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"model {name!r} is no folder here, and cannot be had from the Hugging Face hub"
            f"{f' at revision {revision!r}' if revision else ''}: {error}"
        ) from error
    return folder


def _read_foreign(
    path: Path,
    source: str,
    *,
    reduce: str | None,
    device: str | torch.device,
    dtype: torch.dtype | Literal["auto"],
    allow_untrained: bool,
) -> VideoLM:
    try:
        weights = read_weights(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is no model: it has no videolm.json, and {error}") from error
    if weights.left_out_tensors:
        warnings.warn(
            f"{weights.file} holds other tensors too, which are left out: {', '.join(weights.left_out_tensors)}",
            stacklevel=3,
        )
    is_hub_id = "/" in source and not Path(source).is_absolute()
    return of_weights(
        weights,
        name=source.partition("@")[0] if is_hub_id else path.resolve().name,
        source=source,
        reduce=reduce,
        device=device,
        dtype=dtype,
        allow_untrained=allow_untrained,
    )


def _read_own_folder(
    folder: Path,
    source: str,
    *,
    reduce: str | None,
    device: str | torch.device,
    dtype: torch.dtype | Literal["auto"],
    allow_untrained: bool,
) -> VideoLM:
    path = folder / "videolm.json"
    card = read_json(path)
    info = _card_info(card, path)
    weights = folder / "model.safetensors"
    try:
        refuse_pointer(weights)
        state = to_float32(load_file(weights))
    except (OSError, ValueError, SafetensorError) as error:
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
    saved_reduce, shape = shape.reduce, _reduced(shape, reduce)
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
        # Measured with the plan that it was saved with.
        scores=info.scores if shape.reduce == saved_reduce else {},
        source=source,
        heads=read_heads(
            folder, card.get("heads", {}), token_width=shape.vision_width, text_width=shape.joint_dim
        ),
        device=device,
        dtype=dtype,
        allow_untrained=allow_untrained,
    )


def _reduced(shape: CLIPShape, reduce: str | None) -> CLIPShape:
    return shape if reduce is None else replace(shape, reduce=reduce)


def _card_info(card: dict[str, Any], path: Path) -> ModelInfo:
    if missing := sorted(_CARD_KEYS - card.keys()):
        raise ValueError(f"{path} is no model of videolm: {', '.join(missing)} missing")
    if card["format"] != FORMAT_VERSION:
        raise ValueError(f"{path} has format {card['format']}, this version reads {FORMAT_VERSION}")
    return ModelInfo(**{name: card[name] for name in ModelInfo.__dataclass_fields__})


def _shipped(path: Path) -> KnownModel:
    card = read_json(path)
    info = _card_info(card, path)
    with safe_open(path.with_name("model.safetensors"), framework="pt") as weights:
        names = weights.keys()
        num_parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return KnownModel(
        info.name,
        layout="videolm",
        num_parameters=num_parameters,
        licence=info.licence,
        source="this package",
        weights_sha256=info.weights_sha256,
        scores=info.scores,
        heads=tuple(card.get("heads", {})),
    )


def _with_weights(shape: CLIPShape, state: dict[str, Tensor], path: Path) -> VideoCLIP:
    for name in ("vision_depth", "text_depth"):
        if getattr(shape, name) > len(state):
            raise ValueError(
                f"the weights in {path} are {len(state)} tensors, too few for {name} {getattr(shape, name)}"
            )
    # Without memory until it is given the weights, and without a draw from the random generator.
    with torch.device("meta"):
        model = build_video_clip(shape)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit its shape: {error}") from error
    return model


def _read_tokenizer(folder: Path, shape: CLIPShape) -> Tokenizer | None:
    """The folder's tokenizer; without one the model still encodes videos.

    A model without a text tower has none: what lies in its folder is its head's.
    """
    if not shape.has_text:
        return None
    try:
        return load_tokenizer(
            folder,
            context_length=shape.context_length,
            eos_token_id=shape.eos_token_id,
            fill_context=shape.family == "siglip",
        )
    except FileNotFoundError:
        return None
