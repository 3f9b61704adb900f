"""Model sizes: a preset is a function with numbers in it."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin

from torch import nn

from videolm.encoders.aggregators import SequenceLSTM, SequenceTransformer
from videolm.encoders.clip import ImageTower, TextTower
from videolm.encoders.reducers import hooks_of
from videolm.encoders.reduction_plans import ReductionPlan, parse_plan
from videolm.encoders.stem import ConvStem
from videolm.encoders.temporal import (
    DividedTemporal,
    DropMessage,
    JointEmbed,
    MessageToken,
    SoftAttentive,
    TokenShift,
)
from videolm.encoders.video_clip import VideoCLIP
from videolm.video.transforms import CLIP_STD

# Of a tower: more than any has, and few enough to be made before the weights are found not to fit.
_MAX_DEPTH = 1000
_OF_TEXT = (
    "text_width",
    "text_depth",
    "text_heads",
    "text_mlp_width",
    "vocab_size",
    "context_length",
    "eos_token_id",
)


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
    stem: Literal["linear", "conv", "conv_time"] = "linear"
    """What makes a vector of each patch: CLIP's linear layer or, for training from scratch, convolutions, which with
    "conv_time" see the neighbouring frames too: see `videolm.encoders.stem`."""
    temporal: Literal["none", "divided", "soft_attentive", "message", "shift", "joint"] = "none"
    """What lets frames see each other in the vision tower: see `videolm.encoders.temporal`."""
    max_frames: int = 8
    """Rows of the time position of divided and joint; clips of another length interpolate it."""
    temporal_zero_init: bool = True
    """True for a start from CLIP, False for training from scratch; message and shift do not know the difference."""
    temporal_layers: list[int] | None = None
    """Vision blocks that get the temporal module, from 0; None: every one. Joint is in none of them."""
    family: Literal["clip", "siglip", "blip2"] = "clip"
    """siglip: no class token but an attention pool; text without causal mask, padded, read at its last place.
    blip2: patches with a bias, and no norm before the first block."""
    aggregator: Literal["mean", "transformer", "lstm", "multiframe"] = "mean"
    """What sees the frame embeddings before they are averaged; multiframe is X-CLIP's transformer."""
    aggregator_depth: int = 4
    """Layers of the transformer, or of multiframe, as the next two."""
    aggregator_heads: int = 8
    aggregator_frames: int = 77
    """Rows of its frame position; longer clips are refused."""
    has_text: bool = True
    """False: an image tower alone, without a projection, so that a frame's class token is its embedding; what tells
    of the text tower is 0 then, `joint_dim` is `vision_width`."""
    reduce: str = ""
    """How the vision tower comes to fewer tokens, as in "tome:r=16": see `reduction_plans`; "" or "none", which
    becomes "": it does not."""

    def __post_init__(self) -> None:
        if not self.has_text:
            self._check_without_text()
        for name in (f.name for f in fields(self) if f.type is int and f.name != "eos_token_id"):
            if name in _OF_TEXT and not self.has_text:
                continue
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
            if name.endswith("_depth") and getattr(self, name) > _MAX_DEPTH:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at most {_MAX_DEPTH:,}")
        if self.has_text and not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(
                f"eos_token_id ({self.eos_token_id}) must be in [0, {self.vocab_size}), inside the vocabulary"
            )
        if self.image_size < self.patch_size:
            raise ValueError(
                f"image_size ({self.image_size}) must be at least patch_size ({self.patch_size})"
            )
        for tower in ("vision", "text") if self.has_text else ("vision",):
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
        if self.aggregator in ("transformer", "multiframe") and self.joint_dim % self.aggregator_heads:
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
        self._check_stem()
        self._check_temporal()
        if not isinstance(self.reduce, str):
            raise ValueError(f"reduce ({self.reduce!r}) must be a text like 'tome:r=8', or 'none'")
        if self.reduce == "none":
            # One name for one thing, so that shapes which are the same are equal.
            object.__setattr__(self, "reduce", "")
        if self.reduce:
            self._check_reduce(parse_plan(self.reduce, depth=self.vision_depth))

    def _check_without_text(self) -> None:
        if set_ones := [name for name in _OF_TEXT if getattr(self, name)]:
            raise ValueError(f"{', '.join(set_ones)} must be 0 where has_text is false")
        if self.family == "siglip" or self.joint_dim != self.vision_width:
            raise ValueError(
                f"has_text is false: the class token is the embedding, so family ({self.family!r}) must have one, and "
                f"joint_dim ({self.joint_dim}) be vision_width ({self.vision_width})"
            )

    def _check_stem(self) -> None:
        if self.stem == "linear":
            return
        if self.family != "clip":
            raise ValueError(f"stem ({self.stem!r}) must be 'linear' in a {self.family}, as its weights are")
        if (
            self.patch_size & (self.patch_size - 1)
            or self.patch_size < 2
            or self.image_size % self.patch_size
        ):
            raise ValueError(
                f"patch_size ({self.patch_size}) must be a power of 2 above 1 that divides image_size "
                f"({self.image_size}) with stem {self.stem!r}"
            )
        if self.stem == "conv_time" and self.temporal == "none":
            raise ValueError(
                "stem 'conv_time' lets frames see each other, which temporal 'none' rules out; take stem 'conv'"
            )

    def _check_temporal(self) -> None:
        if self.temporal == "joint" and self.temporal_layers is not None:
            raise ValueError(
                f"temporal_layers ({self.temporal_layers}) must be left out with temporal 'joint', which joins the "
                "frames before the first block"
            )
        if self.temporal == "message" and self.family == "siglip":
            raise ValueError("temporal 'message' makes its messages of class tokens, which a siglip has not")
        if self.temporal == "soft_attentive" and self.vision_width % 8:
            raise ValueError(
                f"vision_width ({self.vision_width}) must be a multiple of the 8 heads of temporal 'soft_attentive'"
            )

    def _check_reduce(self, plan: ReductionPlan) -> None:
        """Some temporal modules take tokens of one index for one place, which merging before attention ends."""
        before = [layer for layer, step in enumerate(plan.steps) if step.acts_before]
        if self.temporal in ("message", "joint"):
            if any(step.join > 1 for step in plan.steps) or (self.temporal == "message" and before):
                raise ValueError(
                    f"reduce ({self.reduce!r}) joins frames or merges before attention, which cannot be with "
                    f"temporal {self.temporal!r}; take a plan like 'tome:r=8'"
                )
            return
        last, acting, way_out = self.last_aligned_layer, before, "take a plan like 'tome:r=8'"
        if self.temporal == "soft_attentive":
            acting = [layer for layer, step in enumerate(plan.steps) if step.acts_before or step.acts_after]
            way_out = "take 'none'"
            if last + 1 < self.vision_depth:
                way_out = f"begin behind it, as in 'tome:r={'0/' * (last + 1)}8'"
        if acting and acting[0] <= last:
            raise ValueError(
                f"reduce ({self.reduce!r}) has fewer tokens from layer {acting[0]} on, but temporal "
                f"{self.temporal!r} in layer {last} needs those of all frames to lie alike; {way_out}"
            )

    @property
    def last_aligned_layer(self) -> int:
        """Of the modules that take tokens of one index for one place, in all frames; -1 without one."""
        if self.temporal in ("none", "message", "joint"):
            return -1
        return (
            self.vision_depth - 1 if self.temporal_layers is None else max(self.temporal_layers, default=-1)
        )


def build_video_clip(shape: CLIPShape) -> VideoCLIP:
    """A VideoCLIP of this shape with random weights, drawn from torch's default generator."""
    plan = parse_plan(shape.reduce, depth=shape.vision_depth)
    vision = ImageTower(
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        width=shape.vision_width,
        depth=shape.vision_depth,
        num_heads=shape.vision_heads,
        mlp_width=shape.vision_mlp_width,
        joint_dim=shape.joint_dim if shape.has_text else None,
        activation=shape.activation,
        layer_norm_eps=shape.layer_norm_eps,
        pooling="attention" if shape.family == "siglip" else "class_token",
        first_norm=shape.family == "clip",
        stem=None if shape.stem == "linear" else build_stem(shape),
        **_vision_hooks(shape, plan),
    )
    is_siglip = shape.family == "siglip"
    return VideoCLIP(
        vision=vision,
        text=_text_tower(shape) if shape.has_text else None,
        aggregator=_aggregator(shape),
        has_logit_bias=is_siglip,
        drop_threshold=plan.drop_repeats,
        pixel_std=(0.5, 0.5, 0.5) if is_siglip else CLIP_STD,
        by_length=shape.temporal == "joint" and plan.changes_tower,
    )


def build_stem(shape: CLIPShape) -> ConvStem:
    """The convolutions of a shape whose stem is not linear, with random weights."""
    return ConvStem(
        width=shape.vision_width, patch_size=shape.patch_size, sees_time=shape.stem == "conv_time"
    )


def _text_tower(shape: CLIPShape) -> TextTower:
    return TextTower(
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


def _vision_hooks(shape: CLIPShape, plan: ReductionPlan) -> dict[str, Any]:
    """What ImageTower takes as `embed`, `pre` and `mid` for both slots; in no block both have a hook of one kind."""
    hooks = {"pre": {}, "mid": {}} | _temporal_hooks(shape)
    pre, mid = hooks_of(plan, has_unseen=shape.temporal == "joint", num_aligned=shape.last_aligned_layer)
    if shape.temporal == "message":
        mid = {layer: DropMessage(then=mid.get(layer)) for layer in hooks["mid"]} | {
            layer: hook for layer, hook in mid.items() if layer not in hooks["mid"]
        }
    return hooks | {"pre": hooks["pre"] | pre, "mid": hooks["mid"] | mid}


def _temporal_hooks(shape: CLIPShape) -> dict[str, Any]:
    """What ImageTower takes as `embed`, `pre` and `mid` for the temporal slot."""
    width, num_heads, eps = shape.vision_width, shape.vision_heads, shape.layer_norm_eps
    zero_init, max_frames = shape.temporal_zero_init, shape.max_frames
    layers = range(shape.vision_depth) if shape.temporal_layers is None else shape.temporal_layers
    match shape.temporal:
        case "divided":
            return {
                "pre": {
                    layer: DividedTemporal(
                        width=width,
                        num_heads=num_heads,
                        max_frames=max_frames,
                        zero_init=zero_init,
                        layer_norm_eps=eps,
                    )
                    for layer in layers
                }
            }
        case "soft_attentive":
            return {"mid": {layer: SoftAttentive(width=width, zero_init=zero_init) for layer in layers}}
        case "message":
            pre = {
                layer: MessageToken(width=width, num_heads=num_heads, layer_norm_eps=eps) for layer in layers
            }
            return {"pre": pre, "mid": {layer: DropMessage() for layer in layers}}
        case "shift":
            return {"pre": {layer: TokenShift() for layer in layers}}
        case "joint":
            return {"embed": JointEmbed(width=width, max_frames=max_frames, zero_init=zero_init)}
        case "none":
            return {}


def _aggregator(shape: CLIPShape) -> nn.Module | None:
    width, depth = shape.joint_dim, shape.aggregator_depth
    num_heads, max_frames = shape.aggregator_heads, shape.aggregator_frames
    if shape.aggregator == "transformer":
        return SequenceTransformer(width=width, depth=depth, num_heads=num_heads, max_frames=max_frames)
    if shape.aggregator == "multiframe":
        return SequenceTransformer(
            width=width,
            depth=depth,
            num_heads=num_heads,
            max_frames=max_frames,
            activation=shape.activation,
            layer_norm_eps=shape.layer_norm_eps,
            averages=True,
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
