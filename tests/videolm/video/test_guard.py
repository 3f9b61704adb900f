"""Files that are none, that point elsewhere, or that are damaged: VideoError, and nothing outside is read."""

import os
import pickle
import random
import time

import av
import numpy as np
import pytest
import torch

from tests.videolm.video.numbered import encode, patched
from videolm.types import Failure
from videolm.video.readers import DECODERS, Limits, VideoError, open_video
from videolm.video.readers.guard import is_video_container, open_guarded

FAST = {"preset": "ultrafast", "g": "12"}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("good") / "good.mp4", "libx264", num_frames=24, options=FAST)


@pytest.fixture
def secret(tmp_path_factory):
    """A video that no file in the folder under test may lead to."""
    return encode(tmp_path_factory.mktemp("outside") / "secret.ts", "libx264", num_frames=24, options=FAST)


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{target}\n#EXT-X-ENDLIST\n",
    "hls_http": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nhttp://127.0.0.1:9/{target}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{target}'\n",
    "concat_sibling": "ffconcat version 1.0\nfile 'sibling.ts'\n",
    "dash": '<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>{target}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns={target}\r\nm=video 5004 RTP/AVP 96\r\n",
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("extension", ["mp4", "m3u8", "ts"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_not_followed(tmp_path, secret, kind, extension, decoder):
    (tmp_path / "sibling.ts").write_bytes(secret.read_bytes())
    path = tmp_path / f"a.{extension}"
    path.write_text(PLAYLISTS[kind].format(target=secret))
    with pytest.raises(VideoError, match="not a video"):
        open_video(path, decoder=decoder)


def test_the_playlist_guard_is_needed_and_the_whitelist_is_a_second_wall(tmp_path, secret):
    # a playlist behind a byte pattern of a container: the guard lets it pass, FFmpeg must refuse it
    path = tmp_path / "a.m3u8"
    path.write_bytes(b"\x00\x00\x00\x08free" + PLAYLISTS["hls"].format(target=secret).encode())
    with pytest.raises(VideoError) as caught:
        open_video(path)
    assert "not a video" not in str(caught.value)


NOT_VIDEOS = {
    "empty": (b"", "the file is empty"),
    "text": (b"this is not a video\n" * 99, "not a video: the first bytes"),
    "page": (b"<html><body>404 Not Found</body></html>" * 20, "not a video"),
    "zeros": (bytes(10_000), "not a video"),
    "random": (random.Random(7).randbytes(10_000), "not a video"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(600), "not a video"),
    "short": (b"\x00", "not a video"),
    "header only": (b"\x00\x00\x00\x18ftypisom" + bytes(12), "InvalidDataError"),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", NOT_VIDEOS)
def test_what_is_no_video_is_refused(tmp_path, name, decoder):
    content, message = NOT_VIDEOS[name]
    path = tmp_path / f"{name}.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=message) as caught:
        open_video(path, decoder=decoder)
    error = caught.value
    assert (error.path, error.stage, error.decoder) == (str(path), "open", decoder)
    assert str(error) == f"{path}: {error.reason} (decoder {decoder})"


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_path_that_is_no_regular_file_is_refused_at_once(tmp_path, decoder):
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    started = time.monotonic()
    for name, message in {
        "fifo.mp4": "not a regular file",
        "folder.mp4": "not a regular file",
        "zero.mp4": "not a regular file",
        "loop.mp4": "loop",
        "missing.mp4": "FileNotFoundError: No such file",
        "nul\0.mp4": "ValueError",
    }.items():
        with pytest.raises(VideoError, match=message):
            open_video(tmp_path / name, decoder=decoder)
    # they would hang for ever, or not at all
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "name", ["-i.mp4", "http:name.mp4", "frame%03d.png", "two\nlines.mp4", "caf\u00e9 \u89c6 \U0001f3ac"]
)
def test_a_name_is_only_a_name(tmp_path, good, name, decoder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(good.read_bytes())
    with open_video(name, decoder=decoder) as reader:
        assert reader.info.path == name
        assert len(reader.frames_at([0.0, 0.5]).frames) == 2


def test_a_link_is_followed_once_and_by_us(tmp_path, good):
    (tmp_path / "link.mp4").symlink_to(good)
    with open_video(tmp_path / "link.mp4") as reader:
        assert reader.info.num_frames == 24


def test_a_file_replaced_after_the_check_is_not_what_is_read(tmp_path, good):
    path = tmp_path / "a.mp4"
    path.write_bytes(good.read_bytes())
    with open_video(path) as reader:
        before = reader.frames_at([0.3]).frames
        path.unlink()
        path.write_text("something else")
        assert torch.equal(reader.frames_at([0.3]).frames, before)


def test_a_file_with_only_sound_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="there is no video stream"):
        open_video(path)


def test_a_picture_over_the_limit_is_not_decoded(tmp_path, good):
    # the header says 65535 x 65535: what the decoder would have to make room for
    data = good.read_bytes()
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    path = tmp_path / "large.mp4"
    path.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    with open_video(path) as reader:
        # the stream itself is small, and the stream is what counts
        assert (reader.info.width, reader.info.height) == (96, 64)
    with pytest.raises(VideoError, match="max_pixels"):
        open_video(good, limits=Limits(max_pixels=96 * 64 - 1))
    open_video(good, limits=Limits(max_pixels=96 * 64)).close()


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_table_that_claims_a_billion_frames_is_not_believed(tmp_path, good, decoder):
    bomb = patched(good, tmp_path / "bomb.mp4", b"stsz", 4, [64, 1 << 30])
    bomb = patched(bomb, tmp_path / "bomb2.mp4", b"stts", 8, [1 << 30])
    with pytest.raises(VideoError), open_video(bomb, decoder=decoder) as reader:
        reader.frames_at(reader.pts_seconds)


def test_a_rotation_by_an_odd_angle_is_refused(tmp_path, good):
    eighth = [46341, 46341, 0, -46341, 46341]
    tilted = patched(good, tmp_path / "tilted.mp4", b"tkhd", 40, eighth)
    with pytest.raises(VideoError, match="rotated by -45 degrees; only multiples of 90"):
        open_video(tilted)


def test_an_error_becomes_a_failure_even_from_another_process():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "decode", "it is damaged", "pyav")))
    assert isinstance(error, VideoError)
    failure = Failure(error.path, error.stage, error.reason, error.decoder)
    assert failure == Failure("a.mp4", "decode", "it is damaged", "pyav")


def test_a_refusal_gives_the_descriptor_back(tmp_path):
    (tmp_path / "a.mp4").write_text("text")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(VideoError):
            open_guarded(tmp_path / "a.mp4", limits=Limits(), decoder="pyav")
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize(
    "head",
    [
        b"\x00\x00\x00\x18ftypmp42",
        b"\x1a\x45\xdf\xa3",
        b"RIFF\x00\x00\x00\x00AVI LIST",
        b"GIF89a",
        b"FLV\x01",
        b"OggS",
        b"\x00\x00\x01\xba",
        (b"\x47" + bytes(187)) * 3,
        (bytes(4) + b"\x47" + bytes(187)) * 3,
    ],
    ids=["mp4", "mkv", "avi", "gif", "flv", "ogg", "mpg", "ts", "m2ts"],
)
def test_the_first_bytes_of_a_video_are_known(head):
    assert is_video_container(head)
    assert not is_video_container(b"#" + head)


def damaged(data, rng):
    """A copy with a few bits, or a stretch, or the end gone wrong."""
    out, kind = bytearray(data), rng.choice(["flip", "noise", "truncate"])
    at = rng.randrange(len(data))
    if kind == "truncate":
        return bytes(out[:at])
    if kind == "noise":
        length = rng.choice([16, 256, 2048])
        out[at : at + length] = rng.randbytes(len(out[at : at + length]))
        return bytes(out)
    for _ in range(rng.choice([1, 16, 64])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts", "avi"])
def test_a_damaged_file_gives_the_asked_times_or_a_video_error(tmp_path, extension):
    codec, options = ("mpeg4", {"g": "12"}) if extension == "avi" else ("libx264", FAST)
    good = encode(tmp_path / f"good.{extension}", codec, options=options).read_bytes()
    rng = random.Random(extension)
    outcomes = []
    for number in range(40):
        path = tmp_path / f"{number}.{extension}"
        path.write_bytes(damaged(good, rng))
        try:
            with open_video(path) as reader:
                times = reader.pts_seconds[:: max(1, len(reader.pts_seconds) // 5)]
                clip = reader.frames_at(times)
            assert torch.equal(clip.pts_seconds, times)
            outcomes.append("frames")
        except VideoError:
            outcomes.append("refused")
    assert set(outcomes) == {"frames", "refused"}
