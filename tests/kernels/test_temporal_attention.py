"""Temporal attention in plain torch: both implementations against a float64 loop over positions."""

from inspect import unwrap
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.temporal_problems import (
    ODD_SHAPES,
    OPTIONS,
    Shape,
    attention_one_position_at_a_time,
    cast,
    random_options,
    random_qkv,
    random_upstream,
    value_and_gradients,
)
from videolm_kernels import temporal_attention
from videolm_kernels.backend import Backend
from videolm_kernels.sdpa import attend_in_chunks
from videolm_kernels.testing import relative_error, tolerance

BACKENDS: tuple[Backend, ...] = ("reference", "eager")
COMBINATIONS = [names for size in (1, 2, 5) for names in combinations(OPTIONS, size)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_equals_sdpa_at_every_position(shape: Shape, backend: Backend) -> None:
    qkv = random_qkv(shape)
    truth = attention_one_position_at_a_time(qkv)
    torch.testing.assert_close(temporal_attention(qkv, backend=backend), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_options_alone_in_pairs_and_together_equal_the_loop(names: tuple[str, ...], backend: Backend) -> None:
    shape = (3, 4, 3, 2, 8)
    qkv, options = random_qkv(shape), random_options(names, shape)
    truth = attention_one_position_at_a_time(qkv, **options)
    out = temporal_attention(qkv, **options, backend=backend)
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        out = temporal_attention(qkv.requires_grad_(), **options, backend=backend)
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padded_frames_are_no_keys_and_give_zeros(backend: Backend) -> None:
    qkv = random_qkv((4, 6, 3, 2, 8))
    lengths = torch.tensor([6, 1, 4, 3])
    truth = attention_one_position_at_a_time(qkv, lengths=lengths)
    for b, length in enumerate(lengths):
        qkv[b, length:] = torch.nan if backend == "reference" else 1e3
    out = temporal_attention(qkv, lengths=lengths, backend=backend)
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_without_frames_is_zero_and_moves_no_weight(backend: Backend) -> None:
    qkv = random_qkv((2, 3, 2, 2, 4))
    out, gradient = value_and_gradients(
        qkv,
        upstream=torch.ones(2, 3, 2, 2, 4, dtype=torch.float64),
        lengths=torch.tensor([0, 2]),
        backend=backend,
    )
    assert not out[0].any()
    assert not gradient[0].any()
    assert not gradient[1, 2].any()
    assert gradient[1, :2].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_that_ends_before_a_padded_frame_leaves_no_nan(backend: Backend) -> None:
    shape = (2, 8, 3, 2, 4)
    qkv, upstream = random_qkv(shape), random_upstream(shape)
    window = torch.full((2, 15), -torch.inf, dtype=torch.float64)
    window[:, 6:9] = 0  # a frame sees itself and its neighbours
    lengths = torch.tensor([8, 3])
    ours = value_and_gradients(qkv, upstream=upstream, time_bias=window, lengths=lengths, backend=backend)
    short = value_and_gradients(
        qkv[1:, :3], upstream=upstream[1:, :3], time_bias=window[:, 5:10], backend="reference"
    )
    truth = attention_one_position_at_a_time(qkv, time_bias=window, lengths=lengths)
    torch.testing.assert_close(ours[0], truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours[1][1:, :3], short[1], rtol=1e-12, atol=1e-12)
    assert not ours[1][1, 3:].any()
    assert all(x.isfinite().all() for x in ours)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend: Backend) -> None:
    qkv = random_qkv((2, 4, 3, 2, 8)).float()
    for needs_gradient in (False, True):
        qkv.requires_grad_(needs_gradient)
        plain = temporal_attention(qkv, backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(temporal_attention(qkv, backend=backend), plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_skipped_tokens_are_zero_and_get_no_gradient(backend: Backend) -> None:
    shape = (2, 3, 4, 2, 4)
    qkv, upstream = random_qkv(shape), random_upstream(shape)
    out, gradient = value_and_gradients(qkv, upstream=upstream, num_skipped=2, backend=backend)
    assert not out[:, :, :2].any()
    assert not gradient[:, :, :2].any()
    torch.testing.assert_close(out[:, :, 2:], temporal_attention(qkv[:, :, 2:], backend=backend))
    assert not temporal_attention(qkv, num_skipped=4, backend=backend).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("names", [(), *COMBINATIONS[:5], OPTIONS], ids="+".join)
def test_gradients_are_right(names: tuple[str, ...], backend: Backend) -> None:
    shape = (3, 3, 2, 2, 3)
    options = random_options(names, shape)
    floating = [name for name in ("time_bias", "shared_key_value") if name in options]

    def attend(qkv: Tensor, *tensors: Tensor) -> Tensor:
        return temporal_attention(
            qkv, **(options | dict(zip(floating, tensors, strict=True))), backend=backend
        )

    inputs = [random_qkv(shape), *(options[name] for name in floating)]
    assert torch.autograd.gradcheck(attend, [x.requires_grad_() for x in inputs], fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("names", [(), OPTIONS], ids=["plain", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ODD_SHAPES[3:7], ids=str)
def test_errors_stay_within_the_tolerance_of_the_dtype(
    shape: Shape, dtype: torch.dtype, names: tuple[str, ...], backend: Backend
) -> None:
    qkv, upstream = random_qkv(shape).to(dtype), random_upstream(shape).to(dtype)
    options = cast(random_options(names, shape), dtype)
    ours = value_and_gradients(qkv, upstream=upstream, **options, backend=backend)
    truth = value_and_gradients(
        qkv.double(), upstream=upstream.double(), **cast(options, torch.float64), backend="reference"
    )
    # What is summed over all positions cancels: the gradient of the bias has about twice the error.
    allowed = (2 if names else 1) * tolerance(dtype)
    for actual, true in zip(ours, truth, strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, true) <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_of_input_and_gradient_are_free(backend: Backend) -> None:
    shape = (2, 5, 3, 2, 8)
    qkv, upstream = random_qkv(shape), random_upstream(shape)
    lengths = torch.tensor([5, 2])
    plain = value_and_gradients(qkv, upstream=upstream, lengths=lengths, backend=backend)
    permuted = value_and_gradients(
        qkv.permute(5, 3, 0, 2, 4, 1).contiguous().permute(2, 5, 3, 1, 4, 0),
        upstream=upstream.permute(3, 4, 2, 0, 1).contiguous().permute(3, 4, 2, 0, 1),
        lengths=lengths,
        backend=backend,
    )
    for ours, theirs in zip(permuted, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*[st.integers(1, 4), st.integers(1, 9), *[st.integers(1, 4)] * 3]),
    names=st.sets(st.sampled_from(OPTIONS[1:])),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_eager_equals_reference_whatever_the_shape_and_options(
    shape: Shape, names: set[str], seed: int, data: st.DataObject
) -> None:
    lengths = st.lists(st.integers(0, shape[1] + 1), min_size=shape[0], max_size=shape[0])
    options = random_options(tuple(names), shape) | {"lengths": torch.tensor(data.draw(lengths))}
    qkv, upstream = random_qkv(shape, seed=seed), random_upstream(shape, seed=seed + 1)
    eager = value_and_gradients(qkv, upstream=upstream, **options, backend="eager")
    reference = value_and_gradients(qkv, upstream=upstream, **options, backend="reference")
    for ours, truth in zip(eager, reference, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-11)


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(6)), seed=st.integers(0, 2**16))
def test_permuted_frames_give_permuted_rows(order: list[int], seed: int) -> None:
    qkv = random_qkv((1, 6, 2, 2, 4), seed=seed)
    torch.testing.assert_close(
        temporal_attention(qkv[:, order]), temporal_attention(qkv)[:, order], rtol=1e-12, atol=1e-12
    )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), frame=st.integers(1, 5))
def test_a_causal_frame_knows_nothing_of_later_ones(seed: int, frame: int) -> None:
    qkv = random_qkv((2, 6, 3, 2, 4), seed=seed)
    torch.testing.assert_close(
        temporal_attention(qkv, is_causal=True)[:, :frame],
        temporal_attention(qkv[:, :frame], is_causal=True),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_weighted_means_of_the_values(backend: Backend) -> None:
    qkv = random_qkv((2, 5, 3, 2, 4))
    qkv[:, :, :, 2] = 7.0
    torch.testing.assert_close(
        temporal_attention(qkv, backend=backend), torch.full((2, 5, 3, 2, 4), 7.0, dtype=torch.float64)
    )


@pytest.mark.parametrize("has_bias", [False, True])
def test_chunks_of_sequences_change_nothing(has_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = random_qkv((2, 4, 5, 3, 8)).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    bias = torch.randn(10, 1, 4, 4, dtype=torch.float64) if has_bias else None
    whole = attend_in_chunks(query, key, value, bias)
    monkeypatch.setattr("videolm_kernels.sdpa.MAX_SEQUENCES", 3)
    torch.testing.assert_close(attend_in_chunks(query, key, value, bias), whole)


QKV = torch.zeros(1, 2, 3, 3, 4, 5)


# `unwrap`: the shape types, where they are switched on, would refuse these first.
@pytest.mark.parametrize(
    ("qkv", "options", "error", "message"),
    [
        (QKV[0], {}, ValueError, r"must be \(B, T, N, 3, H, Dh\), got \(2, 3, 3, 4, 5\)"),
        (QKV[:, :, :, :2], {}, ValueError, r"must be \(B, T, N, 3, H, Dh\)"),
        (QKV[..., :0], {}, ValueError, r"the heads of qkv must be at least 1 wide, got \(1, 2, 3, 3, 4, 0\)"),
        (QKV.int(), {}, TypeError, r"qkv must be float64.* got torch.int32"),
        (QKV, {"lengths": torch.ones(2, dtype=torch.int64)}, ValueError, r"one number a clip \(1,\)"),
        (QKV, {"lengths": torch.ones(1)}, TypeError, r"lengths must be int32 or int64"),
        (QKV, {"lengths": torch.ones(1, dtype=torch.int64, device="meta")}, ValueError, r"lengths is on meta"),
        (QKV, {"time_bias": torch.zeros(4, 4)}, ValueError, r"2T - 1\), here \(4, 3\), got \(4, 4\)"),
        (QKV, {"time_bias": torch.zeros(4, 3).half()}, TypeError, r"time_bias must be float32 or torch.float32"),
        (QKV, {"shared_key_value": torch.zeros(1, 2, 4, 6)}, ValueError, r"here \(1, 2, 4, 5\), got \(1, 2, 4, 6\)"),
        (QKV, {"shared_key_value": torch.zeros(1, 2, 4, 5).half()}, TypeError, r"must be torch.float32 as qkv"),
        (QKV, {"num_skipped": 4}, ValueError, r"num_skipped \(4\) must be between 0 and the 3 tokens"),
        (QKV, {"num_skipped": -1}, ValueError, r"num_skipped \(-1\) must be between"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(
    qkv: Tensor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        unwrap(temporal_attention)(qkv, **options)
