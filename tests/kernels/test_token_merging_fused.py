"""The kernels of token merging against the reference in float64, in Triton's interpreter or on the device."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from videolm_kernels import Match, match_tokens, max_merged, merge_tokens
from videolm_kernels.backend import Backend
from videolm_kernels.testing import relative_error
from videolm_kernels.token_merging.op import _match_op, _merge_backward_op, _merge_op

fused_match = pytest.importorskip(
    "videolm_kernels.token_merging.fused_match",
    reason="triton is not installed",
    exc_type=ImportError,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# (B, N, C, num_merged, num_protected)
SHAPES = (
    (1, 1, 8, 0, 0),
    (1, 2, 1, 1, 0),
    (3, 7, 16, 0, 1),
    (2, 9, 20, 4, 0),
    (2, 34, 16, 6, 3),
    (2, 50, 64, 16, 1),
    (1, 29, 40, 2, 20),
    (1, 6, 8, 0, 6),
    (1, 197, 64, 98, 1),
)

# Besides what is asked for: the errors of an IEEE division and of Triton's approximate one, in float32.
FLOOR = 4 * torch.finfo(torch.float32).eps


@pytest.fixture(params=["one launch", "three launches"])
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way of matching, whatever the number of tokens."""
    if request.param == "three launches":
        monkeypatch.setattr(fused_match, "MAX_SMALL_SET", 0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same(match: Match, other: Match) -> None:
    for field in fields(Match):
        ours, theirs = getattr(match, field.name), getattr(other, field.name)
        assert ours.dtype == torch.int32
        assert torch.equal(ours.cpu(), theirs.cpu()), field.name


def margins(metric: Tensor, num_merged: int, num_protected: int) -> Tensor:
    """By how little the choices of each sequence were made: of a partner by any a, and of the last a merged."""
    metric = metric.cpu().double()
    unit = metric / metric.norm(dim=-1, keepdim=True)
    first_a, first_b = num_protected + num_protected % 2, num_protected + 1 - num_protected % 2
    scores = unit[:, first_a::2] @ unit[:, first_b::2].mT
    far = torch.full((len(metric), 1), torch.inf, dtype=torch.float64)
    if scores.shape[1] == 0 or scores.shape[2] == 0:
        return far[:, 0]
    best = scores.amax(2).sort(dim=1, descending=True).values
    gaps = (torch.cat([far, best], 1) - torch.cat([best, -far], 1))[:, num_merged]
    if scores.shape[2] == 1:
        return gaps
    top = scores.topk(2, dim=2).values
    return torch.minimum(gaps, (top[..., 0] - top[..., 1]).amin(1))


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_matches_as_the_reference_does_in_float64(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    batch, num_tokens, channels, num_merged, num_protected = shape
    metric = random(batch, num_tokens, channels).to(device, dtype)
    match = match_tokens(metric, num_merged, num_protected, backend="triton")
    truth = match_tokens(metric.double(), num_merged, num_protected, backend="reference")
    assert margins(metric, num_merged, num_protected).min() > 1e-6, "take another seed"
    assert_same(match, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sets_that_fill_their_tile_and_wide_channels_match(dtype: torch.dtype, device: torch.device) -> None:
    metric = random(2, 257, 768).to(device, dtype)
    assert margins(metric, 30, 1).min() > 1e-7
    match = match_tokens(metric, 30, 1, backend="triton")
    assert_same(match, match_tokens(metric.double(), 30, 1, backend="reference"))


def test_ties_across_tiles_go_to_the_lowest_index(device: torch.device) -> None:
    metric = torch.eye(16)[torch.arange(301) // 3 % 5][None].to(device)
    match = match_tokens(metric, 100, 1, backend="triton")
    assert_same(match, match_tokens(metric.double(), 100, 1, backend="reference"))


def test_more_tokens_than_a_tile_match_across_tiles(device: torch.device) -> None:
    metric = random(2, 301, 32, seed=1).to(device)
    assert margins(metric, 140, 3).min() > 1e-7
    match = match_tokens(metric, 140, 3, backend="triton")
    assert_same(match, match_tokens(metric.double(), 140, 3, backend="reference"))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, of the interpreter
@pytest.mark.usefixtures("launches")
def test_ties_nans_and_zeros_are_decided_as_by_the_reference(device: torch.device) -> None:
    # Rows of the identity: their cosines are exact, and mostly equal.
    metric = torch.eye(16)[torch.randint(0, 4, (4, 41), generator=torch.Generator().manual_seed(0))]
    metric[0] = metric[0, 0]
    metric[1, ::5] = torch.nan
    metric[2, 3::4, 1] = torch.inf
    metric[3, ::3] = 0
    metric = metric.to(device)
    for num_merged in (0, 1, 7, 19, max_merged(41, 2)):
        match = match_tokens(metric, num_merged, 2, backend="triton")
        assert_same(match, match_tokens(metric.double(), num_merged, 2, backend="reference"))
        assert_same(match, match_tokens(metric, num_merged, 2, backend="eager"))


@pytest.mark.usefixtures("launches")
def test_the_length_of_a_token_does_not_matter(device: torch.device) -> None:
    metric = random(2, 33, 16).to(device)
    plain = match_tokens(metric, 9, 1, backend="triton")
    for scale in (2.0**-27, 2.0**40):
        assert_same(match_tokens(metric * scale, 9, 1, backend="triton"), plain)


def test_autocast_changes_nothing(device: torch.device) -> None:
    metric = random(2, 33, 16).to(device)
    match = match_tokens(metric, 9, 1, backend="triton")
    merged, _ = merge_tokens(metric, None, match, backend="triton")
    with torch.autocast(device.type, torch.bfloat16):
        assert_same(match_tokens(metric, 9, 1, backend="triton"), match)
        assert torch.equal(merge_tokens(metric, None, match, backend="triton")[0], merged)


@pytest.mark.parametrize("shape", [(0, 7, 4), (2, 0, 4), (2, 7, 0)], ids=str)
def test_no_sequences_no_tokens_and_no_width_are_fine(
    shape: tuple[int, int, int], device: torch.device
) -> None:
    match = match_tokens(torch.zeros(shape, device=device), min(1, shape[1]), backend="triton")
    tokens = torch.zeros(shape, device=device, requires_grad=True)
    merged, sizes = merge_tokens(tokens, None, match, residual=tokens, backend="triton")
    merged.sum().backward()
    assert merged.shape == (*match.keep_idx.shape, shape[2])
    assert sizes.shape == match.keep_idx.shape
    assert tokens.grad is not None
    assert tokens.grad.shape == shape


@pytest.mark.usefixtures("launches")
def test_the_strides_of_the_metric_are_free(device: torch.device) -> None:
    metric = random(3, 18, 24).to(device)
    plain = match_tokens(metric, 5, 1, backend="triton")
    frames_inside = metric.transpose(0, 1).contiguous().transpose(0, 1)
    channels_outside = metric.transpose(1, 2).contiguous().transpose(1, 2)
    part_of_wider = torch.cat([metric, metric], dim=2)[:, :, 24:]
    for strided in (frames_inside, channels_outside, part_of_wider):
        assert_same(match_tokens(strided, 5, 1, backend="triton"), plain)
    same = metric[:1].expand(2, -1, -1)
    assert_same(match_tokens(same, 5, 1, backend="triton"), match_tokens(same.clone(), 5, 1))


def merged_and_gradients(
    tokens: Tensor,
    sizes: Tensor | None,
    match: Match,
    upstream: Tensor,
    *,
    residual: Tensor | None = None,
    weights: Tensor | None = None,
    backend: Backend,
) -> list[Tensor]:
    """Merged tokens, sizes, then the gradients of the tokens and of the residual, if there is one."""
    leaves = [x.detach().requires_grad_() for x in (tokens, residual) if x is not None]
    merged, new_sizes = merge_tokens(
        leaves[0],
        sizes,
        match,
        residual=None if residual is None else leaves[1],
        weights=weights,
        backend=backend,
    )
    return [merged.detach(), new_sizes, *torch.autograd.grad(merged, leaves, upstream)]


def random_problem(
    batch: int, num_tokens: int, width: int, num_merged: int, options: str, device: torch.device
) -> tuple[Tensor, Tensor | None, Match, Tensor, dict[str, Tensor | None]]:
    """Tokens, sizes, match, upstream gradient and the rest; sizes and weights of 0, whole groups of them too."""
    match = match_tokens(random(batch, num_tokens, 4, seed=1).to(device), num_merged)
    sizes = (random(batch, num_tokens, seed=2).abs() * 3).round()
    weights = random(batch, num_tokens, seed=3).clamp(min=0)
    if num_merged:
        weights[0, match.src_idx[0, 0].item()] = weights[0, match.dst_idx[0, 0].item()] = 0
    beside = {
        "residual": random(batch, num_tokens, width, seed=4).to(device) if "residual" in options else None,
        "weights": weights.to(device) if "weights" in options else None,
    }
    upstream = random(batch, num_tokens - num_merged, width, seed=5).to(device)
    tokens = random(batch, num_tokens, width).to(device)
    return tokens, sizes.to(device) if "sizes" in options else None, match, upstream, beside


OPTIONS = (
    "nothing",
    "sizes",
    "weights",
    "residual",
    "sizes, weights",
    "sizes, residual",
    "weights, residual",
    "sizes, weights, residual",
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "shape", [(1, 2, 1, 1), (2, 13, 24, 6), (1, 9, 300, 0)], ids=["least", "odd", "wide, none merged"]
)
def test_merging_is_as_close_to_float64_as_plain_torch(
    shape: tuple[int, int, int, int], options: str, dtype: torch.dtype, device: torch.device
) -> None:
    tokens, sizes, match, upstream, beside = random_problem(*shape, options, device)
    tokens, upstream = tokens.to(dtype), upstream.to(dtype)
    residual = None if beside["residual"] is None else beside["residual"].to(dtype)
    exact = None if residual is None else residual.double()
    weights = beside["weights"]
    truth = merged_and_gradients(
        tokens.double(),
        sizes,
        match,
        upstream.double(),
        residual=exact,
        weights=weights,
        backend="reference",
    )
    plain, ours = (
        merged_and_gradients(
            tokens, sizes, match, upstream, residual=residual, weights=weights, backend=backend
        )
        for backend in ("eager", "triton")
    )
    for kernel, eager, true in zip(ours, plain, truth, strict=True):
        assert kernel.dtype == eager.dtype
        assert relative_error(kernel, true) <= 2 * relative_error(eager, true) + FLOOR
    assert torch.equal(ours[1], truth[1])


def test_weights_that_cancel_leave_the_kept_token(device: torch.device) -> None:
    match = match_tokens(torch.eye(2)[[0, 0, 0, 1]][None].to(device), 2)
    tokens, upstream = random(1, 4, 8).to(device), random(1, 2, 8, seed=1).to(device)
    weights = torch.tensor([[-1.0, 2, -1, 1]], device=device)
    merged, sizes, gradient = merged_and_gradients(
        tokens, None, match, upstream, weights=weights, backend="triton"
    )
    assert torch.equal(merged, tokens[:, [1, 3]])
    assert sizes.tolist() == [[3, 1]]
    assert torch.equal(gradient[:, [1, 3]], upstream)
    assert not gradient[:, [0, 2]].any()


def test_many_tokens_that_join_one_are_all_counted(device: torch.device) -> None:
    match = match_tokens(torch.eye(4)[0].expand(2, 90, 4).to(device), 45, backend="triton")
    assert (match.dst_idx == 1).all()
    tokens = random(2, 90, 8).to(device)
    merged, sizes = merge_tokens(tokens, None, match, backend="triton")
    assert sizes[:, 0].eq(46).all()
    group = torch.cat([tokens[:, 1:2], tokens[:, ::2]], dim=1)
    torch.testing.assert_close(merged[:, 0], group.mean(1))


def test_a_residual_in_16_bits_joins_tokens_in_32(device: torch.device) -> None:
    tokens, sizes, match, upstream, beside = random_problem(2, 13, 24, 6, "residual", device)
    assert beside["residual"] is not None
    residual = beside["residual"].bfloat16()
    merged, _, gradient, residual_gradient = merged_and_gradients(
        tokens, sizes, match, upstream, residual=residual, backend="triton"
    )
    true_merged, _, true_gradient, _ = merged_and_gradients(
        tokens, sizes, match, upstream, residual=residual.float(), backend="reference"
    )
    assert merged.dtype == torch.float32
    assert relative_error(merged, true_merged) <= FLOOR
    assert relative_error(gradient, true_gradient) <= FLOOR
    assert torch.equal(residual_gradient, gradient.bfloat16())


def test_the_strides_of_tokens_residual_and_gradient_are_free(device: torch.device) -> None:
    tokens, sizes, match, upstream, beside = random_problem(3, 11, 20, 5, "sizes, weights, residual", device)
    residual, weights = beside["residual"], beside["weights"]
    assert residual is not None
    assert weights is not None
    plain = merged_and_gradients(
        tokens, sizes, match, upstream, residual=residual, weights=weights, backend="triton"
    )
    for order in ((1, 0, 2), (2, 0, 1), (2, 1, 0)):
        inverse = [order.index(i) for i in range(3)]
        permuted = merged_and_gradients(
            tokens.permute(order).contiguous().permute(inverse),
            torch.stack([sizes, sizes], dim=2)[..., 0],
            match,
            upstream.permute(order).contiguous().permute(inverse),
            residual=torch.cat([residual, residual], dim=2)[..., 20:],
            weights=weights.T.contiguous().T,
            backend="triton",
        )
        for ours, theirs in zip(permuted, plain, strict=True):
            assert torch.equal(ours, theirs)
    ones = torch.ones(1, 1, 1, device=device).expand_as(upstream)
    expanded, whole = (
        merged_and_gradients(tokens, sizes, match, given, backend="triton")[2]
        for given in (ones, ones.contiguous())
    )
    assert torch.equal(expanded, whole)


@pytest.mark.usefixtures("launches")
def test_the_same_call_gives_the_same_bits(device: torch.device) -> None:
    problem = random_problem(2, 33, 40, 11, "sizes, residual", device)
    tokens, sizes, match, upstream, beside = problem
    results = [
        merged_and_gradients(tokens, sizes, match, upstream, residual=beside["residual"], backend="triton")
        for _ in range(2)
    ]
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    assert_same(*(match_tokens(tokens, 11, 1, backend="triton") for _ in range(2)))


def test_the_operations_are_registered_as_torch_wants_them(device: torch.device) -> None:
    tokens, sizes, match, upstream, beside = random_problem(2, 9, 16, 3, "sizes, weights, residual", device)
    indices = (match.src_idx, match.dst_idx, match.keep_idx, match.assignment)
    torch.library.opcheck(_match_op, (tokens, 3, 1))
    leaf = tokens.clone().requires_grad_()
    torch.library.opcheck(_merge_op, (leaf, sizes, beside["residual"], beside["weights"], *indices))
    torch.library.opcheck(_merge_op, (tokens, None, tokens.clone().requires_grad_(), None, *indices))
    totals = torch.rand(2, 6, device=device)
    torch.library.opcheck(
        _merge_backward_op, (upstream, sizes, None, totals, match.keep_idx, match.assignment)
    )


def test_float64_has_no_kernel_and_says_so() -> None:
    tokens = random(1, 4, 8).double()
    with pytest.raises(
        RuntimeError, match="cannot run match_tokens: the kernel computes in float32, and metric"
    ):
        match_tokens(tokens, 1, backend="triton")
    match = match_tokens(tokens, 1)
    with pytest.raises(
        RuntimeError, match="cannot run merge_tokens: the kernel computes in float32, and tokens"
    ):
        merge_tokens(tokens, None, match, backend="triton")
