"""Files that are there as a whole or not at all, whenever the program is killed and whatever the disk does."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from glob import escape
from pathlib import Path
from typing import Any, NoReturn


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, sync and rename it: under `path` is the old file or the new.

    Whatever goes wrong before the renaming takes the temporary file away again; only a kill leaves it, for
    `leftovers` to find. An OSError names `path`.
    """
    # a name of its own for each: two programs may replace the same file, and the last one counts
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def leftovers(path: Path) -> list[Path]:
    """The temporary files of `path` that no running program may own: what kills have left."""
    return sorted(path.parent.glob(f"{escape(path.name)}.*.tmp"))


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, with its ends of lines as they are, by one rename."""
    replace_file(path, lambda temporary: temporary.write_bytes(text.encode()))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON by one rename; NaN and infinity are a ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a ValueError names the file and what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")
