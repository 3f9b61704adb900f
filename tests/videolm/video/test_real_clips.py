"""Real clips: every picture of the reference values bit for bit, every clip but the damaged ones readable.

The other back ends convert colours with less care: by at most 2.5 of 255 on average over a picture with eight
bits, by 4.3 with ten. Up to 5 are allowed here.
"""

import hashlib
import json
from fractions import Fraction

import pytest
import torch

from tests.data import data_path
from videolm.video.readers import VideoError, available_decoders, open_video
from videolm.video.samplers import keyframes, segment_middle

# as listed in the descriptions of the clips; without the data the tests skip
REFERENCE = [
    "dog_in_basket.mp4", "sideways_face.mov", "keyboard_rot90.mov", "mirror_note.mov", "two_men_hug.mp4",
    "skateboarding_dog.mp4", "flipping_a_pancake.mkv", "toy_pig.webm", "test_pattern.mkv", "hard_hat.mp4",
    "eye_makeup.avi", "newtons_cradle.gif", "msrvtt_video7012.mp4", "football_juggle.mp4", "cockatoo.mp4",
    "dog_snow.mp4",
]  # fmt: skip
DAMAGED = ["odd/corrupted.mp4", "odd/broken.mp4"]
# AV1, GIF, AVI, VP9, hidden frames in its table, another of two video streams
REFUSED_BY_DECORD = {
    "test_pattern.mkv", "newtons_cradle.gif", "car_park.gif", "eye_makeup.avi", "stream_of_water.webm",
    "space_telescope.mp4", "odd/no_duration.webm", "odd/hard_hat_vp9.webm",
}  # fmt: skip
# AV1, AVI, hidden frames in its table
REFUSED_BY_TORCHCODEC = {"test_pattern.mkv", "eye_makeup.avi", "stream_of_water.webm"}


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
            assert info.decoder == "pyav"
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


def whole_way(path):
    """A reader that decodes everything from the start."""
    reader = open_video(path, decoder="pyav")
    reader._pictures.takes_short_way = False
    return reader


@pytest.mark.parametrize(
    "name",
    [
        # green after a plain seek; the others by kind: GOPs of one second, variable rate, edit list, VP8, HEVC
        "cockatoo.mp4",
        "people_one_by_one.mp4",
        "mirror_note.mov",
        "space_telescope.mp4",
        "stream_of_water.webm",
        "hard_hat.mp4",
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
def test_the_short_way_gives_the_pictures_of_the_whole_way(name):
    for file in described() if name == "all" else [name]:
        if file in DAMAGED:
            continue
        path = data_path(f"clips/{file}")
        with open_video(path, decoder="pyav") as short, whole_way(path) as whole:
            keys = keyframes(short.info, num_frames=4, key_seconds=short.key_pts_seconds)
            times = torch.cat([segment_middle(short.info, num_frames=4), keys])
            assert torch.equal(short.frames_at(times).frames, whole.frames_at(times).frames), file
            assert short._pictures.takes_short_way == (short.info.times == "stored"), file


OTHERS = {"decord": REFUSED_BY_DECORD, "torchcodec": REFUSED_BY_TORCHCODEC}


def skip_unless_installed(decoder):
    version = available_decoders()[decoder]
    if version.startswith("cannot"):
        pytest.skip(f"{decoder} {version}")


@pytest.mark.parametrize("decoder", OTHERS)
def test_the_other_back_ends_read_the_same_pictures_or_refuse(decoder):
    skip_unless_installed(decoder)
    for name, clip in described().items():
        path = data_path(f"clips/{name}")
        # decoding the large ones takes long and shows nothing more
        if name in DAMAGED or clip["width"] > 720:
            continue
        if name in OTHERS[decoder]:
            with pytest.raises(VideoError, match='decoder="pyav" reads it'):
                open_video(path, decoder=decoder)
            continue
        with open_video(path, decoder=decoder) as other, open_video(path) as pyav:
            times = segment_middle(pyav.info, num_frames=4)[:1]
            one, two = (reader.frames_at(times, size=64) for reader in (other, pyav))
        assert torch.equal(one.pts_seconds, two.pts_seconds), name
        # colours are converted with less care, and by more where there are ten bits
        assert (one.frames.float() - two.frames.float()).abs().mean() < 5, name


@pytest.mark.slow
@pytest.mark.parametrize("decoder", OTHERS)
def test_the_other_back_ends_give_none_of_the_frames_beside_the_asked_one(decoder):
    skip_unless_installed(decoder)
    for name in described():
        if name in DAMAGED or name in OTHERS[decoder]:
            continue
        path = data_path(f"clips/{name}")
        with open_video(path, decoder=decoder) as other, open_video(path) as pyav:
            pts = pyav.pts_seconds
            for index in ((2 * torch.arange(6) + 1) * len(pts) // 12).tolist():
                picture = other.frames_at(pts[[index]]).frames.float()
                near = pts[max(index - 1, 0) : index + 2]
                differences = (pyav.frames_at(near).frames.float() - picture).abs().mean((1, 2, 3))
                asked = differences[int(index > 0)]
                assert asked < 5, (name, index)
                # a frame beside it may be the same picture
                assert asked <= differences.min() + 0.1, (name, index)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", OTHERS)
@pytest.mark.parametrize("name", REFERENCE)
def test_the_other_back_ends_give_the_reference_pictures_or_refuse(name, decoder):
    skip_unless_installed(decoder)
    reference = json.loads(data_path("reference/frames.json").read_text())["clips"]
    picks = [pick["index"] for pick in next(clip for clip in reference if clip["file"] == name)["picks"]]
    with open_video(data_path(f"clips/{name}")) as pyav:
        times = pyav.pts_seconds[picks]
        # held against the reference above
        expected = pyav.frames_at(times).frames.float()
    if name in OTHERS[decoder]:
        with pytest.raises(VideoError, match='decoder="pyav" reads it'):
            open_video(data_path(f"clips/{name}"), decoder=decoder)
        return
    with open_video(data_path(f"clips/{name}"), decoder=decoder) as other:
        clip = other.frames_at(times)
    assert torch.equal(clip.pts_seconds, times)
    assert (clip.frames.float() - expected).abs().mean((1, 2, 3)).max() < 5
