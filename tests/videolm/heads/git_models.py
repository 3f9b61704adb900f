"""Small GITs and BLIP-2s with random weights, as transformers makes and saves them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    PreTrainedModel,
)

from videolm.encoders.presets import build_video_clip
from videolm.encoders.video_clip import VideoCLIP
from videolm.encoders.weights import read_weights
from videolm.heads.captioning import PrefixLM
from videolm.heads.speaker_weights import load_speaker, read_speaker
from videolm.types import VideoTokens

START, END, PAD = 3, 4, 0
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4}
VISION: dict[str, Any] = SMALL | {
    "hidden_size": 24, "intermediate_size": 40, "image_size": 16, "patch_size": 8,
}  # fmt: skip


def random_git(*, max_frames: int | None = 6, seed: int = 0) -> GitForCausalLM:
    config = GitConfig(
        vision_config=VISION,
        **SMALL,
        hidden_size=32,
        intermediate_size=64,
        vocab_size=30,
        max_position_embeddings=64,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        num_image_with_embedding=max_frames,
    )
    torch.manual_seed(seed)
    return shaken(GitForCausalLM(config))


def random_blip2(*, language_model: str = "opt") -> Blip2ForConditionalGeneration:
    text = SMALL | {
        "model_type": language_model, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "vocab_size": 31,
        "max_position_embeddings": 64, "bos_token_id": START, "eos_token_id": END, "pad_token_id": 1,
    }  # fmt: skip
    if language_model == "t5":
        text = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=SMALL | {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 30},
        text_config=text,
        num_query_tokens=3,
        image_token_index=30,
    )
    torch.manual_seed(0)
    return shaken(Blip2ForConditionalGeneration(config))


def shaken(theirs: PreTrainedModel) -> PreTrainedModel:
    """With biases, norms and times that are not at their starting values, and logits that differ."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return theirs.eval()


def ours_of(theirs: PreTrainedModel, folder: Path) -> tuple[VideoCLIP, PrefixLM]:
    """Tower and head as they are read from what transformers saves."""
    theirs.save_pretrained(folder)
    weights = read_weights(folder)
    tower = build_video_clip(weights.shape).eval()
    tower.load_state_dict(weights.state)
    speaker = read_speaker(weights.file)
    assert speaker is not None
    return tower, load_speaker(speaker)


def random_frames(batch: int, num_frames: int, *, seed: int = 0) -> Tensor:
    return torch.randn(batch, num_frames, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def encode(tower: VideoCLIP, frames: Tensor, *, lengths: Tensor | None = None) -> VideoTokens:
    """With times that no float holds exactly."""
    times = (torch.arange(frames.shape[1]) * 0.3 + 0.1).expand(frames.shape[:2])
    return tower.encode_video(frames, lengths=lengths, pts_seconds=times)
