from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videolm.pipeline.segments import Span, segments, windows


def tiles(spans: list[Span], start: float, end: float) -> bool:
    return (
        spans[0][0] == start
        and spans[-1][1] == end
        and all(before[1] == after[0] for before, after in pairwise(spans))
        and all(first < last for first, last in spans)
    )


def scenes(*lengths: int, noise: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Frame embeddings of scenes that have nothing in common, with some noise within."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.cat([torch.eye(len(lengths))[i].expand(n, -1) for i, n in enumerate(lengths)])
    return rows + noise * torch.randn(rows.shape, generator=generator)


def cut(embeddings: torch.Tensor, *, fps: float = 2.0, min_seconds: float = 1.0) -> list[Span]:
    seconds = torch.arange(len(embeddings), dtype=torch.float64) / fps
    return segments(embeddings, seconds, start=0.0, end=len(embeddings) / fps, min_seconds=min_seconds)


# windows


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (3.0, [(0, 3)]),
        (8.0, [(0, 4), (4, 8)]),
        (9.9, [(0, 4), (4, 9.9)]),
        (10.0, [(0, 4), (4, 8), (8, 10)]),
        (0.0, [(0, 0)]),
    ],
)
def test_a_rest_shorter_than_half_a_window_belongs_to_the_last(end: float, expected: list[Span]) -> None:
    assert windows(0.0, end, window=4.0) == expected


@given(st.floats(-100, 100), st.floats(0.01, 1000), st.floats(0.5, 50))
def test_windows_tile_the_video_and_are_at_most_half_longer(
    start: float, duration: float, window: float
) -> None:
    spans = windows(start, start + duration, window=window)
    assert tiles(spans, start, start + duration)
    assert all(last - first < 1.5 * window + 1e-6 for first, last in spans)


def test_there_are_not_more_windows_than_can_be_held() -> None:
    assert len(windows(0.0, 100_000.0, window=1)) == 100_000
    with pytest.raises(
        ValueError, match=r"window \(1e-08\) makes 600,000,000 windows of 6.0 s; at most 100,000"
    ):
        windows(0.0, 6.0, window=1e-8)


@pytest.mark.parametrize("window", [0, -1.0, float("nan"), float("inf")])
def test_a_window_is_a_number_of_seconds(window: float) -> None:
    with pytest.raises(ValueError, match=r"window \(.*\) must be a number of seconds above 0"):
        windows(0.0, 1.0, window=window)


# segments


def test_cuts_lie_halfway_between_the_frames_of_two_scenes() -> None:
    assert cut(scenes(4, 6, 3)) == [(0, 1.75), (1.75, 4.75), (4.75, 6.5)]


def test_one_scene_is_one_segment() -> None:
    assert cut(scenes(12)) == [(0, 6.0)]
    assert cut(scenes(12, noise=0.02)) == [(0, 6.0)]


def test_what_changes_all_the_time_has_no_cuts_but_a_larger_change_is_one() -> None:
    angles = torch.cat([torch.arange(8) * 0.4, torch.arange(8) * 0.4 + 2.0 + 7 * 0.4])
    turning = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert cut(turning[:8]) == [(0, 4.0)]
    assert cut(turning) == [(0, 3.75), (3.75, 8.0)]


def test_of_cuts_too_close_the_larger_change_stays() -> None:
    embeddings = torch.tensor([[1.0, 0, 0]] * 6 + [[0.6, 0.8, 0]] * 2 + [[0, 0, 1.0]] * 8)
    assert cut(embeddings, fps=4) == [(0, 1.875), (1.875, 4)]
    assert len(cut(embeddings, fps=4, min_seconds=0.5)) == 3


@pytest.mark.parametrize("after", [0, 2], ids=["the same", "another"])
def test_of_the_cuts_around_a_shot_of_one_frame_the_earlier_stays(after: int) -> None:
    rows = torch.eye(3)[[0] * 6 + [1] + [after] * 6]
    assert cut(rows) == [(0, 2.75), (2.75, 6.5)]
    assert cut(rows, min_seconds=0.5) == [(0, 2.75), (2.75, 3.25), (3.25, 6.5)]


def test_where_frames_lie_far_apart_every_change_may_be_a_cut() -> None:
    rows = torch.eye(5)[[0] * 6 + [1, 2, 3] + [4] * 6]
    assert cut(rows) == [(0, 7.5)]
    assert [end for _, end in cut(rows, fps=0.1)] == [55, 65, 75, 85, 150]


def test_a_motion_that_goes_on_is_no_cut_however_large() -> None:
    angles = torch.tensor([0.0] * 6 + [1, 2, 3, 4] + [4.0] * 6)
    assert cut(torch.stack([angles.cos(), angles.sin()], dim=1)) == [(0, 8.0)]


def test_a_frame_that_is_shown_twice_is_one() -> None:
    embeddings = scenes(3, 3)
    twice = embeddings.repeat_interleave(2, dim=0)
    seconds = (torch.arange(6, dtype=torch.float64)).repeat_interleave(2)
    expected = segments(embeddings, torch.arange(6, dtype=torch.float64), start=0.0, end=6.0)
    assert segments(twice, seconds, start=0.0, end=6.0) == expected == [(0, 2.5), (2.5, 6)]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.floats(0, 2), st.integers(0, 9))
def test_segments_tile_the_video_and_are_as_long_as_asked(
    lengths: list[int], noise: float, seed: int
) -> None:
    embeddings = scenes(*lengths, noise=noise, seed=seed)
    spans, end = cut(embeddings), len(embeddings) / 2.0
    assert tiles(spans, 0.0, end)
    assert len(spans) == 1 or all(last - first >= 1.0 for first, last in spans)


@given(st.integers(0, 20), st.floats(0.1, 100))
def test_neither_length_nor_rotation_of_the_embeddings_matters(seed: int, scale: float) -> None:
    embeddings = scenes(3, 4, 5, noise=0.1, seed=seed).double()
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    assert cut(scale * embeddings @ rotation) == cut(embeddings)
