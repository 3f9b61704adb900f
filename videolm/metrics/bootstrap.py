"""How far a score would move with another draw of queries."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_RESAMPLES_AT_ONCE = 64


def bootstrap_intervals(
    ranks: Float[np.ndarray, " queries"],
    *,
    groups: Int[np.ndarray, " queries"] | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of r1, r5 and r10 (in percent) and mean_rank over resampled queries.

    `groups[i]` is the video that query i belongs to: captions of one video are hard or easy together, so whole
    groups are drawn, with all of their queries; without it every query is drawn by itself. The candidates stay:
    the interval tells of other queries to the same videos, not of other videos, seeds or trainings, and has no
    width where all queries agree. Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if not len(ranks):
        raise ValueError("ranks is empty: there is no query to resample")
    if num_resamples < 1:
        raise ValueError(f"num_resamples ({num_resamples}) must be at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence ({confidence}) must be in (0, 1)")
    if groups is None:
        groups = np.arange(len(ranks))
    if len(groups) != len(ranks):
        raise ValueError(f"groups ({len(groups)}) must be as many as ranks ({len(ranks)})")
    _, group = np.unique(groups, return_inverse=True)
    num_groups = int(group.max()) + 1
    values = np.stack([100.0 * (ranks <= 1), 100.0 * (ranks <= 5), 100.0 * (ranks <= 10), ranks], axis=1)
    # sums by group: each score is a mean, so a resample is a weighting of the groups
    sums = np.zeros((num_groups, 4))
    np.add.at(sums, group, values)
    sizes = np.bincount(group)
    generator = np.random.default_rng(seed)
    means = []
    for first in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, num_resamples - first)
        weights = generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=count)
        means.append(weights @ sums / (weights @ sizes)[:, None])
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0)
    names = ("r1", "r5", "r10", "mean_rank")
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
