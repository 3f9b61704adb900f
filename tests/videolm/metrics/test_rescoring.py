"""Dual softmax and querybank normalisation against their formulas in float64, and what they are good for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videolm.metrics.rescoring import build_querybank, dual_softmax, querybank_norm
from videolm.metrics.retrieval import matrix_blocks, ranks_of_targets, text_to_video


def scores(num_rows, num_columns, seed=0):
    return np.random.default_rng(seed).uniform(-0.2, 0.6, (num_rows, num_columns)).astype(np.float32)


def whole(blocks, num_rows):
    return blocks(0, num_rows)


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 10), st.sampled_from([1.0, 20.0, 100.0]))
def test_dual_softmax_is_the_score_times_its_softmax_over_the_queries(
    num_texts, num_videos, block_size, scale
):
    similarity = scores(num_texts, num_videos)
    power = np.exp(scale * similarity.astype(np.float64))
    for queries, axis in (("texts", 0), ("videos", 1)):
        blocks = dual_softmax(
            matrix_blocks(similarity),
            num_texts=num_texts,
            queries=queries,
            scale=scale,
            block_size=block_size,
        )
        expected = similarity * power / power.sum(axis=axis, keepdims=True)
        np.testing.assert_allclose(whole(blocks, num_texts), expected, rtol=1e-9, atol=1e-300)
        if num_texts > 1:
            np.testing.assert_allclose(blocks(1, num_texts), expected[1:], rtol=1e-9, atol=1e-300)


def test_dual_softmax_makes_no_ties_where_its_weights_are_beyond_float32():
    similarity = np.linspace(0.1, 0.9, 300, dtype=np.float32).reshape(100, 3)
    rescored = whole(
        dual_softmax(matrix_blocks(similarity), num_texts=100, queries="texts", scale=200.0), 100
    )
    assert len(np.unique(rescored)) == 300
    assert rescored.min() < np.finfo(np.float32).tiny


def test_querybank_norm_is_the_published_quotient_for_queries_that_find_a_hub_first():
    bank_scores, similarity, beta = scores(40, 12, seed=1), scores(25, 12, seed=2), 20.0
    # items 0 and 5 are what the bank asks for, and 5 what some of the queries find
    bank_scores[:, [0, 5]] += 1
    similarity[::3, 5] += 1
    rescored = whole(
        querybank_norm(
            matrix_blocks(similarity), build_querybank(matrix_blocks(bank_scores), num_queries=40, beta=beta)
        ),
        25,
    )
    quotient = np.exp(beta * similarity.astype(np.float64)) / np.exp(
        beta * bank_scores.astype(np.float64)
    ).sum(0)
    changed = np.isin(similarity.argmax(axis=1), bank_scores.argmax(axis=1))
    assert 0 < changed.sum() < 25
    targets = np.arange(25) % 12
    expected = np.where(changed[:, None], quotient, similarity)
    np.testing.assert_allclose(np.exp(rescored[changed]), quotient[changed], rtol=1e-9)
    np.testing.assert_array_equal(rescored[~changed], similarity[~changed])
    assert (ranks_of_targets(rescored, targets) == ranks_of_targets(expected, targets)).all()


@pytest.mark.parametrize("block_size", [1, 7, 64])
def test_a_bank_is_the_same_in_blocks(block_size):
    bank_scores = scores(40, 12)
    one, other = (
        build_querybank(matrix_blocks(bank_scores), num_queries=40, top_k=2, block_size=size)
        for size in (block_size, 40)
    )
    np.testing.assert_allclose(one.log_sum, other.log_sum, rtol=1e-12)
    assert (one.is_active == other.is_active).all()
    assert set(np.flatnonzero(one.is_active)) == set(np.argsort(-bank_scores, axis=1)[:, :2].ravel())


def test_both_mend_a_video_that_is_near_to_everything():
    generator = np.random.default_rng(0)
    similarity = np.eye(50, dtype=np.float32) + 0.1 * generator.random((50, 50), dtype=np.float32)
    similarity[:, 7] += 2
    bank = 0.1 * generator.random((200, 50), dtype=np.float32)
    bank[:, 7] += 2
    blocks, targets = matrix_blocks(similarity), np.arange(50)
    assert text_to_video(similarity, targets).r1 == 2
    mended = (
        dual_softmax(blocks, num_texts=50, queries="texts", scale=20.0),
        querybank_norm(blocks, build_querybank(matrix_blocks(bank), num_queries=200)),
    )
    for rescored in mended:
        assert text_to_video(whole(rescored, 50), targets).r1 >= 98


def test_the_matrix_that_comes_in_is_not_changed():
    similarity = scores(6, 4)
    before = similarity.copy()
    bank = build_querybank(matrix_blocks(similarity), num_queries=6)
    whole(querybank_norm(matrix_blocks(similarity), bank), 6)
    whole(dual_softmax(matrix_blocks(similarity), num_texts=6, queries="texts"), 6)
    np.testing.assert_array_equal(similarity, before)


def test_an_empty_bank_is_an_error():
    with pytest.raises(ValueError, match=r"num_queries \(0\)"):
        build_querybank(matrix_blocks(np.zeros((0, 3), np.float32)), num_queries=0)
