"""The stem of convolutions: which patch sees what, which frame sees which, and what the shape refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import TINY
from videolm.encoders.cost import count_macs
from videolm.encoders.presets import build_stem, build_video_clip
from videolm.encoders.stem import ConvStem
from videolm.encoders.weights import export_folder

CONV = replace(TINY, stem="conv", temporal="none")
CONV_TIME = replace(TINY, stem="conv_time", temporal="divided")


def pictures(batch: int, num_frames: int) -> torch.Tensor:
    size = TINY.image_size
    return torch.randn(batch, num_frames, 3, size, size, generator=torch.Generator().manual_seed(0))


def trained(stem: ConvStem) -> ConvStem:
    """With running means and variances of something, as after training."""
    stem.train()
    with torch.no_grad():
        stem(pictures(4, 6))
    return stem.eval()


def test_patches_come_row_by_row_as_clips_do() -> None:
    stem = trained(build_stem(CONV))
    side, patch = 8, TINY.patch_size
    frames = torch.zeros(1, 1, 3, side * patch, side * patch)
    changed = frames.clone()
    row, column = 5, 2
    changed[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] += 1
    with torch.no_grad():
        moved = (stem(changed) - stem(frames)).abs().sum(dim=-1)[0, 0]
    assert len(moved) == side**2
    places = moved.view(side, side).nonzero().float()
    torch.testing.assert_close(places.mean(dim=0), torch.tensor([row, column]).float(), atol=0.6, rtol=0)


@torch.no_grad()
def test_frames_see_their_neighbours_with_time_only() -> None:
    frames = pictures(1, 7)
    changed = frames.clone()
    changed[:, 3] += 1
    for shape, seen in ((CONV, [3]), (CONV_TIME, [2, 3, 4])):
        stem = trained(build_stem(shape))
        differs = (stem(changed) != stem(frames)).flatten(2).any(dim=2)[0]
        # one convolution over time for every halving but the first
        reach = len(stem.time)
        expected = [t for t in range(7) if abs(t - 3) <= reach]
        assert differs.nonzero()[:, 0].tolist() == expected
        assert set(seen) <= set(expected)


@torch.no_grad()
def test_frames_that_do_not_exist_are_seen_by_none() -> None:
    torch.manual_seed(0)
    model = build_video_clip(CONV_TIME)
    trained(model.vision.patch)
    model.eval()
    frames = pictures(2, 5)
    together = model.encode_video(frames, lengths=torch.tensor([5, 3])).embedding[1]
    torch.testing.assert_close(together, model.encode_video(frames[1:, :3]).embedding[0])
    assert not model.sees_frames_alone
    assert build_video_clip(CONV).sees_frames_alone


def test_a_stem_costs_what_its_convolutions_do() -> None:
    shape = replace(TINY, image_size=16, patch_size=4, vision_width=64, stem="conv")
    linear = count_macs(replace(shape, stem="linear"), num_frames=1) - 16 * 3 * 4**2 * 64
    # 3 -> 32 and 32 -> 32 on 8 x 8 pixels, 32 -> 64 on 4 x 4, and the last layer
    by_hand = 64 * 9 * (3 * 32 + 32 * 32) + 16 * 9 * 32 * 64 + 16 * 64 * 64
    assert count_macs(shape, num_frames=1) == linear + by_hand


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"stem": "conv_time", "temporal": "none"}, "temporal 'none'"),
        ({"stem": "conv", "family": "siglip"}, "siglip"),
        ({"stem": "conv", "patch_size": 3, "image_size": 12}, r"patch_size \(3\)"),
        ({"stem": "conv", "image_size": TINY.patch_size * 5 // 2}, "image_size"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, object], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        replace(TINY, **changes)


def test_transformers_has_no_place_for_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stem 'conv'"):
        export_folder(tmp_path, shape=CONV, state=build_video_clip(CONV).state_dict())
