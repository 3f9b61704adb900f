"""What the readers of all benchmarks share: the videos they give, and annotation files read strictly.

Annotation files come from strangers: a file that could be read in two ways, or only in part, is an error that
names it. Every file may also lie there compressed, with `.gz` behind its name.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

_ID = re.compile(r"[A-Za-z0-9_@-][A-Za-z0-9._@-]{0,199}")
_UNREADABLE = (csv.Error, ValueError, RecursionError, EOFError, OSError, zlib.error)


@dataclass(frozen=True)
class CaptionedVideo:
    """One video of a benchmark. In a test split the captions are the queries, and every caption is one."""

    id: str
    """Name of the video's file without its ending."""
    captions: tuple[str, ...]
    category: int = -1
    """-1: the benchmark has none."""


@dataclass(frozen=True)
class Query:
    """A sentence and the one video that it was written for."""

    sentence: str
    video_id: str


def queries_of(videos: Iterable[CaptionedVideo]) -> list[Query]:
    """Every caption of every video, in their order."""
    return [Query(caption, video.id) for video in videos for caption in video.captions]


def videos_of_sentences(queries: Sequence[Query], videos: Sequence[CaptionedVideo]) -> list[frozenset[str]]:
    """For each query the ids of the videos that it is a caption of, word for word, its own among them.

    Case, punctuation and white space do not count: in MSR-VTT 1k-A, 35 sentences differ in them from the official
    ones. A reader that knows all captions by heart can do no better than guess among these videos.
    """
    known = defaultdict(set)
    for video in videos:
        for sentence in video.captions:
            known[_words(sentence)].add(video.id)
    return [frozenset(known[_words(query.sentence)] | {query.video_id}) for query in queries]


def read_json(path: Path) -> Any:
    """The value in a JSON file; a key twice in one object, NaN, infinity and numbers beyond float64 are errors."""
    with open_annotation(path) as file:
        try:
            return json.load(
                file,
                object_pairs_hook=_object_without_duplicates,
                parse_constant=_refuse_constant,
                parse_float=_finite,
            )
        except _UNREADABLE as error:
            raise unreadable(path, error) from error


def read_rows(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a csv file with a header, each with a value in every one of `columns`."""
    with open_annotation(path) as file:
        try:
            rows = list(csv.DictReader(file, strict=True, delimiter=delimiter))
        except _UNREADABLE as error:
            raise unreadable(path, error) from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    for number, row in enumerate(rows, start=2):
        for column in columns:
            if not isinstance(row.get(column), str):
                raise ValueError(f"{path}, line {number}: no value in the column {column}")
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, without their ends."""
    with open_annotation(path) as file:
        try:
            lines = [line.strip("\r\n") for line in file]
        except _UNREADABLE as error:
            raise unreadable(path, error) from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no lines")
    return lines


def read_ids(path: Path) -> list[str]:
    """A list with the name of a video a line, with or without the ending of a file."""
    ids = [video_id(without_suffix(line.strip()), path) for line in read_lines(path)]
    refuse_duplicates(ids, path)
    return ids


def exists(path: Path) -> bool:
    """Whether an annotation file is there, plain or compressed."""
    return path.exists() or _zipped(path).exists()


def open_annotation(path: Path) -> TextIOWrapper:
    """The text of an annotation file, or of the compressed one beside it; UTF-8 with or without a mark."""
    if not path.exists() and _zipped(path).exists():
        return TextIOWrapper(gzip.open(_zipped(path)), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def video_id(value: object, path: Path) -> str:
    """An id that is a plain name: it becomes the name of a file and must not lead anywhere else."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError(f"{path}: video id {value!r} is not a plain name ([A-Za-z0-9._@-], at most 200)")
    return value


def caption(value: object, path: Path, where: str, *, what: str = "caption") -> str:
    """A sentence that has a word in it and can be encoded; `where` tells its place in the file."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{path}, {where}: {what} {value!r} is no sentence")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}, {where}: {what} {value!r} holds half a character (a surrogate)") from error
    return value


def without_suffix(name: str) -> str:
    """A file's name without `.mp4` or another ending of a video: letters and digits, one of them a letter, or none.

    Ids hold dots of their own (`..._00.04.31.000`), so not everything behind the last dot is an ending.
    """
    return re.sub(r"\.(?:(?=\w*[A-Za-z])\w{2,5})?$", "", name)


def refuse_duplicates(ids: Iterable[str], path: Path) -> None:
    """Raises ValueError that counts and names the ids that are there twice."""
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        more = ", ..." if len(twice) > 5 else ""
        raise ValueError(f"{path}: {len(twice)} ids are there more than once: {', '.join(twice[:5])}{more}")


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Captions by video id, both in the order of the file."""
    captions: dict[str, list[str]] = {}
    for name, sentence in pairs:
        captions.setdefault(name, []).append(sentence)
    return captions


def chosen(
    ids: Iterable[str], captions: dict[str, list[str]], *, list_path: Path, caption_path: Path
) -> list[CaptionedVideo]:
    """The videos of a list with all their captions; one without is an error that names it."""
    ids = list(ids)
    without = [name for name in ids if not captions.get(name)]
    if without:
        raise ValueError(
            f"{list_path}: video {without[0]} has no caption in {caption_path.name}"
            + (f", and {len(without) - 1} more have none" if len(without) > 1 else "")
        )
    return [CaptionedVideo(name, tuple(captions[name])) for name in ids]


def check_split(split: str, known: Iterable[str]) -> None:
    """Raises ValueError that lists the known splits."""
    if split not in (known := tuple(known)):
        raise ValueError(f"split ({split!r}) must be one of {', '.join(known)}")


def unreadable(path: Path, error: Exception) -> ValueError:
    """The one error for a file that is not what it should be."""
    return ValueError(f"annotation file {path} is not readable: {type(error).__name__}: {error}")


def _words(sentence: str) -> str:
    return " ".join(re.findall(r"\w+", sentence.lower()))


def _zipped(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"{len(twice)} keys are there more than once: {', '.join(map(repr, twice[:5]))}")
    return made


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no value of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text} is too large")
    return value
