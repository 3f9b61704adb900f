"""Model sizes: a preset is a function with numbers in it."""

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

from torch import nn

from videolm.encoders.aggregators import SequenceLSTM, SequenceTransformer
from videolm.encoders.clip import ImageTower, TextTower
from videolm.encoders.temporal import DividedTemporal
from videolm.encoders.video_clip import VideoCLIP


@dataclass(frozen=True)
class CLIPShape:
    """Everything that decides which parameters a VideoCLIP has and what it computes with them."""

    image_size: int
    """Pixels of a side."""
    patch_size: int
    vision_width: int
    vision_depth: int
    vision_heads: int
    vision_mlp_width: int
    text_width: int
    text_depth: int
    text_heads: int
    text_mlp_width: int
    vocab_size: int
    context_length: int
    eos_token_id: int
    """A sentence is read at the first of these."""
    joint_dim: int
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    layer_norm_eps: float = 1e-5
    temporal: Literal["none", "divided"] = "none"
    max_frames: int = 8
    """Rows of the time position; clips of another length interpolate it."""
    temporal_zero_init: bool = True
    """True for a start from CLIP, False for training from scratch."""
    temporal_layers: list[int] | None = None
    """Vision blocks that get the temporal module, from 0; None: every one."""
    family: Literal["clip", "siglip"] = "clip"
    """siglip: no class token but an attention pool; text without causal mask, padded, read at its last place."""
    aggregator: Literal["mean", "transformer", "lstm"] = "mean"
    """What sees the frame embeddings before they are averaged."""
    aggregator_depth: int = 4
    """Layers of the transformer, as the next two."""
    aggregator_heads: int = 8
    aggregator_frames: int = 77
    """Rows of its frame position; longer clips are refused."""

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.type is int and f.name != "eos_token_id"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(
                f"eos_token_id ({self.eos_token_id}) must be in [0, {self.vocab_size}), inside the vocabulary"
            )
        if self.image_size < self.patch_size:
            raise ValueError(
                f"image_size ({self.image_size}) must be at least patch_size ({self.patch_size})"
            )
        for tower in ("vision", "text"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            if width % heads:
                raise ValueError(f"{tower}_width ({width}) must be a multiple of {tower}_heads ({heads})")
        for field in fields(self):
            choices, value = get_args(field.type), getattr(self, field.name)
            if get_origin(field.type) is Literal and value not in choices:
                raise ValueError(f"{field.name} ({value!r}) must be one of {', '.join(map(repr, choices))}")
        if self.family == "siglip" and self.joint_dim != self.vision_width:
            raise ValueError(
                f"joint_dim ({self.joint_dim}) must be vision_width ({self.vision_width}) in a siglip, whose image "
                "tower has no projection"
            )
        if self.aggregator == "transformer" and self.joint_dim % self.aggregator_heads:
            raise ValueError(
                f"joint_dim ({self.joint_dim}) must be a multiple of aggregator_heads ({self.aggregator_heads})"
            )
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps ({self.layer_norm_eps}) must be above 0")
        for layer in self.temporal_layers or ():
            if not 0 <= layer < self.vision_depth:
                raise ValueError(
                    f"temporal_layers ({self.temporal_layers}) must be in [0, {self.vision_depth}), "
                    f"the vision tower's blocks"
                )


def build_video_clip(shape: CLIPShape) -> VideoCLIP:
    """A VideoCLIP of this shape with random weights, drawn from torch's default generator."""
    layers = range(shape.vision_depth) if shape.temporal_layers is None else shape.temporal_layers
    pre = {
        layer: DividedTemporal(
            width=shape.vision_width,
            num_heads=shape.vision_heads,
            max_frames=shape.max_frames,
            zero_init=shape.temporal_zero_init,
            layer_norm_eps=shape.layer_norm_eps,
        )
        for layer in (layers if shape.temporal == "divided" else ())
    }
    vision = ImageTower(
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        width=shape.vision_width,
        depth=shape.vision_depth,
        num_heads=shape.vision_heads,
        mlp_width=shape.vision_mlp_width,
        joint_dim=shape.joint_dim,
        activation=shape.activation,
        layer_norm_eps=shape.layer_norm_eps,
        pooling="attention" if shape.family == "siglip" else "class_token",
        pre=pre,
    )
    text = TextTower(
        vocab_size=shape.vocab_size,
        context_length=shape.context_length,
        eos_token_id=shape.eos_token_id,
        width=shape.text_width,
        depth=shape.text_depth,
        num_heads=shape.text_heads,
        mlp_width=shape.text_mlp_width,
        joint_dim=shape.joint_dim,
        activation=shape.activation,
        layer_norm_eps=shape.layer_norm_eps,
        pooling="last" if shape.family == "siglip" else "end_token",
    )
    return VideoCLIP(
        vision=vision, text=text, aggregator=_aggregator(shape), has_logit_bias=shape.family == "siglip"
    )


def _aggregator(shape: CLIPShape) -> nn.Module | None:
    if shape.aggregator == "transformer":
        return SequenceTransformer(
            width=shape.joint_dim,
            depth=shape.aggregator_depth,
            num_heads=shape.aggregator_heads,
            max_frames=shape.aggregator_frames,
        )
    return SequenceLSTM(width=shape.joint_dim) if shape.aggregator == "lstm" else None


def clip_vit_b32() -> CLIPShape:
    """openai/clip-vit-base-patch32: 151 M parameters."""
    return _openai_clip(image_size=224, patch_size=32, vision_width=768, vision_depth=12, joint_dim=512)


def clip_vit_b16() -> CLIPShape:
    """openai/clip-vit-base-patch16: 150 M parameters."""
    return _openai_clip(image_size=224, patch_size=16, vision_width=768, vision_depth=12, joint_dim=512)


def clip_vit_l14() -> CLIPShape:
    """openai/clip-vit-large-patch14: 428 M parameters."""
    return _openai_clip(image_size=224, patch_size=14, vision_width=1024, vision_depth=24, joint_dim=768)


def _openai_clip(
    *, image_size: int, patch_size: int, vision_width: int, vision_depth: int, joint_dim: int
) -> CLIPShape:
    """What openai's CLIPs share: heads of 64, MLPs of four widths, a text tower as wide as the space."""
    return CLIPShape(
        image_size=image_size,
        patch_size=patch_size,
        vision_width=vision_width,
        vision_depth=vision_depth,
        vision_heads=vision_width // 64,
        vision_mlp_width=4 * vision_width,
        text_width=joint_dim,
        text_depth=12,
        text_heads=joint_dim // 64,
        text_mlp_width=4 * joint_dim,
        vocab_size=49408,
        context_length=77,
        eos_token_id=49407,
        joint_dim=joint_dim,
    )
