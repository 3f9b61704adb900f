"""Our weights as a folder that transformers opens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from videolm.encoders.presets import CLIPShape
from videolm.encoders.weights.convert import to_state
from videolm.encoders.weights.tables import TRANSFORMERS_CLIP, TRANSFORMERS_SIGLIP
from videolm.files import replace_file, write_json


def export_folder(folder: str | Path, *, shape: CLIPShape, state: Mapping[str, Tensor]) -> None:
    """Writes config.json and model.safetensors for `CLIPModel.from_pretrained` (`SiglipModel` for a siglip).

    A model with a stem, a temporal module, an aggregator or a plan to reduce tokens, or without a text tower, is a
    ValueError: there is no place for them.
    """
    if shape.stem != "linear":
        raise ValueError(f"transformers has no place for stem {shape.stem!r}; only 'linear' can be exported")
    if shape.temporal != "none" or shape.aggregator != "mean":
        raise ValueError(
            f"transformers has no place for temporal {shape.temporal!r} with aggregator {shape.aggregator!r}; only "
            "'none' with 'mean' can be exported"
        )
    if shape.reduce:
        raise ValueError(
            f"transformers has no place for reduce ({shape.reduce!r}), and its vectors would be others; load the "
            "model with reduce='none' to export it whole"
        )
    if not shape.has_text or shape.family == "blip2":
        raise ValueError(
            "an image tower without a text tower is no CLIPModel of transformers; save the model in our format"
        )
    layout = TRANSFORMERS_SIGLIP if shape.family == "siglip" else TRANSFORMERS_CLIP
    theirs = {key: tensor.contiguous() for key, tensor in to_state(state, layout=layout).items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(
        folder / "model.safetensors", lambda file: save_file(theirs, file, metadata={"format": "pt"})
    )
    write_json(folder / "config.json", transformers_config(shape))


def transformers_config(shape: CLIPShape) -> dict[str, Any]:
    """config.json of a model of this shape."""
    both = {
        "hidden_act": "gelu_pytorch_tanh" if shape.activation == "gelu_tanh" else shape.activation,
        "layer_norm_eps": shape.layer_norm_eps,
    }
    config: dict[str, Any] = {
        "vision_config": {
            **both,
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
            "hidden_size": shape.vision_width,
            "num_hidden_layers": shape.vision_depth,
            "num_attention_heads": shape.vision_heads,
            "intermediate_size": shape.vision_mlp_width,
        },
        "text_config": {
            **both,
            "hidden_size": shape.text_width,
            "num_hidden_layers": shape.text_depth,
            "num_attention_heads": shape.text_heads,
            "intermediate_size": shape.text_mlp_width,
            "vocab_size": shape.vocab_size,
            "max_position_embeddings": shape.context_length,
            "eos_token_id": shape.eos_token_id,
        },
    }
    if shape.family == "siglip":
        config["text_config"]["projection_size"] = shape.joint_dim
        return {"model_type": "siglip", "architectures": ["SiglipModel"], **config}
    config["projection_dim"] = shape.joint_dim
    # CLIPModel takes 2 for the mark of an old config and reads elsewhere; MetaClip2Model takes it as it is.
    if shape.eos_token_id == 2:
        return {"model_type": "metaclip_2", "architectures": ["MetaClip2Model"], **config}
    return {"model_type": "clip", "architectures": ["CLIPModel"], **config}
