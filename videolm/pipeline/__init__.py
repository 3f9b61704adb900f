"""File in, answer out: a model with its preprocessing, sampler and tokenizer."""

from videolm.pipeline.loading import list_models, load, open_index
from videolm.pipeline.video_lm import VideoLM

__all__ = ["VideoLM", "list_models", "load", "open_index"]
