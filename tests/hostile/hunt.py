"""All files through the decode workers with one decoder: each answer judged and timed, every trap looked at."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.hostile.build import secret_folder, seeds, truths
from tests.hostile.case import Case
from tests.hostile.elsewhere import write_elsewhere, write_no_files
from tests.hostile.judge import NUM_FRAMES, Verdict, judge
from tests.hostile.toll import Toll, pay_toll
from tests.hostile.traps import Traps
from videolm.types import Clip
from videolm.video.isolation import read_clips
from videolm.video.readers import Limits, VideoError
from videolm.video.readers.guard import Decoder
from videolm.video.samplers import Sampler

LIMITS = Limits(timeout_seconds=10.0)
DECODERS: tuple[Decoder, ...] = ("auto", "pyav", "decord", "torchcodec")
READS_ALL: tuple[Decoder, ...] = ("auto", "pyav")
"""These refuse no healthy file."""

# Of the damaged copies, measured 0.9 % and 0.1 %: what a reader cannot see where the file itself says so.
_MAX_PARTS = {"moved": 0.015, "repeated": 0.005}
_MAX_PEAK_BYTES = 300 * 1024**2


@dataclass(frozen=True)
class Answer:
    """What came of one file."""

    case: Case
    verdict: Verdict
    waited_seconds: float
    """Since the answer before it."""


@dataclass
class Bag:
    """What came of all files."""

    answers: list[Answer] = field(default_factory=list)
    toll: Toll = field(default_factory=Toll)
    sprung: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Everything that must not be, one line each."""
        faults = [f"somebody left his file: {what}" for what in self.sprung]
        for answer in self.answers:
            name = f"{answer.case.path.parent.name}/{answer.case.path.name!r}"
            if answer.verdict.is_wrong:
                faults.append(f"{name}: {answer.verdict.outcome}: {answer.verdict.detail}")
            if answer.waited_seconds > LIMITS.timeout_seconds + 1:
                faults.append(f"{name}: answered after {answer.waited_seconds:.1f} s")
        damaged = [answer.verdict.outcome for answer in self.answers if answer.case.kind == "mutant"]
        for outcome, part in _MAX_PARTS.items():
            if damaged.count(outcome) > part * len(damaged):
                faults.append(f"{damaged.count(outcome)} of {len(damaged)} {outcome}, {part:.0%} allowed")
        if self.toll.peak_bytes > _MAX_PEAK_BYTES:
            faults.append(f"{self.toll.peak_bytes:,} bytes more in the parent, {_MAX_PEAK_BYTES:,} allowed")
        if self.toll.num_processes > 0 or self.toll.num_descriptors > 0:
            faults.append(f"left behind: {self.toll}")
        return faults


def hunt(cases: Sequence[Case], *, decoder: Decoder, folder: Path, workers: int = 2) -> Bag:
    """Read these files, and in the empty `folder` those that lead elsewhere, by the sampler `segment_middle`."""
    secrets, files = folder / "outside", folder / "files"
    shutil.copytree(secret_folder(), secrets)
    files.mkdir()
    bag = Bag()
    # starts the server of the workers, which stays
    list(_read([seeds()[0]], decoder=decoder, workers=workers))
    with pay_toll() as bag.toll:
        traps = Traps(secrets)
        made = [
            *write_elsewhere(
                files,
                seeds=seeds()[0].path.parent,
                secrets=secrets,
                tcp_port=traps.tcp_port,
                udp_port=traps.udp_port,
            ),
            *write_no_files(files),
        ]
        with traps:
            bag.answers += _read([*cases, *made], decoder=decoder, workers=workers)
    bag.sprung = traps.sprung
    return bag


def _read(cases: Sequence[Case], *, decoder: Decoder, workers: int) -> Iterator[Answer]:
    """An answer for every case; where a file ends the run, that is noted, and the next file begins another."""
    known = truths([*cases, *seeds()])
    parents = {case.path.name: known[case.path] for case in seeds()}
    before = time.monotonic()
    for case, result in _results(cases, decoder=decoder, workers=workers):
        waited = time.monotonic() - before
        if isinstance(result, Clip | VideoError):
            parent = parents[case.parent] if case.parent else None
            truth = known.get(case.path, parent)
            verdict = judge(case, result, truth, parent=parent, must_read=decoder in READS_ALL)
        else:
            verdict = Verdict("down", repr(result))
        yield Answer(case, verdict, waited)
        before = time.monotonic()


def _results(
    cases: Sequence[Case], *, decoder: Decoder, workers: int
) -> Iterator[tuple[Case, Clip | VideoError | Exception]]:
    num_done = 0
    while num_done < len(cases):
        clips = read_clips(
            (case.path for case in cases[num_done:]),
            sampler=Sampler("segment_middle", num_frames=NUM_FRAMES),
            decoder=decoder,
            limits=LIMITS,
            workers=workers,
        )
        try:
            for path, result in clips:
                case = cases[num_done]
                assert path == str(case.path)
                num_done += 1
                yield case, result
        # whatever comes, it is of this file: results come in order
        except Exception as error:
            num_done += 1
            yield cases[num_done - 1], error
