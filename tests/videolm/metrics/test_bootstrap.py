"""Intervals against the resampling that they stand for, their width, and what a video's captions share."""

import numpy as np
import pytest

from videolm.metrics.bootstrap import bootstrap_intervals


def test_an_interval_is_that_of_drawing_queries_one_by_one():
    generator = np.random.default_rng(3)
    ranks = generator.geometric(0.2, size=300).astype(float)
    drawn = ranks[generator.integers(0, 300, (4000, 300))]
    intervals = bootstrap_intervals(ranks, num_resamples=4000)
    for name, values in (
        ("r1", 100 * (drawn <= 1).mean(axis=1)),
        ("r10", 100 * (drawn <= 10).mean(axis=1)),
        ("mean_rank", drawn.mean(axis=1)),
    ):
        assert intervals[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), rel=0.03)


def test_r1_of_a_thousand_queries_is_known_to_about_three_points():
    low, high = bootstrap_intervals(np.where(np.arange(1000) < 430, 1.0, 20.0))["r1"]
    # 1.96 standard errors of a share of 43 %
    assert (low, high) == pytest.approx((39.9, 46.1), abs=0.4)


def test_captions_of_one_video_are_drawn_together():
    # 50 videos with 20 captions each, all of one video's right or all wrong: 50 things are known and not 1,000
    ranks = np.repeat(np.where(np.arange(50) % 2, 1.0, 9.0), 20)
    videos = np.repeat(np.arange(50) * 7, 20)
    apart, together = (bootstrap_intervals(ranks, groups=groups)["r1"] for groups in (None, videos))
    assert together[1] - together[0] > 4 * (apart[1] - apart[0])


def test_videos_with_more_captions_weigh_more():
    ranks = np.array([1.0] * 9 + [2.0])
    intervals = bootstrap_intervals(ranks, groups=np.array([0] * 9 + [1]), confidence=0.2)
    assert intervals["r1"] == pytest.approx((90.0, 90.0))


def test_a_seed_gives_the_same_interval_and_another_seed_another():
    ranks = np.random.default_rng(0).geometric(0.1, size=200).astype(float)
    assert bootstrap_intervals(ranks) == bootstrap_intervals(ranks)
    assert bootstrap_intervals(ranks) != bootstrap_intervals(ranks, seed=1)


@pytest.mark.parametrize(
    ("ranks", "change", "message"),
    [
        (np.zeros(0), {}, "no query"),
        (np.ones(2), {"num_resamples": 0}, r"num_resamples \(0\)"),
        (np.ones(2), {"confidence": 1.0}, r"confidence \(1.0\)"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(ranks, change, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(ranks, **change)
