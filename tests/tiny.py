"""The smallest model, and the smallest videos, on which the whole way from file to hit can be walked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel

from videolm.encoders.presets import CLIPShape, build_video_clip
from videolm.heads.presets import ConnectorShape, SpeakerShape, build_speaker
from videolm.pipeline import VideoLM
from videolm.pipeline.speaking import Speaker
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


def tiny_speaker(
    *,
    model: VideoLM,
    seed: int = 0,
    reads_question: bool = False,
    num_queries: int = 0,
    per_frame: bool = False,
    prefix_attention: Literal["causal", "full"] = "causal",
    num_places: int = 128,
) -> Speaker:
    """A head with random weights in the vocabulary of a tiny model."""
    shape = SpeakerShape(
        connector=ConnectorShape(
            num_queries=num_queries,
            depth=1,
            query_width=16,
            num_heads=2,
            reads_question=reads_question,
            per_frame=per_frame,
            max_frames=4,
        ),
        lm={
            "model_type": "gpt2",
            "vocab_size": model.shape.vocab_size,
            "n_positions": num_places,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "bos_token_id": 3,
            "eos_token_id": 4,
            # as large as a trained one's: greedy choices then differ from video to video
            "initializer_range": 0.5,
        },
        start_token_id=3,
        eos_token_id=4,
        pad_token_id=0,
        prefix_attention=prefix_attention,
        max_new_tokens=6,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = build_speaker(shape, token_width=model.shape.vision_width, text_width=model.shape.joint_dim)
    return Speaker(head, model.prompt_tokenizer(shape), shape, recipe={"steps": 0}, scores={"cider": 0.5})


def speaking_model(**options: Any) -> VideoLM:
    """A tiny model with both heads."""
    model = tiny_model()
    model.add_head("captioning", tiny_speaker(model=model, **options))
    model.add_head("videoqa", tiny_speaker(model=model, seed=1, **options))
    return model


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
