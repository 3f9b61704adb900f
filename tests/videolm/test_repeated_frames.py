"""A frame that stands in a clip several times is computed once, and counts as often as it stands there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import tiny_model, write_clip
from videolm.pipeline import VideoLM
from videolm.types import Clip
from videolm.video.transforms import without_repeats


@pytest.fixture(scope="module")
def alone() -> VideoLM:
    """A model whose frames do not see each other."""
    return tiny_model(temporal="none")


def clip_of(pictures: torch.Tensor, order: list[int]) -> Clip:
    pts_seconds = torch.arange(len(order), dtype=torch.float64)
    return Clip(pictures[order], pts_seconds, float(len(order)), "clip")


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randint(
        0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


ORDERS = [[0, 0, 0, 1, 1, 2], [0, 1, 2, 3], [3, 3, 3, 3, 3], [0, 1, 0, 1, 1], [2]]


def test_without_repeats_is_undone_by_repeating(pictures: torch.Tensor) -> None:
    for order in ORDERS:
        distinct, repeats = without_repeats(pictures[order])
        assert torch.equal(distinct.repeat_interleave(repeats, dim=0), pictures[order])
        assert len(distinct) == 1 + int((torch.tensor(order).diff() != 0).sum())


def test_vectors_are_those_of_all_frames(alone: VideoLM, pictures: torch.Tensor) -> None:
    clips = [clip_of(pictures, order) for order in ORDERS]
    vectors = np.asarray(alone.encode_videos(clips, batch_size=3, workers=0))
    with torch.inference_mode():
        for clip, vector in zip(clips, vectors, strict=True):
            whole = alone.model.encode_video(alone.preprocess(clip.frames)[None]).embedding[0]
            np.testing.assert_allclose(vector, whole.numpy(), atol=1e-6)


def test_the_tower_sees_each_frame_once(
    alone: VideoLM, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    hook = alone.model.vision.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    try:
        alone.encode_videos(clip_of(pictures, [0, 0, 0, 1, 1, 2, 2, 2]), workers=0)
    finally:
        hook.remove()
    assert seen == [3]


def test_tokens_of_a_repeated_frame_stand_for_as_many_more(alone: VideoLM, pictures: torch.Tensor) -> None:
    distinct, repeats = without_repeats(pictures[[0, 0, 0, 1]])
    tokens = alone.model.encode_video(alone.preprocess(distinct)[None], repeats=repeats[None])
    num_tokens = tokens.sizes.shape[1] // 2
    assert tokens.sizes[0].tolist() == [3.0] * num_tokens + [1.0] * num_tokens


def test_a_model_whose_frames_see_each_other_is_given_all(pictures: torch.Tensor) -> None:
    model = tiny_model(temporal="divided")
    assert not model.model.sees_frames_alone
    frames = model.preprocess(pictures)[None]
    with pytest.raises(ValueError, match="give every frame"):
        model.model.encode_video(frames, repeats=torch.ones(1, 4, dtype=torch.int64))
    clip = clip_of(pictures, [0, 0, 1, 2])
    with torch.inference_mode():
        whole = model.model.encode_video(model.preprocess(clip.frames)[None]).embedding.numpy()
    np.testing.assert_allclose(np.asarray(model.encode_videos(clip, workers=0)), whole, atol=1e-6)


def test_a_hook_anywhere_means_that_frames_are_not_alone() -> None:
    for name in ("pre", "mid", "tap"):
        network = tiny_model(temporal="none").model
        assert network.sees_frames_alone
        setattr(network.vision.blocks[0], name, nn.Identity())
        assert not network.sees_frames_alone


def test_key_frames_are_asked_for_by_the_samplers_name(alone: VideoLM, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    keys = alone.encode_videos(path, sampler="keyframes", num_frames=4, workers=0)
    # one key frame, the first
    assert keys.pts_seconds[0].tolist() == [0.0] * 4
    endpoints = alone.encode_videos(path, sampler="linspace_endpoints", workers=0)
    np.testing.assert_allclose(endpoints.pts_seconds[0], [0.0, 0.4, 1.0], atol=0.01)


def test_chance_is_no_sampler(alone: VideoLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="segment_random is for training"):
        alone.encode_videos(write_clip(tmp_path / "a.mp4"), sampler="segment_random", workers=0)


def test_rounded_weights_are_not_written(tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "model")
    from videolm.pipeline import load
    from videolm.pipeline.exporting import export_transformers

    rounded = load(tmp_path / "model", dtype=torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"computes in torch\.bfloat16, .* dtype=torch\.float32 to write them"
    ):
        rounded.save(tmp_path / "again")
    with pytest.raises(ValueError, match=r"computes in torch\.bfloat16"):
        export_transformers(rounded, tmp_path / "again")
    assert not (tmp_path / "again").exists()
