"""What the kernels of token merging become on a GPU, at the shapes of CLIP's towers and of larger sequences."""

import pytest
import torch
from torch import Tensor

from tests.aot.compiling import ARCHITECTURES, Machine, compiled
from videolm_kernels.token_merging.fused_match import match_tokens_forward
from videolm_kernels.token_merging.fused_merge import merge_tokens_backward, merge_tokens_forward

pytestmark = pytest.mark.parametrize("arch", ARCHITECTURES)


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def matched(num_tokens: int, channels: int, dtype: torch.dtype, arch: int) -> list[Machine]:
    metric = meta(8, num_tokens, channels, dtype=dtype)
    return compiled(lambda: match_tokens_forward(metric, num_merged=16, num_protected=1), arch)


def merged(width: int, options: str, dtype: torch.dtype, arch: int, num_merged: int = 16) -> list[Machine]:
    """The forward and the backward launch."""
    num_tokens = 4 * num_merged
    num_kept = num_tokens - num_merged
    tokens, rows = meta(8, num_tokens, width, dtype=dtype), meta(8, num_kept, dtype=torch.int32)
    joining, assignment = meta(8, num_merged, dtype=torch.int32), meta(8, num_tokens, dtype=torch.int32)
    sizes = meta(8, num_tokens, dtype=torch.float32) if "sizes" in options else None
    weights = meta(8, num_tokens, dtype=torch.float32) if "weights" in options else None
    residual = tokens if "residual" in options else None
    totals, grad = meta(8, num_kept, dtype=torch.float32), meta(8, num_kept, width, dtype=dtype)

    def both() -> None:
        merge_tokens_forward(tokens, sizes, residual, weights, joining, joining, rows)
        merge_tokens_backward(grad, sizes, weights, totals, rows, assignment)

    return compiled(both, arch)


def assert_lean(code: Machine, *, most_registers: int) -> None:
    assert code.num_spills == 0
    assert code.stack_bytes == 0
    assert code.registers <= most_registers


@pytest.mark.parametrize(("num_tokens", "channels"), [(50, 64), (197, 64), (257, 64), (197, 768), (257, 768)])
def test_one_launch_matches_on_tensor_cores(num_tokens: int, channels: int, arch: int) -> None:
    (code,) = matched(num_tokens, channels, torch.bfloat16, arch)
    assert_lean(code, most_registers=192)
    assert code.num_mma > 0
    assert code.num_wide_loads > 0
    assert code.num_narrow_loads == 0


@pytest.mark.parametrize(("num_tokens", "channels"), [(380, 768), (2352, 768), (321, 64)])
def test_long_sequences_match_in_three_launches(num_tokens: int, channels: int, arch: int) -> None:
    partner, rank, place = matched(num_tokens, channels, torch.float16, arch)
    assert_lean(partner, most_registers=192)
    assert partner.num_mma > 0
    assert partner.num_wide_loads > 0
    assert partner.num_narrow_loads == 0
    assert_lean(rank, most_registers=128)
    assert_lean(place, most_registers=128)


@pytest.mark.parametrize("num_tokens", [50, 100, 197, 380])
def test_float32_matches_without_tensor_cores_and_without_spilling(num_tokens: int, arch: int) -> None:
    code = matched(num_tokens, 64, torch.float32, arch)[0]
    assert_lean(code, most_registers=224)
    assert code.num_mma == 0  # they would round to TF32
    assert code.num_narrow_loads == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("width", "options"),
    [
        (768, "nothing"),
        (768, "sizes, residual"),
        (1024, "sizes, residual"),
        (768, "sizes, residual, weights"),
        (768, "weights"),
        (512, "sizes"),
    ],
)
def test_merging_moves_rows_in_128_bits_and_few_registers(
    width: int, options: str, dtype: torch.dtype, arch: int
) -> None:
    forward, backward = merged(width, options, dtype, arch)
    assert_lean(forward, most_registers=80)
    assert_lean(backward, most_registers=64)
    for code in (forward, backward):
        assert code.num_wide_loads > 0
        assert code.num_wide_stores > 0
    assert backward.num_narrow_stores == 0


def test_many_merged_tokens_take_no_more_registers(arch: int) -> None:
    forward, _ = merged(768, "sizes, residual, weights", torch.bfloat16, arch, num_merged=588)
    assert_lean(forward, most_registers=80)
