"""Random texts and videos for the tests of token interaction, and one way to run them."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from videolm_kernels import token_interaction

# Texts, words, videos, frames, width.
Shape = tuple[int, int, int, int, int]

# Scales small enough that every token has a say.
SETTINGS: tuple[dict[str, Any], ...] = tuple(
    {"pool_scale": pool_scale, "total_scale": total_scale, "sides": sides}
    for pool_scale, total_scale, sides in product((None, 3.0), (None, 2.0), ("both", "words", "frames"))
)


@dataclass(frozen=True)
class Problem:
    """Float64 unless converted."""

    words: Tensor
    frames: Tensor
    word_mask: Tensor
    frame_mask: Tensor
    word_weights: Tensor
    frame_weights: Tensor
    upstream: Tensor

    def to(self, dtype: torch.dtype, device: torch.device) -> "Problem":
        moved = replace(self, **{name: tensor.to(device) for name, tensor in vars(self).items()})
        rounded = {name: getattr(moved, name).to(dtype) for name in ("words", "frames")}
        wide = torch.promote_types(dtype, torch.float32)
        exact = ("word_weights", "frame_weights", "upstream")
        return replace(moved, **rounded, **{name: getattr(moved, name).to(wide) for name in exact})

    def double(self) -> "Problem":
        return self.to(torch.float64, self.words.device)

    def exchanged(self) -> "Problem":
        """The same with words for frames and texts for videos."""
        return Problem(
            self.frames,
            self.words,
            self.frame_mask,
            self.word_mask,
            self.frame_weights,
            self.word_weights,
            self.upstream.T,
        )


def random_problem(shape: Shape, *, seed: int = 0, empty: bool = True) -> Problem:
    """About a third of the tokens do not exist; the last text and the last video have none, where `empty`."""
    texts, words, videos, frames, width = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    def mask(*size: int) -> Tensor:
        exists = torch.rand(*size, generator=generator) < 0.7
        exists[:, 0] = True
        if empty and size[0] > 1:
            exists[-1] = False
        return exists

    return Problem(
        normal(texts, words, width) / width**0.5,
        normal(videos, frames, width),
        mask(texts, words),
        mask(videos, frames),
        normal(texts, words),
        normal(videos, frames),
        normal(texts, videos),
    )


def scores_and_gradients(problem: Problem, **options: Any) -> list[Tensor]:
    """The scores, then the gradients of words, frames and of the weights that the options leave an effect."""
    given = {"words": problem.words, "frames": problem.frames}
    if options.get("total_scale") is None:
        sides = options.get("sides", "both")
        if sides != "frames":
            given["word_weights"] = problem.word_weights
        if sides != "words":
            given["frame_weights"] = problem.frame_weights
    given = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    scores = token_interaction(**given, word_mask=problem.word_mask, frame_mask=problem.frame_mask, **options)
    gradients = torch.autograd.grad(scores, list(given.values()), problem.upstream)
    return [scores.detach(), *gradients]


def scores_by_loop(problem: Problem, **options: Any) -> Tensor:
    """Pair after pair, from the tokens that exist alone."""
    scores = torch.zeros(len(problem.words), len(problem.frames), dtype=torch.float64)
    sides = options["sides"]
    for a, v in product(range(len(problem.words)), range(len(problem.frames))):
        exists_a, exists_v = problem.word_mask[a], problem.frame_mask[v]
        products = problem.words[a, exists_a] @ problem.frames[v, exists_v].T
        if products.numel() == 0:
            continue
        by_word = _total(products, problem.word_weights[a, exists_a], options)
        by_frame = _total(products.T, problem.frame_weights[v, exists_v], options)
        scores[a, v] = {"both": (by_word + by_frame) / 2, "words": by_word, "frames": by_frame}[sides]
    return scores


def _total(products: Tensor, weights: Tensor, options: dict[str, Any]) -> Tensor:
    pool_scale, total_scale = options["pool_scale"], options["total_scale"]
    if pool_scale is None:
        pooled = products.max(dim=1).values
    else:
        pooled = (products * (pool_scale * products).softmax(dim=1)).sum(dim=1)
    return (pooled * (weights if total_scale is None else (total_scale * pooled).softmax(dim=0))).sum()
