"""The machine code of temporal attention: tensor cores, whole 16 bytes at a time, and no spilled registers."""

from typing import Any

import pytest
import torch

from tests.aot.compiling import ARCHITECTURES, Machine, compiled
from videolm_kernels.temporal_attention import fused

Shape = tuple[int, int, int, int, int]
# CLIP's towers at their own numbers of tokens and heads, and the other head widths.
TOWERS: dict[str, Shape] = {
    "B/16 of 12 frames": (2, 12, 197, 12, 64),
    "L/14 of 8 frames": (2, 8, 257, 16, 64),
    "B/16 of 32 frames": (2, 32, 197, 12, 64),
    "B/16 of 64 frames": (2, 64, 197, 12, 64),
    "heads of 32": (2, 8, 50, 8, 32),
    "heads of 128": (2, 12, 197, 8, 128),
    "message tokens": (2, 8, 1, 12, 64),
}
B16 = TOWERS["B/16 of 12 frames"]
# What the towers ask for: padded clips, causal clips, a bias, the class token of Frozen in Time.
OPTIONS: dict[str, tuple[str, ...]] = {
    "lengths": ("lengths",),
    "causal": ("lengths", "causal"),
    "bias": ("lengths", "bias"),
    "shared": ("lengths", "shared", "skipped"),
    "all": ("lengths", "causal", "bias", "shared", "skipped"),
}


def inputs(
    shape: Shape, dtype: torch.dtype, options: tuple[str, ...]
) -> tuple[torch.Tensor, tuple[Any, ...]]:
    """A gradient, and what forward takes, on meta."""
    batch, frames, tokens, heads, head_dim = shape

    def empty(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device="meta")

    return empty(batch, frames, tokens, heads, head_dim), (
        empty(batch, frames, tokens, 3, heads, head_dim),
        empty(batch, dtype=torch.int64) if "lengths" in options else None,
        empty(heads, 2 * frames - 1, dtype=torch.float32) if "bias" in options else None,
        empty(batch, 2, heads, head_dim) if "shared" in options else None,
        "causal" in options,
        1 if "skipped" in options else 0,
    )


def both(
    shape: Shape, dtype: torch.dtype, arch: int, options: tuple[str, ...] = ()
) -> tuple[Machine, Machine]:
    gradient, args = inputs(shape, dtype, options)
    (forward,) = compiled(lambda: fused.temporal_attention_forward(*args), arch)
    needs = {"needs_bias": "bias" in options, "needs_shared": "shared" in options}
    (backward,) = compiled(lambda: fused.temporal_attention_backward(gradient, *args, **needs), arch)
    return forward, backward


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tower", TOWERS)
def test_towers_use_tensor_cores_and_wide_moves_and_spill_nothing(tower: str, arch: int) -> None:
    for code in both(TOWERS[tower], torch.bfloat16, arch):
        assert code.num_spills == 0
        assert code.stack_bytes == 0
        assert code.num_mma > 0
        assert code.num_wide_loads > 0
        assert code.num_wide_stores > 0
        assert code.num_narrow_loads == 0
        assert code.num_narrow_stores == 0


def test_at_least_four_programs_share_a_multiprocessor_of_sm_90() -> None:
    for code in both(B16, torch.bfloat16, 90):
        assert 4 * code.registers * 32 * code.num_warps <= 65_536
        assert 4 * code.shared_bytes <= 227 * 1024
        assert "HGMMA" in code.sass


@pytest.mark.parametrize(
    ("names", "arch"), [*((names, 90) for names in OPTIONS), ("causal", 80), ("bias", 80)]
)
def test_options_spill_nothing(names: str, arch: int) -> None:
    for code in both(B16, torch.bfloat16, arch, OPTIONS[names]):
        assert code.num_spills == 0
        assert code.num_mma > 0
        assert code.num_wide_loads > 0


@pytest.mark.parametrize("names", ["shared", "all"])
def test_a_shared_key_spills_a_little_on_sm_80(names: str) -> None:
    for code in both(B16, torch.bfloat16, 80, OPTIONS[names]):
        assert code.stack_bytes <= 64
        assert code.num_mma > 0
        assert code.num_wide_loads > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("shape", [B16, (2, 12, 197, 8, 128)], ids=str)
@pytest.mark.parametrize("names", [(), OPTIONS["all"]], ids=["plain", "all"])
def test_float32_spills_nothing_and_rounds_nothing_to_tf32(
    shape: Shape, names: tuple[str, ...], arch: int
) -> None:
    for code in both(shape, torch.float32, arch, names):
        assert code.num_spills == 0
        assert code.num_mma == 0
        assert code.num_wide_loads > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("names", "most_stack"),
    [((), 0), (OPTIONS["all"], 400)],
    ids=["plain", "all"],
)
def test_sixty_four_frames_in_float32_spill_with_a_shared_key_alone(
    names: tuple[str, ...], most_stack: int, arch: int
) -> None:
    for code in both((2, 64, 197, 12, 64), torch.float32, arch, names):
        assert code.stack_bytes <= most_stack
        assert code.shared_bytes <= 99 * 1024


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_128_frames_fit_in_shared_memory(head_dim: int, arch: int) -> None:
    for code in both((2, 128, 50, 12, head_dim), torch.bfloat16, arch):
        assert code.shared_bytes <= (160 if head_dim == 128 else 96) * 1024
        assert code.num_mma > 0


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 16), (1, 2, 1, 1, 32), (16, 16, 16, 16, 16)], ids=str)
def test_sizes_that_triton_turns_into_constants_compile(shape: Shape) -> None:
    both(shape, torch.float16, 90, OPTIONS["all"])
