"""Token interaction: checks, the choice of the implementation, and the kernel as an operation of torch."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from videolm_kernels.backend import Backend, choose_backend, without_autocast
from videolm_kernels.token_interaction.eager import token_interaction_eager
from videolm_kernels.token_interaction.reference import token_interaction_reference

Sides = Literal["both", "words", "frames"]

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Tokens of the shorter side that fit into one tile of the kernel.
MOST_TOKENS_IN_A_TILE = 128


def token_interaction(
    words: Float[Tensor, "texts words dim"],
    frames: Float[Tensor, "videos frames dim"],
    *,
    word_mask: Bool[Tensor, "texts words"] | None = None,
    frame_mask: Bool[Tensor, "videos frames"] | None = None,
    word_weights: Float[Tensor, "texts words"] | None = None,
    frame_weights: Float[Tensor, "videos frames"] | None = None,
    pool_scale: float | None = None,
    total_scale: float | None = None,
    sides: Sides = "both",
    backend: Backend = "auto",
) -> Float[Tensor, "texts videos"]:
    """Similarity of every text with every video, token by token: TI, WTI, FILIP, Mug are settings of it.

    With s = <word, frame> (normalise the tokens first, if cosines are meant), each word takes the best of the
    frames, and a text the weighted sum over its words; the frames do the same with the words; the score is the
    mean of both sides, or one of them. Of two equally good tokens the first takes the gradient.

    `pool_scale`: not the best s but the mean of s under softmax(pool_scale · s). `total_scale`: not the weighted
    sum but the mean of the pooled values under softmax(total_scale · pooled). Weights are used as they are, and
    default to one over the number of tokens.

    A token whose mask is False takes no part, whatever it holds; a text or video without any token scores 0 and
    gets no gradient. Products have to be NaN or finite and above -1e30. The result is float32 (float64 for
    float64), and no more than it and a bounded number of products exist at a time.

    Sources: arXiv 2203.07111 (TI, WTI), 2111.07783 (FILIP), 2311.15075 (Mug); README.md beside this file has the
    table of heads and settings.
    """
    _check_tokens(words, frames)
    _check_mask("word_mask", word_mask, words)
    _check_mask("frame_mask", frame_mask, frames)
    _check_scale("pool_scale", pool_scale)
    _check_scale("total_scale", total_scale)
    if sides not in ("both", "words", "frames"):
        raise ValueError(f"sides ({sides!r}) must be one of 'both', 'words', 'frames'")
    for name, weights, tokens, unused in (
        ("word_weights", word_weights, words, sides == "frames"),
        ("frame_weights", frame_weights, frames, sides == "words"),
    ):
        _check_weights(name, weights, tokens)
        if weights is not None and (unused or total_scale is not None):
            reason = f"sides={sides!r}" if unused else f"total_scale={total_scale}"
            raise ValueError(f"{name} would have no effect with {reason}; leave one of the two out")

    choice = choose_backend(
        "token_interaction",
        backend=backend,
        device=words.device,
        cannot=_why_no_kernel(words, frames),
        slower=_slower(words),
    )
    word_mask = _given_or_all(word_mask, words)
    frame_mask = _given_or_all(frame_mask, frames)
    arguments = (
        words,
        frames,
        word_mask,
        frame_mask,
        _given_or_uniform(word_weights, word_mask, words) if total_scale is None else None,
        _given_or_uniform(frame_weights, frame_mask, frames) if total_scale is None else None,
        pool_scale,
        total_scale,
        sides,
    )
    if choice.backend == "triton":
        scores: Tensor = _forward_op(*arguments)
        return scores
    # Autocast would multiply in 16 bits what came in float32.
    with without_autocast(words.device):
        if choice.backend == "reference":
            return token_interaction_reference(*arguments)
        return token_interaction_eager(*arguments)


def _given_or_all(mask: Tensor | None, tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask


def _given_or_uniform(weights: Tensor | None, mask: Tensor, tokens: Tensor) -> Tensor:
    """Weights in the dtype of the scores, zero where there is no token."""
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    if weights is None:
        return mask.to(dtype) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return weights.to(dtype).masked_fill(~mask, 0)


@torch.library.custom_op("videolm::token_interaction", mutates_args=())
def _forward_op(
    words: Tensor,
    frames: Tensor,
    word_mask: Tensor,
    frame_mask: Tensor,
    word_weights: Tensor | None,
    frame_weights: Tensor | None,
    pool_scale: float | None,
    total_scale: float | None,
    sides: str,
) -> Tensor:
    from videolm_kernels.token_interaction.fused import token_interaction_forward

    return token_interaction_forward(
        words, frames, word_mask, frame_mask, word_weights, frame_weights, pool_scale, total_scale, sides
    )


@_forward_op.register_fake
def _(words: Tensor, frames: Tensor, *_: Any) -> Tensor:
    return words.new_empty((words.shape[0], frames.shape[0]), dtype=torch.float32)


@torch.library.custom_op("videolm::token_interaction_backward", mutates_args=())
def _backward_op(
    upstream: Tensor,
    words: Tensor,
    frames: Tensor,
    word_mask: Tensor,
    frame_mask: Tensor,
    word_weights: Tensor | None,
    frame_weights: Tensor | None,
    pool_scale: float | None,
    total_scale: float | None,
    sides: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of words, frames and both weights; the last two are empty where there are no weights."""
    from videolm_kernels.token_interaction.fused import token_interaction_backward

    with without_autocast(words.device):
        return token_interaction_backward(
            upstream,
            words,
            frames,
            word_mask,
            frame_mask,
            word_weights,
            frame_weights,
            pool_scale,
            total_scale,
            sides,
        )


@_backward_op.register_fake
def _(
    upstream: Tensor,
    words: Tensor,
    frames: Tensor,
    word_mask: Tensor,
    frame_mask: Tensor,
    word_weights: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = [(0,), (0,)] if word_weights is None else [word_mask.shape, frame_mask.shape]
    weights = [words.new_empty(shape, dtype=torch.float32) for shape in shapes]
    return words.new_empty(words.shape), frames.new_empty(frames.shape), weights[0], weights[1]


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    words, frames, word_mask, frame_mask, word_weights, frame_weights = ctx.saved_tensors
    gradients = _backward_op(
        upstream, words, frames, word_mask, frame_mask, word_weights, frame_weights, *ctx.options
    )
    of_words, of_frames, of_word_weights, of_frame_weights = gradients
    if word_weights is None:
        return of_words, of_frames, None, None, None, None, None, None, None
    return of_words, of_frames, None, None, of_word_weights, of_frame_weights, None, None, None


_forward_op.register_autograd(_differentiate, setup_context=_keep_inputs)


def _why_no_kernel(words: Tensor, frames: Tensor) -> str:
    if words.dtype == torch.float64:
        return "the kernel computes in float32, and the tokens are float64"
    shorter = min(words.shape[1], frames.shape[1])
    if shorter > MOST_TOKENS_IN_A_TILE:
        return (
            f"one side has to fit a tile of {MOST_TOKENS_IN_A_TILE} tokens, and there are {words.shape[1]} words "
            f"and {frames.shape[1]} frames"
        )
    return ""


def _slower(words: Tensor) -> str:
    if words.dtype == torch.float32:
        return "in float32 the kernel has no tensor cores to multiply with"
    return ""


def _check_tokens(words: Tensor, frames: Tensor) -> None:
    for name, tokens in (("words", words), ("frames", frames)):
        if tokens.ndim != 3 or 0 in tokens.shape[1:]:
            raise ValueError(
                f"{name} must be (items, tokens, dim), none of the last two 0, got {tuple(tokens.shape)}"
            )
        if tokens.dtype not in _DTYPES:
            raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {tokens.dtype}")
    if words.shape[2] != frames.shape[2]:
        raise ValueError(
            f"words have {words.shape[2]} columns but frames {frames.shape[2]}; project them alike"
        )
    if words.dtype != frames.dtype:
        raise TypeError(f"words are {words.dtype} but frames {frames.dtype}; convert one of them")
    _check_device("frames", frames, words)


def _check_mask(name: str, mask: Tensor | None, tokens: Tensor) -> None:
    if mask is None:
        return
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"{name} must be {tuple(tokens.shape[:2])}, one value a token, got {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool (True: the token exists), got {mask.dtype}")
    _check_device(name, mask, tokens)


def _check_weights(name: str, weights: Tensor | None, tokens: Tensor) -> None:
    if weights is None:
        return
    if weights.shape != tokens.shape[:2]:
        raise ValueError(
            f"{name} must be {tuple(tokens.shape[:2])}, one value a token, got {tuple(weights.shape)}"
        )
    if weights.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {weights.dtype}")
    _check_device(name, weights, tokens)


def _check_device(name: str, tensor: Tensor, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{name} is on {tensor.device} but the words are on {other.device}; move one of them"
        )


def _check_scale(name: str, scale: float | None) -> None:
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"{name} ({scale}) must be positive and finite; None takes the place of a softmax")
