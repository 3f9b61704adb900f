"""A kernel starts where its tensors are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from videolm_kernels import frame_attention, launching


class Kernel:
    """Notes what was done before it ran, in the place of a kernel."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **constants: self.events.append((grid, args, constants))


def test_a_kernel_runs_on_the_device_of_its_first_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        events.append(tensor)
        yield
        events.append("left")

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    first, second = torch.zeros(1), torch.zeros(2)
    launching.launch(Kernel(events), (3,), None, 7, first, second, num_warps=8, WIDTH=16)
    assert events[0] is first
    assert events[1][0] == (3,)
    assert events[1][1][1:] == (7, first, second)
    assert events[1][2] == {"num_warps": 8, "num_stages": 3, "WIDTH": 16}
    assert events[2:] == ["left"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tensor_outside_cuda_is_no_obstacle(device: str) -> None:
    events: list[Any] = []
    launching.launch(Kernel(events), (1,), torch.zeros(1, device=device))
    assert len(events) == 1


def test_an_empty_grid_starts_nothing() -> None:
    events: list[Any] = []
    launching.launch(Kernel(events), (0,), torch.zeros(1))
    assert not events


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_may_be_on_a_device_that_is_not_the_current_one() -> None:
    qkv = torch.randn(2, 17, 3, 2, 64, generator=torch.Generator().manual_seed(0)).half()
    log2_sizes = torch.zeros(2, 17)
    assert torch.cuda.current_device() == 0
    outputs = [
        frame_attention(qkv.to(device), log2_sizes.to(device), backend="triton")[0].cpu()
        for device in ("cuda:0", "cuda:1")
    ]
    assert torch.equal(*outputs)
