"""From a file or folder of any known layout to a shape and weights in our names."""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from videolm.encoders.presets import CLIPShape
from videolm.encoders.weights.convert import from_state
from videolm.encoders.weights.files import find_weights, read_tensors
from videolm.encoders.weights.open_clip import parse_open_clip_config
from videolm.encoders.weights.shapes import Activation, shape_of_state, shape_of_transformers_config
from videolm.encoders.weights.tables import (
    CLIP4CLIP,
    CLIP4CLIP_LSTM,
    TRANSFORMERS_BLIP2,
    TRANSFORMERS_CLIP,
    TRANSFORMERS_GIT,
    TRANSFORMERS_SIGLIP,
    TRANSFORMERS_XCLIP,
    Layout,
    recognise,
)
from videolm.files import read_json

OPEN_CLIP_CONFIG = "open_clip_config.json"
# Files of a tokenizer of transformers. OpenAI's own file would be CLIP's whatever the config says.
_TOKENIZERS = ("tokenizer.json", "vocab.json")

_WITH_CONFIG = (
    TRANSFORMERS_CLIP,
    TRANSFORMERS_SIGLIP,
    TRANSFORMERS_XCLIP,
    TRANSFORMERS_GIT,
    TRANSFORMERS_BLIP2,
)

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Weights:
    """A model's shape, and its weights in our names as float32."""

    shape: CLIPShape
    state: dict[str, Tensor]
    layout: str
    """The source format, for people."""
    file: Path
    left_out: list[str] = field(default_factory=list)
    """What the file holds beside weights."""
    left_out_tensors: list[str] = field(default_factory=list)
    """The entries among them that hold tensors."""


def read_weights(
    path: str | Path, *, activation: Activation | None = None, allow_objects: bool = False
) -> Weights:
    """Weights of transformers (CLIP, MetaCLIP, SigLIP, X-CLIP, the image towers of GIT and BLIP-2), OpenAI,
    open_clip or CLIP4Clip, known by content.

    `path` is the file or its folder. Layouts of transformers need config.json beside the file; open_clip's need
    open_clip_config.json or `activation`, which the weights do not tell. Nothing in a file is run: objects other
    than tensors are an error, or with `allow_objects` left out and named. ValueError names the file and what is
    wrong: keys missing or unknown, a tensor of another shape, a value that is not finite, an `activation` that
    contradicts the layout or config.

    Of X-CLIP (transformers' `XCLIPModel`) video and text vectors are as there, but its scores are not: the prompts
    generator, which changes a text's vector by the video it is compared with, is left out and named.
    """
    path = Path(path)
    file = find_weights(path) if path.is_dir() else path
    archive = read_tensors(file, allow_objects=allow_objects)
    try:
        layout = recognise(archive.tensors)
        if layout in _WITH_CONFIG:
            shape, theirs = _with_config(archive.tensors, file.parent / "config.json")
        else:
            theirs = _fold_layer_scale(archive.tensors)
            shape = _shape_of(theirs, layout, file, activation)
        if activation not in (None, shape.activation):
            raise ValueError(
                f"activation ({activation!r}) contradicts the layout or config, which says "
                f"{shape.activation!r}; leave it out"
            )
        state = from_state(theirs, layout=layout, shape=shape)
        prompts = sorted({key.partition(".")[0] for key in theirs if key.startswith("prompts_")})
        return Weights(
            shape,
            state,
            layout.name,
            file,
            left_out=[*archive.left_out, *prompts],
            left_out_tensors=[*archive.left_out_tensors, *prompts],
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _with_config(tensors: Mapping[str, Tensor], path: Path) -> tuple[CLIPShape, Mapping[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; weights of transformers need it")
    config = read_json(path)
    shape = _named(path, shape_of_transformers_config, config)
    towers = ("CLIPTextModelWithProjection", "CLIPVisionModelWithProjection")
    if "logit_scale" not in tensors and any(tower in (config.get("architectures") or ()) for tower in towers):
        # The two towers saved one by one: the temperature belonged to neither.
        tensors = {**tensors, "logit_scale": torch.tensor(config.get("logit_scale_init_value", 2.6592))}
    return shape, tensors


def _shape_of(
    theirs: Mapping[str, Tensor], layout: Layout, file: Path, activation: Activation | None
) -> CLIPShape:
    if layout in (CLIP4CLIP, CLIP4CLIP_LSTM):
        _warn_of_cross_transformer(theirs, file)
        has_transformer = "transformerClip.resblocks.0.ln_1.weight" in theirs
        return shape_of_state(
            theirs,
            layout=layout,
            activation="quick_gelu",
            aggregator="lstm" if layout == CLIP4CLIP_LSTM else "transformer" if has_transformer else "mean",
        )
    # Only files that openai/CLIP wrote carry its resolution; anyone may write TorchScript.
    if "input_resolution" in theirs:
        return shape_of_state(theirs, layout=layout, activation="quick_gelu")
    path = file.parent / OPEN_CLIP_CONFIG
    if path.is_file():
        config = _named(path, parse_open_clip_config, read_json(path))
        if config.tokenizer and not any((file.parent / name).is_file() for name in _TOKENIZERS):
            raise ValueError(
                f"{path.name}: these weights know the words of {config.tokenizer!r} (hf_tokenizer_name) and not "
                f"CLIP's; lay its {' or '.join(_TOKENIZERS)} beside them"
            )
        return shape_of_state(
            theirs,
            layout=layout,
            activation=config.activation,
            image_size=config.image_size,
            vision_head_width=config.vision_head_width,
            text_heads=config.text_heads,
        )
    if activation is None:
        raise ValueError(
            "nothing says which activation these weights were trained with (OpenAI's: quick_gelu, most of LAION's: "
            f"gelu); lay their {OPEN_CLIP_CONFIG} beside them, or say it to tools/convert_weights.py"
        )
    return shape_of_state(theirs, layout=layout, activation=activation)


def _warn_of_cross_transformer(theirs: Mapping[str, Tensor], file: Path) -> None:
    if any(key.startswith("cross.transformer.") for key in theirs):
        warnings.warn(
            f"{file}: its cross transformer is left out; if it was trained to score by it (tightTransf), the "
            "vectors of its towers alone are worth less",
            stacklevel=4,
        )


def _fold_layer_scale(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's LayerScale multiplies what a layer adds: the same as rows of its last matrix multiplied."""
    folded = dict(theirs)
    for key in theirs:
        match = re.fullmatch(r"(.*)\.ls_([12])\.gamma", key)
        if match is None:
            continue
        last = f"{match[1]}.{'attn.out_proj' if match[2] == '1' else 'mlp.c_proj'}"
        gamma = folded.pop(key).float()
        for name in (f"{last}.weight", f"{last}.bias"):
            if name in folded and len(folded[name]) == len(gamma):
                folded[name] = gamma.view(-1, *[1] * (folded[name].ndim - 1)) * folded[name].float()
            else:
                raise ValueError(f"{key} has no {name} of its size that it could scale")
    return folded


def _named(path: Path, parse: Callable[[dict[str, Any]], Parsed], config: dict[str, Any]) -> Parsed:
    try:
        return parse(config)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
