"""Which videos a folder, a list or a path stands for, and how a changed file is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)

Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds; (-1, -1) where there is no such file."""


@dataclass(frozen=True)
class Source:
    """The videos that were asked for."""

    root: Path
    names: list[str]
    """Paths relative to the root with `/` between the parts, sorted; they are also the ids."""
    num_ignored: int
    """Visible files without the ending of a video."""
    description: str
    """Where the names come from: what was made from one source is not brought up to date with another."""


def find_videos(source: str | os.PathLike[str], *, may_be_empty: bool = False) -> Source:
    """The videos of a folder (searched to the bottom), of a text file with one path a line, or the one video.

    A folder's hidden files and folders are left out, linked folders too. The paths in a text file are
    relative to its own folder and must not leave it.
    """
    path = Path(os.path.abspath(source))
    if path.is_dir():
        visible = list(_walk(path))
        names = sorted(name for name in visible if Path(name).suffix.lower() in VIDEO_SUFFIXES)
        found = Source(path, names, len(visible) - len(names), str(path))
    elif not path.exists():
        raise FileNotFoundError(
            f"{source} does not exist; give a folder, a video, or a .txt with a path a line"
        )
    elif path.suffix.lower() == ".txt":
        found = Source(path.parent, _read_list(path), 0, str(path))
    else:
        found = Source(path.parent, [path.name], 0, str(path))
    if not found.names and not may_be_empty:
        raise ValueError(
            f"{source} holds no video; the endings looked for are {' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return found


def stamp_of(path: Path) -> Stamp:
    """Size and time of change of the file as it is now."""
    try:
        status = path.stat()
    except OSError:
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)


def _walk(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        # A folder passed over would look as if its videos had been deleted.
        raise error

    for folder, subfolders, files in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _read_list(path: Path) -> list[str]:
    try:
        # some editors begin a file with a mark; a name may hold any other end of line
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a list of paths in UTF-8: {error}") from error
    names = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if "\0" in line:
            raise ValueError(f"{path} line {number} holds a NUL character, which no path has")
        name = Path(os.path.relpath(path.parent / line.strip(), path.parent)).as_posix()
        if name == ".." or name.startswith("../"):
            raise ValueError(
                f"{path} line {number}: {line.strip()} lies outside of the list's folder; "
                "put the list into a folder above all of its videos"
            )
        names.add(name)
    return sorted(names)
