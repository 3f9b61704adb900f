"""Frame attention: what every implementation promises, and the plain ones against torch's own in float64."""

import math
from inspect import unwrap

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from videolm_kernels import frame_attention
from videolm_kernels.backend import Backend
from videolm_kernels.frame_attention import eager, op
from videolm_kernels.testing import relative_error, tolerance

PLAIN: tuple[Backend, ...] = ("reference", "eager")
BACKENDS: tuple[Backend, ...] = ("reference", "eager", "triton")

# (F, N, H, Dh): one of everything, primes, the heads of a small model, CLIP's own.
SHAPES = ((1, 1, 1, 1), (2, 5, 3, 8), (3, 1, 2, 16), (2, 17, 4, 48), (1, 50, 2, 64), (2, 7, 1, 33))

Shape = tuple[int, int, int, int]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_input(shape: Shape, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """qkv, log2_sizes in which about every fifth key is hidden, but never the first, and a gradient of the output."""
    frames, tokens, heads, head_dim = shape
    log2_sizes = random(frames, tokens, seed=seed + 1).abs() * 3
    is_hidden = random(frames, tokens, seed=seed + 2) > 0.8
    is_hidden[:, 0] = False
    return (
        random(frames, tokens, 3, heads, head_dim, seed=seed + 3),
        log2_sizes.masked_fill(is_hidden, -torch.inf),
        random(frames, tokens, heads, head_dim, seed=seed + 4),
    )


def attention_by_sdpa(qkv: Tensor, log2_sizes: Tensor | None) -> Tensor:
    """torch's own attention, frame and head after the other, with the bias written out for every pair."""
    frames, tokens, _, heads, _ = qkv.shape
    rows = []
    for f in range(frames):
        bias = torch.zeros(tokens, tokens, dtype=qkv.dtype)
        if log2_sizes is not None:
            bias = (log2_sizes[f] / math.log2(math.e)).expand(tokens, tokens)
        attended = [
            F.scaled_dot_product_attention(*qkv[f, :, :, h].unbind(1), attn_mask=bias) for h in range(heads)
        ]
        rows.append(torch.stack(attended, dim=1))
    return torch.stack(rows)


def value_and_gradient(
    qkv: Tensor, log2_sizes: Tensor | None, upstream: Tensor, backend: Backend
) -> tuple[Tensor, Tensor]:
    qkv = qkv.detach().requires_grad_()
    out, _ = frame_attention(qkv, log2_sizes, backend=backend)
    (gradient,) = torch.autograd.grad(out, qkv, upstream)
    return out.detach(), gradient


def precision(backend: Backend) -> torch.dtype:
    """The kernel computes in float32."""
    return torch.float32 if backend == "triton" else torch.float64


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("has_sizes", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_sdpa_with_the_bias_written_out(shape: Shape, has_sizes: bool, backend: Backend) -> None:
    qkv, log2_sizes, upstream = random_input(shape)
    sizes = log2_sizes if has_sizes else None
    out, gradient = value_and_gradient(qkv, sizes, upstream, backend)
    qkv.requires_grad_()
    truth = attention_by_sdpa(qkv, sizes)
    (true_gradient,) = torch.autograd.grad(truth, qkv, upstream)
    torch.testing.assert_close(out, truth.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, true_gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_of_size_s_counts_as_s_copies(backend: Backend, device: torch.device) -> None:
    dtype = precision(backend)
    sizes = torch.tensor([1, 3, 2, 5])
    qkv = random(1, 4, 3, 2, 16).to(device, dtype)
    copies = torch.arange(4).repeat_interleave(sizes)
    out, _ = frame_attention(qkv, sizes.to(device, dtype).log2()[None], backend=backend)
    of_copies, _ = frame_attention(qkv[:, copies], backend=backend)
    torch.testing.assert_close(out[:, copies], of_copies, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_key_of_size_zero_is_as_if_not_there(backend: Backend, device: torch.device) -> None:
    dtype = precision(backend)
    qkv = random(2, 6, 3, 2, 16).to(device, dtype)
    log2_sizes = torch.zeros(2, 6, device=device).index_fill(1, torch.tensor(3, device=device), -torch.inf)
    qkv[:, 3, 1:] *= 100
    others = [0, 1, 2, 4, 5]
    out, _ = frame_attention(qkv, log2_sizes, backend=backend)
    truth, _ = frame_attention(qkv[:, others], backend=backend)
    torch.testing.assert_close(out[:, others], truth, rtol=1e-5, atol=1e-6)
    assert out[:, 3].isfinite().all()


@pytest.mark.parametrize(
    ("tokens", "dtype"),
    [(5, torch.float32), (5, torch.float16), (5, torch.bfloat16), (20, torch.float32), (150, torch.float16)],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frame_in_which_nothing_is_seen_is_zero_and_passes_no_gradient(
    tokens: int, backend: Backend, dtype: torch.dtype, device: torch.device
) -> None:
    qkv, log2_sizes, upstream = random_input((2, tokens, 1, 16))
    log2_sizes[1] = -torch.inf
    out, gradient = value_and_gradient(
        (qkv * 5).to(device, dtype), log2_sizes.float().to(device), upstream.to(device, dtype), backend
    )
    assert not out[1].any()
    assert not gradient[1].any()
    assert out[0].all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_keys_may_all_be_hidden(backend: Backend, device: torch.device) -> None:
    qkv, log2_sizes, upstream = random_input((1, 150, 1, 16))
    log2_sizes[:, :140] = -torch.inf
    dtype = precision(backend)
    given = [x.to(device, dtype) for x in (qkv, log2_sizes, upstream)]
    for ours, truth in zip(
        value_and_gradient(*given, backend),
        value_and_gradient(qkv, log2_sizes, upstream, "reference"),
        strict=True,
    ):
        assert relative_error(ours.cpu(), truth) <= tolerance(torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_permuted", [False, True], ids=["packed", "permuted"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mean_key_is_the_mean_of_the_keys_over_the_heads(
    shape: Shape, is_permuted: bool, backend: Backend, device: torch.device
) -> None:
    qkv = random_input(shape)[0].to(device, torch.bfloat16)
    if is_permuted:
        qkv = qkv.transpose(1, 3).contiguous().transpose(1, 3)
    _, mean_key = frame_attention(qkv, with_mean_key=True, backend=backend)
    assert mean_key is not None
    assert mean_key.dtype == torch.bfloat16
    assert relative_error(mean_key, qkv[:, :, 1].double().mean(dim=2)) <= tolerance(torch.bfloat16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_key_is_only_given_when_asked_for_and_neither_it_nor_the_sizes_have_a_gradient(
    backend: Backend, device: torch.device
) -> None:
    qkv, log2_sizes, _ = (
        x.to(device, precision(backend)).requires_grad_() for x in random_input((1, 3, 2, 16))
    )
    assert frame_attention(qkv, log2_sizes, backend=backend)[1] is None
    out, mean_key = frame_attention(qkv, log2_sizes, with_mean_key=True, backend=backend)
    assert mean_key is not None
    assert not mean_key.requires_grad
    out.sum().backward()
    assert log2_sizes.grad is None
    assert qkv.grad is not None


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("has_sizes", [False, True])
def test_gradient_is_right(has_sizes: bool, backend: Backend) -> None:
    qkv, log2_sizes, _ = random_input((2, 4, 2, 3))
    assert torch.autograd.gradcheck(
        lambda x: frame_attention(x, log2_sizes if has_sizes else None, backend=backend)[0],
        qkv.requires_grad_(),
        fast_mode=True,
    )


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_error_and_gradient_error_stay_within_the_tolerance_of_the_dtype(
    shape: Shape, dtype: torch.dtype, backend: Backend
) -> None:
    qkv, log2_sizes, upstream = random_input(shape)
    qkv, upstream = qkv.to(dtype), upstream.to(dtype)
    # Eager rounds the logarithms of the sizes as well, and the scores that they are added to.
    allowed = tolerance(dtype) * (2 if backend == "eager" else 1)
    truths = value_and_gradient(qkv.double(), log2_sizes, upstream.double(), "reference")
    for ours, truth in zip(
        value_and_gradient(qkv, log2_sizes.float(), upstream, backend), truths, strict=True
    ):
        assert ours.dtype == dtype
        assert relative_error(ours, truth) <= allowed


@pytest.mark.parametrize("backend", PLAIN)
def test_strides_of_input_and_gradient_are_free(backend: Backend) -> None:
    qkv, log2_sizes, upstream = random_input((3, 5, 2, 8))
    plain = value_and_gradient(qkv, log2_sizes, upstream, backend)
    permuted = value_and_gradient(
        qkv.permute(4, 2, 0, 3, 1).contiguous().permute(2, 4, 1, 3, 0),
        log2_sizes.T.contiguous().T,
        upstream.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        backend,
    )
    for ours, theirs in zip(permuted, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(shape=st.tuples(*[st.integers(1, 6)] * 4), has_sizes=st.booleans(), seed=st.integers(0, 2**16))
def test_eager_equals_reference_whatever_the_shape_and_sizes(
    shape: Shape, has_sizes: bool, seed: int
) -> None:
    qkv, log2_sizes, upstream = random_input(shape, seed=seed)
    sizes = log2_sizes if has_sizes else None
    for ours, truth in zip(
        value_and_gradient(qkv, sizes, upstream, "eager"),
        value_and_gradient(qkv, sizes, upstream, "reference"),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-11)


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(6)), seed=st.integers(0, 2**16))
def test_permuted_tokens_give_permuted_rows(order: list[int], seed: int) -> None:
    qkv, log2_sizes, _ = random_input((1, 6, 2, 4), seed=seed)
    out, _ = frame_attention(qkv, log2_sizes)
    permuted, _ = frame_attention(qkv[:, order], log2_sizes[:, order])
    torch.testing.assert_close(permuted, out[:, order], rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(factor=st.floats(-20, 20), seed=st.integers(0, 2**16))
def test_only_the_ratios_of_the_sizes_matter(factor: float, seed: int) -> None:
    qkv, log2_sizes, _ = random_input((2, 5, 2, 4), seed=seed)
    out, _ = frame_attention(qkv, log2_sizes)
    torch.testing.assert_close(frame_attention(qkv, log2_sizes + factor)[0], out, rtol=1e-11, atol=1e-11)


# 2^16 is more than float16 holds, 2^200 more than any: no power of a size alone may be taken.
@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(torch.float32, 200.0), (torch.float16, 20.0), (torch.float16, -200.0), (torch.bfloat16, 200.0)],
    ids=str,
)
@pytest.mark.parametrize("tokens", [5, 150], ids=["one tile", "several tiles"])
def test_the_kernel_sees_no_more_than_the_ratios_of_the_sizes_either(
    tokens: int, dtype: torch.dtype, factor: float, device: torch.device
) -> None:
    qkv, log2_sizes, upstream = random_input((1, tokens, 1, 16))
    qkv, log2_sizes, upstream = qkv.to(device, dtype), log2_sizes.to(device), upstream.to(device, dtype)
    truths = value_and_gradient(qkv.double(), log2_sizes, upstream.double(), "reference")
    ours = value_and_gradient(qkv, (log2_sizes + factor).float(), upstream, "triton")
    # Scores are as far from 0 as the sizes are large, and rounded in float32.
    allowed = 2 * tolerance(dtype) + abs(factor) * torch.finfo(torch.float32).eps
    for value, truth in zip(ours, truths, strict=True):
        assert relative_error(value, truth) <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend: Backend, device: torch.device) -> None:
    qkv, log2_sizes, _ = (x.float().to(device) for x in random_input((2, 5, 3, 16)))
    plain = frame_attention(qkv, log2_sizes, with_mean_key=True, backend=backend)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        inside = frame_attention(qkv, log2_sizes, with_mean_key=True, backend=backend)
    for ours, theirs in zip(inside, plain, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_causal_attention_sees_no_later_token(dtype: torch.dtype) -> None:
    query, key, value = random(3, 2, 4, 7, 16).to(dtype)
    out = eager.attend(query, key, value, bias=None, is_causal=True)
    truth = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), is_causal=True)
    assert relative_error(out, truth) <= tolerance(dtype)


def test_attend_takes_a_bias_or_is_causal() -> None:
    query, key, value = random(3, 2, 1, 3, 4)
    with pytest.raises(ValueError, match="a bias or is_causal, not both"):
        eager.attend(query, key, value, bias=torch.zeros(2, 1, 1, 3), is_causal=True)


@pytest.mark.parametrize("has_sizes", [False, True])
def test_more_sequences_than_sdpa_takes_on_cuda_go_in_parts(
    has_sizes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv, log2_sizes, upstream = random_input((7, 3, 2, 4))
    sizes = log2_sizes if has_sizes else None
    whole = value_and_gradient(qkv, sizes, upstream, "eager")
    monkeypatch.setattr("videolm_kernels.sdpa.MAX_SEQUENCES", 3)
    for ours, theirs in zip(value_and_gradient(qkv, sizes, upstream, "eager"), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("qkv", "message"),
    [
        (torch.zeros(1, 2, 3, 1, 16, dtype=torch.float64), "computes in float32, and qkv is float64"),
        (torch.zeros(1, 2, 3, 1, 160), "takes heads up to 128 wide, not 160"),
    ],
    ids=["float64", "wide heads"],
)
def test_what_the_kernel_cannot_is_refused_with_the_reason(qkv: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"backend='triton' cannot run frame_attention: .*{message}"):
        frame_attention(qkv, backend="triton")


@pytest.mark.parametrize(
    ("dtype", "has_sizes", "reason"),
    [
        (torch.bfloat16, True, ""),
        (torch.bfloat16, False, "needs no bias and is as good"),
        (torch.float32, True, "no tensor cores"),
    ],
    ids=["sizes", "no sizes", "float32"],
)
def test_where_the_kernel_is_no_gain_the_choice_says_why(
    dtype: torch.dtype, has_sizes: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    choose = op.choose_backend
    monkeypatch.setattr(
        op, "choose_backend", lambda name, **about: asked.update(about) or choose(name, **about)
    )
    frame_attention(torch.zeros(1, 2, 3, 1, 16, dtype=dtype), torch.zeros(1, 2) if has_sizes else None)
    assert asked["cannot"] == ""
    assert reason in asked["slower"] if reason else asked["slower"] == ""


# `unwrap`: the shape types, where they are switched on, would refuse these first.
@pytest.mark.parametrize(
    ("qkv", "log2_sizes", "error", "message"),
    [
        (torch.zeros(2, 3, 4, 5), None, ValueError, r"must be \(F, N, 3, H, Dh\), got \(2, 3, 4, 5\)"),
        (torch.zeros(1, 2, 2, 4, 5), None, ValueError, r"must be \(F, N, 3, H, Dh\)"),
        (torch.zeros(1, 2, 3, 0, 5), None, ValueError, r"must have heads.* got .* = \(1, 2, 3, 0, 5\)"),
        (torch.zeros(1, 2, 3, 4, 0), None, ValueError, r"heads a width, got .* = \(1, 2, 3, 4, 0\)"),
        (
            torch.zeros(1, 2, 3, 4, 5, dtype=torch.int32),
            None,
            TypeError,
            "qkv must be float64.* got torch.int32",
        ),
        (torch.zeros(1, 2, 3, 4, 5), torch.ones(2, 1), ValueError, r"\(F, N\), here \(1, 2\), got \(2, 1\)"),
        (
            torch.zeros(1, 2, 3, 4, 5),
            torch.ones(1, 2, dtype=torch.int64),
            TypeError,
            "log2_sizes must be float32 or torch.float32 as qkv, got torch.int64",
        ),
        (
            torch.zeros(1, 2, 3, 4, 5),
            torch.ones(1, 2, device="meta"),
            ValueError,
            "log2_sizes is on meta but qkv is on cpu",
        ),
    ],
    ids=[
        "dimensions",
        "parts",
        "no heads",
        "no width",
        "dtype",
        "shape of sizes",
        "dtype of sizes",
        "device of sizes",
    ],
)
def test_wrong_input_is_refused(
    qkv: Tensor, log2_sizes: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        unwrap(frame_attention)(qkv, log2_sizes)
