"""The separable score."""

from inspect import unwrap

import pytest
import torch

from videolm.heads.retrieval import similarity


@pytest.fixture(autouse=True)
def _same_numbers_every_run() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_similarity_is_the_cosine_of_every_pair(dtype: torch.dtype) -> None:
    text, video = torch.randn(5, 7).to(dtype), 3 * torch.randn(4, 7).to(dtype)
    expected = torch.cosine_similarity(text.double()[:, None], video.double()[None], dim=-1)
    scores = similarity(text, video)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-6)


def test_a_vector_is_most_similar_to_itself_and_least_to_its_opposite() -> None:
    vectors = torch.randn(6, 8)
    torch.testing.assert_close(similarity(vectors, vectors).diag(), torch.ones(6))
    torch.testing.assert_close(similarity(vectors, -vectors).diag(), -torch.ones(6))


def test_zero_scores_zero_and_nan_stays() -> None:
    video = torch.randn(2, 3)
    assert similarity(torch.zeros(1, 3), video).eq(0).all()
    assert similarity(torch.full((1, 3), torch.nan), video).isnan().all()


def test_different_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"text has 3 columns but video 4"):
        unwrap(similarity)(torch.zeros(1, 3), torch.zeros(1, 4))
