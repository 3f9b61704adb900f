"""Masks of a prefix that sees itself, and how they come to a language model."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# Places of the prefix that see each other in the model that is being read with; every thread has its own.
_FULL_PLACES: ContextVar[int | None] = ContextVar("_FULL_PLACES", default=None)


@contextmanager
def seeing_itself(*, num_places: int) -> Generator[None, None, None]:
    """While a language model with the hook reads, let the first `num_places` of its sequence see each other."""
    token = _FULL_PLACES.set(num_places)
    try:
        yield
    finally:
        _FULL_PLACES.reset(token)


def let_prefix_see_itself(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A hook of the language model, for `generate` takes only a mask of keys; of queries and keys it comes in here.

    On the first call alone, which has embeddings: from then on the prefix is in the cache, and the words are causal by
    themselves.
    """
    num_places, embeds = _FULL_PLACES.get(), kwargs.get("inputs_embeds")
    mask = kwargs.get("attention_mask")
    # of two dimensions it is not widened yet: heads that share a model hang a hook each
    if num_places is None or embeds is None or (mask is not None and mask.ndim != 2):
        return None
    # transformers leaves out a mask that is 1 everywhere
    mask = embeds.new_ones(embeds.shape[:2]) if mask is None else mask
    wide = full_prefix_mask(mask.bool(), num_places=num_places, dtype=embeds.dtype)
    return args, kwargs | {"attention_mask": wide}


def positions(exists: Bool[Tensor, "batch all"]) -> Int[Tensor, "batch all"]:
    """Place of each token among those that exist; 0 for one that does not, as in transformers' generate."""
    return (exists.long().cumsum(dim=1) - 1).masked_fill(~exists, 0)


def full_prefix_mask(
    exists: Bool[Tensor, "batch all"], *, num_places: int, dtype: torch.dtype
) -> Float[Tensor, "batch 1 all all"]:
    """To be added to attention's scores: the prefix sees the whole prefix, a word the prefix and what is before it.

    Every place sees itself, also one that does not exist, so that no row of the softmax is empty.
    """
    length = exists.shape[1]
    places = torch.arange(length, device=exists.device)
    in_view = (places[None, :] <= places[:, None]) | (
        (places[None, :] < num_places) & (places[:, None] < num_places)
    )
    seen = (in_view & exists[:, None, :]) | (places[None, :] == places[:, None])
    mask = torch.zeros(seen.shape, dtype=dtype, device=exists.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)
