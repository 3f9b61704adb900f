"""torch.compile takes every op whole, as it runs on a CPU and as a kernel, forward and backward, once for all sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: the shape checks that the tests switch on are no code that torch.compile can follow.
PROGRAM = """
import sys
import torch
from torch import Tensor
from videolm_kernels import frame_attention, match_tokens, merge_tokens, temporal_attention, token_interaction

op, backend, device = sys.argv[1:]
torch.manual_seed(0)


def merge(tokens: Tensor) -> Tensor:
    match = match_tokens(tokens.detach(), 2, 1, backend=backend)
    return merge_tokens(tokens, None, match, residual=tokens * 2, backend=backend)[0]


def attend(qkv: Tensor) -> Tensor:
    log2_sizes = qkv[:, :, 0, 0, 0].detach().abs()
    return frame_attention(qkv, log2_sizes, backend=backend)[0]


# Two shapes of one op, in which the sizes that are free differ from each other and from one call to the next.
OPS = {
    "temporal_attention": (
        ((5, 4, 7, 3, 2, 16), (6, 4, 9, 3, 2, 16)),
        lambda x: temporal_attention(x, backend=backend),
    ),
    "token_merging": (((5, 9, 16), (6, 11, 16)), merge),
    "frame_attention": (((6, 5, 3, 2, 16), (7, 8, 3, 2, 16)), attend),
    "token_interaction": (
        ((5, 4, 16), (6, 7, 16)),
        lambda x: token_interaction(x, x.flip(0) * 2, backend=backend),
    ),
}
shapes, function = OPS[op]
compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
for shape in shapes:
    results = []
    for run in (function, compiled):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
        out = run(x)
        results.append((out.detach(), *torch.autograd.grad(out, x, torch.ones_like(out))))
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)
        assert eager.abs().sum() > 0
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "a graph for every shape"
"""


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize(
    "op", ["temporal_attention", "token_merging", "frame_attention", "token_interaction"]
)
def test_an_op_compiles_without_a_break(op: str, backend: str, device: object) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2] / "kernels"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, op, backend, str(device)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
