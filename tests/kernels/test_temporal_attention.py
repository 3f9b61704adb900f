"""Temporal attention: both implementations against a float64 loop over positions."""

from inspect import unwrap

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from videolm_kernels import temporal_attention
from videolm_kernels.backend import Backend, choose_backend
from videolm_kernels.testing import ODD_SHAPES, relative_error, tolerance

BACKENDS: tuple[Backend, ...] = ("reference", "eager")


def random_qkv(shape: tuple[int, int, int, int, int], *, seed: int = 0) -> Tensor:
    batch, frames, tokens, heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, tokens, 3, heads, head_dim, dtype=torch.float64, generator=generator)


def attention_one_position_at_a_time(qkv: Tensor, lengths: list[int]) -> Tensor:
    """torch's own attention on the existing frames of one clip, position and head after the other."""
    batch, frames, tokens, _, heads, head_dim = qkv.shape
    clips = []
    for b in range(batch):
        length = lengths[b]
        attended = [
            F.scaled_dot_product_attention(*(part[None] for part in qkv[b, :length, n, :, h].unbind(1)))[0]
            for n in range(tokens)
            for h in range(heads)
        ]
        clip = torch.stack(attended, dim=1).unflatten(1, (tokens, heads))
        clips.append(torch.cat([clip, clip.new_zeros(frames - length, tokens, heads, head_dim)]))
    return torch.stack(clips)


def value_and_gradient(qkv: Tensor, *, upstream: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    qkv = qkv.detach().requires_grad_()
    out = temporal_attention(qkv, **options)
    (gradient,) = torch.autograd.grad(out, qkv, upstream)
    return out.detach(), gradient


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_equals_sdpa_at_every_position(shape: tuple[int, int, int, int, int], backend: Backend) -> None:
    qkv = random_qkv(shape)
    truth = attention_one_position_at_a_time(qkv, [shape[1]] * shape[0])
    torch.testing.assert_close(temporal_attention(qkv, backend=backend), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padded_frames_are_no_keys_and_give_zeros(backend: Backend) -> None:
    qkv = random_qkv((4, 6, 3, 2, 8))
    lengths = [6, 1, 4, 3]
    truth = attention_one_position_at_a_time(qkv, lengths)
    for b, length in enumerate(lengths):
        qkv[b, length:] = 1e3
    out = temporal_attention(qkv, lengths=torch.tensor(lengths), backend=backend)
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_without_frames_is_zero_and_moves_no_weight(backend: Backend) -> None:
    qkv = random_qkv((2, 3, 2, 2, 4))
    out, gradient = value_and_gradient(
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
@pytest.mark.parametrize("lengths", [None, [3, 2, 1]])
def test_gradient_is_right(lengths: list[int] | None, backend: Backend) -> None:
    qkv = random_qkv((3, 3, 2, 2, 3)).requires_grad_()
    given_lengths = None if lengths is None else torch.tensor(lengths)
    assert torch.autograd.gradcheck(
        lambda x: temporal_attention(x, lengths=given_lengths, backend=backend), qkv, fast_mode=True
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ODD_SHAPES[3:7], ids=str)
def test_error_and_gradient_error_stay_within_the_tolerance_of_the_dtype(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, backend: Backend
) -> None:
    qkv = random_qkv(shape).to(dtype)
    upstream = random_qkv(shape, seed=1)[:, :, :, 0].to(dtype)
    out, gradient = value_and_gradient(qkv, upstream=upstream, backend=backend)
    true_out, true_gradient = value_and_gradient(
        qkv.double(), upstream=upstream.double(), backend="reference"
    )
    assert out.dtype == gradient.dtype == dtype
    assert relative_error(out, true_out) <= tolerance(dtype)
    assert relative_error(gradient, true_gradient) <= tolerance(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_of_input_and_gradient_are_free(backend: Backend) -> None:
    shape = (2, 5, 3, 2, 8)
    qkv, upstream = random_qkv(shape), random_qkv(shape, seed=1)[:, :, :, 0]
    lengths = torch.tensor([5, 2])
    plain = value_and_gradient(qkv, upstream=upstream.contiguous(), lengths=lengths, backend=backend)
    permuted = value_and_gradient(
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
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_eager_equals_reference_whatever_the_shape_and_lengths(
    shape: tuple[int, int, int, int, int], seed: int, data: st.DataObject
) -> None:
    lengths = torch.tensor(
        data.draw(st.lists(st.integers(0, shape[1]), min_size=shape[0], max_size=shape[0]))
    )
    qkv, upstream = random_qkv(shape, seed=seed), random_qkv(shape, seed=seed + 1)[:, :, :, 0]
    eager = value_and_gradient(qkv, upstream=upstream, lengths=lengths, backend="eager")
    reference = value_and_gradient(qkv, upstream=upstream, lengths=lengths, backend="reference")
    for ours, truth in zip(eager, reference, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-11)


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(6)), seed=st.integers(0, 2**16))
def test_permuted_frames_give_permuted_rows(order: list[int], seed: int) -> None:
    qkv = random_qkv((1, 6, 2, 2, 4), seed=seed)
    torch.testing.assert_close(
        temporal_attention(qkv[:, order]), temporal_attention(qkv)[:, order], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_weighted_means_of_the_values(backend: Backend) -> None:
    qkv = random_qkv((2, 5, 3, 2, 4))
    qkv[:, :, :, 2] = 7.0
    torch.testing.assert_close(
        temporal_attention(qkv, backend=backend), torch.full((2, 5, 3, 2, 4), 7.0, dtype=torch.float64)
    )


def test_triton_is_refused_with_the_reason() -> None:
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot run: temporal_attention has no Triton"):
        temporal_attention(random_qkv((1, 2, 1, 1, 4)), backend="triton")


def test_auto_says_why_it_is_eager() -> None:
    choice = choose_backend("temporal_attention", backend="auto", device=torch.device("cpu"))
    assert choice.backend == "eager"
    assert "no Triton kernel" in choice.reason


def test_a_kernel_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videolm_kernels.backend.TRITON_OPS", frozenset({"temporal_attention"}))
    on_cuda = choose_backend("temporal_attention", backend="auto", device=torch.device("cuda"))
    on_cpu = choose_backend("temporal_attention", backend="auto", device=torch.device("cpu"))
    assert (on_cuda.backend, on_cpu.backend) == ("triton", "eager")
    with pytest.raises(RuntimeError, match="tensors are on cpu, and Triton kernels need cuda"):
        choose_backend("temporal_attention", backend="triton", device=torch.device("cpu"))


# `unwrap`: the shape types, where they are switched on, would refuse these first.
def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend \('fast'\) must be one of 'auto'"):
        unwrap(choose_backend)("temporal_attention", backend="fast", device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("qkv", "lengths", "error", "message"),
    [
        (
            torch.zeros(1, 2, 3, 4, 5),
            None,
            ValueError,
            r"must be \(B, T, N, 3, H, Dh\), got \(1, 2, 3, 4, 5\)",
        ),
        (torch.zeros(1, 2, 3, 2, 4, 5), None, ValueError, r"must be \(B, T, N, 3, H, Dh\)"),
        (
            torch.zeros(1, 2, 3, 3, 4, 5, dtype=torch.int32),
            None,
            TypeError,
            r"qkv must be float64.* got torch.int32",
        ),
        (
            torch.zeros(1, 2, 3, 3, 4, 5),
            torch.ones(2, dtype=torch.int64),
            ValueError,
            r"one number a clip \(1,\)",
        ),
        (torch.zeros(1, 2, 3, 3, 4, 5), torch.ones(1), TypeError, r"lengths must be int32 or int64"),
    ],
)
def test_wrong_input_is_refused(
    qkv: Tensor, lengths: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        unwrap(temporal_attention)(qkv, lengths=lengths)
