"""What of a benchmark is there and what is missing. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videolm.datasets.annotations import CaptionedVideo
from videolm.datasets.catalog import Benchmark, Size, find_benchmark
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
    benchmark = find_benchmark(name)
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; get {benchmark.title} from {benchmark.source}")
    checks = []
    ids: dict[str, None] = {}
    for split, size in benchmark.splits.items():
        check, read = _check_split(benchmark, folder, split, size)
        checks.append(check)
        ids |= dict.fromkeys(video.id for video in read)
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


def _check_split(
    benchmark: Benchmark, folder: Path, split: str, size: Size
) -> tuple[SplitCheck, Sequence[CaptionedVideo]]:
    expected = _size(size.num_videos, size.num_captions)
    try:
        videos = benchmark.read(folder, split)
    except FileNotFoundError as error:
        status = "optional" if size.is_optional else "missing"
        return SplitCheck(split, expected, f"{Path(error.filename or folder).name} is not there", status), []
    except ValueError as error:
        return SplitCheck(split, expected, str(error), "wrong"), []
    found = _size(len(videos), sum(len(video.captions) for video in videos))
    return SplitCheck(split, expected, found, "ok" if found == expected else "wrong"), videos


def _size(num_videos: int, num_captions: int) -> str:
    return f"{num_videos:,} videos, {num_captions:,} sentences"
