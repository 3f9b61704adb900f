"""`run.json`: what made the vectors of a folder; who may write there, and what may be added to it."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videolm.files import leftovers, read_json, write_json
from videolm.search.shards import shard_paths

SCHEMA_VERSION = 1
_OUR_FILES = ("index.json", "vectors.npy", "embeddings.npz", "failures.jsonl", "run.json")
# There without a run.json after a kill in the first moment, or where only parts have been made.
_MAY_COME_FIRST = (".lock", "parts")

# What to do where a folder has other settings.
START_AGAIN = "Choose another folder, or start again from nothing with overwrite=True (--overwrite)"
ANOTHER_FOLDER = "Choose another folder, or the settings of then"
REMOVE_AND_REDO = "Give the settings of then; or remove that folder, and its videos are encoded again"


class BusyError(RuntimeError):
    """Another process is writing to the folder."""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock ends with the process, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another process is writing to {out}; wait for its end") from None
        yield


def check_ours(out: Path) -> None:
    """A ValueError where something else than a run is there, or the name is not text."""
    try:
        str(out).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{str(out)!r} is not valid UTF-8; choose another name") from None
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; the result needs a folder")
    if out.exists() and not (out / "run.json").exists():
        left = set(leftovers(out / "run.json"))
        foreign = sorted(p.name for p in out.iterdir() if p.name not in _MAY_COME_FIRST and p not in left)
        if foreign:
            raise ValueError(
                f"{out} holds {foreign[0]!r} and no run.json: it was not made by videolm; "
                "choose another folder"
            )


def begin(out: Path, run: Mapping[str, Any]) -> None:
    """Write `run.json` and make the folder ready for shards; what a killed run left half is removed."""
    write_json(out / "run.json", run)
    (out / "shards").mkdir(exist_ok=True)
    # a copy of the rows as they were
    (out / "embeddings.npz").unlink(missing_ok=True)
    unfinished = [path for name in _OUR_FILES for path in leftovers(out / name)]
    for path in [*unfinished, *(out / "shards").glob("*.tmp")]:
        path.unlink(missing_ok=True)


def clear(out: Path) -> None:
    """Remove the files of an earlier run, and nothing else.

    Its `run.json` stays until `begin` replaces it: after a kill the folder is still known as ours.
    """
    for path in [*shard_paths(out), *(out / name for name in _OUR_FILES if name != "run.json")]:
        path.unlink(missing_ok=True)


def written_setting(out: Path, key: str) -> Any:
    """A setting of the run in `out`, or of one of its parts; None where there is no run or it has no such setting."""
    for path in [out / "run.json", *sorted(out.glob("parts/*-of-*/run.json"))]:
        if path.exists():
            settings = read_json(path).get("settings")
            return settings.get(key) if isinstance(settings, Mapping) else None
    return None


def check_same_settings(out: Path, run: Mapping[str, Any], *, way_out: str) -> None:
    """A ValueError where the folder's `run.json` has other settings than `run`: the differences, and the way out."""
    earlier = read_json(out / "run.json")
    try:
        schema, then, then_model = earlier["schema"], _flat(earlier["settings"]), earlier["model"]["name"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{out / 'run.json'} is not a run of videolm: {error} is missing") from error
    if schema != SCHEMA_VERSION:
        raise ValueError(f"{out / 'run.json'} has schema {schema}, this version writes {SCHEMA_VERSION}")
    now = _flat(run["settings"])
    differences = [
        f"{key} is {then.get(key)!r} there and {now.get(key)!r} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key != "weights_sha256"
    ]
    if then.get("weights_sha256") != now.get("weights_sha256"):
        differences.insert(
            0,
            f"model is {then_model!r} (weights {str(then.get('weights_sha256'))[:12]}) there and "
            f"{run['model']['name']!r} (weights {str(now.get('weights_sha256'))[:12]}) now",
        )
    if differences:
        raise ValueError(f"{out} was made otherwise: {'; '.join(differences)}. {way_out}")


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hash of the settings: every shard carries it."""
    return hashlib.sha256(json.dumps(_flat(settings), sort_keys=True).encode()).hexdigest()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            # As JSON gives it back: a tuple is a list there.
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
