"""The kernels of token interaction against the reference in float64, in Triton's interpreter or on the device."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.interaction_problems import (
    SETTINGS,
    Problem,
    Shape,
    random_problem,
    scores_and_gradients,
)
from videolm_kernels import token_interaction
from videolm_kernels.testing import fused_tolerance, relative_error
from videolm_kernels.token_interaction import fused
from videolm_kernels.token_interaction.op import _backward_op, _forward_op

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# One of everything, items short of a tile and beyond one, full and partial rows, frames in chunks, more words than a
# tile holds, both sides at the limit.
SHAPES: tuple[Shape, ...] = (
    (1, 1, 1, 1, 1),
    (3, 1, 20, 5, 8),
    (2, 3, 5, 2, 40),
    (3, 33, 5, 12, 24),
    (3, 17, 9, 8, 20),
    (2, 5, 2, 150, 16),
    (2, 77, 2, 65, 33),
    (2, 140, 3, 6, 20),
    (1, 128, 2, 129, 16),
)

# What a softmax subtracts is about as large as what it is subtracted from: the roundings of exp2 stand alone.
FLOOR = 16 * torch.finfo(torch.float32).eps


def assert_as_good_as_torch(problem: Problem, **options: Any) -> None:
    ours = scores_and_gradients(problem, **options, backend="triton")
    plain = scores_and_gradients(problem, **options, backend="eager")
    truth = scores_and_gradients(problem.double(), **options, backend="reference")
    for value, eager, exact in zip(ours, plain, truth, strict=True):
        assert value.dtype == eager.dtype
        assert (
            relative_error(value, exact) <= fused_tolerance(value.dtype, relative_error(eager, exact)) + FLOOR
        )


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[5]], ids=str)
def test_every_pair_of_options_is_as_good_as_torch(
    shape: Shape, options: dict[str, Any], device: torch.device
) -> None:
    assert_as_good_as_torch(random_problem(shape).to(torch.float32, device), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_and_dtype_is_as_good_as_torch(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> None:
    problem = random_problem(shape, empty=shape[0] > 2).to(dtype, device)
    assert_as_good_as_torch(problem)
    assert_as_good_as_torch(problem, pool_scale=3.0, total_scale=2.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_are_not_rounded_to_the_dtype(dtype: torch.dtype, device: torch.device) -> None:
    problem = random_problem((4, 6, 4, 7, 64)).to(dtype, device)
    scores = scores_and_gradients(problem, backend="triton")[0]
    truth = scores_and_gradients(problem.double(), backend="reference")[0]
    # Tokens in float32, so that they are the only thing that is rounded to the dtype.
    widened = replace(problem, words=problem.words.float(), frames=problem.frames.float())
    plain = scores_and_gradients(widened, backend="eager")[0]
    assert (
        relative_error(scores, truth) <= fused_tolerance(torch.float32, relative_error(plain, truth)) + FLOOR
    )


@pytest.mark.parametrize("options", [SETTINGS[0], SETTINGS[9]], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[5], SHAPES[7]], ids=str)
def test_strides_of_inputs_and_gradient_are_free(
    shape: Shape, options: dict[str, Any], device: torch.device
) -> None:
    problem = random_problem(shape).to(torch.float32, device)
    permuted = Problem(
        problem.words.transpose(0, 1).contiguous().transpose(0, 1),
        problem.frames.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        problem.word_mask.T.contiguous().T,
        problem.frame_mask.T.contiguous().T,
        problem.word_weights.T.contiguous().T,
        problem.frame_weights.T.contiguous().T,
        problem.upstream.T.contiguous().T,
    )
    plain = scores_and_gradients(problem, **options, backend="triton")
    # Near, not equal: other strides are compiled to another kernel, which may add up in another order.
    for ours, theirs in zip(scores_and_gradients(permuted, **options, backend="triton"), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_an_expanded_gradient_and_expanded_frames_are_read_as_they_are(device: torch.device) -> None:
    problem = random_problem((5, 3, 4, 6, 16), empty=False).to(torch.float32, device)
    one_video = problem.frames[:1].expand(4, 6, 16)
    expanded = replace(problem, frames=one_video, upstream=torch.ones((), device=device).expand(5, 4))
    whole = replace(problem, frames=one_video.contiguous(), upstream=torch.ones(5, 4, device=device))
    ours, theirs = (scores_and_gradients(one, backend="triton") for one in (expanded, whole))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [SETTINGS[0], SETTINGS[9]], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[5], SHAPES[7]], ids=str)
def test_chunks_of_the_backward_pass_add_up(
    shape: Shape, options: dict[str, Any], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(shape).to(torch.float32, device)
    whole = scores_and_gradients(problem, **options, backend="triton")
    monkeypatch.setattr(fused, "CHUNK_BYTES", 1)
    for ours, theirs in zip(scores_and_gradients(problem, **options, backend="triton"), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_chunk_stays_below_its_bytes_and_takes_whole_tiles() -> None:
    def chunk(texts: int, words: int, videos: int, frames: int) -> tuple[int, int]:
        sides = [
            fused._side(torch.empty(items, tokens, 512, dtype=torch.bfloat16, device="meta"), mask, None)
            for items, tokens in ((texts, words), (videos, frames))
            for mask in [torch.empty(items, tokens, dtype=torch.bool, device="meta")]
        ]
        tile = fused._tile(*sides, width=64)
        num_rows, num_cols = fused._chunk(*sides, tile)
        assert num_rows % tile.row_items == 0
        assert num_rows * words * num_cols * frames * 2 <= fused.CHUNK_BYTES
        return num_rows, num_cols

    assert chunk(1024, 32, 1024, 12) == (340, 1024)
    assert chunk(1000, 77, 1000, 588)[1] == 1000
    assert chunk(4096, 77, 4096, 588) == (1, 2964)


@pytest.mark.parametrize("options", SETTINGS[::3], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 4, 3, 5), SHAPES[5]], ids=str)
def test_what_a_token_holds_that_does_not_exist_is_never_seen(
    shape: Shape, options: dict[str, Any], device: torch.device
) -> None:
    problem = random_problem(shape).to(torch.float32, device)
    hidden = replace(
        problem,
        words=problem.words.masked_fill(~problem.word_mask[:, :, None], torch.nan),
        frames=problem.frames.masked_fill(~problem.frame_mask[:, :, None], torch.nan),
    )
    ours = scores_and_gradients(hidden, **options, backend="triton")
    for one, other in zip(ours, scores_and_gradients(problem, **options, backend="triton"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    scores, of_words, of_frames, *_ = ours
    assert not scores[-1].any()
    assert not scores[:, -1].any()
    assert not of_words[~problem.word_mask].any()
    assert not of_frames[~problem.frame_mask].any()


@pytest.mark.parametrize("options", SETTINGS[::3], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 4, 3, 5), SHAPES[5]], ids=str)
def test_nan_in_a_token_makes_the_scores_of_its_video_nan_and_no_others(
    shape: Shape, options: dict[str, Any], device: torch.device
) -> None:
    problem = random_problem(shape, empty=False).to(torch.float32, device)
    problem.frames[1, 0, 2] = torch.nan
    with np.errstate(invalid="ignore"):
        scores = token_interaction(problem.words, problem.frames, **options, backend="triton")
    assert scores[:, 1].isnan().all()
    assert scores[:, [v for v in range(shape[2]) if v != 1]].isfinite().all()


@pytest.mark.parametrize("num_copies", [2, 70], ids=["in one chunk", "chunks apart"])
def test_of_two_equal_tokens_the_first_takes_the_gradient(num_copies: int, device: torch.device) -> None:
    problem = random_problem((2, 3, 2, 2, 8), empty=False).to(torch.float32, device)
    # Whole numbers, so that every sum is exact and equal tokens have equal products.
    frames = (8 * problem.frames).round().repeat(1, num_copies, 1).requires_grad_()
    words = (8 * problem.words).round().repeat_interleave(2, dim=1).requires_grad_()
    of_tokens = [
        torch.autograd.grad(
            token_interaction(words, frames, backend=backend), (words, frames), problem.upstream
        )
        for backend in ("triton", "reference")
    ]
    for ours, truth in zip(*of_tokens, strict=True):
        torch.testing.assert_close(ours, truth)


def test_tiny_gradients_survive_float16(device: torch.device) -> None:
    problem = random_problem((4, 6, 5, 3, 16)).to(torch.float16, device)
    tiny = replace(problem, upstream=problem.upstream * 2**-14)
    for large, small in zip(
        scores_and_gradients(problem, backend="triton")[3:],
        scores_and_gradients(tiny, backend="triton")[3:],
        strict=True,
    ):
        torch.testing.assert_close(small * 2**14, large)
    # Gradients of the tokens are float16 themselves, and end at its smallest number.
    of_words = scores_and_gradients(tiny, backend="triton")[1]
    truth = scores_and_gradients(tiny.double(), backend="reference")[1]
    assert (of_words.double() - truth).abs().max() <= 2**-24 + 1e-3 * truth.abs().max()


def test_a_sum_over_many_videos_may_be_more_than_float16_holds(device: torch.device) -> None:
    words = torch.full((1, 2, 16), 1.0, dtype=torch.float16, device=device, requires_grad=True)
    frames = torch.full((4000, 1, 16), 60.0, dtype=torch.float16, device=device)
    scores = token_interaction(words, frames, sides="words", backend="triton")
    (of_words,) = torch.autograd.grad(scores, words, torch.full_like(scores, 1.25e-4))
    torch.testing.assert_close(of_words, torch.full_like(words, 15.0))


def test_autocast_changes_nothing(device: torch.device) -> None:
    problem = random_problem((3, 3, 5, 4, 24)).to(torch.float32, device)
    plain = scores_and_gradients(problem, backend="triton")
    with torch.autocast(device.type, dtype=torch.bfloat16):
        inside = scores_and_gradients(problem, backend="triton")
    for ours, theirs in zip(inside, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("options", [SETTINGS[0], SETTINGS[9]], ids=str)
def test_two_runs_are_equal_to_the_bit(options: dict[str, Any], device: torch.device) -> None:
    problem = random_problem(SHAPES[4]).to(torch.bfloat16, device)
    first, second = (scores_and_gradients(problem, **options, backend="triton") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_no_texts_or_no_videos_give_an_empty_result(device: torch.device) -> None:
    words = torch.zeros(0, 3, 4, device=device, requires_grad=True)
    frames = torch.zeros(2, 3, 4, device=device, requires_grad=True)
    scores = token_interaction(words, frames, backend="triton")
    assert scores.shape == (0, 2)
    of_words, of_frames = torch.autograd.grad(scores.sum(), (words, frames))
    assert of_words.shape == words.shape
    assert not of_frames.any()
    assert token_interaction(frames, words, backend="triton").shape == (2, 0)


@pytest.mark.parametrize("options", [SETTINGS[0], SETTINGS[10]], ids=str)
def test_both_operations_keep_the_rules_of_torch(options: dict[str, Any], device: torch.device) -> None:
    problem = random_problem((3, 2, 2, 4, 16)).to(torch.float32, device)
    weights: tuple[Tensor | None, Tensor | None] = (problem.word_weights, problem.frame_weights)
    if options["total_scale"] is not None:
        weights = (None, None)
    inputs = (problem.words, problem.frames, problem.word_mask, problem.frame_mask, *weights)
    torch.library.opcheck(_backward_op, (problem.upstream, *inputs, *options.values()))
    for tensor in (problem.words, problem.frames, *weights):
        if tensor is not None:
            tensor.requires_grad_()
    torch.library.opcheck(_forward_op, (*inputs, *options.values()))
