"""Weights of published models that speak: transformers' GitForCausalLM, and BLIP-2's before OPT."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import Blip2Config, GitConfig

from videolm.encoders.weights.convert import in_our_names
from videolm.encoders.weights.files import read_tensors
from videolm.encoders.weights.tables import ONE_BATCH, SAME, Layout, Operation
from videolm.files import read_json
from videolm.heads.captioning import PrefixLM
from videolm.heads.presets import ConnectorShape, SpeakerShape, build_speaker, plain_config

# One tensor there is a row of one here.
ROWS = Operation(
    lambda parts: torch.cat([part.flatten(0, 1) for part in parts]),
    lambda ours: [row.view(1, 1, -1) for row in ours],
)
_GIT_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "layer_norm_eps",
    "tie_word_embeddings",
)  # fmt: skip
# What configs from outside have been seen to raise, when they are parsed or a model is built by them.
_WRONG_CONFIG = (
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    ZeroDivisionError,
    RuntimeError,
    StrictDataclassError,
)
# Frames for a model of pictures, which does not say: as in InstructBLIP's and EVLGen's configs for video.
_BLIP2_FRAMES = 4


@dataclass(frozen=True)
class SpeakerWeights:
    """A head's shape, and its weights in the names of PrefixLM, as float32."""

    shape: SpeakerShape
    state: dict[str, Tensor]
    token_width: int
    """Of the tower that belongs to it."""
    num_frames: int
    """Frames of a clip that it was trained with, or that others who used it took."""
    tokenizer_file: Path | None
    """None where no tokenizer.json lies beside the weights."""


def read_speaker(file: Path) -> SpeakerWeights | None:
    """The head in a file of weights of transformers, with its folder's config.json; None where it has none.

    ValueError names the file and what is wrong: a config that makes no model, keys missing or unknown, a tensor of
    another shape or that is not finite, a BLIP-2 whose language model is an encoder and decoder (Flan-T5).
    """
    path = file.parent / "config.json"
    config = read_json(path) if path.is_file() else {}
    readers = {"git": _git, "blip-2": _blip2}
    if config.get("model_type") not in readers:
        return None
    theirs = read_tensors(file).tensors
    try:
        shape, layout, token_width, num_frames = readers[config["model_type"]](
            config, file.parent, len(theirs)
        )
        ours = _empty(shape, token_width).state_dict()
    except _WRONG_CONFIG as error:
        kind = "" if isinstance(error, ValueError | StrictDataclassError) else f"{type(error).__name__}: "
        raise ValueError(f"{path}: {kind}{error}") from error
    try:
        state = in_our_names(_with_tied(theirs, shape), ours=ours, layout=layout)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    tokenizer = file.parent / "tokenizer.json"
    return SpeakerWeights(shape, state, token_width, num_frames, tokenizer if tokenizer.is_file() else None)


def load_speaker(weights: SpeakerWeights) -> PrefixLM:
    """The head with its weights, in evaluation mode; they are shared with `weights`, not copied."""
    head = _empty(weights.shape, weights.token_width)
    head.load_state_dict(weights.state, strict=True, assign=True)
    head.lm.tie_weights()
    return head.eval()


def _empty(shape: SpeakerShape, token_width: int) -> PrefixLM:
    """Without memory until it is given the weights, and without a draw from the random generator."""
    with torch.device("meta"):
        return build_speaker(shape, token_width=token_width, text_width=token_width)


def _with_tied(theirs: Mapping[str, Tensor], shape: SpeakerShape) -> Mapping[str, Tensor]:
    """With the output layer under its own name too, where the file has it only as the words' embedding."""
    tied = {
        "output.weight": "git.embeddings.word_embeddings.weight",
        "language_model.lm_head.weight": "language_model.model.decoder.embed_tokens.weight",
    }
    # OPT's are tied unless its config says otherwise, GIT's only if it says so.
    if not shape.lm.get("tie_word_embeddings", shape.lm["model_type"] != "git"):
        return theirs
    return {ours: theirs[word] for ours, word in tied.items() if word in theirs} | dict(theirs)


def _git(config: dict[str, Any], folder: Path, num_tensors: int) -> tuple[SpeakerShape, Layout, int, int]:
    parsed = GitConfig.from_dict(config)
    num_rows = parsed.num_image_with_embedding or 0
    _check_count(num_tensors, num_hidden_layers=parsed.num_hidden_layers, num_image_with_embedding=num_rows)
    shape = SpeakerShape(
        connector=ConnectorShape(
            kind="git", max_frames=num_rows, layer_norm_eps=parsed.vision_config.layer_norm_eps
        ),
        lm={"model_type": "git"} | {name: getattr(parsed, name) for name in _GIT_FIELDS},
        start_token_id=_one_id("bos_token_id", parsed.bos_token_id),
        eos_token_id=_one_id("eos_token_id", parsed.eos_token_id),
        pad_token_id=_one_id("pad_token_id", parsed.pad_token_id),
        prefix_attention="full",
        # Beams and penalty are the paper's, the length is that of transformers' examples.
        max_new_tokens=50,
        num_beams=4,
        length_penalty=0.6,
    )
    layout = Layout(
        "GIT's head",
        (
            (r"lm\.(word|position)_embeddings\.weight", (r"git.embeddings.\1_embeddings.weight",), SAME),
            (r"lm\.norm\.(\w+)", (r"git.embeddings.LayerNorm.\1",), SAME),
            (r"lm\.encoder\.(.+)", (r"git.encoder.\1",), SAME),
            (r"lm\.output\.(\w+)", (r"output.\1",), SAME),
            (r"connector\.norm\.(\w+)", (r"git.image_encoder.vision_model.post_layernorm.\1",), SAME),
            (r"connector\.time", tuple(f"git.img_temporal_embedding.{row}" for row in range(num_rows)), ROWS),
            (r"connector\.out\.(.+)", (r"git.visual_projection.visual_projection.\1",), SAME),
        ),
        unused=r"git\.image_encoder\..*|git\.embeddings\.position_ids",
    )
    return shape, layout, parsed.vision_config.hidden_size, num_rows or 1


def _blip2(config: dict[str, Any], folder: Path, num_tensors: int) -> tuple[SpeakerShape, Layout, int, int]:
    parsed = Blip2Config.from_dict(config)
    text, qformer = parsed.text_config, parsed.qformer_config
    if text.model_type != "opt":
        raise ValueError(
            f"the language model is of type {text.model_type!r}; only BLIP-2 before OPT can be read, which writes "
            "behind what it reads, and not before an encoder and decoder like Flan-T5"
        )
    _check_count(num_tensors, text_layers=text.num_hidden_layers, qformer_layers=qformer.num_hidden_layers)
    if qformer.use_qformer_text_input or (qformer.hidden_act, qformer.layer_norm_eps) != ("gelu", 1e-12):
        raise ValueError(
            "qformer_config must have use_qformer_text_input false, hidden_act 'gelu' and layer_norm_eps 1e-12"
        )
    generation = folder / "generation_config.json"
    written = read_json(generation) if generation.is_file() else {}
    shape = SpeakerShape(
        connector=ConnectorShape(
            kind="qformer",
            num_queries=parsed.num_query_tokens,
            depth=qformer.num_hidden_layers,
            query_width=qformer.hidden_size,
            num_heads=qformer.num_attention_heads,
            mlp_width=qformer.intermediate_size,
            cross_every=qformer.cross_attention_frequency,
            layer_norm_eps=parsed.vision_config.layer_norm_eps,
        ),
        lm=plain_config(text.to_diff_dict()) | {"model_type": "opt"},
        start_token_id=_one_id("bos_token_id", text.bos_token_id),
        eos_token_id=_one_id("eos_token_id", written.get("eos_token_id", text.eos_token_id)),
        pad_token_id=_one_id("pad_token_id", text.pad_token_id),
        tune="frozen",
        question_template="Question: {question} Answer:",
        num_beams=5,
    )
    layout = Layout(
        "BLIP-2's head",
        (
            (r"lm\.(.+)", (r"language_model.\1",), SAME),
            (r"connector\.norm\.(\w+)", (r"vision_model.post_layernorm.\1",), SAME),
            (r"connector\.queries", ("query_tokens",), ONE_BATCH),
            (r"connector\.qformer\.(.+)", (r"qformer.\1",), SAME),
            (r"connector\.out\.(\w+)", (r"language_projection.\1",), SAME),
        ),
        unused=r"vision_model\..*",
    )
    return shape, layout, parsed.vision_config.hidden_size, _BLIP2_FRAMES


def _check_count(num_tensors: int, **counts: int) -> None:
    """A config comes from outside: it must not make us build more than there are weights for."""
    if sum(counts.values()) > num_tensors:
        asked = ", ".join(f"{name} ({count})" for name, count in counts.items())
        raise ValueError(f"the config asks for {asked}, but there are only {num_tensors} tensors")


def _one_id(name: str, value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{name} ({value!r}) must be one number")
    return value
