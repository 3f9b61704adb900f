"""Cached frames are those of the files, in the order of the list, whatever cannot be read."""

import shutil

import pytest
import torch

from videolm.datasets.synthetic import read_world, render_world
from videolm.training.data import read_training_set
from videolm.video.readers import open_video
from videolm.video.samplers import segment_middle
from videolm.video.transforms import center_crop


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    render_world(out, num_videos=16, seed=1, split="train", workers=1)
    return out


@pytest.fixture
def folder(world, tmp_path):
    return shutil.copytree(world, tmp_path / "world")


def read(folder, **options):
    return read_training_set(folder, split="train", cached_frames=4, image_size=32, **options)


def test_cached_frames_are_those_of_the_files(folder):
    data = read(folder)
    for row in (0, 5):
        with open_video(folder / "videos" / f"{data.ids[row]}.mp4") as reader:
            clip = reader.frames_at(segment_middle(reader.info, num_frames=4), size=32)
        assert torch.equal(data.frames[row], center_crop(clip.frames, 32))


def test_rows_know_their_twins_and_difficulty(folder):
    data = read(folder)
    planned = {video.id: video for video in read_world(folder)}
    assert data.twins
    for video_id, video in zip(data.ids, data.videos, strict=True):
        assert video.difficulty == len(planned[video_id].scene.things)
        twin = planned[video_id].twin
        assert (data.ids[video.twin] if video.twin is not None else None) == twin


def test_frames_are_decoded_once(folder):
    decoded = []
    first = read(folder, on_video=decoded.append)
    assert len(decoded) == len(first.ids)
    again = read(folder, on_video=lambda _: pytest.fail("decoded again"))
    assert torch.equal(first.frames, again.frames)
    assert first.videos == again.videos


def test_an_unreadable_video_is_reported_and_the_rest_stays_in_order(folder):
    whole = read(folder)
    lost = whole.ids[0]
    (folder / "videos" / f"{lost}.mp4").write_bytes(b"not a video" * 100)
    data = read(folder)
    assert [failure.path for failure in data.failures] == [str(folder / "videos" / f"{lost}.mp4")]
    assert data.ids == whole.ids[1:]
    assert torch.equal(data.frames, whole.frames[1:])
    # its twin has no partner any more
    assert data.videos[0].twin is None
    # and the second look comes from the cache, failures included
    assert read(folder).failures == data.failures


def test_a_changed_video_is_decoded_again(folder):
    before = read(folder)
    shutil.copy(folder / "videos" / f"{before.ids[3]}.mp4", folder / "videos" / f"{before.ids[0]}.mp4")
    after = read(folder)
    assert torch.equal(after.frames[0], before.frames[3])


def test_a_moved_world_keeps_its_frames(folder):
    first = read(folder)
    moved = folder.rename(folder.with_name("elsewhere"))
    again = read(moved, on_video=lambda _: pytest.fail("decoded again"))
    assert torch.equal(first.frames, again.frames)
