"""Of a clip in which little moves, the tokens that are left."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.videolm.encoders.test_reducers import random_frames, seconds_of, tiny
from videolm.encoders.near_duplicates import changed_patches
from videolm.encoders.reduction_plans import ReductionPlan, Step
from videolm.encoders.video_clip import VideoCLIP
from videolm.types import VideoTokens
from videolm.video.transforms import CLIP_STD


def drop(model: VideoCLIP, frames: Tensor, **given: Any) -> VideoTokens:
    return model.encode_video(frames, pts_seconds=seconds_of(frames), **given)


@pytest.mark.parametrize(("family", "num_first", "num_later"), [("clip", 17, 1), ("siglip", 16, 1)])
def test_of_a_static_clip_the_first_frame_stays(family: str, num_first: int, num_later: int) -> None:
    model, frames = tiny(reduce="drop_repeats", family=family), random_frames(1, 1).expand(1, 4, -1, -1, -1)
    video = drop(model, frames)
    assert video.tokens.shape[1] == num_first + 3 * num_later
    assert video.pts_seconds[0].tolist() == [0.0] * num_first + [0.5, 1.0, 1.5]
    whole = tiny(family=family).encode_video(frames)
    assert torch.equal(video.embedding, whole.embedding)
    assert torch.equal(video.tokens[:, :num_first], whole.tokens[:, :num_first])


def test_patches_that_change_stay_in_each_clip() -> None:
    model, frames = tiny(reduce="drop_repeats"), random_frames(1, 1).repeat(2, 3, 1, 1, 1)
    frames[0, 1:, :, :4, 8:12] += 1
    frames[1, 2, :, 12:, 12:] -= 1
    video = drop(model, frames, lengths=torch.tensor([3, 2]))
    assert video.mask.sum(dim=1).tolist() == [17 + 2 + 1, 17 + 1]
    assert video.pts_seconds[0].tolist() == [0.0] * 17 + [0.5, 0.5, 1.0]
    whole = tiny().encode_video(frames)
    assert torch.equal(video.tokens[0, 18], whole.tokens[0, 17 + 1 + 2])


def test_the_threshold_is_half_a_step_of_a_pixel() -> None:
    """d = mean |Δ| · 255 over pixels from -1 to 1: a change of one step of 256 in all pixels has d = 2."""
    frames = torch.full((1, 2, 3, 8, 8), 0.3)
    frames[:, 1] += torch.tensor([1 / 255] * 3).div(torch.tensor(CLIP_STD)).view(3, 1, 1)
    for threshold, stays in ((1.99, True), (2.01, False)):
        changed = changed_patches(
            frames, patch_size=4, threshold=threshold, pixel_std=CLIP_STD, keep_one=False
        )
        assert changed.tolist() == [[[True] * 4, [stays] * 4]]


def test_of_a_frame_in_which_too_little_changed_the_first_patch_stays() -> None:
    frames = torch.full((1, 3, 3, 8, 8), 0.3)
    frames[:, 1:, :, 4:, 4:] += 0.001
    frames[:, 2:, :, :4, 4:] += 1
    changed = changed_patches(frames, patch_size=4, threshold=2.0, pixel_std=(0.5, 0.5, 0.5), keep_one=True)
    assert changed[0, 1:].tolist() == [[True, False, False, False], [False, True, False, False]]


def test_a_token_stays_where_one_of_its_originals_changed() -> None:
    plan = ReductionPlan((Step(after=4),) * 4, drop_repeats=0.1)
    model, frames = tiny(plan), random_frames(1, 1).repeat(1, 2, 1, 1, 1)
    model.drop_threshold = plan.drop_repeats
    frames[:, 1, :, :8] += 1
    video = drop(model, frames)
    assignment = model.vision(frames).assignment
    changed = {int(assignment[0, 17 + 1 + patch]) for patch in range(8)}
    kept_rows = {int(assignment[0, i]) for i in range(17)} | {int(assignment[0, 17])} | changed
    assert video.tokens.shape[1] == len(kept_rows)
