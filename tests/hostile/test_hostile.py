"""A hundred and more hostile files through the decode workers: true frames or a VideoError, and nothing else."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.build import NO_FFMPEG, found, mutants, seeds, specials, truths
from tests.hostile.case import Case
from tests.hostile.damage import damage
from tests.hostile.elsewhere import SECRET_CODE
from tests.hostile.hunt import hunt
from tests.hostile.judge import NUM_FRAMES, judge
from tests.hostile.pictures import TORN, draw_bars, ffmpeg_version, read_code
from tests.hostile.truth import Truth
from videolm.types import Clip
from videolm.video.readers import VideoError, available_decoders

needs_ffmpeg = pytest.mark.skipif(ffmpeg_version() is None, reason=NO_FFMPEG)
NUM_MUTANTS = 200


@needs_ffmpeg
def test_hostile_files_give_true_frames_or_an_error_and_cost_nothing(tmp_path):
    cases = [*seeds(), *specials(), *found(), *mutants(0, NUM_MUTANTS)]
    bag = hunt(cases, decoder="auto", folder=tmp_path)
    assert bag.faults() == []
    assert len(bag.answers) > NUM_MUTANTS + 90
    # a reader that refuses everything would be safe too
    outcomes = Counter(a.verdict.outcome for a in bag.answers if a.case.kind == "mutant")
    assert outcomes["right"] > 0.25 * NUM_MUTANTS
    assert outcomes["refused"] > 0.25 * NUM_MUTANTS


@needs_ffmpeg
@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_the_other_decoders_give_nothing_wrong_of_the_files_that_once_broke_them(tmp_path, decoder):
    version = available_decoders()[decoder]
    if version.startswith("cannot"):
        pytest.skip(f"{decoder} {version}")
    two_by_two = [case for case in specials() if case.path.name == "two_by_two.mp4"]
    bag = hunt([*found(), *two_by_two], decoder=decoder, folder=tmp_path)
    assert bag.faults() == []
    assert len(bag.answers) > len(two_by_two) + 3


@needs_ffmpeg
def test_healthy_files_hold_what_the_generator_put_in():
    cases = [case for case in [*seeds(), *specials()] if case.codes is not None]
    known = truths(cases)
    assert {case.path.name: tuple(known[case.path].codes) for case in cases} == {
        case.path.name: case.codes for case in cases
    }
    assert len(cases) > 15


@given(st.binary(min_size=100, max_size=5000), st.integers(0, 10**6))
def test_damage_is_the_same_from_the_same_seed(data, seed):
    kind, copy = damage(data, random.Random(seed))
    assert (kind, copy) == damage(data, random.Random(seed))
    assert len(copy) <= 2 * len(data)


# The judge: each way to be wrong is seen. Its file has 100 frames at 25 Hz, frame n reads n.

TRUTH = Truth([n / 25 for n in range(100)], list(range(100)), [False] * 100, 0.04)
CASE = Case("/folder/file.mp4", "mutant", "either")
MIDDLES = [(2 * segment + 1) * 100 // (2 * NUM_FRAMES) for segment in range(NUM_FRAMES)]


def clip_of(codes, *, times=None, start=0.0, duration=4.0):
    """A clip whose frames show these codes; TORN is one whose bars contradict each other."""
    frames = np.zeros((len(codes), 48, 64, 3), np.uint8)
    for frame, code in zip(frames, codes, strict=True):
        draw_bars(frame, 0 if code == TORN else code)
        if code == TORN:
            frame[24:] = 235
    assert [read_code(frame) for frame in frames] == codes
    pts_seconds = torch.tensor(times or [n / 25 for n in MIDDLES[: len(codes)]], dtype=torch.float64)
    return Clip(torch.from_numpy(frames), pts_seconds, duration, "file.mp4", start)


def changed(position, value):
    return [value if index == position else code for index, code in enumerate(MIDDLES)]


def outcome_of(result, *, case=CASE, truth=TRUTH, parent=TRUTH, must_read=True):
    return judge(case, result, truth, parent=parent, must_read=must_read).outcome


def error(reason="it is damaged", *, path="/folder/file.mp4", stage="decode"):
    return VideoError(path, stage, reason, "pyav")


def test_the_frames_of_a_sequential_decode_are_right():
    assert outcome_of(clip_of(MIDDLES)) == "right"
    assert outcome_of(clip_of(changed(3, TORN))) == "torn"


def test_what_the_file_itself_shows_otherwise_than_its_parent_is_told_apart():
    moved = replace(TRUTH, codes=[n + 1 for n in range(100)])
    assert outcome_of(clip_of([n + 1 for n in MIDDLES]), truth=moved) == "moved"
    frozen = replace(TRUTH, codes=[min(n, 40) for n in range(100)])
    assert outcome_of(clip_of([min(n, 40) for n in MIDDLES]), truth=frozen) == "repeated"


@pytest.mark.parametrize(
    ("wrong", "clip"),
    {
        "short": clip_of(MIDDLES[:7]),
        "shortened": clip_of([n // 2 for n in MIDDLES], times=[n // 2 / 25 for n in MIDDLES], duration=2.0),
        "misplaced": clip_of(changed(5, 46)),
        "doubled": clip_of(changed(5, MIDDLES[4])),
        "leak": clip_of(changed(5, SECRET_CODE)),
    }.items(),
)
def test_frames_that_are_not_those_asked_for_are_wrong(wrong, clip):
    assert outcome_of(clip) == wrong


def test_a_frame_of_another_time_is_misplaced_even_with_its_own_time():
    later = changed(5, 46)
    assert outcome_of(clip_of(later, times=[n / 25 for n in later])) == "misplaced"


def test_a_time_that_no_frame_has_is_misplaced():
    assert outcome_of(clip_of(MIDDLES, times=[n / 25 + 0.01 for n in MIDDLES])) == "misplaced"
    assert outcome_of(clip_of(MIDDLES), truth=None) == "misplaced"


def test_a_frame_of_the_healthy_file_may_be_saved_though_it_is_lost_in_order():
    kept = [n for n in range(100) if n != MIDDLES[5]]
    lossy = Truth([n / 25 for n in kept], kept, [False] * 99, 0.04)
    assert outcome_of(clip_of(MIDDLES), truth=lossy) == "right"
    # but what is shown then must be that frame, and not the one before
    assert outcome_of(clip_of(changed(5, MIDDLES[5] - 1)), truth=lossy) == "misplaced"


def test_a_file_that_must_be_refused_gives_no_frames_at_all():
    assert outcome_of(clip_of(MIDDLES), case=replace(CASE, expect="refuse")) == "accepted"
    assert outcome_of(error(), case=replace(CASE, expect="refuse")) == "refused"


def test_a_healthy_file_may_not_be_refused_by_who_must_read_it():
    healthy = replace(CASE, expect="frames")
    assert outcome_of(error(), case=healthy) == "unread"
    assert outcome_of(error(), case=healthy, must_read=False) == "refused"


@pytest.mark.parametrize("stage", ["timeout", "crash"])
def test_a_stopped_decoder_is_told_apart(stage):
    assert outcome_of(error(stage=stage)) == stage


@pytest.mark.parametrize("bad", [error(""), error("two\nlines"), error("\x1b[31m"), error(path="other.mp4")])
def test_an_error_must_say_file_and_reason_in_one_line(bad):
    assert outcome_of(bad) == "unclear"
