"""The report of a benchmark of retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videolm.datasets.annotations import Query
from videolm.evaluation.plots import can_plot, plot_ranks
from videolm.evaluation.report import Report
from videolm.files import replace_file
from videolm.metrics.retrieval import RankedQueries, RetrievalRanking, RetrievalScores

_PLOT = "ranks.png"


@dataclass(frozen=True)
class Result:
    """One way of scoring one set of queries."""

    name: str
    t2v: RetrievalScores | None
    """None: not measured in this direction."""
    v2t: RetrievalScores | None
    is_transductive: bool = False
    """The scores were mended with the help of other queries: not comparable with plain ones."""
    t2v_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Percentile bootstrap intervals of 95 % by name of the score."""
    v2t_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class QueryTable:
    """Every query with what it found, for `per_query.parquet`."""

    queries: list[Query]
    video_ids: list[str]
    ranking: RetrievalRanking
    v2t: str
    """The rule of video-to-text, which decides what its candidates are."""

    def as_table(self) -> pa.Table:
        """Direction, query, target, rank, and ids and scores of the first ten candidates.

        A video's candidates are videos, standing for all of their captions, under "group_max", and sentences
        under "best_caption": what such a sentence was written for is in `top_video_ids`, which elsewhere is `top_ids`.
        """
        sentences = [query.sentence for query in self.queries]
        targets = [query.video_id for query in self.queries]
        names, videos = (self.video_ids,) * 2 if self.v2t == "group_max" else (sentences, targets)
        return pa.concat_tables(
            [
                _query_table("t2v", sentences, targets, self.video_ids, self.video_ids, self.ranking.t2v),
                _query_table("v2t", self.video_ids, self.video_ids, names, videos, self.ranking.v2t),
            ]
        )


@dataclass(frozen=True, kw_only=True)
class RetrievalReport(Report):
    """How well sentences and videos find each other."""

    results: list[Result]
    """The plain result on all queries first."""
    ceiling: float | None = None
    """Expected R@1, in percent, of a reader that knows which videos each sentence was written for or is true of."""
    num_ambiguous: int | None = None
    """Queries that are, word for word, captions of several videos; None: not a matter of words (the world)."""
    twin_accuracy: dict[str, float] = field(default_factory=dict)
    """Percent of sentences that score their own video above its twin, by kind of twin; chance is 50."""
    num_twin_pairs: dict[str, int] = field(default_factory=dict)
    queries: QueryTable | None = None

    @property
    def t2v(self) -> RetrievalScores:
        """Plain text-to-video on all queries."""
        assert self.results[0].t2v is not None
        return self.results[0].t2v

    @property
    def v2t(self) -> RetrievalScores:
        """Plain video-to-text on all videos."""
        assert self.results[0].v2t is not None
        return self.results[0].v2t

    def scores(self) -> dict[str, float]:
        scores = {
            "t2v R@1": self.t2v.r1,
            "t2v R@5": self.t2v.r5,
            "t2v R@10": self.t2v.r10,
            "v2t R@1": self.v2t.r1,
        }
        scores |= {f"twins, {kind}": value for kind, value in self.twin_accuracy.items()}
        return {name: round(value, 1) for name, value in scores.items()}

    def counted(self) -> str:
        return f"{self.t2v.num_queries:,} queries"

    def partial_warning(self) -> str:
        return (
            f"**Only {self.num_read:,} of {self.num_listed:,} videos were ranked.** Queries of the others are "
            "left out, and every query had fewer videos to be mistaken for: these numbers are too good, and not "
            "comparable with those on the whole benchmark."
        )

    def tables(self) -> list[list[str]]:
        return [_result_table(self.results), _legend(self.results), self._ceiling(), self._twins()]

    def details(self) -> dict[str, Any]:
        return {
            "t2v": asdict(self.t2v) | {"r_sum": self.t2v.r_sum},
            "v2t": asdict(self.v2t) | {"r_sum": self.v2t.r_sum},
            "results": [asdict(result) for result in self.results],
            "twin_accuracy": self.twin_accuracy,
            "num_twin_pairs": self.num_twin_pairs,
            "ceiling_r1": self.ceiling,
            "num_ambiguous_queries": self.num_ambiguous,
        }

    def save_samples(self, folder: Path) -> list[str]:
        """Writes per_query.parquet, and ranks.png where matplotlib is installed."""
        if self.queries is None:
            return []
        table = self.queries.as_table()
        replace_file(folder / "per_query.parquet", lambda temporary: pq.write_table(table, temporary))
        if not can_plot():
            return ["The plot of the ranks was left out: matplotlib is not installed (videolm[report])."]
        ranking = self.queries.ranking
        plot_ranks({"text to video": ranking.t2v.ranks, "video to text": ranking.v2t.ranks}, folder / _PLOT)
        return [f"![how many queries have which rank]({_PLOT})"]

    def _ceiling(self) -> list[str]:
        if self.ceiling is None:
            return []
        if self.num_ambiguous is None:
            return [f"R@1 of a reader who knows which videos each sentence is true of: {self.ceiling:.1f}"]
        return [
            f"{self.num_ambiguous:,} queries are, word for word, captions of another video of the list too: R@1 "
            f"of a reader who knows all captions by heart, and guesses among those, is {self.ceiling:.1f}"
        ]

    def _twins(self) -> list[str]:
        if not self.twin_accuracy:
            return []
        lines = [
            "| twins that differ by | sentences that prefer their own video | pairs |",
            "| --- | --- | --- |",
        ]
        for kind, accuracy in self.twin_accuracy.items():
            name = "anything" if kind == "all" else kind
            lines.append(f"| {name} | {accuracy:.1f} % (chance: 50) | {self.num_twin_pairs[kind]} |")
        return lines


def _result_table(results: Sequence[Result]) -> list[str]:
    lines = [
        "| scores | direction | queries | R@1 | R@5 | R@10 | MdR | MnR | R-sum |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        name = f"{result.name} (transductive)" if result.is_transductive else result.name
        for direction, scores, intervals in (
            ("text to video", result.t2v, result.t2v_intervals),
            ("video to text", result.v2t, result.v2t_intervals),
        ):
            if scores is not None:
                lines.append(f"| {name} | {direction} | {_score_cells(scores, intervals)} |")
    return lines


def _legend(results: Sequence[Result]) -> list[str]:
    lines = []
    if any(result.t2v_intervals for result in results):
        lines.append(
            "In brackets: the 95 % interval of a percentile bootstrap over the videos, that is, how far R@1 would "
            "move with other queries to the same videos."
        )
    if any(result.is_transductive for result in results):
        lines.append(
            "Transductive: a query's scores were mended with the help of other queries (DSL: all of the test's; "
            "QB-Norm: sentences of the training split), so they do not compare with plain ones."
        )
    return lines


def _score_cells(scores: RetrievalScores, intervals: dict[str, tuple[float, float]]) -> str:
    first = f"{scores.r1:.1f}"
    if "r1" in intervals:
        first += " ({:.1f} to {:.1f})".format(*intervals["r1"])
    return (
        f"{scores.num_queries:,} | {first} | {scores.r5:.1f} | {scores.r10:.1f} | {scores.median_rank:g} "
        f"| {scores.mean_rank:.1f} | {scores.r_sum:.1f}"
    )


def _query_table(
    direction: str,
    queries: Sequence[str],
    targets: Sequence[str],
    names: Sequence[str],
    videos: Sequence[str],
    ranked: RankedQueries,
) -> pa.Table:
    """`names` and `videos` are of the candidates."""
    top_ids, top_video_ids = (np.asarray(ids, dtype=object)[ranked.top_indices] for ids in (names, videos))
    return pa.table(
        {
            "direction": pa.array([direction] * len(queries), pa.string()),
            "query": pa.array(queries, pa.string()),
            "target": pa.array(targets, pa.string()),
            "rank": pa.array(ranked.ranks, pa.float64()),
            "top_ids": pa.array(top_ids.tolist(), pa.list_(pa.string())),
            "top_video_ids": pa.array(top_video_ids.tolist(), pa.list_(pa.string())),
            "top_scores": pa.array(ranked.top_scores.tolist(), pa.list_(pa.float32())),
        }
    )
