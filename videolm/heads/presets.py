"""What a speaking head is made of, as plain values: they stand in recipes and in a saved model's card."""

import json
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from videolm.heads.captioning import PrefixLM, Tune
from videolm.heads.connectors import MergingConnector, MLPMapper, QFormer, TransformerMapper
from videolm.heads.git import GitConnector, GitDecoder
from videolm.heads.language_models import PrefixAttention
from videolm.heads.resampler import Resampler

_QUERIES = ("num_queries", "depth", "query_width", "num_heads", "mlp_width")
# What a connector of each kind reads.
_FIELDS_OF_KIND = {
    "resampler": (*_QUERIES, "per_frame", "reads_question", "max_frames", "maxima"),
    "git": ("max_frames", "layer_norm_eps"),
    "qformer": (*_QUERIES, "cross_every", "layer_norm_eps"),
    "clipcap_mlp": ("num_queries",),
    "clipcap_transformer": ("num_queries", "depth", "num_heads"),
    "merging": (*_QUERIES[1:], "per_frame", "merged", "num_class_tokens"),
}


@dataclass(frozen=True)
class ConnectorShape:
    """What stands between the tower's tokens and the language model.

    See `heads.resampler`, `heads.git` and `heads.connectors` for the kinds and what their numbers mean. A number that
    the kind does not read is refused, but for its default.
    """

    kind: Literal["resampler", "git", "qformer", "clipcap_mlp", "clipcap_transformer", "merging"] = (
        "resampler"
    )
    num_queries: int = 0
    depth: int = 2
    query_width: int = 256
    num_heads: int = 4
    mlp_width: int = 0
    per_frame: bool = False
    reads_question: bool = False
    max_frames: int = 0
    """Rows of the time embedding; 0: the tokens do not tell their time."""
    maxima: bool = False
    """Of a resampler: one token more for each frame, the maxima over its tokens."""
    cross_every: int = 2
    """Of a qformer: every so many layers one attends to the tokens."""
    merged: int = 0
    """Of merging: tokens that each layer merges."""
    num_class_tokens: int = 1
    """Of merging: tokens of a frame, its first, that are not merged; 0 for a tower without a class token."""
    layer_norm_eps: float = 1e-5
    """Of git and qformer: that of the tower's last norm."""

    def __post_init__(self) -> None:
        check_choices(self)
        read = _FIELDS_OF_KIND[self.kind]
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in ("kind", *read) and value != f.default:
                raise ValueError(
                    f"{f.name} ({value!r}) is nothing that a connector of kind {self.kind!r} reads; it takes "
                    f"{', '.join(read)}"
                )
        needs_queries = self.kind in ("qformer", "clipcap_mlp", "clipcap_transformer")
        check_least(self, num_queries=int(needs_queries), depth=1, query_width=1, num_heads=1, cross_every=1)
        check_least(self, mlp_width=0, max_frames=0, merged=0, num_class_tokens=0)
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps ({self.layer_norm_eps}) must be above 0")
        if "query_width" in read and self.query_width % self.num_heads:
            raise ValueError(
                f"query_width ({self.query_width}) must be a multiple of num_heads ({self.num_heads})"
            )


@dataclass(frozen=True)
class SpeakerShape:
    """A connector and a causal language model, with the forms of the texts it was trained with."""

    connector: ConnectorShape
    lm: dict[str, Any]
    """The model's config of transformers, `model_type` and what differs from its defaults; or `name` alone, an id on
    the hub or a folder, for a start from its weights."""
    start_token_id: int
    eos_token_id: int
    pad_token_id: int
    prefix_attention: PrefixAttention = "causal"
    tune: Tune = "full"
    lora_rank: int = 8
    caption_prompt: str = ""
    question_template: str = "{question}"
    """What a question becomes before its answer."""
    max_new_tokens: int = 30
    min_new_tokens: int = 0
    """The end token does not come before so many others."""
    num_beams: int = 1
    length_penalty: float = 1.0
    """As in transformers' beam search."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_least(self, start_token_id=0, eos_token_id=0, pad_token_id=0, lora_rank=1, num_beams=1)
        check_least(self, max_new_tokens=1, min_new_tokens=0)
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens ({self.min_new_tokens}) must be at most max_new_tokens ({self.max_new_tokens})"
            )
        if "{question}" not in self.question_template:
            raise ValueError(f"question_template ({self.question_template!r}) must hold {{question}}")
        if "model_type" not in self.lm and set(self.lm) != {"name"}:
            raise ValueError(
                f"lm ({sorted(self.lm)}) must have a model_type, as in transformers' config.json, or a name alone"
            )


def build_speaker(shape: SpeakerShape, *, token_width: int, text_width: int) -> PrefixLM:
    """A head with random weights, but a language model by name with its own.

    `token_width` is the tower's D, `text_width` the joint dimension of TextTokens.
    """
    lm = build_lm(shape.lm)
    vocab_size = lm.get_input_embeddings().num_embeddings
    for name in ("start_token_id", "eos_token_id", "pad_token_id"):
        if (value := getattr(shape, name)) >= vocab_size:
            raise ValueError(
                f"{name} ({value}) must be in [0, {vocab_size}), the vocabulary of the language model"
            )
    return PrefixLM(
        lm,
        build_connector(
            shape.connector,
            token_width=token_width,
            text_width=text_width,
            out_width=lm.get_input_embeddings().embedding_dim,
        ),
        start_token_id=shape.start_token_id,
        eos_token_id=shape.eos_token_id,
        pad_token_id=shape.pad_token_id,
        prefix_attention=shape.prefix_attention,
        tune=shape.tune,
        lora_rank=shape.lora_rank,
    )


def build_lm(lm: dict[str, Any]) -> Any:
    """The language model of `SpeakerShape.lm`, in float32."""
    if "name" in lm:
        return AutoModelForCausalLM.from_pretrained(lm["name"], dtype=torch.float32)
    config = AutoConfig.for_model(**lm)
    # transformers' own has an image tower inside.
    return GitDecoder(config) if config.model_type == "git" else AutoModelForCausalLM.from_config(config)


def with_config(shape: SpeakerShape) -> SpeakerShape:
    """The same shape with the config of the language model that it names: what a saved head is made again by."""
    if "name" not in shape.lm:
        return shape
    config = AutoConfig.from_pretrained(shape.lm["name"])
    return replace(shape, lm=plain_config(config.to_diff_dict()) | {"model_type": config.model_type})


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config of transformers as plain values of JSON, without what tells only of files and versions."""
    unused = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
    plain: dict[str, Any] = json.loads(
        json.dumps({key: value for key, value in config.items() if key not in unused})
    )
    return plain


def build_connector(shape: ConnectorShape, *, token_width: int, text_width: int, out_width: int) -> nn.Module:
    """A connector with random weights."""
    match shape.kind:
        case "git":
            return GitConnector(
                width=token_width,
                out_width=out_width,
                max_frames=shape.max_frames,
                layer_norm_eps=shape.layer_norm_eps,
            )
        case "qformer":
            return QFormer(
                width=token_width,
                out_width=out_width,
                num_queries=shape.num_queries,
                depth=shape.depth,
                query_width=shape.query_width,
                num_heads=shape.num_heads,
                mlp_width=shape.mlp_width or 4 * shape.query_width,
                cross_every=shape.cross_every,
                layer_norm_eps=shape.layer_norm_eps,
            )
        case "clipcap_mlp":
            return MLPMapper(embedding_dim=text_width, out_width=out_width, num_queries=shape.num_queries)
        case "clipcap_transformer":
            if out_width % shape.num_heads:
                raise ValueError(
                    f"num_heads ({shape.num_heads}) must divide the width of the language model ({out_width})"
                )
            return TransformerMapper(
                embedding_dim=text_width,
                out_width=out_width,
                num_queries=shape.num_queries,
                depth=shape.depth,
                num_heads=shape.num_heads,
            )
        case "merging":
            return MergingConnector(
                width=token_width,
                out_width=out_width,
                depth=shape.depth,
                query_width=shape.query_width,
                num_heads=shape.num_heads,
                mlp_width=shape.mlp_width or 4 * shape.query_width,
                merged=shape.merged,
                per_frame=shape.per_frame,
                num_class_tokens=shape.num_class_tokens,
            )
    return Resampler(
        width=token_width,
        out_width=out_width,
        num_queries=shape.num_queries,
        depth=shape.depth,
        query_width=shape.query_width,
        num_heads=shape.num_heads,
        mlp_width=shape.mlp_width,
        per_frame=shape.per_frame,
        question_width=text_width if shape.reads_question else 0,
        max_frames=shape.max_frames,
        maxima=shape.maxima,
    )


def check_least(shape: Any, **least: int) -> None:
    """Raises ValueError for a field below its least value."""
    for name, lowest in least.items():
        if getattr(shape, name) < lowest:
            raise ValueError(f"{name} ({getattr(shape, name)}) must be at least {lowest}")


def check_choices(shape: Any) -> None:
    """Raises ValueError for a field of a Literal type that has another value."""
    for f in fields(shape):
        choices, value = get_args(f.type), getattr(shape, f.name)
        if get_origin(f.type) is Literal and value not in choices:
            raise ValueError(f"{f.name} ({value!r}) must be one of {', '.join(map(repr, choices))}")
