"""tools/bench/towers.py: what a variant's words mean, and that its numbers belong together."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from videolm.encoders.presets import clip_vit_b32

BENCH = Path(__file__).parents[2] / "tools" / "bench"
TINY = replace(clip_vit_b32(), vision_width=64, vision_heads=2, vision_depth=4, vision_mlp_width=128)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location("bench_towers", BENCH / "towers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_a_variant_is_slot_reduction_and_how_it_runs(tool: ModuleType) -> None:
    plain = tool.parse_variant("plain", TINY)
    assert plain.shape == TINY
    divided = tool.parse_variant("divided,eager,compile", TINY)
    assert (divided.shape.temporal, divided.is_eager, divided.is_compiled) == ("divided", True, True)
    merged = tool.parse_variant("message,tome:r=4,inflect=-1", TINY)
    assert (merged.shape.temporal, merged.shape.reduce) == ("message", "tome:r=4,inflect=-1")
    with pytest.raises(ValueError, match="fast"):
        tool.compare([plain, tool.parse_variant("fast", TINY)], torch.zeros(1, 2, 3, 224, 224), False, 1)


@pytest.mark.parametrize("train", [False, True])
def test_merging_has_fewer_macs_and_every_variant_a_row(tool: ModuleType, train: bool) -> None:
    variants = [tool.parse_variant(words, TINY) for words in ("plain", "tome:r=8", "divided")]
    plain, merged, divided = tool.compare(variants, torch.randn(1, 2, 3, 224, 224), train, 2)
    assert (plain["time"], plain["share_of_saving"]) == (1.0, "")
    assert merged["gmacs"] <= plain["gmacs"] <= divided["gmacs"]
    assert isinstance(merged["share_of_saving"], float)
    assert all(row["frames_per_second"] > 0 and row["peak_mib"] > 0 for row in (plain, merged, divided))
