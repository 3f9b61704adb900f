"""QuickGELU folded into SiLU computes the same."""

from __future__ import annotations

import copy

import pytest
import torch

from videolm.encoders.blocks import MLP


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_folded_mlp_equals_quick_gelu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mlp = MLP(width=16, mlp_width=48, activation="quick_gelu").to(dtype)
    tokens = 3 * torch.randn(5, 7, 16, dtype=dtype)
    folded = copy.deepcopy(mlp)
    folded.fold_quick_gelu()
    error = (folded(tokens) - mlp(tokens)).abs().max()
    assert error < 20 * torch.finfo(dtype).eps


def test_folding_twice_is_folding_once() -> None:
    mlp = MLP(width=4, mlp_width=8, activation="quick_gelu")
    tokens = torch.randn(3, 4)
    mlp.fold_quick_gelu()
    once = mlp(tokens)
    mlp.fold_quick_gelu()
    assert torch.equal(mlp(tokens), once)


def test_folding_leaves_gelu_alone() -> None:
    mlp = MLP(width=4, mlp_width=8, activation="gelu")
    before = copy.deepcopy(mlp.state_dict())
    mlp.fold_quick_gelu()
    assert all(torch.equal(before[name], tensor) for name, tensor in mlp.state_dict().items())
