"""Numbered files of every kind x back ends: the frame that comes back is the asked one, or VideoError."""

import itertools
import os
import sys
import weakref
from dataclasses import replace
from fractions import Fraction

import av
import pytest
import torch

from tests.videolm.video.numbered import FPS, FRAMES, encode, patched, read_number
from videolm.video.readers import DECODERS, Limits, VideoError, VideoReader, available_decoders, open_video
from videolm.video.readers.collect import collect
from videolm.video.transforms import resize_short_side
from videolm.video.writer import write_video

FAST = {"preset": "ultrafast", "g": "12"}
B_FRAMES = {"preset": "veryfast", "g": "12", "bf": "3"}
HEVC_OPEN = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:open-gop=1:bframes=3:pools=1"}
# a step of every length, in units of 1/900 s
UNEVEN = [0, *itertools.accumulate(itertools.islice(itertools.cycle([30, 45, 11, 90, 300]), FRAMES - 1))]
# the matrix of a track header that shows the picture left to right
MIRROR = [-65536, 0, 0, 0, 65536]
CUT = 17

FILES = {
    "constant.mp4": lambda out: encode(out, "libx264", options=FAST),
    "b_frames.mp4": lambda out: encode(out, "libx264", options=B_FRAMES),
    "uneven.mp4": lambda out: encode(
        out, "libx264", pts=UNEVEN, time_base=Fraction(1, 900), options=B_FRAMES
    ),
    "starts_late.mkv": lambda out: encode(
        out, "libx264", pts=[k + 50 for k in range(FRAMES)], options=B_FRAMES
    ),
    "ten_bit.mp4": lambda out: encode(out, "libx264", pix_fmt="yuv420p10le", options=FAST),
    "rotated.mov": lambda out: encode(
        out, "libx264", rotation=90, store=lambda a: a.swapaxes(0, 1)[:, ::-1], options=FAST
    ),
    "upside_down.mp4": lambda out: encode(
        out, "libx264", rotation=180, store=lambda a: a[::-1, ::-1], options=FAST
    ),
    "mirrored.mp4": lambda out: patched(
        encode(out.with_name("m.mp4"), "libx264", store=lambda a: a[:, ::-1], options=FAST),
        out,
        b"tkhd",
        40,
        MIRROR,
    ),
    "edit_list.mp4": lambda out: patched(
        encode(out.with_name("e.mp4"), "libx264", options=B_FRAMES), out, b"elst", 12, [1024 + 512 * CUT]
    ),
    "transport.ts": lambda out: encode(out, "libx264", options=B_FRAMES),
    "program.mpg": lambda out: encode(out, "mpeg2video", rate=25, options={"g": "12", "bf": "2"}),
    "open_gop_hevc.mp4": lambda out: encode(out, "libx265", options=HEVC_OPEN),
    "mpeg4.avi": lambda out: encode(out, "mpeg4", options={"g": "12", "qscale": "3"}),
    "mpeg4_b_frames.avi": lambda out: encode(out, "mpeg4", options={"g": "12", "bf": "2"}),
    "h264.avi": lambda out: encode(out, "libx264", options=B_FRAMES),
    "vp8_hidden_frames.webm": lambda out: encode(
        out, "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5", "g": "24"}
    ),
    "vp9.webm": lambda out: encode(
        out, "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8", "g": "12"}
    ),
    "odd_size.mkv": lambda out: encode(out, "ffv1", size=(61, 93), pix_fmt="yuv444p"),
    "animated.gif": lambda out: encode(out, "gif", rate=25, pix_fmt="rgb8"),
    "flash.flv": lambda out: encode(out, "flv", options={"g": "12"}),
    "one_frame.mp4": lambda out: encode(out, "libx264", num_frames=1, options=FAST),
}
COUNTED = {"mpeg4_b_frames.avi", "h264.avi"}
REFUSED_BY_DECORD = COUNTED | {
    "mirrored.mp4", "edit_list.mp4", "transport.ts", "program.mpg", "open_gop_hevc.mp4", "animated.gif",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("numbered")


@pytest.fixture
def make(folder):
    def made(name):
        path = folder / name
        return path if path.exists() else FILES[name](path)

    return made


def first_number(name):
    return CUT if name == "edit_list.mp4" else 0


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", FILES)
def test_the_frame_that_comes_back_is_the_one_shown_then(make, name, decoder):
    path = make(name)
    if decoder == "decord" and available_decoders()["decord"].startswith("cannot"):
        pytest.skip(available_decoders()["decord"])
    if decoder == "decord" and name in REFUSED_BY_DECORD:
        with pytest.raises(VideoError, match='decoder="pyav" reads it'):
            open_video(path, decoder=decoder)
        return
    with open_video(path, decoder=decoder) as reader:
        pts, info = reader.pts_seconds, reader.info
        ends = torch.cat([pts[1:], torch.tensor([info.start_seconds + info.duration_seconds])])
        numbers = list(range(first_number(name), first_number(name) + len(pts)))
        assert info.num_frames == len(pts) == (1 if name == "one_frame.mp4" else FRAMES - first_number(name))
        # every frame at its own time, then just before the next one; then a few in wild order
        for times in (pts, pts + 0.99 * (ends - pts) - 2e-6):
            clip = reader.frames_at(times)
            assert [read_number(frame) for frame in clip.frames] == numbers
            assert torch.equal(clip.pts_seconds, pts)
        wild = [len(pts) - 1, 0, len(pts) // 2, 0, len(pts) // 3]
        clip = reader.frames_at(((pts + ends) / 2)[wild].tolist())
        assert [read_number(frame) for frame in clip.frames] == [numbers[index] for index in wild]
        assert clip.frames.shape[1:3] == (info.height, info.width)
        assert (info.height, info.width) == ((61, 93) if name == "odd_size.mkv" else (64, 96))


@pytest.mark.parametrize("name", FILES)
def test_what_is_said_of_a_file_is_so(make, name):
    with open_video(make(name)) as reader:
        info = reader.info
    rate = 25 if name in ("animated.gif", "program.mpg") else FPS
    if name == "uneven.mp4":
        assert info.last_seconds == pytest.approx(UNEVEN[-1] / 900)
    else:
        # matroska and flash round every time to a millisecond
        assert info.fps == pytest.approx(rate, rel=1e-3)
        assert info.last_seconds - info.start_seconds == pytest.approx((info.num_frames - 1) / rate, abs=1e-3)
    assert info.times == ("counted" if name in COUNTED else "stored")
    assert info.rotation == {"rotated.mov": 90, "upside_down.mp4": 180}.get(name, 0)
    assert info.start_seconds + info.duration_seconds > info.last_seconds


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["b_frames.mp4", "rotated.mov"])
def test_resizing_while_decoding_equals_resizing_afterwards(make, name, decoder):
    with open_video(make(name), decoder=decoder) as reader:
        times = reader.pts_seconds[::9]
        small = reader.frames_at(times, size=32).frames
        assert torch.equal(small, resize_short_side(reader.frames_at(times).frames, 32))
        assert small.shape[1:3] == (32, 48)


def test_square_pixels_widen_the_picture_as_it_was_filmed(folder, make):
    path = folder / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=FAST)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        container.mux(stream.encode(av.VideoFrame(96, 64, "yuv420p")))
        container.mux(stream.encode(None))
    with open_video(path) as stored, open_video(path, square_pixels=True) as square:
        assert stored.info.pixel_aspect == square.info.pixel_aspect == pytest.approx(4 / 3)
        assert stored.frames_at([0.0]).frames.shape == (1, 64, 96, 3)
        assert square.frames_at([0.0]).frames.shape == (1, 64, 128, 3)
        assert square.frames_at([0.0], size=32).frames.shape == (1, 32, 64, 3)
        assert (square.info.height, square.info.width) == (64, 128)


@pytest.mark.parametrize(("name", "seconds"), [("constant.mp4", -0.01), ("constant.mp4", 2.01)])
def test_there_is_no_frame_outside_the_video(make, name, seconds):
    with open_video(make(name)) as reader:
        with pytest.raises(VideoError, match=rf"asked for {seconds} s.*from 0.000000 to 2.000000 s"):
            reader.frames_at([seconds])
        assert [read_number(frame) for frame in reader.frames_at([-1e-7, 2.0]).frames] == [0, FRAMES - 1]


def test_a_time_that_is_no_number_is_refused(make):
    with open_video(make("constant.mp4")) as reader:
        with pytest.raises(VideoError, match="asked for nan s"):
            reader.frames_at([0.0, float("nan")])
        with pytest.raises(VideoError, match="no times were asked for"):
            reader.frames_at([])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_bytes=1000), r"1,000 bytes allowed \(max_bytes\), \d+,\d+ found"),
        (Limits(max_pixels=5000), r"0.0 M pixels allowed \(max_pixels\), 0.0 M found \(96x64\)"),
        (Limits(max_packets=10), r"10 packets allowed \(max_packets\)"),
        (Limits(max_duration_seconds=1.0), r"1 s allowed \(max_duration_seconds\), 2 s found"),
        (Limits(max_streams=0), r"0 streams allowed \(max_streams\), 1 found"),
        (Limits(max_frames=3), r"3 frames allowed in one call \(max_frames\), 4 asked for"),
        (Limits(max_result_bytes=50_000), r"max_result_bytes.*give a size"),
        (Limits(max_walked_frames=30), r"30 frames may be decoded .*\(max_walked_frames\), 48 needed"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[7:40],
)
def test_a_limit_is_named_in_the_refusal(make, limits, message):
    path = make("constant.mp4")

    def read():
        with open_video(path, limits=limits) as reader:
            return reader.frames_at([0.0, 0.5, 1.0, 1.99])

    with pytest.raises(VideoError, match=message) as caught:
        read()
    assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def long_file(folder):
    """Longer than what is decoded in order without a second thought."""
    return encode(folder / "long.mp4", "libx264", num_frames=700, options=FAST | {"g": "20"})


def test_a_long_file_is_read_from_its_key_frames(long_file):
    times = [0.3, 12.0, 20.01, 28.9]
    with open_video(long_file, limits=Limits(max_walked_frames=100)) as reader:
        numbers = [read_number(frame) for frame in reader.frames_at(times).frames]
    assert numbers == [int(time * FPS) % 256 for time in times]


def test_a_table_of_key_frames_that_lies_does_no_harm(long_file):
    keys = [1, *range(15, 700, 20)][:35]
    lying = patched(long_file, long_file.with_name("lying.mp4"), b"stss", 8, keys)
    times = [0.3, 12.0, 20.01, 28.9]
    with open_video(lying) as reader, open_video(long_file) as honest:
        assert torch.equal(reader.frames_at(times).frames, honest.frames_at(times).frames)


def test_a_file_whose_later_key_frames_need_its_start_is_read_in_order(folder):
    # the header says how to read another stream, the first frame corrects it: after a seek nothing does
    one, other = (
        encode(folder / f"{params}.mp4", "libx264", num_frames=700, options=FAST | {"x264-params": params})
        for params in ("cabac=0", "cabac=1")
    )
    needy = folder / "needy.mp4"
    needy.write_bytes(with_wrong_header(one.read_bytes(), other.read_bytes()))
    times = [12.0, 20.01, 28.9]
    with open_video(needy) as reader, open_video(one) as honest:
        assert torch.equal(reader.frames_at(times).frames, honest.frames_at(times).frames)
    with (
        open_video(needy, limits=Limits(max_walked_frames=100)) as reader,
        pytest.raises(VideoError, match="max_walked_frames"),
    ):
        reader.frames_at(times)


def with_wrong_header(data, other):
    """The mp4 `data` with the picture parameters of `other` in its header and its own in its first frame."""

    def parameters(mp4):
        at = mp4.index(b"avcC") + 10
        at += 2 + int.from_bytes(mp4[at : at + 2]) + 1
        length = int.from_bytes(mp4[at : at + 2])
        return at + 2, mp4[at + 2 : at + 2 + length]

    out = bytearray(data)
    at, own = parameters(data)
    wrong = parameters(other)[1]
    assert len(own) == len(wrong)
    assert own != wrong
    out[at : at + len(own)] = wrong
    # the first frame begins with a note of the encoder, of which nobody needs the text
    start = data.index(b"mdat") + 4
    length = int.from_bytes(data[start : start + 4])
    assert data[start + 4] & 31 == 6
    rest = length - len(own) - 4
    filler = b"\x0c" + b"\xff" * (rest - 2) + b"\x80"
    out[start : start + 4 + length] = len(own).to_bytes(4) + own + rest.to_bytes(4) + filler
    return bytes(out)


def test_two_full_size_pictures_at_most_are_in_memory(long_file):
    with open_video(long_file) as reader:
        found = reader._probe
    alive, most = weakref.WeakSet(), 0

    def pictures(wanted):
        nonlocal most
        for index in wanted:
            picture = torch.zeros(64, 96, 3, dtype=torch.uint8)
            alive.add(picture)
            most = max(most, len(alive))
            yield index, picture
            del picture

    clip = collect(found, found.pts_seconds()[:200], size=8, limits=Limits(), pictures=pictures)
    assert clip.frames.shape == (200, 8, 12, 3)
    assert most <= 2


def test_a_frame_that_a_back_end_leaves_out_is_missed(long_file):
    with open_video(long_file) as reader:
        found = reader._probe
    with pytest.raises(VideoError, match=r"the frame at 0\.000000 s does not come out"):
        collect(found, [0.0], size=None, limits=Limits(), pictures=lambda wanted: [])


def test_times_that_repeat_are_refused(folder, make):
    # the same transport stream twice in one file: every time exists twice
    glued = folder / "glued.ts"
    glued.write_bytes(make("transport.ts").read_bytes() * 2)
    with pytest.raises(VideoError, match=r"presentation times repeat \(\d\.\d+ s 2 times\)"):
        open_video(glued)


def test_a_file_that_begins_inside_a_group_of_pictures_starts_at_its_first_key_frame(folder, make):
    data = make("transport.ts").read_bytes()
    cut = folder / "cut.ts"
    cut.write_bytes(data[len(data) // 3 // 188 * 188 :])
    with open_video(cut) as reader:
        numbers = [read_number(frame) for frame in reader.frames_at(reader.pts_seconds).frames]
    assert numbers == list(range(numbers[0], FRAMES))
    assert numbers[0] % 12 == 0
    assert numbers[0] > 0


def test_a_file_without_its_end_gives_right_frames_or_none(folder, make):
    data = make("transport.ts").read_bytes()
    for share in (0.9, 0.6):
        path = folder / f"short{share}.ts"
        path.write_bytes(data[: int(len(data) * share)])
        with open_video(path) as reader:
            times = reader.pts_seconds
            assert len(times) < FRAMES
            frames = reader.frames_at(times[:-2]).frames
            assert [read_number(frame) for frame in frames] == list(range(len(times) - 2))


def test_counted_frames_are_refused_where_one_is_lost(folder, make):
    # one bit: a picture that says it is not coded, which the decoder leaves out without a word
    path = make("mpeg4_b_frames.avi")
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    at = positions[7]
    assert data[at : at + 4] == b"\0\0\1\xb6"
    # type (2 bits), no whole second, marker, time (5 bits), marker, coded
    assert data[at + 5] & 0x20
    data[at + 5] ^= 0x20
    lossy = folder / "lossy.avi"
    lossy.write_bytes(data)
    with open_video(lossy) as reader, pytest.raises(VideoError, match="47 frames come out of 48 packets"):
        reader.frames_at([0.1])


def test_no_file_stays_open(make, folder):
    damaged = folder / "damaged.mp4"
    data = bytearray(make("b_frames.mp4").read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    damaged.write_bytes(data)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with open_video(make("b_frames.mp4")) as reader:
            reader.frames_at([0.1, 1.0])
        with pytest.raises(VideoError), open_video(damaged) as reader:
            reader.frames_at(reader.pts_seconds)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_reader_says_so(make):
    for decoder in DECODERS:
        reader = open_video(make("constant.mp4"), decoder=decoder)
        reader.close()
        reader.close()
        with pytest.raises(ValueError, match="the reader is closed"):
            reader.frames_at([0.0])


def test_every_back_end_is_a_video_reader(make):
    for decoder in DECODERS:
        with open_video(make("constant.mp4"), decoder=decoder) as reader:
            assert isinstance(reader, VideoReader)
            assert reader.info.decoder == decoder


def test_back_ends_agree_on_a_file(make):
    with open_video(make("b_frames.mp4")) as one, open_video(make("b_frames.mp4"), decoder="decord") as other:
        assert replace(other.info, decoder="pyav") == one.info
        difference = one.frames_at([0.5]).frames.float() - other.frames_at([0.5]).frames.float()
        # decord converts colours without accurate rounding; another frame differs by more than 20
        assert difference.abs().mean() < 5


def test_an_unknown_decoder_is_refused_with_the_known_ones(make):
    with pytest.raises((ValueError, TypeError), match=r"(?s)decord.*pyav|pyav.*decord"):
        open_video(make("constant.mp4"), decoder="opencv")


def test_the_doctor_learns_why_a_back_end_cannot_be_used(monkeypatch, make):
    assert all("cannot" not in version for version in available_decoders().values())
    monkeypatch.setitem(sys.modules, "decord", None)
    assert available_decoders()["decord"].startswith("cannot be used: ")
    assert available_decoders()["pyav"][0].isdigit()
    with pytest.raises(VideoError, match=r'decord cannot be used here \(.*\); use decoder="pyav"'):
        open_video(make("constant.mp4"), decoder="decord")


def test_a_written_video_is_read_bit_for_bit_as_ffmpeg_decodes_it(tmp_path, make):
    # lossless: what went in comes out, but for the colour conversion
    frames = [torch.full((32, 32, 3), value, dtype=torch.uint8).numpy() for value in (16, 128, 235)]
    write_video(tmp_path / "flat.mp4", frames, fps=3, crf=0)
    with open_video(tmp_path / "flat.mp4") as reader:
        values = reader.frames_at(reader.pts_seconds).frames[:, 16, 16]
    assert (values.int() - torch.tensor([16, 128, 235])[:, None]).abs().max() <= 1
