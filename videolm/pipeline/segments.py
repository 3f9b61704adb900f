"""Spans of a video: windows of equal length, and segments between cuts. Pure functions on times and embeddings."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Span = tuple[float, float]
"""Start and end in seconds of presentation time."""

_LEAST_CHANGE = 0.1
_TIMES_TYPICAL = 3.0
_TIMES_MOTION = 1.5
_MOTION_SECONDS = 2.0
_MOST_WINDOWS = 100_000


def windows(start: float, end: float, *, window: int | float) -> list[Span]:
    """[start, end) in windows of `window` seconds; a rest shorter than half of one belongs to the last.

    ValueError for more than 100,000 of them.
    """
    check_window(window)
    if (end - start) / window > _MOST_WINDOWS:
        raise ValueError(
            f"window ({window}) makes {(end - start) / window:,.0f} windows of {end - start:.1f} s; at most "
            f"{_MOST_WINDOWS:,} can be, so give a longer one"
        )
    count = max(1, math.floor((end - start) / window + 0.5))
    edges = [start + window * i for i in range(count)]
    return list(zip(edges, [*edges[1:], end], strict=True))


def check_window(window: int | float) -> None:
    """ValueError unless it is a positive number of seconds."""
    if not 0 < window < math.inf:
        raise ValueError(f"window ({window}) must be a number of seconds above 0")


def segments(
    embeddings: Float[Tensor, "frames dim"],
    seconds: Float[Tensor, " frames"],
    *,
    start: float,
    end: float,
    min_seconds: float = 1.0,
) -> list[Span]:
    """[start, end) cut where neighbouring frames differ more than they do in the rest of the clip.

    The change between two frames is 1 - cosine of their embeddings. There is a cut, halfway between them, where it
    is at least 0.1, three times the clip's median, and half again as large as the changes around it, for a motion goes
    on and a cut does not: of the two before and the two after it, as far as they are within two seconds, but not the
    largest of these, which is the other end of a shot of one frame. Where two cuts, or a cut and an end, are closer
    than `min_seconds`, the larger change stays, of equal ones the earlier. Frames in a row at one time are one.

    The 0.1 are FastVID's (dynamic segmentation, arXiv 2503.11187), which has no other rule.
    """
    is_new = torch.ones(len(seconds), dtype=torch.bool)
    is_new[1:] = seconds.diff() > 0
    embeddings, seconds = F.normalize(embeddings[is_new].double(), dim=1), seconds[is_new].double()
    if len(seconds) < 2:
        return [(start, end)]
    changes = 1 - (embeddings[1:] * embeddings[:-1]).sum(dim=1)
    times = (seconds[1:] + seconds[:-1]) / 2
    around, when = (
        F.pad(rows, (2, 2), value=-1.0).unfold(0, 5, 1)[:, [0, 1, 3, 4]] for rows in (changes, times)
    )
    is_near = (when - times[:, None]).abs() <= _MOTION_SECONDS
    second = around.masked_fill(~is_near, 0).topk(2, dim=1).values[:, 1]
    threshold = second * _TIMES_MOTION
    threshold = threshold.clamp(min=max(_LEAST_CHANGE, _TIMES_TYPICAL * float(changes.median())))
    middles = times.tolist()
    edges = [start, end]
    for i in changes.argsort(descending=True, stable=True).tolist():
        is_far = all(abs(middles[i] - edge) >= min_seconds for edge in edges)
        if is_far and bool(changes[i] >= threshold[i]):
            edges.append(middles[i])
    edges.sort()
    return list(pairwise(edges))
