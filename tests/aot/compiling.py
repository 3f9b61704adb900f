"""Compiles the launches of a kernel for a GPU that is not here, and reads what the machine code does.

A launcher is called with tensors on `meta`; what it hands to `launching.launch` is compiled with the types,
the constants and the alignments that Triton would have specialised it to. The numbers are read from the cubin.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from videolm_kernels import launching

ARCHITECTURES = (80, 90)
# The compiler of the machines that the kernels are for: other versions differ in registers and spills.
TRITON_VERSION = "3.6.0"
_TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
    torch.uint8: "*u8",
}


@dataclass(frozen=True)
class Machine:
    """One compiled launch: what its machine code (SASS) uses."""

    kernel: str
    num_warps: int
    shared_bytes: int
    """Shared memory of a program; 232,448 bytes is the most on sm_90, 166,912 on sm_80."""
    cubin: bytes

    @cached_property
    def sass(self) -> str:
        return self._inspect("nvdisasm", "-c")

    @cached_property
    def _usage(self) -> tuple[int, int]:
        found = re.search(r"REG:(\d+) STACK:(\d+)", self._inspect("cuobjdump", "-res-usage"))
        assert found, f"cuobjdump says nothing about {self.kernel}"
        return int(found[1]), int(found[2])

    @property
    def registers(self) -> int:
        """Of a thread, of 255."""
        return self._usage[0]

    @property
    def stack_bytes(self) -> int:
        return self._usage[1]

    @property
    def num_spills(self) -> int:
        """Loads and stores of local memory, where registers go that are too many."""
        return self._count(r"\b(LDL|STL)\b")

    @property
    def num_mma(self) -> int:
        """Tensor-core instructions: HGMMA on sm_90 (or HMMA for small tiles), HMMA on sm_80."""
        return self._count(r"\b(HGMMA|HMMA)\b")

    @property
    def num_wide_loads(self) -> int:
        """128-bit loads of global memory, also those that go straight to shared memory."""
        return self._count(r"\b(LDG|LDGSTS)\b[\w.]*\.128") + self._count(r"\bUTMALDG\b")

    @property
    def num_narrow_loads(self) -> int:
        return self._count(r"\b(LDG|LDGSTS)\b(?![\w.]*\.128)")

    @property
    def num_wide_stores(self) -> int:
        return self._count(r"\bSTG\b[\w.]*\.128") + self._count(r"\bUTMASTG\b")

    @property
    def num_narrow_stores(self) -> int:
        return self._count(r"\bSTG\b(?![\w.]*\.128)")

    def _count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.sass))

    def _inspect(self, tool: str, option: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            return subprocess.run(
                [_TOOLS / tool, option, file.name], capture_output=True, text=True, check=True
            ).stdout


def compiled(call: Callable[[], Any], arch: int) -> list[Machine]:
    """The launches that `call` makes, in order, compiled for compute capability `arch` (80 or 90)."""
    if launching.IS_INTERPRETING or triton.__version__ != TRITON_VERSION:
        raise RuntimeError(
            f"this needs triton {TRITON_VERSION} and TRITON_INTERPRET=0, not triton {triton.__version__} with "
            f"TRITON_INTERPRET={int(launching.IS_INTERPRETING)}; `make test-aot` sets both"
        )
    machines: list[Machine] = []

    def record(
        kernel: Any,
        grid: tuple[int, ...],
        *args: Any,
        num_warps: int = 4,
        num_stages: int = 3,
        **constants: Any,
    ) -> None:
        machines.append(_compile(kernel, args, constants, num_warps, num_stages, arch))

    with mock.patch.object(launching, "launch", record):
        call()
    return machines


def _compile(
    kernel: Any, args: tuple[Any, ...], constants: dict[str, Any], num_warps: int, num_stages: int, arch: int
) -> Machine:
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    positional = dict(zip(kernel.arg_names, args, strict=False))
    assert not positional.keys() & constants.keys(), f"{kernel.__name__} is given {constants.keys()} twice"
    values = positional | constants
    assert values.keys() == set(kernel.arg_names), f"{kernel.__name__} is launched with {sorted(values)}"
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        kind = "constexpr" if name in constants else _type_of(value)
        signature[name] = kind
        if kind == "constexpr":
            constexprs[(i,)] = value
        elif _is_aligned(value):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    code = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    return Machine(kernel.__name__, num_warps, code.metadata.shared, code.asm["cubin"])


def _type_of(value: Any) -> str:
    """Triton's type of an argument; numbers equal to 1 and None become constants, as when it compiles by itself."""
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value == 1):
        return "constexpr"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _is_aligned(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.storage_offset() * value.element_size() % 16 == 0
    return isinstance(value, int) and not isinstance(value, bool) and value % 16 == 0
