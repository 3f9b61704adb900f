"""Which file belongs to which video of a benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from videolm.search.extraction import NothingReadError
from videolm.search.sources import find_videos


def locate_videos(folder: str | Path, ids: Sequence[str]) -> dict[str, Path]:
    """The file of each video that is there, by id: named like it, with any ending of a video, at any depth.

    Raises ValueError where two files have the name of one video: which of them is meant cannot be told.
    """
    files: defaultdict[str, list[str]] = defaultdict(list)
    source = find_videos(folder, may_be_empty=True)
    for name in source.names:
        files[Path(name).stem].append(name)
    found = {}
    for video_id in ids:
        names = files.get(video_id, [])
        if len(names) > 1:
            raise ValueError(
                f"{folder} has {len(names)} files for video {video_id}: {', '.join(names[:5])}; leave one of them"
            )
        if names:
            found[video_id] = source.root / names[0]
    return found


def find_files(folder: Path, ids: Sequence[str], *, allow_missing: bool) -> dict[str, Path]:
    """The files that are there, by video id; FileNotFoundError for missing ones that are not allowed to be.

    Raises NothingReadError where none is there.
    """
    paths = locate_videos(folder, ids)
    missing = [video_id for video_id in ids if video_id not in paths]
    if not paths:
        raise NothingReadError(f"none of the {len(ids)} videos is in {folder}: {named(missing)}")
    if missing and not allow_missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(ids)} videos are not in {folder}: {named(missing)}; allow_missing=True "
            "(--allow-missing) leaves them out and says so"
        )
    return paths


def named(ids: Sequence[str], *, most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(ids[:most]) + more
