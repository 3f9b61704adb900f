"""The set of hostile files, the same from the same seed: built once, kept beside pytest's own cache.

    seeds      8 healthy clips of 100 frames, one per codec or container
    specials   healthy but awkward files, files that lie, things that are no video
    bombs      files that ask for gigabytes or minutes
    mutants    damaged copies of the seeds, any number of them

What leads elsewhere is not kept: see elsewhere.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av

from tests.hostile.case import Case, load_cases, save_cases
from tests.hostile.damage import damage
from tests.hostile.elsewhere import SECRET_CODE
from tests.hostile.pictures import NUM_FRAMES, encode, ffmpeg_version, raw_video
from tests.hostile.specials import ALL, X264, awkward, bad, bombs
from tests.hostile.truth import Truth, load_truths

SEEDS = {
    "h264.mp4": X264,
    "h264_bframes.mov": f"{X264} -bf 3",
    "hevc.mp4": "-c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=25:pools=1 -tag:v hvc1",
    "vp9.webm": "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 25 -b:v 300k",
    "av1.mkv": "-c:v libsvtav1 -preset 12 -g 25",
    "mpeg4.avi": "-c:v mpeg4 -q:v 4 -g 25",
    "h264.ts": f"{X264} -f mpegts",
    "anim.gif": "-vf scale=80:60 -f gif",
}
"""Options of the encoders; a clip is left out where this ffmpeg lacks its encoder."""

NO_FFMPEG = "the ffmpeg program, which makes the hostile files, is not installed"

_MAKERS = ("build", "case", "damage", "elsewhere", "pictures", "specials", "truth")
_ROOT = Path(__file__).resolve().parent.parent.parent
_CACHE = _ROOT / ".pytest_cache" / "d" / "hostile"


def seeds() -> list[Case]:
    """The healthy clips, and beside them the folder `secret` with two that no file may lead to."""
    return _cached("seeds", _make_seeds)


def specials() -> list[Case]:
    """All that is made by hand and quickly."""
    return _cached("specials", _make_specials)


def slow_bombs() -> list[Case]:
    """What takes seconds to make, and gigabytes or minutes to decode."""
    return _cached("bombs", lambda folder: list(bombs(folder)))


def mutants(seed: int, count: int) -> list[Case]:
    """Damaged copies, each seed clip in turn; fewer of the same seed are the first of more."""
    return _cached(f"mutants-{seed}-{count}", lambda folder: _make_mutants(folder, seed, count))


def found() -> list[Case]:
    """Small files that once broke something: whatever lies in `cases/` beside this file."""
    return _cached("found", _copy_found)


def secret_folder() -> Path:
    """Holds secret.ts and secret.mp4, all of whose frames read SECRET_CODE."""
    return seeds()[0].path.parent / "secret"


def truths(cases: Iterable[Case]) -> dict[Path, Truth]:
    """What is in each file of the set that may give frames; nothing is known of files made for one run."""
    folders = {case.path.parent for case in cases if case.path.is_relative_to(_CACHE)}
    return {folder / name: truth for folder in folders for name, truth in load_truths(folder).items()}


def _cached(name: str, make: Callable[[Path], Iterable[Case]]) -> list[Case]:
    """The folder of that name, made by whoever comes first: the other processes wait for it."""
    version = ffmpeg_version()
    if version is None:
        raise FileNotFoundError(NO_FFMPEG)
    root = _CACHE / _key(version)
    _CACHE.parent.mkdir(parents=True, exist_ok=True)
    with _alone(_CACHE.with_suffix(".lock")):
        if not root.exists():
            # sets of earlier generators, a quarter of a gigabyte each
            shutil.rmtree(_CACHE, ignore_errors=True)
            root.mkdir(parents=True)
    folder, unfinished = root / name, root / f"{name}.unfinished"
    with _alone(root / f"{name}.lock"):
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            save_cases(unfinished, make(unfinished))
            # in a process of its own: a decoder that dies on a damaged file must not take the tests along
            subprocess.run([sys.executable, "-m", "tests.hostile.truth", unfinished], check=True, cwd=_ROOT)
            unfinished.rename(folder)
    return load_cases(folder)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is in here with the same path."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key(version: str) -> str:
    """Another generator, another ffmpeg or another PyAV make another set."""
    here = Path(__file__).parent
    known = hashlib.sha256(f"{version} {av.__version__} {av.ffmpeg_version_info}".encode())
    for path in [*sorted(here.glob("*.py")), *sorted((here / "cases").glob("*"))]:
        if path.stem in _MAKERS or path.parent != here:
            known.update(path.read_bytes())
    return known.hexdigest()[:16]


def _make_seeds(folder: Path) -> Iterable[Case]:
    raw = raw_video(ALL)
    for name, options in SEEDS.items():
        if encode(folder / name, f"{options} -pix_fmt yuv420p" if "-c:v" in options else options, raw):
            yield Case(folder / name, "seed", "frames", ALL)
    (folder / "secret").mkdir()
    secret = raw_video([SECRET_CODE] * NUM_FRAMES, first=1000)
    encode(folder / "secret" / "secret.mp4", X264, secret)
    encode(folder / "secret" / "secret.ts", X264, secret)


def _make_specials(folder: Path) -> Iterable[Case]:
    healthy = seeds()[0].path.parent
    yield from awkward(folder, mp4=healthy / "h264.mp4", avi=healthy / "mpeg4.avi")
    yield from bad(folder, mp4=healthy / "h264.mp4", ts=healthy / "h264.ts")


def _make_mutants(folder: Path, seed: int, count: int) -> Iterable[Case]:
    parents = {case.path.name: case.path.read_bytes() for case in seeds()}
    names = itertools.islice(itertools.cycle(sorted(parents)), count)
    for number, parent in enumerate(names):
        kind, data = damage(parents[parent], random.Random(f"{seed}/{number}"))
        path = folder / f"{seed}_{number:04d}_{kind}_{parent}"
        path.write_bytes(data)
        yield Case(path, "mutant", "either", parent=parent)


def _copy_found(folder: Path) -> Iterable[Case]:
    for path in sorted((Path(__file__).parent / "cases").glob("*")):
        shutil.copy(path, folder)
        yield Case(folder / path.name, "found", "either")
