"""Which number format a model computes in: measured once, remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from videolm.pipeline import precision
from videolm.pipeline.precision import auto_dtype

CPU = torch.device("cpu")
LARGE = 86_000_000


@pytest.fixture
def gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is measured next; taken from the front."""
    waiting = [4.0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "bfloat16_gain", lambda: waiting.pop(0))
    return waiting


def test_cpu_that_gains_computes_large_models_in_bfloat16(gains: list[float]) -> None:
    assert auto_dtype(CPU, num_parameters=LARGE) is torch.bfloat16


@pytest.mark.parametrize("gain", [0.3, 1.0, 1.4])
def test_cpu_that_does_not_gain_stays_in_float32(gains: list[float], gain: float) -> None:
    gains[:] = [gain]
    assert auto_dtype(CPU, num_parameters=LARGE) is torch.float32


def test_small_model_is_not_worth_a_measurement(gains: list[float]) -> None:
    gains.clear()
    assert auto_dtype(CPU, num_parameters=3_000_000) is torch.float32


def test_answer_is_remembered(gains: list[float]) -> None:
    first = auto_dtype(CPU, num_parameters=LARGE)
    # a second measurement would find nothing to pop
    assert auto_dtype(CPU, num_parameters=LARGE) is first


def test_another_processor_is_measured_anew(gains: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    auto_dtype(CPU, num_parameters=LARGE)
    gains.append(1.0)
    monkeypatch.setattr(precision, "_processor", lambda: "another")
    assert auto_dtype(CPU, num_parameters=LARGE) is torch.float32


def test_first_of_two_that_measure_at_once_decides_for_both(
    gains: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken() -> float:
        monkeypatch.setattr(precision, "bfloat16_gain", lambda: 4.0)
        assert auto_dtype(CPU, num_parameters=LARGE) is torch.bfloat16
        return 1.0

    monkeypatch.setattr(precision, "bfloat16_gain", overtaken)
    assert auto_dtype(CPU, num_parameters=LARGE) is torch.bfloat16
    assert auto_dtype(CPU, num_parameters=LARGE) is torch.bfloat16


def test_home_that_cannot_be_written_to_is_no_error(gains: list[float], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert auto_dtype(CPU, num_parameters=LARGE) is torch.bfloat16


@pytest.mark.parametrize("content", ["", "[1, 2]", "{broken", '{"x": null}'])
def test_damaged_memory_is_measured_again(gains: list[float], tmp_path: Path, content: str) -> None:
    path = tmp_path / "cache" / "videolm" / "bfloat16_gain.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert auto_dtype(CPU, num_parameters=LARGE) is torch.bfloat16
    assert list(json.loads(path.read_text()).values()) == [4.0]


def test_measurement_is_a_positive_ratio() -> None:
    assert precision.bfloat16_gain() > 0
