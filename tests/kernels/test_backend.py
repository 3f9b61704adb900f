"""The choice between kernel, eager and reference, and the reason it gives."""

import runpy
from inspect import unwrap

import pytest
import torch

from videolm_kernels import backend, launching
from videolm_kernels.backend import choose_backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def triton_on_a_new_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(backend, "_HAS_TRITON", True)
    monkeypatch.setattr(backend, "_compute_capability", lambda device: (9, 0))


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "IS_INTERPRETING", False)


def test_auto_is_the_kernel_on_cuda_and_eager_on_the_cpu() -> None:
    assert choose_backend("op", backend="auto", device=CUDA).backend == "triton"
    assert choose_backend("op", backend="auto", device=CPU).backend == "eager"


@pytest.mark.usefixtures("no_interpreter")
def test_auto_says_why_it_is_eager() -> None:
    on_cpu = choose_backend("op", backend="auto", device=CPU)
    assert on_cpu.reason == "the tensors are on cpu, and Triton kernels need cuda"
    cannot = choose_backend("op", backend="auto", device=CUDA, cannot="17 is odd", slower="too small")
    assert (cannot.backend, cannot.reason) == ("eager", "17 is odd")
    slower = choose_backend("op", backend="auto", device=CUDA, slower="too small")
    assert (slower.backend, slower.reason) == ("eager", "too small")


def test_an_interpreted_kernel_is_never_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "IS_INTERPRETING", True)
    choice = choose_backend("op", backend="auto", device=CPU)
    assert (choice.backend, choice.reason) == ("eager", "an interpreted kernel is only for tests")
    assert choose_backend("op", backend="triton", device=CPU).backend == "triton"


def test_asked_for_a_slower_kernel_runs() -> None:
    assert choose_backend("op", backend="triton", device=CUDA, slower="too small").backend == "triton"


@pytest.mark.usefixtures("no_interpreter")
def test_triton_is_refused_with_the_reason() -> None:
    with pytest.raises(RuntimeError, match="cannot run op: the tensors are on cpu, and Triton kernels need"):
        choose_backend("op", backend="triton", device=CPU)
    with pytest.raises(RuntimeError, match="cannot run op: 17 is odd; use backend='auto' or 'eager'"):
        choose_backend("op", backend="triton", device=CUDA, cannot="17 is odd")


def test_without_triton_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_HAS_TRITON", False)
    assert choose_backend("op", backend="auto", device=CUDA).reason == "triton is not installed"


def test_a_device_from_before_the_tensor_cores_of_bfloat16_has_no_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "_compute_capability", lambda device: (7, 5))
    reason = "a kernel needs compute capability 8.0 or newer"
    choice = choose_backend("op", backend="auto", device=CUDA)
    assert (choice.backend, choice.reason) == ("eager", reason)
    with pytest.raises(RuntimeError, match=f"cannot run op: {reason}; use"):
        choose_backend("op", backend="triton", device=CUDA)


def test_a_device_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    device, asked = torch.device("cuda", 63), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda of: asked.append(of) or (7, 5))
    for _ in range(2):
        assert choose_backend("op", backend="auto", device=device).backend == "eager"
    assert asked in ([device], [])  # none where triton is missing


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "on", "yes", "y", "0", "2", "false", "off", ""])
def test_triton_reads_its_switch_as_we_do(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = pytest.importorskip("triton.knobs")
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert runpy.run_path(launching.__file__)["IS_INTERPRETING"] == knobs.runtime.interpret


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_autocast_it_is_off_and_then_on_again(device: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with backend.without_autocast(torch.device(device)):
            assert torch.is_autocast_enabled("cpu") == (device == "meta")
        assert torch.is_autocast_enabled("cpu")


def test_what_is_asked_for_is_taken() -> None:
    for asked in ("eager", "reference"):
        assert choose_backend("op", backend=asked, device=CPU, cannot="anything").backend == asked


# `unwrap`: the shape types, where they are switched on, would refuse this first.
def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend \('fast'\) must be one of 'auto'"):
        unwrap(choose_backend)("op", backend="fast", device=CPU)


def test_launch_starts_nothing_on_an_empty_grid() -> None:
    launching.launch(None, (3, 0), None)


def test_only_a_strided_last_dimension_is_copied() -> None:
    tensor = torch.arange(24).view(2, 3, 4)
    assert launching.with_unit_stride(tensor.transpose(0, 1)).data_ptr() == tensor.data_ptr()
    turned = launching.with_unit_stride(tensor.transpose(1, 2))
    assert turned.stride(-1) == 1
    assert torch.equal(turned, tensor.transpose(1, 2))
