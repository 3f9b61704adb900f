"""The benchmarks of video question answering by name: what reads them, what they hold, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videolm.datasets import activitynet_qa, msrvtt_qa, msvd_qa, nextqa, tgif_qa
from videolm.datasets.questions import VideoQuestion


@dataclass(frozen=True)
class QuestionSize:
    """How much a split holds, as published; the files count where they differ from the paper."""

    num_questions: int
    num_videos: int | None = None
    """Videos with a question; None: not known."""


@dataclass(frozen=True)
class QuestionBenchmark:
    """One benchmark of video question answering."""

    title: str
    read: Callable[[Path, Any], list[VideoQuestion]]
    """(folder, name of a split) to its questions."""
    splits: Mapping[str, QuestionSize]
    source: str
    """Where to get annotation and videos."""
    terms: str
    notes: tuple[str, ...] = field(default=())


_XU = "https://github.com/xudejing/video-question-answering"
_NEXT_TERMS = "annotation MIT; the videos are those of VidOR, from YFCC100M, each under its author's licence"
_NEXT_VIDEOS = "the videos are found by their number, in whatever folder below the videos' one"
_TGIF_SOURCE = "https://github.com/YunseokJANG/tgif-qa (annotation in `dataset`, and the way to the GIFs)"
_TGIF_TERMS = "research; the GIFs are Tumblr's and their authors'"


def _tgif(title: str, read: Callable[..., list[VideoQuestion]], **splits: QuestionSize) -> QuestionBenchmark:
    return QuestionBenchmark(
        title=f"TGIF-QA, {title}",
        read=read,
        splits=splits,
        source=_TGIF_SOURCE,
        terms=_TGIF_TERMS,
        notes=("there is no validation split: keep a part of train to choose a checkpoint by",),
    )


QUESTION_BENCHMARKS: Mapping[str, QuestionBenchmark] = {
    "msrvtt-qa": QuestionBenchmark(
        title="MSRVTT-QA",
        read=msrvtt_qa.read_split,
        splits={
            "test": QuestionSize(72_821, 2990),
            "val": QuestionSize(12_278, 497),
            "train": QuestionSize(158_581, 6513),
        },
        source=f"annotation: {_XU}; videos: those of msrvtt",
        terms="made from Microsoft's captions, for research; the videos are YouTube's and their authors'",
    ),
    "msvd-qa": QuestionBenchmark(
        title="MSVD-QA",
        read=msvd_qa.read_split,
        splits={
            "test": QuestionSize(13_157, 504),
            "val": QuestionSize(6415, 245),
            "train": QuestionSize(30_933, 1161),
        },
        source=f"annotation: {_XU}; videos: those of msvd",
        terms="made from Microsoft's sentences, for research; the videos are YouTube's and their authors'",
        notes=(
            "with youtube_mapping.txt in the folder videos are called as in msvd, without it vid1, vid2, ...",
        ),
    ),
    "nextqa": QuestionBenchmark(
        title="NExT-QA, multiple choice",
        read=nextqa.read_split,
        splits={
            "test": QuestionSize(8564, 1000),
            "val": QuestionSize(4996, 570),
            "train": QuestionSize(34_132, 3870),
        },
        source="https://github.com/doc-doc/NExT-QA (annotation in `dataset/nextqa`, and the way to the videos)",
        terms=_NEXT_TERMS,
        notes=(_NEXT_VIDEOS,),
    ),
    "nextoe": QuestionBenchmark(
        title="NExT-QA, open-ended",
        read=nextqa.read_open_split,
        splits={
            "test": QuestionSize(9178, 1000),
            "val": QuestionSize(5343, 570),
            "train": QuestionSize(37_523, 3870),
        },
        source="https://github.com/doc-doc/NExT-OE (annotation in `dataset/nextqa`); videos: those of nextqa",
        terms=_NEXT_TERMS,
        notes=(_NEXT_VIDEOS,),
    ),
    "activitynet-qa": QuestionBenchmark(
        title="ActivityNet-QA",
        read=activitynet_qa.read_split,
        splits={
            "test": QuestionSize(8000, 800),
            "val": QuestionSize(18_000, 1800),
            "train": QuestionSize(32_000, 3200),
        },
        source="annotation: https://github.com/MILVLG/activitynet-qa (`dataset`); videos: those of activitynet",
        terms="annotation Apache-2.0; ActivityNet's terms: research, not commercial",
    ),
    "tgif-frameqa": _tgif(
        "frameqa", tgif_qa.read_frameqa, test=QuestionSize(13_691, 7132), train=QuestionSize(39_392)
    ),
    "tgif-transition": _tgif(
        "transition", tgif_qa.read_transition, test=QuestionSize(6232, 3116), train=QuestionSize(52_704)
    ),
    "tgif-action": _tgif(
        "action", tgif_qa.read_action, test=QuestionSize(2274, 2274), train=QuestionSize(20_471)
    ),
    "tgif-count": _tgif("count", tgif_qa.read_count, test=QuestionSize(3554), train=QuestionSize(26_839)),
}


def find_question_benchmark(name: str) -> QuestionBenchmark:
    """The benchmark of a name; ValueError that lists the names."""
    if name not in QUESTION_BENCHMARKS:
        raise ValueError(f"benchmark ({name!r}) must be one of {', '.join(QUESTION_BENCHMARKS)}")
    return QUESTION_BENCHMARKS[name]
