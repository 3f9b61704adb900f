"""How far a run over many videos is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0

Item = TypeVar("Item")


class Progress:
    """Counts videos and failures, and, with `timed`, the time that the model stood still for want of frames.

    `show=None` draws a bar where the error stream is a terminal, and elsewhere writes a line every 30 seconds;
    True always draws the bar, False shows nothing.
    """

    def __init__(self, total: int | None, *, show: bool | None) -> None:
        self.num_done = 0
        self.num_failed = 0
        self._total = total
        self._waited_seconds = 0.0
        self._is_timed = False
        self._started = self._last_line = time.monotonic()
        self._bar = tqdm(total=total, unit="video", disable=None if show is None else not show)
        self._writes_lines = show is None and self._bar.disable

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, *, failed: bool) -> None:
        """One more video is done with."""
        self.num_done += 1
        self.num_failed += failed
        waiting = {"waiting": f"{100 * self.waiting_share:.0f}%"} if self._is_timed else {}
        self._bar.set_postfix(failed=self.num_failed, **waiting, refresh=False)
        self._bar.update()
        if self._writes_lines and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            sys.stderr.write(f"{self.line()}\n")
            sys.stderr.flush()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time that each takes to come counts as waiting for frames."""
        self._is_timed = True
        iterator = iter(items)
        while True:
            started = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited_seconds += time.monotonic() - started
            yield item

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    @property
    def videos_per_second(self) -> float:
        """Failures included."""
        return self.num_done / max(self.seconds, 1e-9)

    @property
    def waiting_share(self) -> float:
        """Part of the time, in [0, 1], in which the model waited for frames."""
        return min(self._waited_seconds / max(self.seconds, 1e-9), 1.0)

    def line(self) -> str:
        """All of it in a sentence."""
        done = f"{self.num_done:,}" if self._total is None else f"{self.num_done:,} of {self._total:,}"
        text = f"{done} videos, {self.num_failed:,} failed, {self.videos_per_second:.1f} videos/s"
        if self._total is not None and self.num_done:
            left = (self._total - self.num_done) / self.videos_per_second
            text += f", {timedelta(seconds=round(left))} left"
        if self._is_timed:
            text += f", {100 * self.waiting_share:.0f} % of the time waiting for frames"
        return text
