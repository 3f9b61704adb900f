"""What of a benchmark is there and what is missing. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videolm.datasets.annotations import CaptionedVideo
from videolm.datasets.catalog import BENCHMARKS, Benchmark, Size
from videolm.datasets.question_catalog import QUESTION_BENCHMARKS, QuestionBenchmark, QuestionSize
from videolm.datasets.questions import VideoQuestion
from videolm.evaluation.videos import locate_videos, named


@dataclass(frozen=True)
class SplitCheck:
    """One split of a benchmark against its published size."""

    split: str
    expected: str
    found: str
    status: str
    """"ok", "wrong" (other counts, or a file that cannot be read), "missing" or "optional" (missing, not needed)."""


@dataclass(frozen=True)
class Inventory:
    """What a folder holds of a benchmark."""

    benchmark: str
    title: str
    folder: str
    checks: list[SplitCheck]
    num_videos: int
    """Videos that the readable splits name."""
    missing_videos: list[str]
    source: str
    terms: str
    notes: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all needed splits have their published size and every video has a file."""
        return not self.missing_videos and all(check.status in ("ok", "optional") for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"is_complete": self.is_complete}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """What, expected, found, status: a line a split, and one for the files of the videos."""
        rows = [(check.split, check.expected, check.found, check.status) for check in self.checks]
        there = self.num_videos - len(self.missing_videos)
        found = f"{there} files"
        if self.missing_videos:
            found += f"; missing: {named(self.missing_videos)}"
        status = "missing" if self.missing_videos else "ok"
        return [*rows, ("video files", f"{self.num_videos} files", found, status)]


def check_benchmark(name: str, folder: str | Path, *, videos: str | Path | None = None) -> Inventory:
    """Counts the splits of a benchmark in `folder` and looks for its videos in `videos`, by default FOLDER/videos.

    Raises ValueError for a name that is not known, FileNotFoundError where the folder is not there.
    """
    benchmark = _find(name)
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; get {benchmark.title} from {benchmark.source}")
    checks = []
    ids: dict[str, None] = {}
    for split, size in benchmark.splits.items():
        check, split_ids = _check_split(benchmark, folder, split, size)
        checks.append(check)
        ids |= dict.fromkeys(split_ids)
    video_folder = folder / "videos" if videos is None else Path(videos)
    found = locate_videos(video_folder, list(ids)) if videos or video_folder.exists() else {}
    return Inventory(
        benchmark=name,
        title=benchmark.title,
        folder=str(folder),
        checks=checks,
        num_videos=len(ids),
        missing_videos=[video_id for video_id in ids if video_id not in found],
        source=benchmark.source,
        terms=benchmark.terms,
        notes=benchmark.notes,
    )


def _find(name: str) -> Benchmark | QuestionBenchmark:
    known: dict[str, Benchmark | QuestionBenchmark] = {**BENCHMARKS, **QUESTION_BENCHMARKS}
    if name not in known:
        raise ValueError(f"benchmark ({name!r}) must be one of {', '.join(known)}")
    return known[name]


def _check_split(
    benchmark: Benchmark | QuestionBenchmark, folder: Path, split: str, size: Size | QuestionSize
) -> tuple[SplitCheck, Sequence[str]]:
    """The check, and the ids of the split's videos."""
    expected = _size_text(size)
    try:
        rows = benchmark.read(folder, split)
    except FileNotFoundError as error:
        is_optional = isinstance(size, Size) and size.is_optional
        missing = f"{Path(error.filename or folder).name} is not there"
        return SplitCheck(split, expected, missing, "optional" if is_optional else "missing"), []
    except ValueError as error:
        return SplitCheck(split, expected, str(error), "wrong"), []
    ids = [row.id if isinstance(row, CaptionedVideo) else row.video_id for row in rows]
    found = _size_text(_size_of(rows, size))
    return SplitCheck(split, expected, found, "ok" if found == expected else "wrong"), ids


def _size_of(
    rows: Sequence[CaptionedVideo] | Sequence[VideoQuestion], expected: Size | QuestionSize
) -> Size | QuestionSize:
    if isinstance(expected, Size):
        return Size(len(rows), sum(len(row.captions) for row in rows if isinstance(row, CaptionedVideo)))
    videos = {row.video_id for row in rows if isinstance(row, VideoQuestion)}
    return QuestionSize(len(rows), None if expected.num_videos is None else len(videos))


def _size_text(size: Size | QuestionSize) -> str:
    if isinstance(size, Size):
        return f"{size.num_videos:,} videos, {size.num_captions:,} sentences"
    videos = "" if size.num_videos is None else f"{size.num_videos:,} videos, "
    return f"{videos}{size.num_questions:,} questions"
