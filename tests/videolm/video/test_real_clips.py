"""Real clips: every picture of the reference values bit for bit, every clip but the damaged ones readable."""

import hashlib
import json
from fractions import Fraction

import pytest
import torch

from tests.data import data_path
from videolm.video.readers import VideoError, open_video
from videolm.video.samplers import segment_middle

# as listed in the descriptions of the clips; without the data the tests skip
REFERENCE = [
    "dog_in_basket.mp4", "sideways_face.mov", "keyboard_rot90.mov", "mirror_note.mov", "two_men_hug.mp4",
    "skateboarding_dog.mp4", "flipping_a_pancake.mkv", "toy_pig.webm", "test_pattern.mkv", "hard_hat.mp4",
    "eye_makeup.avi", "newtons_cradle.gif", "msrvtt_video7012.mp4", "football_juggle.mp4", "cockatoo.mp4",
    "dog_snow.mp4",
]  # fmt: skip
DAMAGED = ["odd/corrupted.mp4", "odd/broken.mp4"]
# decord: AV1, GIF, no stored times, hidden frames in its table, another of two video streams
REFUSED_BY_DECORD = {
    "test_pattern.mkv", "newtons_cradle.gif", "car_park.gif", "eye_makeup.avi", "stream_of_water.webm",
    "space_telescope.mp4",
}  # fmt: skip


def described():
    clips = json.loads(data_path("clips/clips.json").read_text())["clips"]
    odd = json.loads(data_path("clips/odd/odd.json").read_text())["files"]
    return {clip["file"]: clip for clip in clips + odd}


@pytest.mark.parametrize("name", REFERENCE)
def test_pictures_and_times_equal_those_of_the_ffmpeg_program(name):
    reference = json.loads(data_path("reference/frames.json").read_text())["clips"]
    clip = next(clip for clip in reference if clip["file"] == name)
    with open_video(data_path(f"clips/{name}")) as reader:
        pts = reader.pts_seconds
        assert reader.info.num_frames == len(pts) == clip["frames"]
        if reader.info.times == "stored":
            time_base = Fraction(clip["time_base"])
            expected = torch.tensor([float(value * time_base) for value in clip["pts"]], dtype=torch.float64)
            assert torch.equal(pts, expected)
        frames = reader.frames_at(pts[[pick["index"] for pick in clip["picks"]]]).frames
    found = [hashlib.md5(frame.contiguous().numpy().tobytes()).hexdigest() for frame in frames]
    assert found == [pick["md5_rgb24"] for pick in clip["picks"]]


def test_every_clip_but_the_damaged_ones_can_be_read():
    clips = described()
    assert len(clips) == 62
    for name, clip in clips.items():
        path = data_path(f"clips/{name}")
        if name in DAMAGED:
            with pytest.raises(VideoError, match="InvalidDataError"), open_video(path) as reader:
                reader.frames_at(segment_middle(reader.info, num_frames=3))
            continue
        with open_video(path) as reader:
            info = reader.info
            frames = reader.frames_at(segment_middle(info, num_frames=2)[:1], size=32).frames
        size = (clip["width"], clip["height"])
        assert (info.width, info.height) == (size[::-1] if clip["rotation"] % 180 else size), name
        assert info.num_frames == clip["frames"], name
        assert info.rotation == clip["rotation"] % 360, name
        assert info.container == clip["container"], name
        assert info.codec == clip["codec"], name
        # the header may count sound, or the time before the first frame
        assert info.duration_seconds == pytest.approx(clip["duration"], abs=0.14), name
        assert min(frames.shape[1:3]) == 32, name


def test_a_long_clip_is_the_same_from_key_frames_and_in_order():
    with open_video(data_path("clips/people_one_by_one.mp4")) as reader:
        times = segment_middle(reader.info, num_frames=6)
        assert reader._seeks_pay([1300])
        by_keys = reader.frames_at(times, size=64)
        # every second frame: seeking would save nothing
        many = reader.pts_seconds[::2][:690]
        assert not reader._seeks_pay(list(range(0, 1380, 2)))
        in_order = reader.frames_at(torch.cat([many, times]), size=64)
    assert torch.equal(by_keys.frames, in_order.frames[len(many) :])


def test_decord_reads_the_same_pictures_or_refuses():
    for name, clip in described().items():
        path = data_path(f"clips/{name}")
        # decoding the large ones takes long and shows nothing more
        if name in DAMAGED or clip["width"] > 720:
            continue
        if name in REFUSED_BY_DECORD:
            with pytest.raises(VideoError, match='decoder="pyav" reads it'):
                open_video(path, decoder="decord")
            continue
        with open_video(path, decoder="decord") as decord, open_video(path) as pyav:
            times = segment_middle(pyav.info, num_frames=4)[:1]
            one, other = (reader.frames_at(times, size=64).frames.float() for reader in (decord, pyav))
        # colours are converted with less care, and by more where there are ten bits
        assert (one - other).abs().mean() < 5, name
