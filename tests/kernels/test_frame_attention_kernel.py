"""The kernels of frame attention against float64: every tile that the launchers choose, forward and backward."""

import pytest
import torch
from torch import Tensor

from tests.kernels.test_frame_attention import Shape, random_input, value_and_gradient
from videolm_kernels import frame_attention
from videolm_kernels.backend import Backend
from videolm_kernels.frame_attention import op
from videolm_kernels.frame_attention.tiles import addressable
from videolm_kernels.testing import fused_tolerance, relative_error, tolerance

# (F, N, H, Dh): every power of two and widths between, every tile that is just full or just too small.
SHAPES = (
    (1, 1, 1, 1),
    (3, 16, 2, 16),
    (2, 17, 3, 48),
    (2, 32, 1, 33),
    (2, 33, 2, 8),
    (1, 64, 1, 128),
    (1, 65, 1, 80),
    (1, 100, 2, 64),
    (1, 129, 1, 32),
    (1, 197, 1, 64),
)
LONG_SHAPE = (1, 300, 1, 16)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def given_to(device: torch.device, dtype: torch.dtype, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    qkv, log2_sizes, upstream = random_input(shape)
    return qkv.to(device, dtype), log2_sizes.float().to(device), upstream.to(device, dtype)


def assert_as_close_as_eager(qkv: Tensor, log2_sizes: Tensor | None, upstream: Tensor) -> None:
    truth = value_and_gradient(qkv.double(), log2_sizes, upstream.double(), "reference")
    fused = value_and_gradient(qkv, log2_sizes, upstream, "triton")
    plain = value_and_gradient(qkv, log2_sizes, upstream, "eager")
    for name, ours, theirs, true in zip(("out", "gradient"), fused, plain, truth, strict=True):
        assert ours.dtype == qkv.dtype
        allowed = fused_tolerance(qkv.dtype, relative_error(theirs, true))
        assert relative_error(ours, true) <= allowed, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_that_of_plain_torch(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> None:
    assert_as_close_as_eager(*given_to(device, dtype, shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[-2]], ids=str)
def test_sizes_are_optional(shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    qkv, _, upstream = given_to(device, dtype, shape)
    assert_as_close_as_eager(qkv, None, upstream)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_a_frame_may_be_longer_than_any_tile(dtype: torch.dtype, device: torch.device) -> None:
    assert_as_close_as_eager(*given_to(device, dtype, LONG_SHAPE))


@pytest.mark.parametrize("has_sizes", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[7]], ids=str)
def test_mean_key_changes_nothing_else(
    shape: Shape, dtype: torch.dtype, has_sizes: bool, device: torch.device
) -> None:
    qkv, log2_sizes, _ = given_to(device, dtype, shape)
    sizes = log2_sizes if has_sizes else None
    alone, _ = frame_attention(qkv, sizes, backend="triton")
    out, mean_key = frame_attention(qkv, sizes, with_mean_key=True, backend="triton")
    assert torch.equal(out, alone)
    assert mean_key is not None
    assert relative_error(mean_key, qkv[:, :, 1].double().mean(dim=2)) <= tolerance(dtype)


def assert_near(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Not equal: other strides are compiled to another kernel, which may add up in another order."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def with_strides(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same numbers, in memory in the order of the dimensions `order`."""
    inverse = [order.index(i) for i in range(tensor.ndim)]
    return tensor.permute(order).contiguous().permute(inverse)


@pytest.mark.parametrize("order", [(2, 3, 1, 0, 4), (4, 1, 0, 2, 3)], ids=["parts first", "width first"])
@pytest.mark.parametrize("shape", [(2, 9, 3, 16), (2, 20, 2, 16)], ids=str)
def test_strides_of_the_input_are_free(shape: Shape, order: tuple[int, ...], device: torch.device) -> None:
    qkv, log2_sizes, upstream = given_to(device, torch.float32, shape)
    plain = value_and_gradient(qkv, log2_sizes, upstream, "triton")
    permuted = value_and_gradient(
        with_strides(qkv, order), with_strides(log2_sizes, (1, 0)), upstream, "triton"
    )
    assert_near(permuted, plain)


def test_input_may_be_a_slice_of_a_wider_tensor(device: torch.device) -> None:
    qkv, log2_sizes, upstream = given_to(device, torch.float32, (2, 9, 3, 16))
    wide = torch.full((2, 12, 4, 5, 32), torch.nan, device=device)
    wide[:, 2:11, 1:, 1:4, 8:24] = qkv
    of_slice = value_and_gradient(wide[:, 2:11, 1:, 1:4, 8:24], log2_sizes, upstream, "triton")
    plain = value_and_gradient(qkv, log2_sizes, upstream, "triton")
    assert_near(of_slice, plain)


@pytest.mark.parametrize("shape", [(2, 9, 3, 16), (2, 20, 2, 16)], ids=str)
def test_strides_of_the_gradient_are_free(shape: Shape, device: torch.device) -> None:
    qkv, log2_sizes, upstream = given_to(device, torch.float32, shape)
    narrow = upstream[:, :1, :, :1]
    for strided in (
        with_strides(upstream, (2, 0, 1, 3)),
        with_strides(upstream, (3, 1, 0, 2)),
        narrow.expand(shape),
        upstream[0, 0, 0, 0].expand(shape),
    ):
        assert_near(
            value_and_gradient(qkv, log2_sizes, strided, "triton"),
            value_and_gradient(qkv, log2_sizes, strided.contiguous(), "triton"),
        )


@pytest.mark.parametrize("shape", [(2, 17, 2, 16), (1, 150, 1, 16)], ids=str)
def test_the_same_input_gives_the_same_bits(shape: Shape, device: torch.device) -> None:
    given = given_to(device, torch.bfloat16, shape)
    first, second = (value_and_gradient(*given, "triton") for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("tokens", [0, 5])
def test_no_frames_or_no_tokens_are_no_error(tokens: int, backend: Backend, device: torch.device) -> None:
    frames = 5 - tokens
    qkv = torch.zeros(frames, tokens, 3, 2, 16, dtype=torch.bfloat16, device=device, requires_grad=True)
    log2_sizes = torch.zeros(frames, tokens, device=device)
    out, mean_key = frame_attention(qkv, log2_sizes, with_mean_key=True, backend=backend)
    out.sum().backward()
    assert out.shape == (frames, tokens, 2, 16)
    assert mean_key is not None
    assert mean_key.shape == (frames, tokens, 16)
    assert qkv.grad is not None
    assert qkv.grad.shape == qkv.shape


@pytest.mark.parametrize(
    ("has_sizes", "with_mean_key"), [(False, False), (True, True)], ids=["nothing", "everything"]
)
def test_both_operations_are_what_torch_expects(
    has_sizes: bool, with_mean_key: bool, device: torch.device
) -> None:
    qkv, log2_sizes, upstream = given_to(device, torch.float32, (1, 18, 1, 16))
    sizes = log2_sizes if has_sizes else None
    torch.library.opcheck(
        torch.ops.videolm.frame_attention.default, (qkv.requires_grad_(), sizes, with_mean_key)
    )
    out, lse, _ = torch.ops.videolm.frame_attention(qkv.detach(), sizes, False)
    torch.library.opcheck(
        torch.ops.videolm.frame_attention_backward.default, (upstream, qkv.detach(), sizes, out, lse)
    )


def test_log_sum_exp_is_that_of_the_scores(device: torch.device) -> None:
    qkv, log2_sizes, _ = given_to(device, torch.float32, (2, 40, 2, 16))
    _, lse, _ = op._forward_op(qkv, log2_sizes, False)
    query, key, _ = qkv.double().permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / 4 + (log2_sizes.double().exp2().log())[:, None, None, :]
    truth = scores.logsumexp(dim=-1) / torch.tensor(2.0, dtype=torch.float64).log()
    assert relative_error(lse, truth) <= tolerance(torch.float32)


def test_a_frame_too_far_apart_for_32_bits_is_copied() -> None:
    near = torch.empty(1, device="meta").as_strided((4, 2353, 3, 12, 64), (2**40, 900_000, 768, 64, 1))
    far = torch.empty(1, device="meta").as_strided((4, 2353, 3, 12, 64), (2304, 920_000, 768, 64, 1))
    assert addressable(near) is near
    assert addressable(far).is_contiguous()
