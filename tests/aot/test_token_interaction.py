"""Token interaction compiled for GPUs: tensor cores, wide loads, everything in registers."""

from typing import Any

import pytest
import torch

from tests.aot.compiling import ARCHITECTURES, Machine, compiled
from videolm_kernels.token_interaction import fused

# Texts, words, videos, frames; pool_scale, total_scale, sides.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "WTI": (128, 32, 128, 12, None, None, "both"),
    "WTI of long texts and videos": (64, 64, 64, 64, None, None, "both"),
    "FILIP": (16, 77, 16, 196, None, None, "words"),
    "Mug": (128, 32, 128, 12, 100.0, 100.0, "both"),
    "X-Pool": (128, 1, 128, 12, 100.0, None, "words"),
    "Mug of eight frames": (128, 32, 128, 8, 100.0, 100.0, "both"),
    "Mug of one frame and all the words of a tile": (16, 128, 64, 1, 100.0, 100.0, "both"),
}
# Patches of several frames, in chunks, or single tokens: on sm_80 a few registers are missing.
TIGHT: dict[str, tuple[Any, ...]] = {
    "patches": (16, 77, 16, 588, None, None, "both"),
    "patches, Mug": (16, 77, 16, 588, 100.0, 100.0, "both"),
    "more words than a tile holds": (16, 200, 16, 12, None, None, "both"),
    "Mug of sentences and videos": (128, 1, 128, 1, 100.0, 100.0, "both"),
}


def machines(setting: tuple[Any, ...], arch: int, dtype: torch.dtype = torch.bfloat16) -> list[Machine]:
    """Of the forward and of the backward pass."""
    texts, num_words, videos, num_frames, pool_scale, total_scale, sides = setting

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    word_weights, frame_weights = (
        None if total_scale else empty(items, tokens)
        for items, tokens in ((texts, num_words), (videos, num_frames))
    )
    arguments = (
        empty(texts, num_words, 512, dtype=dtype),
        empty(videos, num_frames, 512, dtype=dtype),
        empty(texts, num_words, dtype=torch.bool),
        empty(videos, num_frames, dtype=torch.bool),
        word_weights,
        frame_weights,
        pool_scale,
        total_scale,
        sides,
    )
    (forward,) = compiled(lambda: fused.token_interaction_forward(*arguments), arch)
    (backward,) = compiled(lambda: fused.token_interaction_backward(empty(texts, videos), *arguments), arch)
    return [forward, backward]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", SETTINGS)
def test_16_bits_use_tensor_cores_and_wide_loads_and_do_not_spill(name: str, arch: int) -> None:
    for code in machines(SETTINGS[name], arch):
        assert (code.num_spills, code.stack_bytes) == (0, 0)
        assert code.num_mma > 0
        assert code.num_wide_loads > 0
        assert code.shared_bytes <= 98304


@pytest.mark.parametrize("name", TIGHT)
def test_tight_ones_do_not_spill_on_sm_90(name: str) -> None:
    for code in machines(TIGHT[name], 90):
        assert (code.num_spills, code.stack_bytes) == (0, 0)
        assert code.num_mma > 0
        assert code.num_wide_loads > 0


@pytest.mark.parametrize("name", TIGHT)
def test_tight_ones_spill_little_on_sm_80(name: str) -> None:
    for code in machines(TIGHT[name], 80):
        assert code.num_spills <= 64
        assert code.num_mma > 0


@pytest.mark.parametrize("name", ["WTI", "Mug"])
def test_float32_uses_no_tf32_and_does_not_spill_on_sm_90(name: str) -> None:
    for code in machines(SETTINGS[name], 90, torch.float32):
        assert (code.num_spills, code.stack_bytes) == (0, 0)
        assert code.num_mma == 0
        assert code.num_wide_loads > 0


def test_gradients_of_products_are_stored_wide_where_the_frames_allow_it() -> None:
    _, backward = machines(SETTINGS["WTI of long texts and videos"], 90)
    assert backward.num_wide_stores > 0
    _, backward = machines(SETTINGS["WTI"], 90)
    assert "STG.E.64" in backward.sass
