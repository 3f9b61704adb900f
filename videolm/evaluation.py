"""A model on a benchmark: recall in both directions and, where there are twins, whether it tells them apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from videolm.datasets.msrvtt import Query, read_queries, video_path
from videolm.datasets.synthetic import TwinPair, query_caption, read_twins, read_world, recall_ceiling
from videolm.metrics.retrieval import RetrievalScores, pair_accuracy, text_to_video, video_to_text
from videolm.pipeline import VideoLM
from videolm.pipeline.video_lm import describe_environment
from videolm.search.extraction import NothingReadError
from videolm.types import Embeddings, Failure, ModelInfo


@dataclass(frozen=True)
class Report:
    """What came out, and with what."""

    model: ModelInfo
    benchmark: str
    t2v: RetrievalScores
    v2t: RetrievalScores
    twin_accuracy: dict[str, float]
    """Percent of sentences that score their own video above its twin, by kind of twin; chance is 50."""
    num_twin_pairs: dict[str, int]
    ceiling: float | None
    """Expected R@1, in percent, of a reader that knows which videos a sentence is true of; None: not known."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Device, decoders and versions."""
    failures: list[Failure] = field(default_factory=list)

    def scores(self) -> dict[str, float]:
        """The few numbers that a model's card carries, rounded to a tenth."""
        scores = {
            "t2v R@1": self.t2v.r1,
            "t2v R@5": self.t2v.r5,
            "t2v R@10": self.t2v.r10,
            "v2t R@1": self.v2t.r1,
        }
        scores |= {f"twins, {kind}": value for kind, value in self.twin_accuracy.items()}
        return {name: round(value, 1) for name, value in scores.items()}

    def as_json(self) -> dict[str, Any]:
        """Plain values for report.json."""
        return {
            "model": {
                key: getattr(self.model, key) for key in ("name", "trained", "weights_sha256", "licence")
            },
            "sampler": self.model.sampler,
            "preprocessing": self.model.preprocessing,
            "benchmark": self.benchmark,
            "t2v": asdict(self.t2v) | {"r_sum": self.t2v.r_sum},
            "v2t": asdict(self.v2t) | {"r_sum": self.v2t.r_sum},
            "twin_accuracy": self.twin_accuracy,
            "num_twin_pairs": self.num_twin_pairs,
            "ceiling_r1": self.ceiling,
            "environment": self.environment,
            "failures": [asdict(failure) for failure in self.failures],
        }

    def markdown(self) -> str:
        """A table for people."""
        trained = "" if self.model.trained else " (**untrained: random weights**)"
        lines = [
            f"{self.model.name}{trained} on {self.benchmark}, {self.t2v.num_queries} queries",
            "",
            "| direction | R@1 | R@5 | R@10 | MdR | MnR | R-sum |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, scores in (("text to video", self.t2v), ("video to text", self.v2t)):
            lines.append(
                f"| {name} | {scores.r1:.1f} | {scores.r5:.1f} | {scores.r10:.1f} | {scores.median_rank:g} "
                f"| {scores.mean_rank:.1f} | {scores.r_sum:.1f} |"
            )
        if self.ceiling is not None:
            lines += [
                "",
                f"R@1 of a reader who knows which videos each sentence is true of: {self.ceiling:.1f}",
            ]
        if self.twin_accuracy:
            lines += [
                "",
                "| twins that differ by | sentences that prefer their own video | pairs |",
                "| --- | --- | --- |",
            ]
            for kind, accuracy in self.twin_accuracy.items():
                name = "anything" if kind == "all" else kind
                lines.append(f"| {name} | {accuracy:.1f} % (chance: 50) | {self.num_twin_pairs[kind]} |")
        if self.failures:
            lines += [
                "",
                f"{len(self.failures)} videos could not be read and are left out with their queries",
            ]
        return "\n".join(lines)

    def save(self, folder: str | Path) -> None:
        """Writes report.json and report.md."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.as_json(), indent=2, allow_nan=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        (folder / "report.md").write_text(self.markdown() + "\n", encoding="utf-8")


def evaluate(model: VideoLM, folder: str | Path, *, show_progress_bar: bool | None = None) -> Report:
    """The test list of a folder in MSR-VTT's form (1k-A, or a rendered world), one sentence a video.

    Every query is ranked against all videos of the list; ties count by their mean rank. A video that cannot be
    read is left out with its query and reported; NothingReadError where none can.
    """
    folder = Path(folder)
    queries = read_queries(folder)
    ceiling = _ceiling(folder)
    ids = [query.video_id for query in queries]
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"{folder}: the test list has {len(ids) - len(set(ids))} videos twice, expected one query each"
        )
    videos = model.encode_videos(
        [video_path(folder, video_id) for video_id in ids],
        on_error="skip",
        show_progress_bar=show_progress_bar,
    )
    row = {Path(path).stem: i for i, path in enumerate(videos.ids)}
    asked = [query for query in queries if query.video_id in row]
    if not asked:
        first = videos.failures[0]
        raise NothingReadError(
            f"none of the {len(ids)} videos of {folder} could be read; {first.path}: {first.error}"
        )
    t2v, v2t = retrieval_scores(model, videos, asked, row)
    twins = [t for t in read_twins(folder, split="test") if t.video_a in row and t.video_b in row]
    accuracy = twin_accuracy(model, videos, twins, row)
    return Report(
        model=model.info,
        benchmark=str(folder),
        t2v=t2v,
        v2t=v2t,
        twin_accuracy=accuracy,
        num_twin_pairs={kind: sum(kind in ("all", t.kind) for t in twins) for kind in accuracy},
        ceiling=ceiling,
        environment=describe_environment(model.device),
        failures=videos.failures,
    )


def retrieval_scores(
    model: VideoLM, videos: Embeddings, queries: Sequence[Query], row: dict[str, int]
) -> tuple[RetrievalScores, RetrievalScores]:
    """Text-to-video and video-to-text; `row` tells the row of `videos` by video id."""
    texts = model.encode_texts([query.sentence for query in queries])
    similarity = model.similarity(texts, videos).numpy()
    video_of_text = np.array([row[query.video_id] for query in queries])
    text_of_video = np.argsort(video_of_text)
    return text_to_video(similarity, video_of_text), video_to_text(similarity, text_of_video)


def twin_accuracy(
    model: VideoLM, videos: Embeddings, pairs: Sequence[TwinPair], row: dict[str, int]
) -> dict[str, float]:
    """Percent of sentences that score their own video above its twin, of all and by kind; ties count half."""
    accuracy: dict[str, float] = {}
    kinds = {pair.kind for pair in pairs}
    for kind in ("all", *sorted(kinds)) if pairs else ():
        chosen = [pair for pair in pairs if kind in ("all", pair.kind)]
        a = model.encode_texts([pair.sentence_a for pair in chosen])
        b = model.encode_texts([pair.sentence_b for pair in chosen])
        rows_a, rows_b = ([row[pair.video_a] for pair in chosen], [row[pair.video_b] for pair in chosen])
        score_a, score_b = (model.similarity(texts, videos).numpy() for texts in (a, b))
        line = np.arange(len(chosen))
        own = np.concatenate([score_a[line, rows_a], score_b[line, rows_b]])
        other = np.concatenate([score_a[line, rows_b], score_b[line, rows_a]])
        accuracy[kind] = pair_accuracy(own, other)
    return accuracy


def _ceiling(folder: Path) -> float | None:
    if not (folder / "world.json").exists():
        return None
    scenes = [video.scene for video in read_world(folder) if video.split == "test"]
    return 100.0 * recall_ceiling(scenes, [query_caption(scene) for scene in scenes])
