from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from tests.videolm.video.numbered import numbered, read_number
from videolm.video.readers import open_video
from videolm.video.writer import write_video


def decode(path):
    with open_video(path) as reader:
        return reader.frames_at(reader.pts_seconds).frames


def test_a_reversed_intra_only_video_decodes_to_the_reversed_pictures(tmp_path):
    # pictures of very different cost, so that a rate control that looks at a neighbour would show
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    frames = [*numbered(10), noise, np.zeros_like(noise), *numbered(3)]
    write_video(tmp_path / "forward.mp4", frames, fps=12, crf=23, intra_only=True)
    write_video(tmp_path / "backward.mp4", frames[::-1], fps=12, crf=23, intra_only=True)
    forward, backward = decode(tmp_path / "forward.mp4"), decode(tmp_path / "backward.mp4")
    assert len(forward) == len(frames)
    assert torch.equal(forward, backward.flip(0))


def test_with_prediction_a_reversed_video_does_not_decode_to_the_reversed_pictures(tmp_path):
    frames = list(numbered(10))
    write_video(tmp_path / "forward.mp4", frames, fps=12)
    write_video(tmp_path / "backward.mp4", frames[::-1], fps=12)
    assert not torch.equal(decode(tmp_path / "forward.mp4"), decode(tmp_path / "backward.mp4").flip(0))


def test_the_same_frames_give_the_same_bytes(tmp_path):
    frames = list(numbered())
    written = set()
    # twelve times: x264 can be made to differ in one file of twenty
    for same in [frames, iter(frames), torch.from_numpy(np.stack(frames))] + [frames] * 9:
        write_video(tmp_path / "a.mp4", same, fps=24)
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1
    assert b"Lavf" not in written.pop()


@pytest.mark.parametrize("fps", [25, Fraction(30000, 1001), Fraction(1, 2)])
def test_frames_come_back_at_their_times(tmp_path, fps):
    assert write_video(tmp_path / "a.mp4", numbered(9), fps=fps) == 9
    with open_video(tmp_path / "a.mp4") as reader:
        torch.testing.assert_close(reader.pts_seconds, torch.arange(9, dtype=torch.float64) / float(fps))
        assert reader.info.fps == pytest.approx(float(fps))
        assert [read_number(frame) for frame in reader.frames_at(reader.pts_seconds).frames] == list(range(9))


def test_gop_is_the_largest_distance_between_key_frames(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(20), fps=24, gop=6)
    with av.open(tmp_path / "a.mp4") as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert sum(keys) >= 4


def test_a_smaller_crf_is_closer_to_the_frames(tmp_path):
    frames = torch.stack([torch.from_numpy(frame) for frame in numbered(6)])
    errors = []
    for crf in (10, 40):
        write_video(tmp_path / "a.mp4", frames, fps=24, crf=crf, intra_only=True)
        errors.append((decode(tmp_path / "a.mp4").float() - frames).abs().mean().item())
    assert errors[0] < errors[1]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(3), fps=24)
    before = (tmp_path / "a.mp4").read_bytes()

    def broken():
        yield from numbered(3)
        raise RuntimeError("renderer stopped")

    with pytest.raises(RuntimeError, match="renderer stopped"):
        write_video(tmp_path / "a.mp4", broken(), fps=24)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == before


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "no frames"),
        ([np.zeros((64, 95, 3), np.uint8)], "95x64.*even"),
        ([np.zeros((64, 96, 3), np.float32)], "frame 0 is float32"),
        ([np.zeros((64, 96, 3), np.uint8), np.zeros((32, 96, 3), np.uint8)], "frame 1 is 96x32.*96x64"),
    ],
    ids=["none", "odd", "float", "size"],
)
def test_frames_that_cannot_be_written_are_refused(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", iter(frames), fps=24)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps"),
        ({"fps": 24, "crf": 60}, "crf"),
        ({"fps": 24, "gop": 0}, "gop"),
        ({"fps": 24, "gop": 5, "intra_only": True}, "gop.*intra_only"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", numbered(1), **options)
