"""What a language model of transformers must be like to read a video first, and what is done to it before it does."""

from inspect import signature
from typing import Any, Literal

from torch import nn
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

PrefixAttention = Literal["causal", "full"]
# Attention in these makes its own mask from that of the keys, or adds its own causal one to any other.
_NO_FULL_PREFIX = ("bloom", "gpt_neo", "openai-gpt")
_WAY_OUT = "take another one, such as gpt2, opt, llama, qwen2 or gpt_neox"


def check_language_model(lm: Any, *, prefix_attention: PrefixAttention) -> None:
    """Raises ValueError for a model that would read a prefix wrongly, or not at all, naming what of it is unfit.

    Unfit are models without a cache of keys and values for the places before (Mamba), that are not told their positions
    (MPT), that see only a window of what is before, and those whose attention is not causal (BERT without
    `is_decoder`). A full prefix also needs attention that takes a mask of queries and keys.
    """
    config, kind = lm.config, f"a language model of type {lm.config.model_type!r}"
    takes = signature(lm.forward).parameters
    if getattr(lm, "_is_stateful", False) or "past_key_values" not in takes:
        raise ValueError(f"{kind} keeps no cache of keys and values that candidates could share; {_WAY_OUT}")
    # BLOOM counts the places in the mask, as is done here.
    missing = [name for name in ("inputs_embeds", "position_ids") if name not in takes]
    if missing and config.model_type != "bloom":
        raise ValueError(
            f"{kind} takes no {', '.join(missing)}, so that padding would move its words; {_WAY_OUT}"
        )
    partial = sorted(
        {name for name in getattr(config, "layer_types", None) or () if name != "full_attention"}
    )
    window = getattr(config, "sliding_window", None)
    if partial or (window is not None and not getattr(config, "layer_types", None)):
        found = f"layer_types ({', '.join(partial)})" if partial else f"sliding_window ({window})"
        raise ValueError(
            f"{kind} with {found} does not see all that is before a word; {_WAY_OUT}, or a config in which every layer "
            "is 'full_attention' and sliding_window null"
        )
    if any(getattr(module, "is_causal", True) is False for module in lm.modules()):
        raise ValueError(
            f"{kind} sees words that are still to come (is_decoder is {getattr(config, 'is_decoder', None)}); set "
            f"is_decoder in its config, or {_WAY_OUT}"
        )
    if prefix_attention == "full":
        _check_full(lm, kind)


def _check_full(lm: Any, kind: str) -> None:
    attention = lm.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ValueError(f"prefix_attention 'full' needs attention 'sdpa' or 'eager', not {attention!r}")
    if lm.config.model_type in _NO_FULL_PREFIX or getattr(lm.config, "alibi", False):
        raise ValueError(
            f"prefix_attention 'full' needs attention that takes any mask, which {kind} has not; take 'causal'"
        )


def forget_generation_config(lm: Any) -> None:
    """Sampling, penalties and lengths that came with a checkpoint: what a head writes is in its shape alone."""
    lm.generation_config = GenerationConfig()


def max_places(lm: Any) -> int | None:
    """Places that the model has positions for; None where their number has no end."""
    places: int | None = getattr(lm.config, "max_position_embeddings", None)
    return places


def add_lora(lm: Any, *, rank: int) -> None:
    """Freeze a language model and add low-rank matrices to all of its linear layers (arXiv 2106.09685), by peft."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("tune='lora' needs peft: pip install 'videolm[lora]'") from error
    lm.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            # GPT-2's layers keep their weights the other way round.
            fan_in_fan_out=has_transposed(lm),
        )
    )


def has_transposed(lm: nn.Module) -> bool:
    """Whether linear layers are GPT-2's `Conv1D`."""
    return any(isinstance(module, Conv1D) for module in lm.modules())
