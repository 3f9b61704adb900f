"""The kernels of frame attention as machine code: tensor cores, wide loads, no spills, room for several programs."""

import pytest
import torch
from torch import Tensor

from tests.aot.compiling import ARCHITECTURES, Machine, compiled
from videolm_kernels.frame_attention.fused_backward import frame_attention_backward
from videolm_kernels.frame_attention.fused_forward import frame_attention_forward

# (N, H, Dh): CLIP's B/16, L/14 and B/32, between them as merging leaves them, a small model's, and odd ones.
SHAPES = (
    (197, 12, 64),
    (257, 16, 64),
    (50, 12, 64),
    (100, 12, 64),
    (17, 4, 48),
    (257, 16, 80),
    (50, 8, 128),
    (17, 8, 128),
    (50, 8, 32),
    (197, 8, 16),
)
Shape = tuple[int, int, int]


def on_meta(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    tokens, heads, head_dim = shape
    return (
        torch.empty(24, tokens, 3, heads, head_dim, dtype=dtype, device="meta"),
        torch.empty(24, tokens, device="meta"),
    )


def forward(
    shape: Shape, dtype: torch.dtype, arch: int, *, has_sizes: bool = True, with_mean_key: bool = True
) -> Machine:
    qkv, log2_sizes = on_meta(shape, dtype)
    sizes = log2_sizes if has_sizes else None
    (code,) = compiled(lambda: frame_attention_forward(qkv, sizes, with_mean_key=with_mean_key), arch)
    return code


def backward(shape: Shape, dtype: torch.dtype, arch: int, *, has_sizes: bool = True) -> list[Machine]:
    qkv, log2_sizes = on_meta(shape, dtype)
    out, lse = torch.empty_like(qkv[:, :, 0]), torch.empty(24, shape[1], shape[0], device="meta")
    sizes = log2_sizes if has_sizes else None
    return compiled(lambda: frame_attention_backward(out, qkv, sizes, out, lse), arch)


def assert_does_not_spill(code: Machine, *, but: int = 0) -> None:
    assert code.num_spills <= but, code.kernel
    assert code.stack_bytes <= 8 * but, code.kernel
    # Half a multiprocessor of sm_90, and what a program may take at most on sm_80 is more.
    assert code.shared_bytes <= 116_224, code.kernel


def assert_is_made_for_the_machine(code: Machine, *, but: int = 0) -> None:
    assert_does_not_spill(code, but=but)
    assert code.num_mma > 0, code.kernel
    assert code.num_wide_loads > 0, code.kernel
    assert code.num_wide_stores > 0, code.kernel


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_uses_tensor_cores_and_does_not_spill(shape: Shape, arch: int) -> None:
    assert_is_made_for_the_machine(forward(shape, torch.bfloat16, arch))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward_uses_tensor_cores_and_does_not_spill(shape: Shape, arch: int) -> None:
    # On sm_80 one register is stored and loaded once where a tile holds 65 to 128 keys.
    but = 2 if arch == 80 and 64 < shape[0] <= 128 else 0
    for code in backward(shape, torch.bfloat16, arch):
        assert_is_made_for_the_machine(code, but=but)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("has_sizes", "with_mean_key"), [(False, False), (False, True), (True, False)], ids=str
)
def test_options_leave_it_so(has_sizes: bool, with_mean_key: bool, arch: int) -> None:
    options = {"has_sizes": has_sizes, "with_mean_key": with_mean_key}
    assert_is_made_for_the_machine(forward(SHAPES[0], torch.float16, arch, **options))
    for code in backward(SHAPES[0], torch.float16, arch, has_sizes=has_sizes):
        assert_is_made_for_the_machine(code)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("shape", [SHAPES[0], (15, 4, 64), (50, 8, 128), (15, 8, 128)], ids=str)
def test_float32_does_not_spill_and_rounds_nothing_to_a_shorter_format(shape: Shape, arch: int) -> None:
    for code in [forward(shape, torch.float32, arch), *backward(shape, torch.float32, arch)]:
        assert_does_not_spill(code)
        assert code.num_mma == 0, code.kernel
        assert code.num_wide_loads > 0, code.kernel


def test_one_token_and_one_head_compile() -> None:
    for code in [forward((1, 1, 16), torch.bfloat16, 90), *backward((1, 1, 16), torch.bfloat16, 90)]:
        assert_does_not_spill(code)


@pytest.mark.parametrize(
    ("tokens", "names"),
    [
        (128, ["frame_attention_bwd_dkdv_kernel"]),
        (129, ["frame_attention_bwd_dq_kernel", "frame_attention_bwd_dkdv_kernel"]),
    ],
    ids=str,
)
def test_one_launch_goes_backward_where_one_tile_holds_the_keys(tokens: int, names: list[str]) -> None:
    assert [code.kernel for code in backward((tokens, 12, 64), torch.bfloat16, 90)] == names


@pytest.mark.parametrize("shape", [(197, 12, 64), (50, 12, 64)], ids=str)
def test_three_programs_of_clip_fit_a_multiprocessor_of_sm_90(shape: Shape) -> None:
    for code in [forward(shape, torch.bfloat16, 90), *backward(shape, torch.bfloat16, 90)]:
        registers_of_warp = -(-code.registers // 8) * 8 * 32
        assert 65_536 // (registers_of_warp * code.num_warps) >= 3, (code.kernel, code.registers)
        assert 3 * code.shared_bytes <= 232_448, code.kernel
