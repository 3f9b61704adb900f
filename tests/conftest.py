"""Where kernels run in the tests: on the CUDA device if there is one, else in Triton's interpreter.

Triton decides between the two when a kernel is defined, so this stands before any import of the project.
"""

import os
from importlib.util import find_spec
from inspect import unwrap

import torch

# The kernel tests ask for determinism, and cuBLAS wants to know before it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Compiling needs a Triton that does not interpret, and of one version: `make test-aot` is its own run.
if os.environ.get("TRITON_INTERPRET") != "0":
    collect_ignore = ["aot"]

# A kernel is compiled from its source and its globals, which the wrapper of the shape checks does not have.
if find_spec("triton"):
    import triton

    _jit = triton.jit
    triton.jit = lambda kernel: _jit(unwrap(kernel))
