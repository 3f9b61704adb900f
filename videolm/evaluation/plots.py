"""How many queries have which rank, as a picture. matplotlib is the extra `report`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float

from videolm.files import replace_file

_EDGES = (1, 2, 6, 11, 51, 101, 501)
"""First rank of each bar but the last, which has no end."""


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def rank_shares(ranks: Float[np.ndarray, " queries"]) -> dict[str, float]:
    """Percent of the queries whose rank is 1, 2 to 5, 6 to 10, and so on.

    The mean rank of a tie may be no whole number and counts to the next one: 1.5 is not rank 1.
    """
    counts, _ = np.histogram(np.ceil(ranks), bins=[*_EDGES, np.inf])
    names = [str(first) if last == first + 1 else f"{first}-{last - 1}" for first, last in pairwise(_EDGES)]
    return dict(zip([*names, f"{_EDGES[-1]}+"], (100 * counts / len(ranks)).tolist(), strict=True))


def plot_ranks(ranks: Mapping[str, Float[np.ndarray, " queries"]], path: Path) -> None:
    """Draws the shares of each direction side by side into a png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(ranks)
    for number, (direction, values) in enumerate(ranks.items()):
        shares = rank_shares(values)
        places = np.arange(len(shares)) + (number - (len(ranks) - 1) / 2) * width
        bars = axes.bar(places, list(shares.values()), width, label=direction)
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
        axes.set_xticks(np.arange(len(shares)), list(shares))
    axes.set_xlabel("rank of the right one")
    axes.set_ylabel("% of the queries")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))
