"""The heads of a saved model: weights beside the tower's, everything else in its card.

Of a head the card has the `shape`, the hash of the weights, the `vocabulary` (file and its hash), `recipe` and
`scores`; or `same_as`, the name of the head that it shares all of them with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videolm.encoders.weights import weights_sha256
from videolm.encoders.weights.files import refuse_pointer
from videolm.files import file_sha256
from videolm.heads.captioning import PrefixLM
from videolm.heads.presets import ConnectorShape, SpeakerShape, build_speaker, plain_config
from videolm.pipeline.speaking import HeadName, Speaker
from videolm.text.prompts import PromptTokenizer

# What transformers would fetch and run code for, or that is chosen here.
_NO_CONFIG = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation")
# Of tables that a language model makes for itself, as of positions.
_MOST_BYTES = 2**30
# transformers names all of its models where it does not know one.
_LONGEST_REASON = 300


def write_heads(
    folder: Path, heads: Mapping[HeadName, Speaker], *, dtype: torch.dtype
) -> dict[str, dict[str, Any]]:
    """Writes weights, and the vocabulary where it is not that of the folder's tokenizer.json; what the card gets."""
    card: dict[str, dict[str, Any]] = {}
    written: dict[Speaker, HeadName] = {}
    for name, speaker in heads.items():
        if speaker in written:
            card[name] = {"same_as": written[speaker]}
            continue
        written[speaker] = name
        state = {key: _as(tensor, dtype) for key, tensor in own_state(speaker.head).items()}
        save_file(state, folder / f"{name}.safetensors", metadata={"format": "pt"})
        vocabulary, shared = folder / f"{name}.tokenizer.json", folder / "tokenizer.json"
        speaker.tokenizer.save(vocabulary)
        if shared.exists() and vocabulary.read_bytes() == shared.read_bytes():
            vocabulary.unlink()
            vocabulary = shared
        card[name] = {
            "shape": asdict(replace(speaker.shape, lm=_own_config(speaker))),
            "weights_sha256": weights_sha256(
                {key: _as(value, torch.float32) for key, value in state.items()}
            ),
            "vocabulary": {"file": vocabulary.name, "sha256": file_sha256(vocabulary)},
            "recipe": speaker.recipe,
            "scores": speaker.scores,
        }
    return card


def remove_left_heads(folder: Path, card: Mapping[str, Mapping[str, Any]]) -> None:
    """Removes what an earlier save has left in a folder: files of heads that its card does not name."""
    named = {f"{name}.safetensors" for name, head in card.items() if "same_as" not in head}
    named |= {head["vocabulary"]["file"] for head in card.values() if "same_as" not in head}
    for name in get_args(HeadName):
        for file in (f"{name}.safetensors", f"{name}.tokenizer.json"):
            if file not in named:
                (folder / file).unlink(missing_ok=True)


def read_heads(folder: Path, card: Any, *, token_width: int, text_width: int) -> dict[HeadName, Speaker]:
    """The heads that a model's card names; ValueError with the file for one that is not as the card says."""
    path = folder / "videolm.json"
    if not isinstance(card, Mapping) or not all(isinstance(head, Mapping) for head in card.values()):
        raise ValueError(f"{path}: heads must be an object with an object for each head")
    if unknown := sorted(card.keys() - set(get_args(HeadName))):
        raise ValueError(f"{path} names heads that this version does not know: {unknown}")
    widths = {"token_width": token_width, "text_width": text_width}
    own = {name: head for name, head in card.items() if "same_as" not in head}
    read = {name: _read_head(folder, name, head, **widths) for name, head in own.items()}
    for name in card.keys() - own.keys():
        other = str(card[name]["same_as"])
        if other not in own:
            raise ValueError(f"{path}: head {name!r} is the same as {other!r}, which is not there")
        read[name] = read[other]
    return {name: read[name] for name in get_args(HeadName) if name in read}


def _read_head(
    folder: Path, name: str, card: Mapping[str, Any], *, token_width: int, text_width: int
) -> Speaker:
    path = folder / f"{name}.safetensors"
    try:
        refuse_pointer(path)
        with safe_open(path, framework="pt") as file:
            sizes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not readable: {error}") from error
    place = f"{folder / 'videolm.json'}: head {name!r}"
    try:
        shape = read_shape(card["shape"])
        wanted, recipe, scores = card["weights_sha256"], dict(card["recipe"]), dict(card["scores"])
        vocabulary = {key: str(card["vocabulary"][key]) for key in ("file", "sha256")}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} is not of this version: {error}") from error
    widths = {"token_width": token_width, "text_width": text_width}
    try:
        empty = _empty(shape, num_tensors=len(sizes), **widths)
    # a config that comes from outside fails anywhere, where transformers first looks at what is wrong
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
        raise ValueError(f"{place} cannot be built: {reason}") from error
    _check_sizes(empty, sizes, path)
    state = {key: _as(tensor, torch.float32) for key, tensor in load_file(path).items()}
    if (found := weights_sha256(state)) != wanted:
        raise ValueError(
            f"{path} is not the file that videolm.json describes: the hash of its weights is {found[:12]}, "
            f"not {wanted[:12]}"
        )
    tokenizer = _read_vocabulary(folder, name, vocabulary, shape)
    # a language model makes its tables of positions when it is built, which on "meta" it could not
    with torch.random.fork_rng(devices=[]):
        head = build_speaker(shape, **widths)
    head.load_state_dict(state, strict=False)
    return Speaker(head, tokenizer, shape, recipe, scores)


def _empty(shape: SpeakerShape, *, num_tensors: int, token_width: int, text_width: int) -> PrefixLM:
    """The head of a shape that comes from outside, without memory; ValueError where it would take much."""
    counts = {key: value for key, value in shape.lm.items() if "layer" in key and isinstance(value, int)}
    for key, count in ({"depth": shape.connector.depth} | counts).items():
        if count > num_tensors:
            raise ValueError(f"{num_tensors} tensors are too few for {key} {count}")
    with torch.device("meta"):
        head = build_speaker(shape, token_width=token_width, text_width=text_width)
    if (num_bytes := sum(buffer.numel() * buffer.element_size() for buffer in head.buffers())) > _MOST_BYTES:
        raise ValueError(f"its tables would take {num_bytes:,} bytes; at most {_MOST_BYTES:,} can be")
    return head


def _check_sizes(head: PrefixLM, sizes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    own = {key: tuple(tensor.shape) for key, tensor in _own(head).items()}
    if one_sided := sorted(own.keys() ^ sizes.keys()):
        raise ValueError(
            f"the weights in {path} do not fit its shape: {', '.join(one_sided[:5])} on one side only"
        )
    for key, size in own.items():
        if size != sizes[key]:
            raise ValueError(
                f"the weights in {path} do not fit its shape: {key} has {sizes[key]}, the shape {size}"
            )


def read_shape(values: Mapping[str, Any]) -> SpeakerShape:
    """The shape that `asdict` wrote; TypeError or ValueError for what no save has written."""
    _check_types(SpeakerShape, values)
    _check_types(ConnectorShape, values["connector"])
    shape = SpeakerShape(**{**values, "connector": ConnectorShape(**values["connector"])})
    for name in ("max_new_tokens", "num_beams"):
        if getattr(shape, name) < 1:
            raise ValueError(f"{name} ({getattr(shape, name)}) must be at least 1")
    if "name" in shape.lm:
        raise ValueError(
            f"lm names weights elsewhere ({shape.lm['name']!r}), but a head has its own beside the card"
        )
    _refuse_code(shape.lm)
    return shape


def _check_types(shape: type[SpeakerShape | ConnectorShape], values: Mapping[str, Any]) -> None:
    # a Literal is checked when it is made
    for f in (f for f in fields(shape) if f.name in values):
        value = values[f.name]
        for wanted, found in (
            (int, int),
            (float, int | float),
            (bool, bool),
            (str, str),
            (dict[str, Any], dict),
        ):
            is_one = isinstance(value, found) and (wanted is bool or not isinstance(value, bool))
            if f.type == wanted and not is_one:
                raise TypeError(f"{f.name} ({value!r}) must be of type {wanted.__name__}")


def _refuse_code(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key in _NO_CONFIG:
            raise ValueError(f"lm has {key} ({value!r}), which a card cannot choose")
        if isinstance(value, Mapping):
            _refuse_code(value)


def _read_vocabulary(
    folder: Path, name: str, vocabulary: Mapping[str, str], shape: SpeakerShape
) -> PromptTokenizer:
    own, shared = f"{name}.tokenizer.json", "tokenizer.json"
    if vocabulary["file"] not in (own, shared):
        raise ValueError(
            f"{folder / 'videolm.json'}: the vocabulary of head {name!r} ({vocabulary['file']!r}) must be {own} or "
            f"{shared}"
        )
    path = folder / vocabulary["file"]
    if path.is_file() and (found := file_sha256(path)) != vocabulary["sha256"]:
        raise ValueError(
            f"{path} is not the vocabulary of head {name!r} that videolm.json describes: its hash is {found[:12]}, not "
            f"{vocabulary['sha256'][:12]}"
        )
    return read_prompt_tokenizer(path, shape)


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module, on the CPU; those that share their memory, as tied embeddings do, once."""
    return {name: tensor.detach().cpu() for name, tensor in _own(module).items()}


def _own(module: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        # on "meta" nothing has an address
        place = (tensor.data_ptr() or id(tensor), tensor.shape)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        state[name] = tensor
    return state


def _own_config(speaker: Speaker) -> dict[str, Any]:
    """The language model without the name of the weights that it began with, for its own are saved."""
    if "name" not in speaker.shape.lm:
        return speaker.shape.lm
    config = speaker.head.lm.config
    return plain_config(config.to_diff_dict()) | {"model_type": config.model_type}


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def read_prompt_tokenizer(path: Path, shape: SpeakerShape) -> PromptTokenizer:
    """The vocabulary of a head of this shape; ValueError with the file for one that is not there or is none."""
    try:
        return PromptTokenizer(
            tokenizers.Tokenizer.from_file(str(path)),
            start_token_id=shape.start_token_id,
            eos_token_id=shape.eos_token_id,
            pad_token_id=shape.pad_token_id,
        )
    # The library raises Exception itself, whatever is wrong with the file.
    except Exception as error:
        raise ValueError(f"{path}: not a tokenizer for a head that speaks ({error})") from error
