"""What a vision tower costs, from its shape alone: tokens and multiplications of every layer."""

from dataclasses import dataclass
from math import prod

import torch
from torch.utils.flop_counter import FlopCounterMode

from videolm.encoders.presets import CLIPShape, build_stem
from videolm.encoders.reducers import num_kept_patches, num_merged_tokens
from videolm.encoders.reduction_plans import Step, parse_plan
from videolm_kernels import max_merged


@dataclass(frozen=True)
class LayerCost:
    """One block, for one clip."""

    num_frames: int
    """Frames as the block's attention sees them, after joining."""
    num_tokens: int
    """Tokens of such a frame in its attention, class tokens included."""
    num_tokens_after: int
    """Those that go through the MLP and on."""
    macs: int
    """Multiply-accumulate operations."""


def count_macs(shape: CLIPShape, *, num_frames: int) -> int:
    """Multiply-accumulate operations of the vision tower on one clip, `shape.reduce` being carried out.

    Papers print this number as "GFLOPs"; multiplications and additions counted apart are twice as many. Counted
    are products of matrices: patches, blocks, pooling, and what a plan adds to find out which tokens to merge or
    keep; and the convolutions of a stem. Not counted are the modules of the temporal and aggregator slots, nor a
    message's own way through the blocks.
    """
    layers = layer_costs(shape, num_frames=num_frames)
    width = shape.vision_width
    patches = num_frames * _patch_macs(shape)
    if shape.family == "siglip":
        frames, tokens = layers[-1].num_frames, layers[-1].num_tokens_after
        pooling = width**2 + frames * (2 * tokens * width**2 + 2 * tokens * width + width**2)
        pooling += frames * 2 * width * shape.vision_mlp_width
    else:
        joins = [step.join for step in parse_plan(shape.reduce, depth=shape.vision_depth).steps]
        pooling = layers[-1].num_frames * prod(joins) * width * shape.joint_dim if shape.has_text else 0
    return patches + sum(layer.macs for layer in layers) + pooling


def _patch_macs(shape: CLIPShape) -> int:
    """Of one frame's patches."""
    if shape.stem == "linear":
        num_patches = (shape.image_size // shape.patch_size) ** 2
        return num_patches * 3 * shape.patch_size**2 * shape.vision_width
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        stem = build_stem(shape).eval()
        stem(torch.empty(1, 1, 3, shape.image_size, shape.image_size))
    return int(counter.get_total_flops()) // 2


def layer_costs(shape: CLIPShape, *, num_frames: int) -> list[LayerCost]:
    """Tokens and operations of each block of the vision tower, as of `count_macs`."""
    if num_frames < 1:
        raise ValueError(f"num_frames ({num_frames}) must be at least 1")
    num_class = 0 if shape.family == "siglip" else 1
    num_patches = (shape.image_size // shape.patch_size) ** 2
    frames, tokens = num_frames, num_class + num_patches
    if shape.temporal == "joint":
        frames, tokens = 1, num_class + num_frames * num_patches
    layers = []
    for step in parse_plan(shape.reduce, depth=shape.vision_depth).steps:
        frames, tokens, num_class = -(-frames // step.join), tokens * step.join, num_class * step.join
        layer = _layer(shape, step, frames, tokens, num_class)
        layers.append(layer)
        tokens = layer.num_tokens_after
    return layers


def _layer(shape: CLIPShape, step: Step, frames: int, tokens: int, num_class: int) -> LayerCost:
    width = shape.vision_width
    merged = num_merged_tokens(step.before, tokens, num_class)
    macs = _matching(merged, tokens, num_class, width)
    tokens -= merged
    macs += tokens * 4 * width**2 + 2 * tokens**2 * width

    after, merged = tokens, num_merged_tokens(step.after, tokens, num_class)
    if step.keep is not None:
        after = num_class + num_kept_patches(step.keep, tokens - num_class)
        macs += (num_class or tokens) * tokens * width if after < tokens else 0
    elif merged:
        after -= merged
        macs += _matching(
            merged, tokens, num_class, width // shape.vision_heads if step.metric == "key" else width
        )
        macs += tokens**2 * width if step.weight == "saliency" else 0
    macs += after * 2 * width * shape.vision_mlp_width
    return LayerCost(frames, tokens, after, frames * macs)


def _matching(merged: int, tokens: int, num_class: int, channels: int) -> int:
    """Products of the one half of the tokens with the other."""
    if not merged:
        return 0
    half = max_merged(tokens, num_class)
    return half * (tokens - num_class - half) * channels
