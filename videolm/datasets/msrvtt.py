"""MSR-VTT's own files: which videos a split has, what is said of them, and what its test sets leak.

Reads the folder of CLIP4Clip's release (`MSRVTT_data.json` and csv lists). The rendered world is written in the
same form. Facts and traps: Xu et al., CVPR 2016; 1k-A is Yu et al., ECCV 2018; 1k-B is Miech et al., arXiv
1804.02516.

| split | videos |
| --- | --- |
| train, train-7k | the lists of 9,000 and 7,010 that go with the 1k-A test |
| train-without-val | train without the official validation videos, so that `val` can choose a checkpoint |
| train-clean | train without the videos cut from a YouTube video that a 1k-A test video is cut from, too |
| val | the official validation split, a part of train and train-7k |
| test | 1k-A: 1,000 videos with one chosen sentence each |
| full-train, full-val, full-test | the official split, every caption a query |
| 1kb-train, 1kb-test | 1k-B, of a test video its first caption; its lists are `*_list_miech.txt` |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from videolm.datasets.annotations import (
    CaptionedVideo,
    Query,
    caption,
    check_split,
    chosen,
    exists,
    read_ids,
    read_json,
    read_rows,
    refuse_duplicates,
    unreadable,
    video_id,
)

Split = Literal[
    "train",
    "train-7k",
    "train-without-val",
    "train-clean",
    "val",
    "test",
    "full-train",
    "full-val",
    "full-test",
    "1kb-train",
    "1kb-test",
]
ANNOTATION = "MSRVTT_data.json"
_LISTS = {
    "train": "MSRVTT_train.9k.csv",
    "train-7k": "MSRVTT_train.7k.csv",
    "val": "MSRVTT_val.full.csv",
    "test": "MSRVTT_JSFUSION_test.csv",
    "full-train": "MSRVTT_train.full.csv",
    "full-val": "MSRVTT_val.full.csv",
    "full-test": "MSRVTT_test.full.csv",
    "1kb-train": "train_list_miech.txt",
    "1kb-test": "test_list_miech.txt",
}
_OFFICIAL = {"val": "validate", "full-train": "train", "full-val": "validate", "full-test": "test"}


@dataclass(frozen=True)
class Excerpt:
    """Where a video was cut from."""

    url: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class Leak:
    """Test videos of which training has seen the source."""

    same_source: frozenset[str]
    """Cut from a YouTube video that a training video is cut from, too."""
    overlap_seconds: dict[str, float]
    """Those that share a span of time with a training video, and the longest such span."""


def read_captions(folder: str | Path, *, split: Split) -> list[CaptionedVideo]:
    """The videos of a split with all their official captions, in the order of the split's list."""
    folder = Path(folder)
    annotation = read_json(folder / ANNOTATION)
    ids = _split_ids(folder, split, annotation)
    captions = _read_captions(annotation, folder / ANNOTATION)
    categories = {name: video.get("category", -1) for name, video in _videos(annotation, folder).items()}
    videos = chosen(ids, captions, list_path=folder / _list_name(split), caption_path=folder / ANNOTATION)
    return [CaptionedVideo(v.id, v.captions, _category(categories.get(v.id, -1), folder)) for v in videos]


def read_split(folder: str | Path, split: Split) -> list[CaptionedVideo]:
    """The videos of a split with the sentences that its protocol asks by."""
    check_split(split, get_args(Split))
    if split == "test":
        return [CaptionedVideo(query.video_id, (query.sentence,)) for query in read_queries(folder)]
    videos = read_captions(folder, split=split)
    if split == "1kb-test":
        return [CaptionedVideo(video.id, video.captions[:1], video.category) for video in videos]
    return videos


def read_queries(folder: str | Path) -> list[Query]:
    """The (sentence, video) pairs of the test list, 1,000 of them in 1k-A."""
    path = Path(folder) / _LISTS["test"]
    rows = read_rows(path, ("video_id", "sentence"))
    queries = [
        Query(caption(row["sentence"], path, f"line {number}"), video_id(row["video_id"], path))
        for number, row in enumerate(rows, start=2)
    ]
    refuse_duplicates([query.video_id for query in queries], path)
    return queries


def video_path(folder: str | Path, video_id: str) -> Path:
    """Where the file of a video is: `videos/ID.mp4` below the folder."""
    return Path(folder) / "videos" / f"{video_id}.mp4"


def read_leak(folder: str | Path, *, train: Split = "train") -> Leak:
    """What the 1k-A test shares with a list of training videos; nothing where no source is known."""
    folder = Path(folder)
    annotation = read_json(folder / ANNOTATION)
    test_ids, train_ids = (_split_ids(folder, split, annotation) for split in ("test", train))
    return find_leak(_excerpts(annotation, folder), test_ids=test_ids, train_ids=train_ids)


def find_leak(excerpts: dict[str, Excerpt], *, test_ids: Sequence[str], train_ids: Sequence[str]) -> Leak:
    """Which of the test videos show a source, or the very span of it, that a training video shows."""
    by_url = defaultdict(list)
    for name in train_ids:
        if name in excerpts:
            by_url[excerpts[name].url].append(excerpts[name])
    same_source, overlaps = [], {}
    for name in test_ids:
        if name not in excerpts or not by_url[excerpts[name].url]:
            continue
        same_source.append(name)
        own = excerpts[name]
        longest = max(
            min(own.end_seconds, other.end_seconds) - max(own.start_seconds, other.start_seconds)
            for other in by_url[own.url]
        )
        if longest > 0:
            overlaps[name] = longest
    return Leak(frozenset(same_source), overlaps)


def _split_ids(folder: Path, split: str, annotation: Any) -> list[str]:
    check_split(split, get_args(Split))
    if split in ("train-without-val", "train-clean"):
        ids = _split_ids(folder, "train", annotation)
        if split == "train-without-val":
            left_out = set(_split_ids(folder, "val", annotation))
        else:
            test_ids = _split_ids(folder, "test", annotation)
            # the other way round: which of the training videos show a source of the test
            left_out = set(
                find_leak(_excerpts(annotation, folder), test_ids=ids, train_ids=test_ids).same_source
            )
        return [name for name in ids if name not in left_out]
    path = folder / _LISTS[split]
    if split in _OFFICIAL and not exists(path):
        # CLIP4Clip's release has no list of the official split, but the annotation knows it
        ids = [i for i, v in _videos(annotation, folder).items() if v.get("split") == _OFFICIAL[split]]
        if not ids:
            raise FileNotFoundError(f"{path} is not there, and {folder / ANNOTATION} does not tell the split")
        return ids
    if path.suffix == ".txt":
        return read_ids(path)
    ids = [video_id(row["video_id"], path) for row in read_rows(path, ("video_id",))]
    refuse_duplicates(ids, path)
    return ids


def _list_name(split: str) -> str:
    return _LISTS["train" if split in ("train-without-val", "train-clean") else split]


def _videos(annotation: Any, folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / ANNOTATION
    try:
        videos = [(video_id(video["video_id"], path), dict(video)) for video in annotation["videos"]]
    except (KeyError, TypeError) as error:
        raise unreadable(path, error) from error
    refuse_duplicates([name for name, _ in videos], path)
    return dict(videos)


def _excerpts(annotation: Any, folder: Path) -> dict[str, Excerpt]:
    try:
        return {
            name: Excerpt(str(video["url"]), float(video["start time"]), float(video["end time"]))
            for name, video in _videos(annotation, folder).items()
            if "url" in video
        }
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(folder / ANNOTATION, error) from error


def _read_captions(annotation: Any, path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    try:
        for number, sentence in enumerate(annotation["sentences"]):
            name = sentence["video_id"]
            captions.setdefault(name, []).append(caption(sentence["caption"], path, f"sentence {number}"))
    except (KeyError, TypeError) as error:
        raise unreadable(path, error) from error
    return captions


def _category(value: Any, folder: Path) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise unreadable(folder / ANNOTATION, error) from error
