"""The shape of a model: from the config beside its weights, or from the weights themselves."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    Blip2Config,
    CLIPConfig,
    GitConfig,
    MetaClip2Config,
    PreTrainedConfig,
    SiglipConfig,
    XCLIPConfig,
)

from videolm.encoders.presets import CLIPShape
from videolm.encoders.weights.convert import source_of
from videolm.encoders.weights.tables import Layout

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]

_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "clip": CLIPConfig,
    "metaclip_2": MetaClip2Config,
    "siglip": SiglipConfig,
    "xclip": XCLIPConfig,
    "git": GitConfig,
    "blip-2": Blip2Config,
}
_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Both of SigLIP's vocabularies, that of C4 and Gemma's, end a sentence with it. Its configs carry CLIP's number.
_SIGLIP_EOS_TOKEN_ID = 1
# open_clip's towers whose heads are not 64 wide: H/14, g/14, bigG/14 and e/14.
_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}


def shape_of_transformers_config(config: Mapping[str, Any]) -> CLIPShape:
    """The shape in config.json of a CLIPModel, MetaClip2Model, SiglipModel or XCLIPModel, with their defaults.

    Of a GitForCausalLM or Blip2ForConditionalGeneration it is that of the image tower; what speaks is a head.
    """
    model_type = config.get("model_type")
    if model_type == "siglip2":
        raise ValueError(
            "model_type 'siglip2' is the NaFlex variant, whose pictures have any shape; the SigLIP 2 models of "
            "one resolution, like google/siglip2-base-patch16-224, are of type 'siglip' and can be read"
        )
    if model_type not in _CONFIGS:
        raise ValueError(f"model_type ({model_type!r}) must be one of {', '.join(map(repr, _CONFIGS))}")
    is_siglip = model_type == "siglip"
    if is_siglip and isinstance(config.get("text_config", {}), dict):
        # Not used here, and transformers warns of the wrong ones that they carry.
        unused = {"bos_token_id": None, "eos_token_id": None}
        config = {**config, "text_config": {**config.get("text_config", {}), **unused}}
    try:
        parsed = _CONFIGS[model_type].from_dict(dict(config))
    except (StrictDataclassError, TypeError, AttributeError) as error:
        raise ValueError(f"not a config of {model_type!r} ({error})") from error
    if model_type in ("git", "blip-2"):
        return _image_tower(parsed.vision_config, family="clip" if model_type == "git" else "blip2")
    vision, text = parsed.vision_config, parsed.text_config
    _check_towers(vision, text)
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
        eos_token_id=_SIGLIP_EOS_TOKEN_ID if is_siglip else _eos_token_id(text, model_type=model_type),
        joint_dim=text.projection_size if is_siglip else parsed.projection_dim,
        activation=_ACTIVATIONS[vision.hidden_act],
        layer_norm_eps=vision.layer_norm_eps,
        family="siglip" if is_siglip else "clip",
        **(_frames_of_xclip(parsed) if model_type == "xclip" else {}),
    )


def _image_tower(vision: PreTrainedConfig, *, family: Literal["clip", "blip2"]) -> CLIPShape:
    _check_vision(vision)
    return CLIPShape(
        image_size=_side(vision.image_size, name="image_size"),
        patch_size=_side(vision.patch_size, name="patch_size"),
        vision_width=vision.hidden_size,
        vision_depth=vision.num_hidden_layers,
        vision_heads=vision.num_attention_heads,
        vision_mlp_width=vision.intermediate_size,
        text_width=0,
        text_depth=0,
        text_heads=0,
        text_mlp_width=0,
        vocab_size=0,
        context_length=0,
        eos_token_id=0,
        joint_dim=vision.hidden_size,
        activation=_ACTIVATIONS[vision.hidden_act],
        layer_norm_eps=vision.layer_norm_eps,
        family=family,
        has_text=False,
    )


def _frames_of_xclip(parsed: XCLIPConfig) -> dict[str, Any]:
    """The part of an X-CLIP that looks at several frames."""
    vision = parsed.vision_config
    sizes = vision.mit_hidden_size, vision.mit_intermediate_size
    if sizes != (parsed.projection_dim, 4 * parsed.projection_dim):
        raise ValueError(
            f"mit_hidden_size and mit_intermediate_size {sizes} must be one and four times projection_dim "
            f"({parsed.projection_dim})"
        )
    return {
        "temporal": "message",
        "aggregator": "multiframe",
        "aggregator_depth": vision.mit_num_hidden_layers,
        "aggregator_heads": vision.mit_num_attention_heads,
        "aggregator_frames": vision.num_frames,
    }


def shape_of_state(
    theirs: Mapping[str, Tensor],
    *,
    layout: Layout,
    activation: Activation,
    aggregator: Literal["mean", "transformer", "lstm"] = "mean",
    image_size: int | None = None,
    vision_head_width: int | None = None,
    text_heads: int | None = None,
) -> CLIPShape:
    """The shape of weights in a layout of OpenAI's names, read from their sizes.

    What sizes do not tell, the heads and the pixels that fill no patch, is as in the published models if it
    is not given.
    """

    def sizes(name: str, ndim: int) -> tuple[int, ...]:
        key = source_of(name, layout)[0][0]
        if key not in theirs:
            raise ValueError(f"1 keys missing ({key})")
        if theirs[key].ndim != ndim or not theirs[key].numel():
            raise ValueError(f"{key} is {tuple(theirs[key].shape)}, but must have {ndim} dimensions")
        return tuple(theirs[key].shape)

    def depth(tower: str) -> int:
        layers = 0
        while source_of(f"{tower}.blocks.{layers}.ln_1.weight", layout)[0][0] in theirs:
            layers += 1
        return layers

    vision_width, _, _, patch_size = sizes("vision.patch.weight", 4)
    positions, _ = sizes("vision.position", 2)
    vocab_size, text_width = sizes("text.token.weight", 2)
    # Theirs is transposed.
    _, joint_dim = sizes("text.projection.weight", 2)
    sequence: dict[str, Any] = {"aggregator": aggregator}
    if aggregator == "transformer":
        sequence["aggregator_depth"] = depth("aggregator")
        sequence["aggregator_heads"] = joint_dim // 64
        sequence["aggregator_frames"] = sizes("aggregator.position", 2)[0]
    return CLIPShape(
        image_size=image_size or math.isqrt(positions - 1) * patch_size,
        patch_size=patch_size,
        vision_width=vision_width,
        vision_depth=depth("vision"),
        vision_heads=vision_width // (vision_head_width or _HEAD_WIDTHS.get(vision_width, 64)),
        vision_mlp_width=sizes("vision.blocks.0.mlp.up.weight", 2)[0],
        text_width=text_width,
        text_depth=depth("text"),
        text_heads=text_heads or text_width // 64,
        text_mlp_width=sizes("text.blocks.0.mlp.up.weight", 2)[0],
        vocab_size=vocab_size,
        context_length=sizes("text.position", 2)[0],
        # They read at the highest id of a sentence.
        eos_token_id=min(49407, vocab_size - 1),
        joint_dim=joint_dim,
        activation=activation,
        **sequence,
    )


def _check_vision(vision: PreTrainedConfig) -> None:
    if getattr(vision, "num_channels", 3) != 3:
        raise ValueError(f"num_channels ({vision.num_channels}) must be 3, for RGB")
    if vision.hidden_act not in _ACTIVATIONS:
        raise ValueError(f"hidden_act ({vision.hidden_act!r}) must be one of {', '.join(_ACTIVATIONS)}")


def _check_towers(vision: PreTrainedConfig, text: PreTrainedConfig) -> None:
    _check_vision(vision)
    if not getattr(vision, "vision_use_head", True):
        raise ValueError("vision_use_head is false, but the head makes the embedding")
    for name in ("hidden_act", "layer_norm_eps"):
        if getattr(vision, name) != getattr(text, name):
            both = f"{getattr(vision, name)!r} and {getattr(text, name)!r}"
            raise ValueError(f"{name} must be the same in the vision and the text tower, got {both}")


def _eos_token_id(text: PreTrainedConfig, *, model_type: str) -> int:
    """Where sentences are read.

    CLIP's configs written before 2023 say 2, which is not its end token: transformers then reads at the highest
    id of the sentence. That is the end token, the last of the vocabulary unless tokens were added after it. An
    XCLIPModel reads there whatever its config says.
    """
    value = 2 if model_type == "xclip" else text.eos_token_id
    if not isinstance(value, int):
        raise ValueError(f"eos_token_id ({value}) must be one number")
    return min(49407, text.vocab_size - 1) if model_type in ("clip", "xclip") and value == 2 else value


def _side(value: int | list[int] | tuple[int, int], *, name: str) -> int:
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"{name} ({value}) must be square")
    return sides.pop()
