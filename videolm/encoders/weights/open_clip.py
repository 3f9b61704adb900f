"""What open_clip_config.json says and the weights beside it do not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# What decides a size, which the weights tell as well, or nothing but training.
_HARMLESS = {
    "model_cfg": {"embed_dim", "custom_text", "init_logit_scale", "cast_dtype", "output_dict", "quick_gelu",
                  "vision_cfg", "text_cfg"},
    "vision_cfg": {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "ls_init_value",
                   "patch_dropout", "drop_path"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value",
                 "pad_id", "hf_tokenizer_name"},
}  # fmt: skip
# The values of other keys that mean the plain CLIP, beside null, false and empty.
_PLAIN = {
    "vision_cfg": {"pool_type": "tok", "pos_embed_type": "learnable"},
    "text_cfg": {"pool_type": "argmax", "proj_type": "linear"},
}


@dataclass(frozen=True)
class OpenClipConfig:
    """The part of the config that is needed beside the weights."""

    activation: Literal["quick_gelu", "gelu"]
    image_size: int
    vision_head_width: int
    text_heads: int
    tokenizer: str | None
    """Id on the hub; None: CLIP's own."""


def parse_open_clip_config(config: Mapping[str, Any]) -> OpenClipConfig:
    """The parsed open_clip_config.json; a ValueError names what makes the model another than CLIP."""
    model = config.get("model_cfg")
    parts = {"model_cfg": model, **{key: (model or {}).get(key) for key in ("vision_cfg", "text_cfg")}}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise ValueError(f"{name} must be a JSON object, got {part!r}")
        plain = _PLAIN.get(name, {})
        strange = [
            f"{key}={value!r}"
            for key, value in part.items()
            if key not in _HARMLESS[name] and value and value != plain.get(key)
        ]
        if strange:
            raise ValueError(f"{name} asks for what no CLIP here has: {', '.join(strange)}")
    vision, text = parts["vision_cfg"] or {}, parts["text_cfg"] or {}
    numbers = {
        "image_size": vision.get("image_size", 224),
        "head_width": vision.get("head_width", 64),
        "heads": text.get("heads", 8),
    }
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} ({value!r}) must be a whole number of at least 1")
    tokenizer = text.get("hf_tokenizer_name") or None
    if not isinstance(tokenizer, str | None):
        raise ValueError(f"hf_tokenizer_name ({tokenizer!r}) must be the id of a tokenizer")
    return OpenClipConfig(
        activation="quick_gelu" if (model or {}).get("quick_gelu") else "gelu",
        image_size=numbers["image_size"],
        vision_head_width=numbers["head_width"],
        text_heads=numbers["heads"],
        tokenizer=tokenizer,
    )
