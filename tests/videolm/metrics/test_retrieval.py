"""Ranks against brute force, hand-made ties, NaN, and what the usual rule makes of ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videolm.metrics.retrieval import (
    pair_accuracy,
    ranks_of_targets,
    scores_of_ranks,
    text_to_video,
    video_to_text,
)


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.lists(st.lists(st.integers(-3, 3), min_size=n, max_size=n), min_size=1, max_size=8),
            st.integers(0, n - 1),
        )
    )
)
def test_rank_is_the_mean_over_all_orders_of_a_tie(case):
    rows, target = case
    similarity = np.array(rows, dtype=np.float32)
    ranks = ranks_of_targets(similarity, np.full(len(rows), target))
    for row, rank in zip(similarity, ranks, strict=True):
        # first and last place that a sort could give the target
        best = 1 + sum(score > row[target] for score in row)
        worst = sum(score >= row[target] for score in row)
        assert rank == (best + worst) / 2


def test_a_constant_matrix_scores_like_chance_and_not_like_a_perfect_model():
    scores = text_to_video(np.zeros((100, 100), np.float32), np.arange(100))
    assert scores.r1 == 0
    assert scores.median_rank == scores.mean_rank == 50.5


def test_a_perfect_model_scores_a_hundred_in_both_directions():
    similarity = np.eye(20, dtype=np.float32)
    for scores in (text_to_video(similarity, np.arange(20)), video_to_text(similarity, np.arange(20))):
        assert (scores.r1, scores.r_sum, scores.median_rank) == (100.0, 300.0, 1.0)


def test_directions_differ_where_the_matrix_is_not_symmetric():
    similarity = np.array([[0.9, 0.1], [0.8, 0.2]], dtype=np.float32)
    assert text_to_video(similarity, np.arange(2)).r1 == 50
    assert video_to_text(similarity, np.arange(2)).r1 == 100


def test_hand_counted_recall():
    scores = scores_of_ranks(np.array([1.0, 1.5, 5.0, 10.0, 11.0]))
    assert (scores.r1, scores.r5, scores.r10) == (20.0, 60.0, 80.0)
    assert scores.median_rank == 5.0
    assert scores.mean_rank == pytest.approx(5.7)


def test_nan_is_an_error_that_names_the_row():
    similarity = np.zeros((3, 3), np.float32)
    similarity[1, 2] = np.nan
    with pytest.raises(ValueError, match="NaN in 1 rows, the first is 1"):
        text_to_video(similarity, np.arange(3))


def test_targets_must_match_the_queries():
    with pytest.raises(ValueError, match=r"targets \(2\)"):
        ranks_of_targets(np.zeros((3, 3), np.float32), np.arange(2))


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_that_is_no_item_is_an_error(target):
    with pytest.raises(ValueError, match=r"must be in \[0, 3\)"):
        ranks_of_targets(np.zeros((1, 3), np.float32), np.array([target]))


def test_no_query_is_an_error():
    with pytest.raises(ValueError, match="no query"):
        scores_of_ranks(np.zeros(0))


def test_a_tie_between_twins_counts_half():
    own, other = np.array([1.0, 0.5, 0.2]), np.array([0.0, 0.5, 0.3])
    assert pair_accuracy(own, other) == pytest.approx(50.0)
