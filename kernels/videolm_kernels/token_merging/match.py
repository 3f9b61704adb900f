"""What matching decides: which tokens join which, as index tensors."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int32
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Match:
    """Which tokens join which. Output rows: protected tokens, then what is left of set a, then all of set b.

    An assignment gives the output row of every token. It is what `unmerge_tokens` reads and what
    `compose_assignments` follows through several merges.
    """

    src_idx: Int32[Tensor, "batch merged"]
    """The tokens that are merged away, ascending by (destination, own index)."""
    dst_idx: Int32[Tensor, "batch merged"]
    """The token that each of them joins; it remains."""
    keep_idx: Int32[Tensor, "batch kept"]
    """The tokens that remain, in the order of the output rows."""
    assignment: Int32[Tensor, "batch tokens"]
    """Output row of every token."""


class Sets(NamedTuple):
    """The two sets that are matched: token first_a + 2i is a_i, token first_b + 2j is b_j."""

    first_a: int
    first_b: int
    num_a: int
    num_b: int


def sets(num_tokens: int, num_protected: int) -> Sets:
    """Even token indices are set a, odd ones set b, both from `num_protected` on."""
    first_a = num_protected + num_protected % 2
    first_b = num_protected + 1 - num_protected % 2
    return Sets(
        first_a, first_b, max(0, num_tokens - first_a + 1) // 2, max(0, num_tokens - first_b + 1) // 2
    )


def max_merged(num_tokens: int, num_protected: int = 0) -> int:
    """The largest `num_merged` that `match_tokens` takes: all of set a, or 0 where set b is empty."""
    _, _, num_a, num_b = sets(num_tokens, num_protected)
    return num_a if num_b else 0


def compose_assignments(
    first: Int32[Tensor, "batch tokens"], then: Int32[Tensor, "batch rows"]
) -> Int32[Tensor, "batch tokens"]:
    """Where `then` puts what `first` gave: then[first], for every token; -1 (dropped) stays -1."""
    if first.ndim != 2 or then.ndim != 2 or first.shape[0] != then.shape[0]:
        raise ValueError(
            f"first and then must be (B, tokens) and (B, rows) with one B, "
            f"got {tuple(first.shape)} and {tuple(then.shape)}"
        )
    for name, assignment in (("first", first), ("then", then)):
        if assignment.dtype != torch.int32:
            raise TypeError(f"{name} must be int32, got {assignment.dtype}")
    return then.gather(1, first.clamp(min=0).long()).masked_fill(first < 0, -1)
