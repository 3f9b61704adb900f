"""What is really in a file: every frame in order by plain PyAV, without the readers that are under test."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

from tests.hostile.case import Case, load_cases
from tests.hostile.pictures import read_code

# More would take minutes for a bomb; the files of the set have 100 frames, or 200.
_MAX_FRAMES = 1000
_TRUTHS = "truths.json"


@dataclass(frozen=True)
class Truth:
    """The frames that come out of a sequential decode, in order of time. Errors on the way are stepped over."""

    seconds: Sequence[float] = ()
    codes: Sequence[int] = ()
    """-1 where the picture is too small for a code."""
    is_corrupt: Sequence[bool] = ()
    last_duration: float = 0.0
    is_whole: bool = True
    """False: there are more frames than were looked at."""


def decode(case: Case) -> Truth:
    """Read a file from begin to end, one thread, no seeks."""
    rows: list[tuple[float, int, bool, float]] = []
    try:
        with av.open(str(case.path), metadata_errors="replace") as container:
            for frame in _frames(container):
                if frame.pts is None or frame.time_base is None:
                    continue
                seconds = float(frame.pts * frame.time_base)
                code = read_code(np.rot90(frame.to_ndarray(format="rgb24"), -case.turns))
                duration = float((frame.duration or 0) * frame.time_base)
                rows.append((seconds, code, frame.is_corrupt, duration))
                if len(rows) > _MAX_FRAMES:
                    return Truth((rows[0][0],), (rows[0][1],), (rows[0][2],), is_whole=False)
    # a damaged file raises anything; what came out of it until then is what is in it
    except Exception:
        pass
    rows.sort(key=lambda row: row[0])
    return Truth(
        tuple(row[0] for row in rows),
        tuple(row[1] for row in rows),
        tuple(row[2] for row in rows),
        rows[-1][3] if rows else 0.0,
    )


def save_truths(folder: Path) -> None:
    """Decode the files of a folder that may give frames, and write beside them what is in them."""
    cases = [case for case in load_cases(folder) if case.expect != "refuse"]
    rows = {case.path.name: asdict(decode(case)) for case in cases}
    (folder / _TRUTHS).write_text(json.dumps(rows), encoding="utf-8")


def load_truths(folder: Path) -> dict[str, Truth]:
    """What is known of the files of a folder, by name."""
    rows = json.loads((folder / _TRUTHS).read_text(encoding="utf-8"))
    return {name: Truth(**row) for name, row in rows.items()}


def _frames(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    # what is decoded before the first key frame is made of nothing
    for packet in itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream)):
        try:
            yield from packet.decode()
        except (av.FFmpegError, ValueError):
            continue


if __name__ == "__main__":
    save_truths(Path(sys.argv[1]))
