"""The reader of machine code sees what it is there to see, and misses nothing that a kernel lost."""

import pytest
import torch
import triton
import triton.language as tl

from tests.aot.compiling import ARCHITECTURES, compiled
from videolm_kernels import launching


@triton.jit
def gram_kernel(x, out, stride, SIDE: tl.constexpr, UNIT: tl.constexpr, USES_DOT: tl.constexpr):
    rows = tl.arange(0, SIDE)
    tile = tl.load(x + rows[:, None] * stride + rows[None, :] * UNIT)
    gram = tl.dot(tile, tl.trans(tile)) if USES_DOT else tile.to(tl.float32) * 2
    tl.store(out + rows[:, None] * SIDE + rows[None, :], gram)


def launch_gram(
    *, side: int = 64, stride: int = 64, unit: int = 1, num_warps: int = 4, dot: bool = True
) -> None:
    x = torch.empty(side, stride, dtype=torch.bfloat16, device="meta")
    out = torch.empty(side, side, device="meta")
    launching.launch(
        gram_kernel, (1,), x, out, stride, num_warps=num_warps, SIDE=side, UNIT=unit, USES_DOT=dot
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_good_kernel_has_tensor_cores_and_wide_loads_and_no_spills(arch: int) -> None:
    (code,) = compiled(launch_gram, arch)
    assert code.kernel == "gram_kernel"
    assert code.num_mma > 0
    assert code.num_wide_loads > 0
    assert code.num_wide_stores > 0
    assert (code.num_narrow_loads, code.num_spills, code.stack_bytes) == (0, 0, 0)
    assert 0 < code.registers < 255
    assert code.shared_bytes > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tensor_cores_that_are_not_used_are_missed(arch: int) -> None:
    (code,) = compiled(lambda: launch_gram(dot=False), arch)
    assert code.num_mma == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    "layout", [{"stride": 63}, {"unit": 2, "stride": 128}], ids=["odd rows", "every second"]
)
def test_loads_that_are_not_wide_are_seen(arch: int, layout: dict[str, int]) -> None:
    (code,) = compiled(lambda: launch_gram(**layout), arch)
    assert code.num_wide_loads == 0
    assert code.num_narrow_loads > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_spills_are_seen(arch: int) -> None:
    (code,) = compiled(lambda: launch_gram(side=128, stride=128, num_warps=1), arch)
    assert code.num_spills > 0
    assert code.stack_bytes > 0


def test_every_launch_of_a_call_is_compiled() -> None:
    def call() -> None:
        launch_gram()
        launch_gram(dot=False)

    assert [code.num_mma > 0 for code in compiled(call, 90)] == [True, False]
