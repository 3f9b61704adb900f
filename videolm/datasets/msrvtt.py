"""MSR-VTT's own files: which videos a split has, what is said of them, and the queries of 1k-A.

Reads the folder of CLIP4Clip's release (`MSRVTT_data.json` and three csv lists), plain or gzipped. The rendered
world is written in the same form. Facts and traps: Xu et al., CVPR 2016; 1k-A is Yu et al., ECCV 2018.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Literal

_LISTS = {
    "train": "MSRVTT_train.9k.csv",
    "train-7k": "MSRVTT_train.7k.csv",
    "val": "MSRVTT_val.full.csv",
    "test": "MSRVTT_JSFUSION_test.csv",
}
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class CaptionedVideo:
    """One video of a benchmark."""

    id: str
    captions: tuple[str, ...]
    category: int


@dataclass(frozen=True)
class Query:
    """A sentence and the one video that it was written for."""

    sentence: str
    video_id: str


def read_captions(
    folder: str | Path, *, split: Literal["train", "train-7k", "val", "test"]
) -> list[CaptionedVideo]:
    """The videos of a split with all their captions, in the order of the split's list."""
    folder = Path(folder)
    path = folder / _LISTS[split]
    ids = [_checked_id(row["video_id"], path) for row in _read_rows(path, ("video_id",))]
    categories, captions = _read_annotation(folder / "MSRVTT_data.json")
    for video_id in ids:
        if video_id not in captions:
            raise ValueError(f"{path}: video {video_id} has no caption in MSRVTT_data.json")
    return [CaptionedVideo(i, tuple(captions[i]), categories.get(i, -1)) for i in ids]


def read_queries(folder: str | Path) -> list[Query]:
    """The (sentence, video) pairs of the test list, 1,000 of them in 1k-A."""
    path = Path(folder) / _LISTS["test"]
    rows = _read_rows(path, ("video_id", "sentence"))
    return [Query(row["sentence"], _checked_id(row["video_id"], path)) for row in rows]


def video_path(folder: str | Path, video_id: str) -> Path:
    """Where the file of a video is: `videos/ID.mp4` below the folder."""
    return Path(folder) / "videos" / f"{video_id}.mp4"


def _checked_id(video_id: str, path: Path) -> str:
    # an id becomes a file name: it must not lead anywhere else
    if not _ID.fullmatch(video_id):
        raise ValueError(f"{path}: video id {video_id!r} is not a plain name ([A-Za-z0-9._-], at most 200)")
    return video_id


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with _open(path) as file:
        try:
            rows = list(csv.DictReader(file, strict=True))
        except (csv.Error, EOFError, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"annotation file {path} is not readable: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    for number, row in enumerate(rows, start=2):
        for column in columns:
            if not isinstance(row.get(column), str):
                raise ValueError(f"{path}, line {number}: no value in the column {column}")
    return rows


def _read_annotation(path: Path) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Category and captions of every video, by id."""
    captions: dict[str, list[str]] = {}
    try:
        with _open(path) as file:
            data = json.load(file)
        categories = {str(video["video_id"]): int(video.get("category", -1)) for video in data["videos"]}
        for sentence in data["sentences"]:
            captions.setdefault(str(sentence["video_id"]), []).append(str(sentence["caption"]))
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, EOFError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"annotation file {path} is not readable: {reason}") from error
    return categories, captions


def _open(path: Path) -> TextIOWrapper:
    zipped = path.with_name(f"{path.name}.gz")
    if not path.exists() and zipped.exists():
        return TextIOWrapper(gzip.open(zipped), encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")
