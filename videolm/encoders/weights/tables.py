"""The layouts that weights come in: for each a table from our names to theirs."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """How tensors of another layout become ours, and back."""

    read: Callable[[Sequence[Tensor]], Tensor]
    write: Callable[[Tensor], Sequence[Tensor]]


SAME = Operation(lambda parts: parts[0], lambda ours: [ours])
TRANSPOSED = Operation(lambda parts: parts[0].T, lambda ours: [ours.T])
# Three tensors there are the rows of one here: query, key and value.
STACKED = Operation(lambda parts: torch.cat(list(parts)), lambda ours: list(ours.chunk(3)))
ONE_ELEMENT = Operation(lambda parts: parts[0].reshape(()), lambda ours: [ours.reshape(1)])
ONE_TOKEN = Operation(lambda parts: parts[0].reshape(-1), lambda ours: [ours.reshape(1, 1, -1)])
ONE_BATCH = Operation(lambda parts: parts[0].squeeze(0), lambda ours: [ours.unsqueeze(0)])

Row = tuple[str, tuple[str, ...], Operation]
"""Pattern of our name, their names with the pattern's groups in them, and what is done to the tensors."""


@dataclass(frozen=True)
class Layout:
    """The names that weights have in one source format."""

    name: str
    rows: tuple[Row, ...]
    unused: str
    """Pattern of the keys that some files carry and that hold nothing of the towers."""


def _hf_blocks(ours: str, theirs: str) -> tuple[Row, ...]:
    layer = rf"{theirs}.encoder.layers.\1"
    return (
        (rf"{ours}\.blocks\.(\d+)\.ln_([12])\.(\w+)", (rf"{layer}.layer_norm\2.\3",), SAME),
        (
            rf"{ours}\.blocks\.(\d+)\.attention\.qkv\.(\w+)",
            tuple(rf"{layer}.self_attn.{part}_proj.\2" for part in "qkv"),
            STACKED,
        ),
        (rf"{ours}\.blocks\.(\d+)\.attention\.out\.(\w+)", (rf"{layer}.self_attn.out_proj.\2",), SAME),
        (rf"{ours}\.blocks\.(\d+)\.mlp\.up\.(\w+)", (rf"{layer}.mlp.fc1.\2",), SAME),
        (rf"{ours}\.blocks\.(\d+)\.mlp\.down\.(\w+)", (rf"{layer}.mlp.fc2.\2",), SAME),
    )


# What CLIPModel, MetaClip2Model, SiglipModel and XCLIPModel of transformers have in common.
_HF_ROWS: tuple[Row, ...] = (
    (r"vision\.patch\.(\w+)", (r"vision_model.embeddings.patch_embedding.\1",), SAME),
    (r"text\.token\.weight", ("text_model.embeddings.token_embedding.weight",), SAME),
    (r"(vision|text)\.position", (r"\1_model.embeddings.position_embedding.weight",), SAME),
    (r"vision\.ln_post\.(\w+)", (r"vision_model.post_layernorm.\1",), SAME),
    (r"text\.ln_final\.(\w+)", (r"text_model.final_layer_norm.\1",), SAME),
    *_hf_blocks("vision", "vision_model"),
    *_hf_blocks("text", "text_model"),
)
_HF_UNUSED = r"(vision|text)_model\.embeddings\.position_ids"

_HF_CLIP_ROWS: tuple[Row, ...] = (
    *_HF_ROWS,
    (r"logit_scale", ("logit_scale",), SAME),
    (r"vision\.class_token", ("vision_model.embeddings.class_embedding",), SAME),
    (r"vision\.projection\.weight", ("visual_projection.weight",), SAME),
    (r"text\.projection\.weight", ("text_projection.weight",), SAME),
)

TRANSFORMERS_CLIP = Layout(
    "transformers CLIP",
    # Spelt like this there.
    (*_HF_CLIP_ROWS, (r"vision\.ln_pre\.(\w+)", (r"vision_model.pre_layrnorm.\1",), SAME)),
    unused=_HF_UNUSED,
)

_XCLIP_LAYER = r"vision_model.encoder.layers.\1"

TRANSFORMERS_XCLIP = Layout(
    "transformers X-CLIP",
    (
        *_HF_CLIP_ROWS,
        (r"vision\.ln_pre\.(\w+)", (r"vision_model.pre_layernorm.\1",), SAME),
        (r"vision\.blocks\.(\d+)\.pre\.(fc|ln)\.(\w+)", (rf"{_XCLIP_LAYER}.message_\2.\3",), SAME),
        (
            r"vision\.blocks\.(\d+)\.pre\.qkv\.(\w+)",
            tuple(rf"{_XCLIP_LAYER}.message_attn.{part}_proj.\2" for part in "qkv"),
            STACKED,
        ),
        (
            r"vision\.blocks\.(\d+)\.pre\.out\.(\w+)",
            (rf"{_XCLIP_LAYER}.message_attn.out_proj.\2",),
            SAME,
        ),
        (r"aggregator\.position", ("mit.position_embedding",), ONE_BATCH),
        *_hf_blocks("aggregator", "mit"),
    ),
    # What makes a text's vector depend on the video that it is compared with: see read.py for the warning.
    unused=rf"{_HF_UNUSED}|prompts_\w+(\..*)?",
)

TRANSFORMERS_SIGLIP = Layout(
    "transformers SigLIP",
    (
        *_HF_ROWS,
        (r"(logit_scale|logit_bias)", (r"\1",), ONE_ELEMENT),
        (r"vision\.projection\.probe", ("vision_model.head.probe",), ONE_TOKEN),
        (r"vision\.projection\.qkv\.(\w+)", (r"vision_model.head.attention.in_proj_\1",), SAME),
        (r"vision\.projection\.out\.(\w+)", (r"vision_model.head.attention.out_proj.\1",), SAME),
        (r"vision\.projection\.ln\.(\w+)", (r"vision_model.head.layernorm.\1",), SAME),
        (r"vision\.projection\.mlp\.up\.(\w+)", (r"vision_model.head.mlp.fc1.\1",), SAME),
        (r"vision\.projection\.mlp\.down\.(\w+)", (r"vision_model.head.mlp.fc2.\1",), SAME),
        (r"text\.projection\.(\w+)", (r"text_model.head.\1",), SAME),
    ),
    unused=_HF_UNUSED,
)


_GIT_TOWER = "git.image_encoder.vision_model"

TRANSFORMERS_GIT = Layout(
    "transformers GIT",
    (
        (r"vision\.patch\.weight", (f"{_GIT_TOWER}.embeddings.patch_embedding.weight",), SAME),
        (r"vision\.class_token", (f"{_GIT_TOWER}.embeddings.class_embedding",), SAME),
        (r"vision\.position", (f"{_GIT_TOWER}.embeddings.position_embedding.weight",), SAME),
        (r"vision\.ln_pre\.(\w+)", (rf"{_GIT_TOWER}.pre_layrnorm.\1",), SAME),
        (r"vision\.ln_post\.(\w+)", (rf"{_GIT_TOWER}.post_layernorm.\1",), SAME),
        *_hf_blocks("vision", _GIT_TOWER),
    ),
    # The decoder and what is before it: see heads/speaker_weights.py.
    unused=r"git\.(embeddings|encoder|visual_projection|img_temporal_embedding)\..*|output\.\w+"
    rf"|{re.escape(_GIT_TOWER)}\.embeddings\.position_ids",
)

_BLIP2_LAYER = r"vision_model.encoder.layers.\1"

TRANSFORMERS_BLIP2 = Layout(
    "transformers BLIP-2",
    (
        (r"vision\.patch\.(\w+)", (r"vision_model.embeddings.patch_embedding.\1",), SAME),
        (r"vision\.class_token", ("vision_model.embeddings.class_embedding",), ONE_TOKEN),
        (r"vision\.position", ("vision_model.embeddings.position_embedding",), ONE_BATCH),
        (r"vision\.ln_post\.(\w+)", (r"vision_model.post_layernorm.\1",), SAME),
        (r"vision\.blocks\.(\d+)\.attention\.qkv\.(\w+)", (rf"{_BLIP2_LAYER}.self_attn.qkv.\2",), SAME),
        (
            r"vision\.blocks\.(\d+)\.attention\.out\.(\w+)",
            (rf"{_BLIP2_LAYER}.self_attn.projection.\2",),
            SAME,
        ),
        *_hf_blocks("vision", "vision_model"),
    ),
    unused=r"(qformer|language_projection|language_model)\..*|query_tokens",
)


def _openai_blocks(ours: str, theirs: str) -> tuple[Row, ...]:
    block = rf"{theirs}.resblocks.\1"
    return (
        (rf"{ours}\.blocks\.(\d+)\.ln_([12])\.(\w+)", (rf"{block}.ln_\2.\3",), SAME),
        (rf"{ours}\.blocks\.(\d+)\.attention\.qkv\.(\w+)", (rf"{block}.attn.in_proj_\2",), SAME),
        (rf"{ours}\.blocks\.(\d+)\.attention\.out\.(\w+)", (rf"{block}.attn.out_proj.\2",), SAME),
        (rf"{ours}\.blocks\.(\d+)\.mlp\.up\.(\w+)", (rf"{block}.mlp.c_fc.\2",), SAME),
        (rf"{ours}\.blocks\.(\d+)\.mlp\.down\.(\w+)", (rf"{block}.mlp.c_proj.\2",), SAME),
    )


def _openai_rows(prefix: str, text: str) -> tuple[Row, ...]:
    """openai/CLIP's names under `prefix`, those of the text tower under `text`."""
    return (
        (r"logit_scale", (f"{prefix}logit_scale",), SAME),
        (r"vision\.patch\.weight", (f"{prefix}visual.conv1.weight",), SAME),
        (r"vision\.class_token", (f"{prefix}visual.class_embedding",), SAME),
        (r"vision\.position", (f"{prefix}visual.positional_embedding",), SAME),
        (r"vision\.(ln_pre|ln_post)\.(\w+)", (rf"{prefix}visual.\1.\2",), SAME),
        (r"vision\.projection\.weight", (f"{prefix}visual.proj",), TRANSPOSED),
        (r"text\.token\.weight", (f"{text}token_embedding.weight",), SAME),
        (r"text\.position", (f"{text}positional_embedding",), SAME),
        (r"text\.ln_final\.(\w+)", (rf"{text}ln_final.\1",), SAME),
        (r"text\.projection\.weight", (f"{text}text_projection",), TRANSPOSED),
        *_openai_blocks("vision", f"{prefix}visual.transformer"),
        *_openai_blocks("text", f"{text}transformer"),
    )


_OPENAI_UNUSED = r"(clip\.|text\.)?(input_resolution|context_length|vocab_size|attn_mask)"

# Also open_clip's class CLIP.
OPENAI = Layout("OpenAI CLIP", _openai_rows("", ""), unused=_OPENAI_UNUSED)

OPEN_CLIP_CUSTOM_TEXT = Layout("open_clip CustomTextCLIP", _openai_rows("", "text."), unused=_OPENAI_UNUSED)

CLIP4CLIP = Layout(
    "CLIP4Clip",
    (
        *_openai_rows("clip.", "clip."),
        (r"aggregator\.position", ("frame_position_embeddings.weight",), SAME),
        *_openai_blocks("aggregator", "transformerClip"),
        (r"aggregator\.lstm\.(\w+)", (r"lstm_visual.\1",), SAME),
    ),
    # The cross transformer scores pairs, which no vector can: see read.py for the warning.
    unused=rf"{_OPENAI_UNUSED}|cross\..*|similarity_dense\..*",
)
# It has a position for every frame, and does not use it.
CLIP4CLIP_LSTM = replace(CLIP4CLIP, unused=rf"{CLIP4CLIP.unused}|frame_position_embeddings\.weight")

# The first of them whose key is there.
_SIGNS = (
    (f"{_GIT_TOWER}.embeddings.class_embedding", TRANSFORMERS_GIT),
    # Before CLIP, whose names its tower has.
    ("qformer.layernorm.weight", TRANSFORMERS_BLIP2),
    ("mit.position_embedding", TRANSFORMERS_XCLIP),
    ("vision_model.embeddings.class_embedding", TRANSFORMERS_CLIP),
    ("vision_model.head.probe", TRANSFORMERS_SIGLIP),
    ("lstm_visual.weight_ih_l0", CLIP4CLIP_LSTM),
    ("clip.visual.class_embedding", CLIP4CLIP),
    ("text.positional_embedding", OPEN_CLIP_CUSTOM_TEXT),
    ("visual.class_embedding", OPENAI),
)


def recognise(keys: Collection[str]) -> Layout:
    """The layout of weights with these names; ValueError names what would have been known."""
    for sign, layout in _SIGNS:
        if sign in keys:
            return layout
    if any(key.startswith(("visual.trunk.", "visual.layer1.")) for key in keys):
        raise ValueError(
            "the image tower is a timm model or a ResNet, which cannot be read; take the model's version in "
            "transformers' layout (SigLIP) or one with a vision transformer"
        )
    some = ", ".join(sorted(keys)[:3])
    known = ", ".join(sorted({layout.name for _, layout in _SIGNS}))
    raise ValueError(f"{len(keys)} keys like {some} are no layout that is known here ({known})")
