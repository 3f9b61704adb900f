import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videolm.types import VideoInfo
from videolm.video.samplers import (
    Sampler,
    fps_capped,
    keyframes,
    linspace_endpoints,
    multi_clip,
    one_fps_then_uniform,
    segment_middle,
    segment_random,
)


def make_info(*, num_frames, fps, start=0.0):
    return VideoInfo(
        path="a.mp4",
        container="mp4",
        codec="h264",
        width=4,
        height=4,
        rotation=0,
        pixel_aspect=1.0,
        num_frames=num_frames,
        fps=fps,
        start_seconds=start,
        last_seconds=start + (num_frames - 1) / fps,
        duration_seconds=num_frames / fps,
        times="stored",
        decoder="pyav",
    )


def shown(times, info):
    """What a reader shows at these times: the last frame whose time is not later, a microsecond forgiven."""
    pts = info.start_seconds + np.arange(info.num_frames) / info.fps
    return np.searchsorted(pts, times.numpy() + 1e-6, side="right") - 1


def key_times(info, *, every=12):
    """As a reader says them: every 12th frame."""
    return info.start_seconds + torch.arange(0, info.num_frames, every, dtype=torch.float64) / info.fps


RATES = [5.0, 12.0, 23.976, 24000 / 1001, 25.0, 30000 / 1001, 60.0, 240.0]
infos = st.builds(
    make_info,
    num_frames=st.integers(1, 5000),
    fps=st.sampled_from(RATES) | st.floats(0.1, 240),
    start=st.floats(-10, 10),
)
counts = st.integers(1, 64)
SAMPLERS = {
    "segment_middle": lambda info, count: segment_middle(info, num_frames=count),
    "segment_random": lambda info, count: segment_random(
        info, num_frames=count, generator=torch.Generator().manual_seed(count)
    ),
    "linspace_endpoints": lambda info, count: linspace_endpoints(info, num_frames=count),
    "one_fps_then_uniform": lambda info, count: one_fps_then_uniform(info, num_frames=count),
    "fps_capped": lambda info, count: fps_capped(info, fps=2.0, max_frames=count),
    "keyframes": lambda info, count: keyframes(info, num_frames=count, key_seconds=key_times(info)),
}


@pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS.keys())
@given(info=infos, count=counts)
def test_times_are_ascending_and_inside_the_video(sample, info, count):
    times = sample(info, count)
    assert times.dtype == torch.float64
    assert 1 <= len(times) <= count
    assert (times.diff() >= 0).all()
    assert times[0] >= info.start_seconds - 1e-6
    assert times[-1] <= info.start_seconds + info.duration_seconds + 1e-6
    assert torch.equal(times, sample(info, count))


@pytest.mark.parametrize("name", ["segment_middle", "segment_random", "linspace_endpoints", "keyframes"])
@given(info=infos, count=counts)
def test_as_many_times_as_asked_for(name, info, count):
    assert len(SAMPLERS[name](info, count)) == count


@pytest.mark.parametrize("fps", RATES)
def test_segment_middle_shows_the_middle_frame_of_each_segment(fps):
    for num_frames in range(1, 300):
        info = make_info(num_frames=num_frames, fps=fps, start=0.5)
        for count in (1, 3, 4, 7, 8, 12, 16, 32):
            expected = (2 * np.arange(count) + 1) * num_frames // (2 * count)
            np.testing.assert_array_equal(shown(segment_middle(info, num_frames=count), info), expected)


@pytest.mark.parametrize("fps", RATES)
def test_linspace_endpoints_shows_the_floored_positions(fps):
    for num_frames in range(1, 300):
        info = make_info(num_frames=num_frames, fps=fps)
        for count in (2, 3, 4, 8, 12, 16):
            expected = np.arange(count) * (num_frames - 1) // (count - 1)
            np.testing.assert_array_equal(shown(linspace_endpoints(info, num_frames=count), info), expected)


@given(info=infos, count=counts, seed=st.integers(0, 99))
def test_segment_random_draws_one_time_in_each_segment(info, count, seed):
    times = segment_random(info, num_frames=count, generator=torch.Generator().manual_seed(seed))
    position = (times - info.start_seconds) / info.duration_seconds * count
    index = torch.arange(count)
    assert (position >= index - 1e-6).all()
    assert (position <= index + 1 + 1e-6).all()


def test_segment_random_covers_a_segment_evenly():
    info = make_info(num_frames=100, fps=10.0)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([segment_random(info, num_frames=2, generator=generator) for _ in range(4000)])
    # 4000 uniform draws on [0, 5): the mean is 2.5 within 4 standard errors of 5 / sqrt(12 * 4000)
    assert draws[:, 0].mean().item() == pytest.approx(2.5, abs=4 * 5 / math.sqrt(12 * 4000))


@pytest.mark.parametrize(
    ("seconds", "num_frames", "expected"),
    [
        (3.0, 12, [0, 1, 2]),
        (3.2, 12, [0, 1, 2, 3]),
        (0.4, 12, [0]),
        (12.0, 12, list(range(12))),
        (30.0, 4, [0, 9, 19, 29]),
        (30.0, 1, [0]),
    ],
)
def test_one_fps_then_uniform_is_clip4clips(seconds, num_frames, expected):
    info = make_info(num_frames=round(seconds * 25), fps=25.0)
    assert one_fps_then_uniform(info, num_frames=num_frames).tolist() == expected


@given(seconds=st.integers(1, 900), num_frames=st.integers(2, 64))
def test_one_fps_then_uniform_keeps_the_seconds_that_numpy_linspace_keeps(seconds, num_frames):
    times = one_fps_then_uniform(make_info(num_frames=seconds * 25, fps=25.0), num_frames=num_frames)
    kept = np.arange(seconds)
    if seconds > num_frames:
        # the nudge: numpy's float positions fall below a whole number now and then
        kept = np.floor(np.linspace(0, seconds - 1, num_frames) + 1e-9)
    np.testing.assert_array_equal(times.numpy(), kept)


def test_fps_capped_keeps_the_rate_and_then_the_count():
    info = make_info(num_frames=250, fps=25.0, start=2.0)
    assert fps_capped(info, fps=0.5, max_frames=8).tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert torch.equal(fps_capped(info, fps=2.0, max_frames=8), linspace_endpoints(info, num_frames=8))


def test_fps_capped_does_not_build_the_times_it_drops():
    info = make_info(num_frames=10**6, fps=1.0)
    assert len(fps_capped(info, fps=1e12, max_frames=4)) == 4


@given(info=infos, num_clips=st.integers(1, 8), num_frames=st.integers(1, 16))
def test_multi_clip_interleaves_to_segment_middle(info, num_clips, num_frames):
    times = multi_clip(info, num_clips=num_clips, num_frames=num_frames)
    assert times.shape == (num_clips, num_frames)
    assert (times.diff(dim=1) >= 0).all()
    fine = segment_middle(info, num_frames=num_clips * num_frames)
    assert torch.equal(times.T.reshape(-1), fine)


def test_one_clip_of_multi_clip_is_segment_middle():
    info = make_info(num_frames=77, fps=25.0)
    assert torch.equal(multi_clip(info, num_clips=1, num_frames=9)[0], segment_middle(info, num_frames=9))


@given(info=infos, count=counts, data=st.data())
def test_keyframes_are_the_nearest_to_the_middles(info, count, data):
    offsets = st.floats(0, 1, exclude_max=True).map(
        lambda share: info.start_seconds + share * info.duration_seconds
    )
    keys = torch.tensor(sorted(data.draw(st.sets(offsets, min_size=1, max_size=9))), dtype=torch.float64)
    times = keyframes(info, num_frames=count, key_seconds=keys)
    middles = segment_middle(info, num_frames=count)
    nearest = (middles[:, None] - keys).abs().amin(dim=1)
    assert torch.equal((times - middles).abs(), nearest)
    assert torch.isin(times, keys).all()


def test_few_key_frames_repeat_and_a_tie_goes_to_the_earlier():
    info = make_info(num_frames=8, fps=1.0)
    keys = torch.tensor([0.0, 4.0], dtype=torch.float64)
    # the middles are 1, 3, 5, 7; then 2 and 6
    assert keyframes(info, num_frames=4, key_seconds=keys).tolist() == [0.0, 4.0, 4.0, 4.0]
    assert keyframes(info, num_frames=2, key_seconds=keys).tolist() == [0.0, 4.0]
    assert keyframes(info, num_frames=3, key_seconds=keys[1:]).tolist() == [4.0, 4.0, 4.0]
    with pytest.raises(ValueError, match=r"a.mp4: keyframes needs at least one key frame"):
        keyframes(info, num_frames=3, key_seconds=keys[:0])


CHOICES = [
    Sampler("segment_middle", num_frames=8),
    Sampler("segment_random", num_frames=8),
    Sampler("linspace_endpoints", num_frames=8),
    Sampler("one_fps_then_uniform", num_frames=8),
    Sampler("fps_capped", fps=2.0, max_frames=8),
    Sampler("keyframes", num_frames=8),
]


@pytest.mark.parametrize("sampler", CHOICES, ids=lambda sampler: sampler.kind)
def test_a_sampler_survives_json_and_gives_its_functions_times(sampler):
    again = Sampler(**json.loads(json.dumps(dataclasses.asdict(sampler))))
    assert again == sampler
    info = make_info(num_frames=250, fps=25.0)
    generator = torch.Generator().manual_seed(8)
    times = again(info, generator=generator, key_seconds=key_times(info))
    assert torch.equal(times, SAMPLERS[sampler.kind](info, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "segment_middle"}, "takes num_frames, got nothing"),
        ({"kind": "segment_middle", "num_frames": 8, "fps": 1.0}, "takes num_frames, got fps and num_frames"),
        ({"kind": "fps_capped", "num_frames": 8}, "takes fps and max_frames, got num_frames"),
        ({"kind": "segment_middle", "num_frames": 0}, r"num_frames \(0\) must be at least 1"),
        ({"kind": "fps_capped", "fps": 0.0, "max_frames": 2}, r"fps \(0.0\) must be positive"),
    ],
    ids=str,
)
def test_a_sampler_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**arguments)


def test_an_unknown_sampler_is_refused_with_the_known_ones():
    # TypeError where the type checker is switched on: it sees the wrong literal first
    with pytest.raises((ValueError, TypeError), match=r"(?s)segment_middle.*fps_capped"):
        Sampler("middle", num_frames=8)


def test_segment_random_asks_for_a_generator():
    with pytest.raises(ValueError, match=r"needs a generator=torch.Generator\(\)"):
        Sampler("segment_random", num_frames=2)(make_info(num_frames=9, fps=3.0))


def test_keyframes_asks_for_the_key_frames():
    with pytest.raises(ValueError, match=r"needs key_seconds=reader.key_pts_seconds"):
        Sampler("keyframes", num_frames=2)(make_info(num_frames=9, fps=3.0))
