from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tiny import TINY
from videolm.encoders.presets import CLIPShape, build_video_clip
from videolm.pipeline.tokens import Eyes, UnusableClipError, moments
from videolm.types import Clip
from videolm.video.transforms import Preprocess

DEEP = replace(TINY, image_size=32, vision_depth=4)


def eyes_of(shape: CLIPShape, *, chunk_frames: int = 3) -> Eyes:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = build_video_clip(shape).eval()
    return Eyes(tower, shape, Preprocess(image_size=shape.image_size), chunk_frames)


def clip_of(num_frames: int, *, seed: int = 0, size: int = 32) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (num_frames, size, size, 3), dtype=torch.uint8, generator=generator)
    return Clip(frames, torch.arange(num_frames, dtype=torch.float64), float(num_frames), f"clip {seed}")


def by_hand(eyes: Eyes, clip: Clip) -> torch.Tensor:
    with torch.inference_mode():
        return eyes.tower.encode_video(eyes.preprocess(clip.frames)[None]).tokens[0]


def test_a_clip_of_the_trained_length_is_read_at_once() -> None:
    eyes = eyes_of(DEEP)
    video, plans = eyes.tokens([clip_of(3)])
    torch.testing.assert_close(video.tokens[0], by_hand(eyes, clip_of(3)))
    assert video.pts_seconds[0].tolist() == [float(t) for t in range(3) for _ in range(17)]
    assert plans == [""]


def test_a_longer_clip_is_read_in_chunks_of_one_size() -> None:
    eyes, clip = eyes_of(DEEP), clip_of(8)
    video, _ = eyes.tokens([clip])
    parts = [
        replace(clip, frames=clip.frames[part], pts_seconds=clip.pts_seconds[part])
        for part in (slice(0, 3), slice(3, 6), slice(6, 8))
    ]
    torch.testing.assert_close(video.tokens[0], torch.cat([by_hand(eyes, part) for part in parts]))
    assert video.pts_seconds[0].unique().tolist() == list(range(8))


def test_the_tower_never_sees_more_than_a_batch_of_chunks() -> None:
    eyes, seen = eyes_of(DEEP), []
    handle = eyes.tower.vision.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2]))
    eyes.tokens([clip_of(50), clip_of(2)])
    handle.remove()
    assert max(batch for batch, _ in seen) <= 2
    assert max(frames for _, frames in seen) <= 3


def test_a_batch_equals_single_clips_whatever_their_lengths() -> None:
    eyes = eyes_of(DEEP)
    clips = [clip_of(length, seed=length) for length in (3, 1, 7, 2, 5)]
    batch, _ = eyes.tokens(clips)
    for row, clip in enumerate(clips):
        single, _ = eyes.tokens([clip])
        for name in ("tokens", "sizes", "pts_seconds"):
            real = getattr(batch, name)[row][batch.mask[row]]
            torch.testing.assert_close(real, getattr(single, name)[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.embedding[row], single.embedding[0], atol=1e-5, rtol=0)


def test_a_repeated_frame_is_shown_until_the_next_one_begins() -> None:
    clip = clip_of(5)
    seconds = torch.tensor([0.0, 0.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    assert moments(replace(clip, pts_seconds=seconds)).tolist() == [0, 0.5, 1, 2, 2.5]
    assert torch.equal(moments(clip), clip.pts_seconds)
    # one picture
    ends = replace(clip, pts_seconds=torch.full((5,), 9.0, dtype=torch.float64))
    assert bool((moments(ends).diff() > 0).all())


@pytest.mark.parametrize(
    "temporal", ["none", "divided", "message", "shift", "joint"], ids=lambda temporal: str(temporal)
)
@pytest.mark.parametrize("num_frames", [3, 7])
def test_the_budget_is_kept_by_the_smallest_plan(temporal: str, num_frames: int) -> None:
    shape = replace(DEEP, temporal=temporal)
    eyes = eyes_of(shape)
    for budget in (40, 25):
        video, [plan] = eyes.tokens([clip_of(num_frames)], budget=budget)
        assert int(video.mask.sum()) <= budget
        num_merged = int(plan.removeprefix("tome:r="))
        before = f"tome:r={num_merged - 1}" if num_merged > 1 else ""
        assert eyes.num_tokens(replace(shape, reduce=before), num_frames) > budget


def test_a_budget_that_is_kept_anyway_changes_nothing() -> None:
    eyes = eyes_of(DEEP)
    video, plans = eyes.tokens([clip_of(3)], budget=51)
    assert plans == [""]
    torch.testing.assert_close(video.tokens[0], by_hand(eyes, clip_of(3)))


def test_each_clip_of_a_batch_has_the_plan_that_it_needs() -> None:
    eyes = eyes_of(DEEP)
    video, plans = eyes.tokens([clip_of(3), clip_of(1)], budget=20)
    assert plans[0].startswith("tome:r=")
    assert plans[1] == ""
    assert video.mask.sum(dim=1).tolist() == [eyes.num_tokens(replace(DEEP, reduce=plans[0]), 3), 17]


def test_a_plan_of_the_model_that_keeps_the_budget_stays() -> None:
    eyes = eyes_of(replace(DEEP, temporal="none", reduce="drop_repeats"))
    still = replace(clip_of(3), frames=clip_of(1).frames.expand(3, -1, -1, -1))
    video, plans = eyes.tokens([still, clip_of(3)], budget=40)
    # the repeats of the first are dropped, the other has none
    assert plans == ["drop_repeats", "tome:r=1"]
    assert int(video.mask[0].sum()) == int(eyes.tokens([still])[0].mask.sum()) < 40
    assert eyes.tokens([clip_of(3)], budget=51)[1] == ["drop_repeats"]


def test_frames_are_told_apart_however_late_in_a_video_they_are() -> None:
    seconds = 90_000 + torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.float64) / 30
    late = replace(clip_of(6), pts_seconds=seconds, start_seconds=90_000.0)
    times = eyes_of(DEEP).tokens([late])[0].pts_seconds[0]
    assert len(times.unique()) == 6
    early = eyes_of(DEEP).tokens([replace(late, pts_seconds=seconds - 90_000)])[0].pts_seconds[0]
    torch.testing.assert_close(times, early, atol=1e-6, rtol=0)


def test_a_plan_takes_no_second_copy_of_the_weights() -> None:
    eyes = eyes_of(DEEP)
    eyes.tokens([clip_of(3)], budget=30)
    [other] = eyes._towers.values()
    mine = {name: tensor.data_ptr() for name, tensor in eyes.tower.state_dict().items()}
    assert mine == {name: tensor.data_ptr() for name, tensor in other.state_dict().items()}
    eyes.tokens([clip_of(3, seed=1)], budget=30)
    assert list(eyes._towers.values()) == [other]


def test_a_budget_that_no_plan_keeps_says_what_can_be() -> None:
    eyes = eyes_of(DEEP)
    with pytest.raises(
        UnusableClipError, match=r"budget \(5\) is too small: of 3 frames tome:r=8 leaves 6 tokens"
    ):
        eyes.tokens([clip_of(3)], budget=5)
    # a plan that merges cannot be with this module
    aligned = eyes_of(replace(DEEP, temporal="soft_attentive"))
    with pytest.raises(ValueError, match=r"budget \(30\) cannot be kept, for this tower takes no tome:r=1"):
        aligned.tokens([clip_of(3)], budget=30)


def test_frame_embeddings_are_those_of_single_pictures() -> None:
    eyes, clip = eyes_of(DEEP), clip_of(5)
    expected = [
        eyes.tokens([replace(clip, frames=clip.frames[t : t + 1], pts_seconds=clip.pts_seconds[t : t + 1])])[
            0
        ]
        for t in range(5)
    ]
    found = eyes.frame_embeddings(clip, batch_size=2)
    torch.testing.assert_close(found, torch.cat([video.embedding for video in expected]), atol=1e-5, rtol=0)
