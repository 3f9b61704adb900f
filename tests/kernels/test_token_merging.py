"""Token merging in plain torch: both implementations against loops over tokens in float64."""

from dataclasses import fields
from inspect import unwrap

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from videolm_kernels import (
    Match,
    compose_assignments,
    match_tokens,
    max_merged,
    merge_tokens,
    unmerge_tokens,
)
from videolm_kernels.backend import Backend
from videolm_kernels.testing import relative_error, tolerance

BACKENDS: tuple[Backend, ...] = ("reference", "eager")

# (B, N, C, num_merged, num_protected): the least there is, all of set a, more protected tokens than not, CLIP's own.
SHAPES = (
    (1, 2, 1, 1, 0),
    (2, 3, 5, 1, 0),
    (3, 5, 4, 1, 1),
    (2, 8, 16, 4, 0),
    (2, 9, 3, 3, 3),
    (1, 13, 7, 2, 8),
    (3, 17, 24, 5, 2),
    (2, 50, 64, 16, 1),
    (1, 197, 64, 98, 1),
)

# One row of a group: the token that remains, then those that join it.
Groups = list[list[int]]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def groups_by_loop(metric: Tensor, num_merged: int, num_protected: int) -> Groups:
    """Bipartite soft matching of one sequence, pair by pair."""
    set_a = [i for i in range(num_protected, len(metric)) if i % 2 == 0]
    set_b = [i for i in range(num_protected, len(metric)) if i % 2 == 1]
    chosen = []
    for a in set_a:
        score, partner = -torch.inf, set_b[0] if set_b else -1
        for b in set_b:
            cosine = float(F.cosine_similarity(metric[a], metric[b], dim=0, eps=1e-12))
            if cosine > score:
                score, partner = cosine, b
        chosen.append((-score, a, partner))
    merged = {a: partner for _, a, partner in sorted(chosen)[:num_merged]}
    rows = [*range(num_protected), *(a for a in set_a if a not in merged), *set_b]
    return [[kept, *(a for a in set_a if merged.get(a) == kept)] for kept in rows]


def groups_of(match: Match) -> list[Groups]:
    """The groups of every sequence by `keep_idx`, `src_idx` and `dst_idx`, in their order."""
    return [
        [[kept, *(s for s, d in zip(src, dst, strict=True) if d == kept)] for kept in keep]
        for src, dst, keep in zip(
            match.src_idx.tolist(), match.dst_idx.tolist(), match.keep_idx.tolist(), strict=True
        )
    ]


def assert_consistent(match: Match) -> None:
    """Every token is in one group, its row is what `assignment` says, and the sources are in their order."""
    for groups, assignment, src, dst in zip(
        groups_of(match),
        match.assignment.tolist(),
        match.src_idx.tolist(),
        match.dst_idx.tolist(),
        strict=True,
    ):
        assert sorted(token for group in groups for token in group) == list(range(len(assignment)))
        assert all(assignment[token] == row for row, group in enumerate(groups) for token in group)
        assert sorted(zip(dst, src, strict=True)) == list(zip(dst, src, strict=True))


def merged_by_loop(
    tokens: Tensor, sizes: Tensor | None, match: Match, residual: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    tokens = tokens if residual is None else tokens + residual
    merged = tokens.new_empty(*match.keep_idx.shape, tokens.shape[2])
    new_sizes = torch.empty(match.keep_idx.shape)
    for b, groups in enumerate(groups_of(match)):
        for row, group in enumerate(groups):
            counts = [1.0 if sizes is None else float(sizes[b, i]) for i in group]
            shares = [
                s * (1.0 if weights is None else float(weights[b, i]))
                for s, i in zip(counts, group, strict=True)
            ]
            if sum(shares) == 0:
                shares = [1.0] + [0.0] * (len(group) - 1)
            merged[b, row] = sum(s * tokens[b, i] for s, i in zip(shares, group, strict=True)) / sum(shares)
            new_sizes[b, row] = sum(counts)
    return merged, new_sizes


def random_beside(tokens: Tensor, options: str) -> dict[str, Tensor | None]:
    """The optional tensors named in `options`; sizes and weights of 0 among them."""
    generator = torch.Generator().manual_seed(5)
    shape = tokens.shape[:2]
    sizes = torch.randint(0, 4, shape, generator=generator).float()
    weights = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) > 0.3)
    return {
        "sizes": sizes if "sizes" in options else None,
        "residual": random(*tokens.shape, seed=6).to(tokens.dtype) if "residual" in options else None,
        "weights": weights if "weights" in options else None,
    }


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_match_equals_a_loop_over_pairs(shape: tuple[int, int, int, int, int], backend: Backend) -> None:
    batch, num_tokens, channels, num_merged, num_protected = shape
    metric = random(batch, num_tokens, channels)
    match = match_tokens(metric, num_merged, num_protected, backend=backend)
    assert_consistent(match)
    assert groups_of(match) == [groups_by_loop(m, num_merged, num_protected) for m in metric]


def assert_same(match: Match, other: Match) -> None:
    for field in fields(Match):
        assert torch.equal(getattr(match, field.name), getattr(other, field.name)), field.name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_cosines_are_never_rounded_to_16_bits(dtype: torch.dtype, backend: Backend) -> None:
    metric = random(8, 50, 64).to(dtype)
    truth = match_tokens(metric.double(), 16, 1, backend="reference")
    assert_same(match_tokens(metric, 16, 1, backend=backend), truth)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(match_tokens(metric, 16, 1, backend=backend), truth)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_length_of_a_token_does_not_matter(backend: Backend) -> None:
    metric = random(2, 17, 8).float()
    truth = match_tokens(metric, 5, backend=backend)
    for scale in (2.0**-27, 2.0**40):
        assert_same(match_tokens(metric * scale, 5, backend=backend), truth)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_index(backend: Backend) -> None:
    same = torch.eye(4)[0].expand(1, 9, 4)
    match = match_tokens(same, 2, 1, backend=backend)
    assert groups_of(match) == [[[0], [6], [8], [1, 2, 4], [3], [5], [7]]]
    pairs = torch.eye(4)[[0, 1, 2, 2, 1, 1, 0, 2]][None]
    assert groups_of(match_tokens(pairs, 2, backend=backend)) == [[[0], [6], [1, 4], [3, 2], [5], [7]]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cosine_that_is_nan_is_the_lowest(backend: Backend) -> None:
    metric = torch.eye(4)[[0, 0, 1, 1, 2, 0]][None].clone()
    metric[0, 0] = torch.nan  # an a: it is merged last, and with the first b
    metric[0, 3, 2] = torch.inf  # a b: nobody's partner
    assert groups_of(match_tokens(metric, 2, backend=backend)) == [[[0], [1, 2, 4], [3], [5]]]
    assert groups_of(match_tokens(metric, 3, backend=backend)) == [[[1, 0, 2, 4], [3], [5]]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_of_zeros_is_like_no_other(backend: Backend) -> None:
    metric = torch.eye(3)[[0, 1, 1, 1]][None] * torch.tensor([0.0, 1, 1, -1])[:, None]
    assert groups_of(match_tokens(metric, 1, backend=backend)) == [[[0], [1, 2], [3]]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_merging_set_a_comes_before_set_b(backend: Backend) -> None:
    match = match_tokens(random(2, 7, 4), 0, 1, backend=backend)
    assert match.keep_idx.tolist() == [[0, 2, 4, 6, 1, 3, 5]] * 2
    assert match.src_idx.shape == match.dst_idx.shape == (2, 0)
    assert_consistent(match)
    tokens = random(2, 7, 3)
    merged, sizes = merge_tokens(tokens, None, match, backend=backend)
    assert torch.equal(merged, tokens[:, match.keep_idx[0].long()])
    assert sizes.eq(1).all()


@pytest.mark.parametrize("num_protected", range(9))
def test_max_merged_is_the_number_of_as_where_there_is_a_b(num_protected: int) -> None:
    for num_tokens in range(num_protected, 9):
        indices = range(num_protected, num_tokens)
        num_a, num_b = sum(i % 2 == 0 for i in indices), sum(i % 2 == 1 for i in indices)
        assert max_merged(num_tokens, num_protected) == (num_a if num_b else 0)
        metric = random(1, num_tokens, 4)
        assert_consistent(match_tokens(metric, max_merged(num_tokens, num_protected), num_protected))
        with pytest.raises(ValueError, match="max_merged gives that number"):
            match_tokens(metric, max_merged(num_tokens, num_protected) + 1, num_protected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_merge_equals_a_loop_over_groups(options: str, backend: Backend) -> None:
    tokens = random(3, 11, 5)
    beside = random_beside(tokens, options)
    match = match_tokens(random(3, 11, 4, seed=1), 4, 1, backend="reference")
    true_merged, true_sizes = merged_by_loop(tokens, match=match, **beside)
    sizes = beside.pop("sizes")
    merged, new_sizes = merge_tokens(tokens, sizes, match, backend=backend, **beside)
    torch.testing.assert_close(merged, true_merged, rtol=1e-12, atol=1e-12)
    assert new_sizes.dtype == torch.float32
    assert torch.equal(new_sizes, true_sizes)


@pytest.mark.parametrize("options", OPTIONS)
def test_merge_as_the_compiler_sees_it_equals_a_loop_over_groups(
    options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = random(3, 11, 5)
    tokens[1, 0] = torch.nan  # a token of one group, which no other is to see
    beside = random_beside(tokens, options)
    # Two of the four join one token.
    match = match_tokens(torch.eye(3)[[0, 1, 0, 1, 1, 1, 1, 0, 2, 2, 0]].expand(3, -1, -1), 4)
    assert len(match.dst_idx[0].unique()) < 4
    true_merged, true_sizes = merged_by_loop(tokens, match=match, **beside)
    assert 0 < true_merged.isnan().sum() < tokens.shape[2] * 2
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    merged, new_sizes = merge_tokens(tokens, beside.pop("sizes"), match, backend="eager", **beside)
    torch.testing.assert_close(merged, true_merged, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert torch.equal(new_sizes, true_sizes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_is_right(options: str, backend: Backend) -> None:
    tokens = random(2, 9, 3).requires_grad_()
    beside = random_beside(tokens, options)
    sizes, residual = beside["sizes"], beside["residual"]
    match = match_tokens(random(2, 9, 4, seed=1), 4)
    inputs = [tokens] if residual is None else [tokens, residual.requires_grad_()]

    def merged(*given: Tensor) -> Tensor:
        added = given[1] if len(given) == 2 else None
        return merge_tokens(
            given[0], sizes, match, residual=added, weights=beside["weights"], backend=backend
        )[0]

    assert torch.autograd.gradcheck(merged, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS[-2:])
def test_eager_stays_within_the_tolerance_of_the_dtype(options: str, dtype: torch.dtype) -> None:
    tokens = random(2, 33, 24).to(dtype)
    beside = random_beside(tokens, options)
    match = match_tokens(random(2, 33, 8, seed=1), 12, 1)
    upstream = random(2, 21, 24, seed=2).to(dtype)
    merged, gradient = merged_and_gradient(tokens, match, upstream, beside, backend="eager")
    exact = {name: None if x is None or name != "residual" else x.double() for name, x in beside.items()}
    exact |= {"sizes": beside["sizes"], "weights": beside["weights"]}
    true_merged, true_gradient = merged_and_gradient(
        tokens.double(), match, upstream.double(), exact, backend="reference"
    )
    assert merged.dtype == gradient.dtype == dtype
    assert relative_error(merged, true_merged) <= tolerance(dtype)
    assert relative_error(gradient, true_gradient) <= tolerance(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_merged_row_is_rounded_once(backend: Backend) -> None:
    tokens, residual = random(2, 16, 64).bfloat16(), random(2, 16, 64, seed=6).bfloat16()
    # Pairs, whose means are exact in float32.
    match = match_tokens(torch.eye(8).repeat_interleave(2, dim=0).expand(2, 16, 8), 8)
    merged, _ = merge_tokens(tokens, None, match, residual=residual, backend=backend)
    truth, _ = merge_tokens(tokens.double(), None, match, residual=residual.double(), backend="reference")
    assert torch.equal(merged, truth.float().bfloat16())


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing_in_a_merge(backend: Backend) -> None:
    tokens, match = random(2, 9, 8).float(), match_tokens(random(2, 9, 4, seed=1), 4)
    plain, _ = merge_tokens(tokens, None, match, residual=tokens, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        merged, _ = merge_tokens(tokens, None, match, residual=tokens, backend=backend)
    assert torch.equal(merged, plain)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 7, 4), (2, 0, 4), (2, 7, 0)], ids=str)
def test_no_sequences_no_tokens_and_no_width_are_fine(shape: tuple[int, int, int], backend: Backend) -> None:
    match = match_tokens(torch.zeros(shape), min(1, shape[1]), backend=backend)
    tokens = torch.zeros(shape, requires_grad=True)
    merged, sizes = merge_tokens(tokens, None, match, residual=tokens, backend=backend)
    merged.sum().backward()
    assert merged.shape == (*match.keep_idx.shape, shape[2])
    assert sizes.shape == match.keep_idx.shape
    assert tokens.grad is not None
    assert unmerge_tokens(merged, match).shape == shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_strides_of_a_match_are_free(backend: Backend) -> None:
    tokens, match = random(3, 9, 4), match_tokens(random(3, 9, 4, seed=1), 3, 1)
    strided = Match(*(getattr(match, field.name).T.contiguous().T for field in fields(Match)))
    for ours, theirs in zip(
        *(merge_tokens(tokens, None, m, backend=backend) for m in (strided, match)), strict=True
    ):
        assert torch.equal(ours, theirs)


def merged_and_gradient(
    tokens: Tensor, match: Match, upstream: Tensor, beside: dict[str, Tensor | None], *, backend: Backend
) -> tuple[Tensor, Tensor]:
    tokens = tokens.detach().requires_grad_()
    merged, _ = merge_tokens(
        tokens,
        beside["sizes"],
        match,
        residual=beside["residual"],
        weights=beside["weights"],
        backend=backend,
    )
    (gradient,) = torch.autograd.grad(merged, tokens, upstream)
    return merged.detach(), gradient


def test_the_gradient_is_the_same_whatever_its_strides() -> None:
    tokens, match = (
        random(2, 9, 4).transpose(0, 1).contiguous().transpose(0, 1),
        match_tokens(random(2, 9, 4), 3),
    )
    nothing: dict[str, Tensor | None] = dict.fromkeys(("sizes", "residual", "weights"))
    upstream = random(2, 6, 4, seed=2)
    plain = merged_and_gradient(tokens.contiguous(), match, upstream, nothing, backend="eager")
    permuted = upstream.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for ours, theirs in zip(
        merged_and_gradient(tokens, match, permuted, nothing, backend="eager"), plain, strict=True
    ):
        assert torch.equal(ours, theirs)
    expanded = torch.ones(1, 1, 1, dtype=torch.float64).expand(2, 6, 4)
    assert torch.equal(
        merged_and_gradient(tokens, match, expanded, nothing, backend="eager")[1],
        merged_and_gradient(tokens, match, expanded.contiguous(), nothing, backend="eager")[1],
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", [[0.0, 0, 0, 0], [-1.0, 2, -1, 1]], ids=["none", "cancelling"])
def test_a_group_of_no_weight_keeps_the_value_and_the_gradient_of_its_kept_token(
    weights: list[float], backend: Backend
) -> None:
    match = match_tokens(torch.eye(2)[[0, 0, 0, 1]][None], 2)
    assert groups_of(match) == [[[1, 0, 2], [3]]]
    tokens = random(1, 4, 3).requires_grad_()
    merged, sizes = merge_tokens(tokens, None, match, weights=torch.tensor([weights]), backend=backend)
    assert torch.equal(merged, tokens[:, [1, 3]])
    assert sizes.tolist() == [[3, 1]]
    merged.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[0, :, 0].tolist() == [0, 1, 0, 1]


def test_the_residual_has_the_gradient_of_the_tokens_in_its_own_dtype() -> None:
    tokens, residual = random(1, 6, 4).float().requires_grad_(), random(1, 6, 4).bfloat16().requires_grad_()
    merged, sizes = merge_tokens(tokens, None, match_tokens(random(1, 6, 4), 2), residual=residual)
    assert not sizes.requires_grad
    merged.square().sum().backward()
    assert tokens.grad is not None
    assert residual.grad is not None
    assert residual.grad.dtype == torch.bfloat16
    assert torch.equal(residual.grad, tokens.grad.bfloat16())


def test_matching_and_sizes_carry_no_gradient() -> None:
    metric, tokens = random(1, 8, 4).requires_grad_(), random(1, 8, 4).float()
    match = match_tokens(metric, 2)
    sizes, weights = (torch.rand(1, 8).requires_grad_() for _ in range(2))
    merged, new_sizes = merge_tokens(tokens, sizes, match, weights=weights)
    assert not merged.requires_grad
    assert not new_sizes.requires_grad


@settings(deadline=None, max_examples=50)
@given(data=st.data(), num_tokens=st.integers(2, 24), seed=st.integers(0, 2**16))
def test_merging_conserves_sizes_and_the_mean_that_they_weight(
    data: st.DataObject, num_tokens: int, seed: int
) -> None:
    num_protected = data.draw(st.integers(0, num_tokens))
    num_merged = data.draw(st.integers(0, max_merged(num_tokens, num_protected)))
    match = match_tokens(random(2, num_tokens, 4, seed=seed), num_merged, num_protected)
    assert_consistent(match)
    assert match.keep_idx[:, :num_protected].tolist() == [list(range(num_protected))] * 2
    tokens = random(2, num_tokens, 3, seed=seed + 1)
    sizes = torch.randint(1, 9, (2, num_tokens), generator=torch.Generator().manual_seed(seed)).float()
    merged, new_sizes = merge_tokens(tokens, sizes, match)
    assert torch.equal(new_sizes.sum(1), sizes.sum(1))
    torch.testing.assert_close(
        (merged * new_sizes[..., None]).sum(1), (tokens * sizes[..., None]).sum(1), rtol=1e-12, atol=1e-12
    )


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(range(4)), seed=st.integers(0, 2**16))
def test_sequences_do_not_see_each_other(order: list[int], seed: int) -> None:
    metric, tokens = random(4, 13, 4, seed=seed), random(4, 13, 3, seed=seed + 1)
    merged, _ = merge_tokens(tokens, None, match_tokens(metric, 5, 1))
    permuted, _ = merge_tokens(tokens[order], None, match_tokens(metric[order], 5, 1))
    torch.testing.assert_close(permuted, merged[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equal_tokens_merge_into_themselves(dtype: torch.dtype, backend: Backend) -> None:
    tokens = random(1, 1, 6).to(dtype).expand(2, 15, 6)
    sizes = torch.randint(1, 9, (2, 15), generator=torch.Generator().manual_seed(0)).float()
    merged, _ = merge_tokens(tokens, sizes, match_tokens(random(2, 15, 4), 7), backend=backend)
    torch.testing.assert_close(merged, tokens[:, :8], rtol=torch.finfo(torch.float32).eps, atol=0)


def test_unmerging_gives_every_token_the_mean_of_its_group() -> None:
    tokens, match = random(2, 10, 3), match_tokens(random(2, 10, 4, seed=1), 4, 1)
    merged, _ = merge_tokens(tokens, None, match)
    spread = unmerge_tokens(merged, match)
    for b, groups in enumerate(groups_of(match)):
        for group in groups:
            torch.testing.assert_close(spread[b, group], tokens[b, group].mean(0).expand(len(group), 3))


def test_composed_assignments_unmerge_in_one_step() -> None:
    first = match_tokens(random(2, 12, 4), 4, 1)
    then = match_tokens(random(2, 8, 4, seed=1), 3, 1)
    rows = random(2, 5, 3, seed=2)
    composed = compose_assignments(first.assignment, then.assignment)
    assert composed.dtype == torch.int32
    expected = unmerge_tokens(unmerge_tokens(rows, then), first)
    assert torch.equal(torch.stack([r[c.long()] for r, c in zip(rows, composed, strict=True)]), expected)


def test_a_dropped_token_stays_dropped() -> None:
    first = torch.tensor([[0, -1, 2, 1]], dtype=torch.int32)
    then = torch.tensor([[3, -1, 0]], dtype=torch.int32)
    assert compose_assignments(first, then).tolist() == [[3, -1, 0, -1]]


# `unwrap`: the shape types, where they are switched on, would refuse these first.
@pytest.mark.parametrize(
    ("metric", "num_merged", "num_protected", "error", "message"),
    [
        (torch.zeros(4, 5), 1, 0, ValueError, r"metric must be \(B, N, C\), got \(4, 5\)"),
        (torch.zeros(1, 4, 5).int(), 1, 0, TypeError, "metric must be float64.* got torch.int32"),
        (torch.zeros(1, 4, 5), 1, 5, ValueError, r"num_protected \(5\) must be from 0 to the 4 tokens"),
        (torch.zeros(1, 4, 5), -1, 0, ValueError, r"num_merged \(-1\) must be from 0 to 2"),
        (torch.zeros(1, 4, 5), 3, 0, ValueError, r"num_merged \(3\) must be from 0 to 2, the most that 4"),
    ],
)
def test_what_cannot_be_matched_is_refused(
    metric: Tensor, num_merged: int, num_protected: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        unwrap(match_tokens)(metric, num_merged, num_protected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokens": torch.zeros(1, 5, 3)}, ValueError, r"tokens must be \(1, 4, D\) for this match"),
        ({"tokens": torch.zeros(1, 4, 3).long()}, TypeError, "tokens must be float64.* got torch.int64"),
        ({"sizes": torch.zeros(4)}, ValueError, r"sizes must be \(1, 4\) beside these tokens, got \(4,\)"),
        ({"sizes": torch.zeros(1, 4).double()}, TypeError, "sizes must be float32, got torch.float64"),
        ({"weights": torch.zeros(1, 5)}, ValueError, r"weights must be \(1, 4\)"),
        ({"residual": torch.zeros(1, 4, 2)}, ValueError, r"residual must be \(1, 4, 3\)"),
        ({"residual": torch.zeros(1, 4, 3).int()}, TypeError, "residual must be float64 or float32 or"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    changes: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    arguments = {"tokens": torch.zeros(1, 4, 3), "sizes": None} | changes
    with pytest.raises(error, match=message):
        unwrap(merge_tokens)(match=match_tokens(torch.zeros(1, 4, 2), 1), **arguments)


def test_what_cannot_be_unmerged_or_composed_is_refused() -> None:
    match = match_tokens(torch.zeros(1, 4, 2), 1)
    with pytest.raises(ValueError, match=r"merged must be \(1, 3, D\) for this match, got \(1, 4, 2\)"):
        unwrap(unmerge_tokens)(torch.zeros(1, 4, 2), match)
    with pytest.raises(TypeError, match=r"then must be int32, got torch.int64"):
        unwrap(compose_assignments)(match.assignment, torch.zeros(1, 3).long())
    with pytest.raises(ValueError, match=r"with one B, got \(1, 4\) and \(2, 3\)"):
        unwrap(compose_assignments)(match.assignment, torch.zeros(2, 3).int())
