"""The benchmarks by name: what reads them, what they hold when they are whole, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videolm.datasets import activitynet, didemo, lsmdc, msrvtt, msvd, vatex
from videolm.datasets.annotations import CaptionedVideo


@dataclass(frozen=True)
class Size:
    """How much a split holds, as published."""

    num_videos: int
    num_captions: int
    is_optional: bool = False
    """Not in the usual download: its absence is reported, and not as a fault."""
    training: str | None = None
    """For a split to measure on: the one to train on, or to take other sentences from, that shares no video."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of text-video retrieval."""

    title: str
    read: Callable[[Path, Any], list[CaptionedVideo]]
    """(folder, name of a split) to the videos with the sentences that the protocol asks by."""
    splits: Mapping[str, Size]
    source: str
    """Where to get annotation and videos."""
    terms: str
    notes: tuple[str, ...] = field(default=())


MSRVTT = Benchmark(
    title="MSR-VTT",
    read=msrvtt.read_split,
    splits={
        "test": Size(1000, 1000, training="train"),
        "train": Size(9000, 180_000),
        "train-7k": Size(7010, 140_200),
        "train-without-val": Size(8503, 170_060),
        "train-clean": Size(8585, 171_700),
        "val": Size(497, 9940, training="full-train"),
        "full-train": Size(6513, 130_260),
        "full-val": Size(497, 9940, training="full-train"),
        "full-test": Size(2990, 59_800, training="full-train"),
        "1kb-train": Size(6656, 133_120, is_optional=True),
        "1kb-test": Size(1000, 1000, is_optional=True, training="1kb-train"),
    },
    source="annotation: msrvtt_data.zip of https://github.com/ArrowLuo/CLIP4Clip/releases (and the lists of "
    "https://github.com/albanie/collaborative-experts for 1k-B); videos: "
    "https://www.robots.ox.ac.uk/~maxbain/frozen-in-time/data/MSRVTT.zip",
    terms="annotation by Microsoft for research; the videos are YouTube's and their authors'",
    notes=(
        "372 of the 1,000 test videos are cut from a YouTube video that 9k training shows, too; 52 of them show "
        "the same footage. train-clean leaves those training videos out, and with train-7k there are none",
        "train (9k) holds 1,990 videos of full-test: a model trained on it is not measured on full-test",
    ),
)
MSVD = Benchmark(
    title="MSVD (YouTube2Text)",
    read=msvd.read_split,
    splits={
        "test": Size(670, 27_763, training="train"),
        "val": Size(100, 4290, training="train"),
        "train": Size(1200, 48_774),
    },
    source="https://www.cs.utexas.edu/~ml/clamp/videoDescription/ (YouTubeClips.tar; the sentences of other "
    "repositories are in the forms that videolm.datasets.msvd names)",
    terms="sentences by Microsoft for research; the videos are YouTube's and their authors'",
)
DIDEMO = Benchmark(
    title="DiDeMo, paragraphs",
    read=didemo.read_split,
    splits={
        "test": Size(1004, 1004, training="train"),
        "val": Size(1065, 1065, training="train"),
        "train": Size(8395, 8395),
    },
    source="https://github.com/LisaAnne/LocalizingMoments (annotation and the way to the videos)",
    terms="annotation BSD-2-Clause; the videos are Flickr's, each under its author's Creative Commons licence",
    notes=("the annotation covers the first 30 seconds of a video: cut the files to them, as the papers do",),
)
ACTIVITYNET = Benchmark(
    title="ActivityNet Captions, paragraphs",
    read=activitynet.read_split,
    splits={
        "val_1": Size(4917, 4917, training="train"),
        "train": Size(10_009, 10_009),
    },
    source="annotation: captions.zip of https://cs.stanford.edu/people/ranjaykrishna/densevid/; videos: the "
    "request form of http://activity-net.org/download.html",
    terms="ActivityNet's terms: research, not commercial; the videos are YouTube's and their authors'",
)
LSMDC = Benchmark(
    title="LSMDC",
    read=lsmdc.read_split,
    splits={
        "test": Size(1000, 1000, training="train"),
        "val": Size(7408, 7408, training="train"),
        "train": Size(101_079, 101_079),
    },
    source="https://sites.google.com/site/describingmovies/download (with permission of MPII)",
    terms="MPII's agreement: research, not commercial, nothing is passed on, the annotation neither",
)
VATEX = Benchmark(
    title="VATEX",
    read=vatex.read_split,
    splits={
        "test": Size(6000, 60_000, training="train"),
        "val": Size(3000, 30_000, training="train"),
        "train": Size(25_991, 259_910),
        "val-1500": Size(1500, 15_000, is_optional=True, training="train"),
        "test-1500": Size(1500, 15_000, is_optional=True, training="train"),
    },
    source="https://eric-xw.github.io/vatex-website/download.html; the lists of the 1,500: "
    "https://github.com/cshizhe/hgr_v2t",
    terms="annotation CC BY 4.0; the videos are YouTube's and their authors'",
)
BENCHMARKS: Mapping[str, Benchmark] = {
    "msrvtt": MSRVTT,
    "msvd": MSVD,
    "didemo": DIDEMO,
    "activitynet": ACTIVITYNET,
    "lsmdc": LSMDC,
    "vatex": VATEX,
}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name; ValueError that lists the names."""
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark ({name!r}) must be one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
