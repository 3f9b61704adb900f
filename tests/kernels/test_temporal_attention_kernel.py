"""The kernels of temporal attention against float64: in Triton's interpreter, or on a GPU where there is one."""

import mmap
from itertools import combinations
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.temporal_problems import (
    KERNEL_SHAPES,
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
from videolm_kernels.testing import fused_tolerance, relative_error

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
COMBINATIONS = [names for size in (1, 2) for names in combinations(OPTIONS, size)]
# Tokens in more than one tile, the last one partly filled: 5 frames are 12 positions to a tile, 6 in float32.
SHAPE = (2, 5, 13, 2, 16)


def assert_at_most_twice_the_error_of_eager(
    shape: Shape, names: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> None:
    qkv, upstream = random_qkv(shape).to(dtype), random_upstream(shape).to(dtype)
    options = cast(random_options(names, shape), dtype)
    exact = cast(options, torch.float64)
    truth = value_and_gradients(qkv.double(), upstream=upstream.double(), **exact, backend="reference")
    eager = value_and_gradients(qkv, upstream=upstream, **options, backend="eager")
    fused = value_and_gradients(
        qkv.to(device), upstream=upstream.to(device), **cast(options, dtype, device), backend="triton"
    )
    for ours, theirs, true in zip(fused, eager, truth, strict=True):
        assert ours.dtype == dtype
        allowed = fused_tolerance(dtype, relative_error(theirs, true))
        assert relative_error(ours.cpu(), true) <= allowed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
def test_value_and_gradient_at_every_shape(shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    if dtype == torch.float32 and shape[4] == 128:
        shape = (*shape[:1], min(shape[1], 32), *shape[2:])
    assert_at_most_twice_the_error_of_eager(shape, (), dtype, device)


@pytest.mark.parametrize("shape", [(1, 65, 2, 1, 16), (1, 128, 1, 1, 64)], ids=str)
def test_more_than_64_frames_take_a_larger_tile(shape: Shape, device: torch.device) -> None:
    assert_at_most_twice_the_error_of_eager(shape, OPTIONS, torch.float16, device)


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_value_and_gradients_with_options_alone_and_in_pairs(
    names: tuple[str, ...], device: torch.device
) -> None:
    assert_at_most_twice_the_error_of_eager(SHAPE, names, torch.float32, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 1, 3, 2, 32), (2, 12, 7, 2, 64), (1, 33, 2, 1, 16)], ids=str)
def test_value_and_gradients_with_all_options(shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    assert_at_most_twice_the_error_of_eager(shape, OPTIONS, dtype, device)


def test_equals_the_loop_over_positions(device: torch.device) -> None:
    qkv, options = random_qkv(SHAPE), random_options(OPTIONS, SHAPE)
    out = temporal_attention(
        qkv.to(device, torch.float32), **cast(options, torch.float32, device), backend="triton"
    )
    truth = attention_one_position_at_a_time(qkv, **options)
    torch.testing.assert_close(out.cpu().double(), truth, rtol=1e-5, atol=1e-5)


def test_a_float32_bias_stays_float32_beside_16_bits(device: torch.device) -> None:
    qkv, upstream = random_qkv(SHAPE).half().to(device), random_upstream(SHAPE).half().to(device)
    time_bias = random_options(("time_bias",), SHAPE)["time_bias"].float().to(device)
    ours = value_and_gradients(qkv, upstream=upstream, time_bias=time_bias, backend="triton")
    truth = value_and_gradients(
        qkv.double(), upstream=upstream.double(), time_bias=time_bias.double(), backend="reference"
    )
    assert [x.dtype for x in ours] == [torch.float16, torch.float16, torch.float32]
    # Products of 16-bit numbers are exact in float32, and these gradients are never rounded to 16 bits.
    assert relative_error(ours[2], truth[2]) <= 1e-6


def test_minus_infinity_in_the_bias_hides_a_pair(device: torch.device) -> None:
    shape = (1, 6, 3, 2, 16)
    window = torch.tensor([-torch.inf] * 4 + [0.0] * 3 + [-torch.inf] * 4, dtype=torch.float64).expand(2, 11)
    ours = value_and_gradients(
        random_qkv(shape).float().to(device),
        upstream=random_upstream(shape).float().to(device),
        time_bias=window.float().to(device),
        backend="triton",
    )
    truth = value_and_gradients(
        random_qkv(shape), upstream=random_upstream(shape), time_bias=window, backend="reference"
    )
    for actual, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(actual.cpu().double(), true, rtol=1e-5, atol=1e-5)


def test_a_shared_key_of_high_score_takes_all_the_weight(device: torch.device) -> None:
    qkv, upstream = random_qkv(SHAPE), random_upstream(SHAPE)
    shared = random_options(("shared_key_value",), SHAPE)["shared_key_value"] * 100
    ours = value_and_gradients(
        qkv.float().to(device),
        upstream=upstream.float().to(device),
        shared_key_value=shared.float().to(device),
        backend="triton",
    )
    truth = value_and_gradients(qkv, upstream=upstream, shared_key_value=shared, backend="reference")
    for actual, true in zip(ours, truth, strict=True):
        assert relative_error(actual.cpu(), true) <= 1e-5


def test_a_constant_bias_and_shared_key_get_no_gradient_and_change_no_other(device: torch.device) -> None:
    qkv, upstream = random_qkv(SHAPE).float().to(device), random_upstream(SHAPE).float().to(device)
    options = cast(random_options(("time_bias", "shared_key_value"), SHAPE), torch.float32, device)
    given = (upstream, qkv, None, options["time_bias"], options["shared_key_value"], False, 0)
    backward = torch.ops.videolm.temporal_attention_backward
    gradients = backward(*given, True, True)
    for needs in ((True, False), (False, True), (False, False)):
        for ours, all_needed, is_needed in zip(
            backward(*given, *needs), gradients, (True, *needs), strict=True
        ):
            assert torch.equal(ours, all_needed) if is_needed else ours.numel() == 0
    qkv.requires_grad_()
    options["time_bias"].requires_grad_()
    out = temporal_attention(qkv, **options, backend="triton")
    ours = torch.autograd.grad(out, [qkv, options["time_bias"]], upstream)
    for one_of_two, of_both in zip(ours, gradients, strict=False):
        assert torch.equal(one_of_two, of_both)


def far_apart(tensor: Tensor, dim: int, device: torch.device) -> Tensor:
    """The tensor in float16, its parts along `dim` 1.1e9 elements from each other; a CPU touches little memory."""
    far = 1_100_000_000
    shape = tensor.movedim(dim, 0).shape
    size = far * (shape[0] - 1) + prod(shape[1:])
    if device.type == "cuda":
        memory = torch.empty(size, dtype=torch.float16, device=device)
    else:
        flags = (
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
        )  # MAP_NORESERVE, which Python 3.11 has no name for
        memory = torch.frombuffer(mmap.mmap(-1, 2 * size, flags=flags), dtype=torch.float16)
    spread = memory.as_strided(shape, (far, *torch.empty(shape[1:], device="meta").stride())).movedim(0, dim)
    return spread.copy_(tensor)


def test_strides_beyond_2_to_the_31_are_taken(device: torch.device) -> None:
    shape = (1, 2, 3, 3, 16)
    qkv, upstream = random_qkv(shape).half().to(device), random_upstream(shape).half().to(device)
    options = (None, None, None, False, 0)
    forward, backward = torch.ops.videolm.temporal_attention, torch.ops.videolm.temporal_attention_backward
    out, (gradient, *_) = forward(qkv, *options), backward(upstream, qkv, *options, False, False)
    for dim in (3, 4):
        strided = far_apart(qkv, dim, device)
        assert torch.equal(forward(strided, *options), out)
        assert torch.equal(backward(upstream, strided, *options, False, False)[0], gradient)
    strided = far_apart(upstream, 3, device)
    assert torch.equal(backward(strided, qkv, *options, False, False)[0], gradient)


def test_autocast_changes_nothing(device: torch.device) -> None:
    qkv = random_qkv(SHAPE).float().to(device)
    plain = temporal_attention(qkv, backend="triton")
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(temporal_attention(qkv, backend="triton"), plain)


@pytest.mark.parametrize("names", [(), OPTIONS], ids=["plain", "all"])
def test_strides_of_input_and_gradient_are_free(names: tuple[str, ...], device: torch.device) -> None:
    qkv = random_qkv(SHAPE).float().to(device)
    upstream = random_upstream(SHAPE).float().to(device)
    options = cast(random_options(names, SHAPE), torch.float32, device)
    plain = value_and_gradients(qkv, upstream=upstream, **options, backend="triton")
    inputs = {
        "positions first": qkv.permute(2, 0, 1, 4, 3, 5).contiguous().permute(1, 2, 0, 4, 3, 5),
        "last dimension strided": qkv.permute(5, 3, 0, 2, 4, 1).contiguous().permute(2, 5, 3, 1, 4, 0),
        "part of a wider tensor": torch.cat([qkv, qkv], dim=5)[..., :16],
    }
    gradients = {
        "heads first": upstream.permute(3, 0, 1, 2, 4).contiguous().permute(1, 2, 3, 0, 4),
        "last dimension strided": upstream.permute(3, 4, 2, 0, 1).contiguous().permute(3, 4, 2, 0, 1),
    }
    for layout, x in inputs.items():
        for gradient_layout, g in gradients.items():
            strided = value_and_gradients(x, upstream=g, **options, backend="triton")
            for ours, theirs in zip(strided, plain, strict=True):
                assert torch.equal(ours, theirs), (layout, gradient_layout)


def test_an_expanded_gradient_is_read_right(device: torch.device) -> None:
    qkv = random_qkv(SHAPE).float().to(device)
    one = torch.ones((), device=device)
    expanded = value_and_gradients(qkv, upstream=one.expand(2, 5, 13, 2, 16), backend="triton")
    dense = value_and_gradients(qkv, upstream=one.expand(2, 5, 13, 2, 16).contiguous(), backend="triton")
    assert torch.equal(expanded[1], dense[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_twice_the_same_is_equal_to_the_bit(dtype: torch.dtype, device: torch.device) -> None:
    qkv, upstream = random_qkv(SHAPE).to(device, dtype), random_upstream(SHAPE).to(device, dtype)
    options = cast(random_options(OPTIONS, SHAPE), dtype, device)
    first, second = (
        value_and_gradients(qkv, upstream=upstream, **options, backend="triton") for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_padded_frames_and_skipped_tokens_are_not_even_read(device: torch.device) -> None:
    shape = (2, 6, 5, 2, 16)
    qkv = random_qkv(shape).float()
    upstream = random_upstream(shape).float()
    qkv[0, 4:], qkv[:, :, :2] = torch.nan, torch.nan
    upstream[0, 4:], upstream[:, :, :2] = torch.nan, torch.nan
    ours = value_and_gradients(
        qkv.to(device),
        upstream=upstream.to(device),
        lengths=torch.tensor([4, 9], device=device),
        num_skipped=2,
        backend="triton",
    )
    for x in ours:
        assert x.isfinite().all()
        assert not x[0, 4:].any()
        assert not x[:, :, :2].any()
        assert x[1, :, 2:].all()


@pytest.mark.parametrize(
    "options", [{"lengths": torch.zeros(2, dtype=torch.int32)}, {"num_skipped": 13}], ids=["empty", "skipped"]
)
def test_where_nothing_takes_part_all_is_zero(options: dict[str, Any], device: torch.device) -> None:
    options = options | random_options(("time_bias", "shared_key_value"), SHAPE)
    ours = value_and_gradients(
        random_qkv(SHAPE).float().to(device),
        upstream=random_upstream(SHAPE).float().to(device),
        **cast(options, torch.float32, device),
        backend="triton",
    )
    assert not any(x.any() for x in ours)


@pytest.mark.parametrize("shape", [(0, 3, 2, 1, 16), (2, 3, 0, 1, 16)], ids=str)
def test_no_clips_and_no_tokens_are_fine(shape: Shape, device: torch.device) -> None:
    qkv, upstream = random_qkv(shape).float().to(device), random_upstream(shape).float().to(device)
    options = cast(random_options(("time_bias", "shared_key_value"), shape), torch.float32, device)
    out, gradient, grad_bias, grad_shared = value_and_gradients(
        qkv, upstream=upstream, **options, backend="triton"
    )
    assert (out.shape, gradient.shape) == (upstream.shape, qkv.shape)
    assert not grad_bias.any()
    assert not grad_shared.any()


@pytest.mark.parametrize("names", [(), ("lengths", "time_bias"), OPTIONS], ids="+".join)
def test_both_operations_are_registered_right(names: tuple[str, ...], device: torch.device) -> None:
    shape = (2, 3, 3, 1, 16)
    options = cast(random_options(names, shape), torch.float32, device)
    qkv = random_qkv(shape).float().to(device).requires_grad_()
    args = (
        qkv,
        options.get("lengths"),
        options.get("time_bias"),
        options.get("shared_key_value"),
        options.get("is_causal", False),
        options.get("num_skipped", 0),
    )
    torch.library.opcheck(torch.ops.videolm.temporal_attention.default, args)
    args = (random_upstream(shape).float().to(device), qkv.detach(), *args[1:])
    given = "time_bias" in options, "shared_key_value" in options
    for needs in {given, (False, False)}:
        torch.library.opcheck(torch.ops.videolm.temporal_attention_backward.default, (*args, *needs))


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 2, 1, 1, 24), torch.float16, "knows the head widths 16, 32, 64, 128, not 24"),
        ((1, 129, 1, 1, 16), torch.float16, "takes 1 to 128 frames in torch.float16 at head width 16, not 129"),
        ((1, 33, 1, 1, 128), torch.float32, "takes 1 to 32 frames in torch.float32 at head width 128, not 33"),
        ((1, 0, 1, 1, 16), torch.float16, "takes 1 to 128 frames"),
        ((1, 2, 1, 1, 16), torch.float64, "computes in float32, and qkv is float64"),
    ],
)  # fmt: skip
def test_what_the_kernel_cannot_do_is_said_and_left_to_eager(
    shape: Shape, dtype: torch.dtype, reason: str, device: torch.device
) -> None:
    qkv = random_qkv(shape).to(device, dtype)
    with pytest.raises(RuntimeError, match=reason):
        temporal_attention(qkv, backend="triton")
    assert temporal_attention(qkv).shape == (*qkv.shape[:3], *qkv.shape[4:])


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape",
    [(70_000, 2, 1, 1, 16), (1, 2, 70_000, 1, 16), (2, 8, 60_000, 12, 64)],
    ids=["clips", "tokens", "over 2^31 elements"],
)
def test_there_is_no_limit_to_clips_tokens_or_elements(shape: Shape, device: torch.device) -> None:
    batch, frames, tokens, heads, head_dim = shape
    qkv = torch.randn(batch, frames, tokens, 3, heads, head_dim, dtype=torch.bfloat16, device=device)
    upstream = torch.randn(batch, frames, tokens, heads, head_dim, dtype=torch.bfloat16, device=device)
    whole = value_and_gradients(qkv, upstream=upstream, backend="triton")
    last = value_and_gradients(qkv[-1:, :, -9:], upstream=upstream[-1:, :, -9:], backend="triton")
    for x, end in zip(whole, last, strict=True):
        assert torch.equal(x[-1:, :, -9:], end)
