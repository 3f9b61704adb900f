from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from videolm.search import progress as progress_module
from videolm.search.progress import Progress


def test_off_a_terminal_a_line_comes_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    with Progress(2000, show=None) as progress:
        for number in range(100):
            now += 0.5
            progress.advance(failed=number % 10 == 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["60 of 2,000 videos, 6 failed, 2.0 videos/s, 0:16:10 left"]
    assert progress.line().startswith("100 of 2,000 videos, 10 failed, 2.0 videos/s, 0:15:50 left")


@pytest.mark.parametrize("total", [3, None])
def test_nothing_is_shown_when_it_is_not_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, total: int | None
) -> None:
    monkeypatch.setattr(progress_module, "_SECONDS_BETWEEN_LINES", 0.0)
    with Progress(total, show=False) as progress:
        progress.advance(failed=False)
    assert capsys.readouterr().err == ""


def test_the_bar_says_failures_and_the_share_of_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2, show=True) as progress:
        for failed in progress.timed([True, False]):
            progress.advance(failed=failed)
    shown = capsys.readouterr().err
    assert re.search(r"2/2 .*video/s, failed=1, waiting=\d+%", shown)
    assert progress.line().endswith("% of the time waiting for frames")


def test_waiting_that_was_not_timed_is_not_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, show=True) as progress:
        progress.advance(failed=False)
    assert "waiting" not in capsys.readouterr().err + progress.line()


def test_only_the_time_until_an_item_comes_counts_as_waiting() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    with Progress(None, show=False) as progress:
        for _ in progress.timed(slow()):
            time.sleep(0.05)
    assert 0.35 < progress.waiting_share < 0.65
    assert progress.line().startswith("0 videos, 0 failed")
