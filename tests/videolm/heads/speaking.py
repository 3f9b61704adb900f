"""Small parts of a speaker with random weights, for tests of heads."""

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from videolm.heads.captioning import PrefixLM
from videolm.heads.resampler import Resampler
from videolm.types import TextTokens, VideoTokens

WIDTH, TEXT_WIDTH, VOCAB = 16, 8, 50
START, END, PAD = 3, 4, 0


def gpt2(**settings: Any) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=START,
        eos_token_id=END,
        initializer_range=0.4,
        **settings,
    )
    return GPT2LMHeadModel(config)


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config)


def resampler(**settings: Any) -> Resampler:
    settings = {"num_queries": 5, "query_width": 32, "max_frames": 4} | settings
    return Resampler(width=WIDTH, out_width=32, **settings)


def head(lm: Any = None, connector: Any = None, **settings: Any) -> PrefixLM:
    return PrefixLM(
        lm or gpt2(),
        connector or resampler(),
        start_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        **settings,
    ).eval()


def video(
    batch: int = 2, *, frames: int = 4, tokens: int = 3, lengths: list[int] | None = None
) -> VideoTokens:
    """Tokens frame by frame; of video b only `lengths[b]` frames exist."""
    times = torch.arange(float(frames)).repeat_interleave(tokens).expand(batch, -1)
    ends = torch.tensor(lengths or [frames] * batch)
    mask = times < ends[:, None]
    return VideoTokens(
        tokens=torch.randn(batch, frames * tokens, WIDTH),
        mask=mask,
        sizes=mask.float(),
        pts_seconds=times,
        embedding=torch.randn(batch, TEXT_WIDTH),
    )


def question(batch: int = 2, *, words: int = 6, lengths: list[int] | None = None) -> TextTokens:
    ends = torch.tensor(lengths or [words] * batch)
    return TextTokens(
        tokens=torch.randn(batch, words, TEXT_WIDTH),
        mask=torch.arange(words) < ends[:, None],
        embedding=torch.randn(batch, TEXT_WIDTH),
    )


def rows_of(batch: Any, rows: Any) -> Any:
    """Some rows of VideoTokens, TextTokens or a Prefix."""
    return type(batch)(**{name: value[rows] for name, value in vars(batch).items()})
