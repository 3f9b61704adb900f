"""What every test of a kernel gets: the device, and outputs that were NaN before the kernel wrote them."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a CUDA device the tests that run kernels are `gpu` tests; in the interpreter they are ordinary ones."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            if find_spec("triton") is None:
                item.add_marker(pytest.mark.skip(reason="triton is not installed"))
            if torch.cuda.is_available():
                item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN (the largest number in integers), so that what a kernel forgets to write is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before, warn_only=warned_only)
