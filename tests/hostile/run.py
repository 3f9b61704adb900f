"""`make hostile`: the whole set and 2,000 more damaged copies, with every decoder.

Prints what came of them as a table, and ends with 1 where something was wrong. Names as arguments take the place
of all decoders.
"""

from __future__ import annotations

import faulthandler
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.hostile.build import NO_FFMPEG, found, mutants, seeds, slow_bombs, specials
from tests.hostile.hunt import DECODERS, Bag, hunt
from tests.hostile.judge import FINE, WRONG
from tests.hostile.pictures import ffmpeg_version
from videolm.video.readers import available_decoders

_MAX_SECONDS_A_DECODER = 600


def main(names: list[str]) -> int:
    """Build what is missing, hunt with each decoder, print the tables."""
    if ffmpeg_version() is None:
        _say(f"not run: {NO_FFMPEG}")
        return 1
    started = time.monotonic()
    cases = [*seeds(), *specials(), *slow_bombs(), *found(), *mutants(0, 600), *mutants(11, 2000)]
    _say(f"{len(cases)} files made in {time.monotonic() - started:.0f} s by {ffmpeg_version()}")
    bags: dict[str, Bag] = {}
    for decoder in DECODERS:
        if names and decoder not in names:
            continue
        version = available_decoders().get(decoder, "")
        if version.startswith("cannot be used"):
            _say(f"{decoder}: {version}")
            continue
        started = time.monotonic()
        # a hang of this process, which nothing may bring about, ends it too
        faulthandler.dump_traceback_later(_MAX_SECONDS_A_DECODER, exit=True)
        with tempfile.TemporaryDirectory() as folder:
            bags[decoder] = hunt(cases, decoder=decoder, folder=Path(folder))
        faulthandler.cancel_dump_traceback_later()
        _say(
            f"{f'{decoder} {version}'.strip()}: {_summary(bags[decoder])}, {time.monotonic() - started:.0f} s"
        )
    _say(_table("damaged copies", bags, damaged=True))
    _say(_table("all others", bags, damaged=False))
    faults = [f"{decoder}: {fault}" for decoder, bag in bags.items() for fault in bag.faults()]
    _say("\n".join([*faults, f"{len(faults)} violations"]))
    return 1 if faults else 0


def _summary(bag: Bag) -> str:
    longest = max(bag.answers, key=lambda answer: answer.waited_seconds)
    return (
        f"{len(bag.answers)} files, longest answer {longest.waited_seconds:.1f} s ({longest.case.path.name!r}), "
        f"{bag.toll.peak_bytes / 2**20:.0f} MiB more in the parent at most, "
        f"{bag.toll.num_processes} processes left, traps sprung: {bag.sprung or 'none'}"
    )


def _table(title: str, bags: Mapping[str, Bag], *, damaged: bool) -> str:
    counts = {
        decoder: Counter(
            answer.verdict.outcome for answer in bag.answers if (answer.case.kind == "mutant") == damaged
        )
        for decoder, bag in bags.items()
    }
    width = max(len(text) for text in [*FINE.values(), *WRONG.values()]) + 18
    lines = ["", f"{title:<{width}}" + "".join(f"{decoder:>12}" for decoder in counts)]
    for outcomes, prefix in ((FINE, ""), (WRONG, "WRONG ")):
        for outcome, meaning in outcomes.items():
            cells = "".join(f"{count[outcome]:>12}" for count in counts.values())
            lines.append(f"{f'{prefix}{outcome}: {meaning}':<{width}}{cells}")
    total = "".join(f"{count.total():>12}" for count in counts.values())
    return "\n".join([*lines, f"{'files':<{width}}{total}"])


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
