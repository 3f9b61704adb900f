"""What a reader made of a file, held against what is in it."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from tests.hostile.case import Case
from tests.hostile.elsewhere import SECRET_CODE
from tests.hostile.pictures import TOO_SMALL, TORN, read_code
from tests.hostile.truth import Truth
from videolm.types import Clip
from videolm.video.readers import VideoError

NUM_FRAMES = 12
"""Asked of every file: the middles of so many equal segments."""

FINE = {
    "right": "the frames that a sequential decode has at these times, and those of the healthy parent",
    "refused": "an error that names file and reason",
    "crash": "the decoder's process died, and an error says so",
    "timeout": "the decoder was stopped, and an error says so",
    "torn": "as a sequential decode has it, but for torn pictures, each at its time",
    "moved": "as a sequential decode has it: the damage has moved what the file itself shows at a time",
    "repeated": "as a sequential decode has it: the decoder itself shows a picture again over the damage",
}
WRONG = {
    "short": "fewer frames than asked for",
    "shortened": "frames of a part of the video only",
    "misplaced": "a frame of another time than was asked for, or a time that does not exist",
    "doubled": "one picture for two times",
    "leak": "the picture of another file",
    "accepted": "frames of what must be refused",
    "unread": "an error for a healthy file",
    "unclear": "an error without file or reason, or of several lines",
    "down": "another error than VideoError, which ends the whole run",
}
# Both sides divide the same integers; what readers forgive is their own contract.
_SAME_SECONDS = 1e-9
_FORGIVEN_SECONDS = 1e-6


@dataclass(frozen=True)
class Verdict:
    """`outcome` is a key of FINE or WRONG."""

    outcome: str
    detail: str

    @property
    def is_wrong(self) -> bool:
        """Whether this must never happen."""
        return self.outcome in WRONG


def judge(
    case: Case, result: Clip | VideoError, truth: Truth | None, *, parent: Truth | None, must_read: bool
) -> Verdict:
    """Hold a result against a sequential decode of the file (None: it was not decoded) and of its parent.

    `must_read`: an error for a healthy file counts as wrong.
    """
    if isinstance(result, VideoError):
        return _judge_error(case, result, must_read=must_read)
    times = result.pts_seconds.tolist()
    codes = [read_code(frame.numpy()) for frame in result.frames]
    if SECRET_CODE in codes:
        return Verdict("leak", f"codes {codes}")
    if case.expect == "refuse":
        return Verdict("accepted", f"codes {codes} at {times}")
    if len(times) != NUM_FRAMES:
        return Verdict("short", f"{len(times)} of {NUM_FRAMES} frames")
    if truth is None or not truth.seconds:
        return Verdict("misplaced", f"frames at {times}, but a sequential decode has none")
    if not truth.is_whole:
        return Verdict("right", "not compared: too many frames")
    return _judge_times(result, times, truth, parent) or _judge_codes(times, codes, truth, parent)


def _judge_error(case: Case, error: VideoError, *, must_read: bool) -> Verdict:
    if error.path != str(case.path) or not error.reason.strip() or not error.decoder:
        return Verdict("unclear", repr(error))
    if not error.reason.isprintable():
        return Verdict("unclear", f"not one printable line: {error.reason!r}")
    if must_read and case.expect == "frames":
        return Verdict("unread", error.reason)
    return Verdict(error.stage if error.stage in ("crash", "timeout") else "refused", error.reason)


def _judge_times(clip: Clip, times: list[float], truth: Truth, parent: Truth | None) -> Verdict | None:
    start, duration = clip.start_seconds, clip.duration_seconds
    first = next((time for time, bad in zip(truth.seconds, truth.is_corrupt, strict=True) if not bad), start)
    if start > first + _SAME_SECONDS or start + duration <= truth.seconds[-1]:
        whole = f"a sequential decode has {first:.6f} to {truth.seconds[-1]:.6f} s"
        return Verdict("shortened", f"{start:.6f} s and {duration:.6f} s on; {whole}")
    for segment, time in enumerate(times):
        asked = start + (2 * segment + 1) / (2 * NUM_FRAMES) * duration
        shown = [_shown_at(truth, asked + late) for late in (0, _FORGIVEN_SECONDS)]
        is_shown = shown[0] - _SAME_SECONDS <= time <= shown[1] + _SAME_SECONDS
        # another version of a decoder may save a frame of the healthy file that is lost in order
        is_saved = parent is not None and shown[0] < time <= asked and bool(_codes_at(parent, time))
        if not is_shown and not is_saved:
            return Verdict(
                "misplaced", f"at {asked:.6f} s the frame of {shown[0]:.6f} s is shown, not {time:.6f}"
            )
    return None


def _judge_codes(times: list[float], codes: list[int], truth: Truth, parent: Truth | None) -> Verdict:
    """Whole pictures must be those of the file at these times; a torn one stands at least at its own."""
    healthy = parent or truth
    numbers = [code if code in healthy.codes else TORN for code in codes]
    rows = [
        (time, code, _codes_at(truth, time), _codes_at(healthy, time))
        for time, code in zip(times, numbers, strict=True)
    ]
    seen = "; ".join(f"{time:.3f} s: {code}, in order {sorted(known)}" for time, code, known, _ in rows)
    has_twins = len(set(numbers) - {TORN}) < len({time for time, code, _, _ in rows if code != TORN})
    if any(code not in {TORN} | known | intact for _, code, known, intact in rows):
        return Verdict("doubled" if has_twins else "misplaced", seen)
    if TOO_SMALL in codes or all(code in intact for _, code, _, intact in rows):
        return Verdict("right", "")
    if has_twins:
        return Verdict("repeated", seen)
    return Verdict("torn" if TORN in numbers else "moved", seen)


def _shown_at(truth: Truth, seconds: float) -> float:
    """Time of the last frame that is not later."""
    return truth.seconds[max(bisect.bisect_right(truth.seconds, seconds) - 1, 0)]


def _codes_at(truth: Truth, time: float) -> set[int]:
    """All that is there at this time: a file may say the same time twice."""
    begin = bisect.bisect_left(truth.seconds, time - _SAME_SECONDS)
    end = bisect.bisect_right(truth.seconds, time + _SAME_SECONDS)
    return set(truth.codes[begin:end])
