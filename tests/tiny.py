"""The smallest model, and the smallest videos, on which the whole way from file to hit can be walked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel

from videolm.encoders.presets import CLIPShape, build_video_clip
from videolm.pipeline import VideoLM
from videolm.text.tokenizer import build_word_tokenizer
from videolm.video.samplers import Sampler
from videolm.video.transforms import Preprocess
from videolm.video.writer import write_video

WORDS = ("a", "red", "green", "blue", "circle", "moves")
TINY = CLIPShape(
    image_size=16,
    patch_size=8,
    vision_width=16,
    vision_depth=1,
    vision_heads=2,
    vision_mlp_width=32,
    text_width=16,
    text_depth=1,
    text_heads=2,
    text_mlp_width=32,
    vocab_size=16,
    context_length=8,
    eos_token_id=4,
    joint_dim=8,
    temporal="divided",
    max_frames=4,
    temporal_zero_init=False,
)


def tiny_model(
    *,
    trained: bool = True,
    seed: int = 0,
    name: str = "tiny",
    temporal: Literal["none", "divided"] = "divided",
) -> VideoLM:
    """A model with random weights; `trained=True` is a lie that lets tests index with it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = replace(TINY, temporal=temporal)
        network = build_video_clip(shape)
    return VideoLM(
        network,
        shape=shape,
        tokenizer=build_word_tokenizer(WORDS, context_length=TINY.context_length),
        preprocess=Preprocess(image_size=TINY.image_size),
        sampler=Sampler("segment_middle", num_frames=3),
        name=name,
        trained=trained,
        licence="Apache-2.0",
        recipe={"steps": 0},
        scores={"R@1": 0.5},
        device="cpu",
    )


def write_clip(path: Path, *, seed: int = 0, num_frames: int = 6) -> Path:
    """A video of 24 x 32 pixels at 5 frames a second: a coloured block that moves over another colour."""
    generator = np.random.default_rng(seed)
    ground, block = generator.integers(0, 256, (2, 3), dtype=np.uint8)
    frames = np.broadcast_to(ground, (num_frames, 24, 32, 3)).copy()
    for index, frame in enumerate(frames):
        frame[8:16, 4 * index : 4 * index + 8] = block
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, fps=Fraction(5))
    return path


def write_folder(folder: Path, *, num_videos: int) -> Path:
    """A folder of different videos, 00.mp4 and on."""
    for seed in range(num_videos):
        write_clip(folder / f"{seed:02d}.mp4", seed=seed)
    return folder


def write_random_clip(folder: Path, *, tokenizer: Path, trained: bool = True) -> Path:
    """A small CLIP with random weights as transformers saves it, beside it the files of a tokenizer.

    With `trained`, its layer norms are not as they were made, so that it counts as such.
    """
    small = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "hidden_size": 16, "eos_token_id": 49407},
        vision_config={**small, "hidden_size": 24, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = CLIPModel(config)
        for module in clip.modules():
            if trained and isinstance(module, torch.nn.LayerNorm):
                torch.nn.init.normal_(module.weight, mean=1.0, std=0.02)
        clip.save_pretrained(folder)
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    return folder
