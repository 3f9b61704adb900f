"""The benchmarks of captioning by name: those of retrieval with several captions a video, all of them references."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videolm.datasets import msrvtt, msvd, vatex
from videolm.datasets.annotations import CaptionedVideo
from videolm.datasets.catalog import MSRVTT, MSVD, VATEX


@dataclass(frozen=True)
class CaptionBenchmark:
    """One benchmark of captioning."""

    title: str
    read: Callable[[Path, Any], list[CaptionedVideo]]
    """(folder, name of a split) to the videos with all of their references."""
    splits: tuple[str, ...]
    notes: Mapping[str, str] = field(default_factory=dict)
    """By split: what whoever reads its scores has to know."""


def _read_msrvtt(folder: Path, split: Any) -> list[CaptionedVideo]:
    return msrvtt.read_captions(folder, split=split)


CAPTION_BENCHMARKS: Mapping[str, CaptionBenchmark] = {
    "msrvtt-captions": CaptionBenchmark(
        title="MSR-VTT, captions",
        read=_read_msrvtt,
        splits=tuple(MSRVTT.splits),
        notes={
            "test": "test is the list of retrieval, the 1,000 videos of 1k-A, here with 20 references each; published "
            "scores of captions are those of full-test, 2,990 videos"
        },
    ),
    "msvd-captions": CaptionBenchmark("MSVD, captions", msvd.read_split, tuple(MSVD.splits)),
    "vatex-captions": CaptionBenchmark("VATEX, captions", vatex.read_split, tuple(VATEX.splits)),
}


def find_caption_benchmark(name: str) -> CaptionBenchmark:
    """The benchmark of a name; ValueError that lists the names."""
    if name not in CAPTION_BENCHMARKS:
        raise ValueError(f"benchmark ({name!r}) must be one of {', '.join(CAPTION_BENCHMARKS)}")
    return CAPTION_BENCHMARKS[name]
