"""What all back ends promise beside the right frame: sizes, limits, refusals, nothing left open."""

import os
import sys
import weakref
from dataclasses import replace
from fractions import Fraction

import av
import pytest
import torch

from tests.videolm.video.numbered import FPS, FRAMES, encode, read_number
from videolm.video.readers import DECODERS, Limits, VideoError, VideoReader, available_decoders, open_video
from videolm.video.readers.auto import AutoReader
from videolm.video.readers.collect import ProbedReader, collect
from videolm.video.readers.guard import ContradictionError, open_guarded
from videolm.video.readers.probe import Orientation, probe
from videolm.video.readers.pyav import CarefulPictures, to_rgb
from videolm.video.transforms import Resize
from videolm.video.writer import write_video

FAST = {"preset": "ultrafast", "g": "12"}
INSTALLED = [name for name, version in available_decoders().items() if not version.startswith("cannot")]

needs_decord = pytest.mark.skipif("decord" not in INSTALLED, reason="decord cannot be used here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("numbered")


@pytest.mark.parametrize("decoder", INSTALLED)
@pytest.mark.parametrize("name", ["b_frames.mp4", "rotated90.mov"])
def test_resizing_while_decoding_equals_resizing_afterwards(make, name, decoder):
    with open_video(make(name), decoder=decoder) as reader:
        times = reader.pts_seconds[::9]
        small = reader.frames_at(times, size=32).frames
        assert torch.equal(small, Resize(32)(reader.frames_at(times).frames))
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
        (Limits(max_frames=3), r"3 frames allowed in one call \(max_frames\), 4 asked for"),
        (Limits(max_result_bytes=50_000), r"max_result_bytes.*give a size"),
        (Limits(max_walked_frames=10), r"10 frames may be decoded .*\(max_walked_frames\), 15 needed"),
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


def test_a_file_of_too_many_streams_is_refused_by_name(folder):
    path = folder / "streams.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("ffv1", rate=FPS) for _ in range(3)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for stream in streams:
            container.mux(stream.encode(av.VideoFrame(96, 64, "yuv420p")))
            container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"2 streams allowed \(max_streams\), 3 found"):
        open_video(path, limits=Limits(max_streams=2))
    with open_video(path, limits=Limits(max_streams=3)) as reader:
        assert reader.frames_at([0.0]).frames.shape == (1, 64, 96, 3)


def test_two_full_size_pictures_at_most_are_in_memory(make):
    with open_video(make("constant.mp4"), decoder="pyav") as reader:
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

    clip = collect(found, found.pts_seconds(), size=8, limits=Limits(), pictures=pictures)
    assert clip.frames.shape == (FRAMES, 8, 12, 3)
    assert most <= 2


def test_a_frame_that_a_back_end_leaves_out_is_missed(make):
    with open_video(make("constant.mp4"), decoder="pyav") as reader:
        found = reader._probe
    with pytest.raises(VideoError, match=r"the frame at 0\.000000 s does not come out"):
        collect(found, [0.0], size=None, limits=Limits(), pictures=lambda wanted: [])


@pytest.mark.parametrize("error", [RuntimeError("it broke"), KeyError("it broke"), SystemError("it broke")])
def test_whatever_a_decoder_raises_becomes_an_error_of_the_file(make, error):
    with open_video(make("constant.mp4"), decoder="pyav") as reader:
        found = reader._probe

    def pictures(wanted):
        raise error
        yield

    with pytest.raises(VideoError, match=rf"{type(error).__name__}: .*it broke") as caught:
        collect(found, [0.0], size=None, limits=Limits(), pictures=pictures)
    assert (caught.value.path, caught.value.stage) == (found.info.path, "decode")
    assert caught.value.__cause__ is error


@needs_decord
def test_a_picture_of_no_three_colours_is_refused(folder):
    # decord gives 48 values a pixel
    tiny = encode(folder / "tiny.mp4", "libx264", size=(2, 2), options=FAST)
    with open_video(tiny) as reader:
        assert reader.frames_at([0.5]).frames.shape == (1, 2, 2, 3)
    reason = 'gives a picture of 2x2x48 values; decoder="pyav" reads it'
    with open_video(tiny, decoder="decord") as reader, pytest.raises(VideoError, match=reason):
        reader.frames_at([0.5])


@needs_decord
def test_decord_is_refused_where_its_key_frames_are_not_those_of_the_file(folder, make):
    # without the table decord takes every frame for one; PyAV looks into the packets
    honest, lying = make("constant.mp4"), folder / "no_keys.mp4"
    lying.write_bytes(honest.read_bytes().replace(b"stss", b"free"))
    with open_video(lying) as reader, open_video(honest) as honest:
        times = honest.pts_seconds[5::9]
        assert torch.equal(reader.key_pts_seconds, honest.key_pts_seconds)
        assert torch.equal(reader.frames_at(times).frames, honest.frames_at(times).frames)
    with pytest.raises(VideoError, match="decord's 48 key frames are not the 4 of the packets"):
        open_video(lying, decoder="decord")


def test_frames_made_of_a_damaged_one_are_refused_until_the_next_key_frame(folder, make):
    path = make("constant.mp4")
    with av.open(str(path)) as container:
        packet = [(p.pos, p.size) for p in container.demux(video=0) if p.size][15]
    data = bytearray(path.read_bytes())
    # the decoder covers it with what it has, and goes on with that
    data[packet[0] + packet[1] // 3 : packet[0] + packet[1]] = bytes(packet[1] - packet[1] // 3)
    damaged = folder / "torn.mp4"
    damaged.write_bytes(data)
    with open_video(path) as reader:
        honest = reader.frames_at(reader.pts_seconds).frames
    for index in range(FRAMES):
        with open_video(damaged) as reader:
            times = reader.pts_seconds[[index]]
            if 15 <= index < 24:
                with pytest.raises(VideoError, match=rf"{times[0]:.6f} s is damaged, or made of one that is"):
                    reader.frames_at(times)
            else:
                assert torch.equal(reader.frames_at(times).frames[0], honest[index])


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
    path = make("mpeg4_b.avi")
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
    for decoder in INSTALLED:
        reader = open_video(make("constant.mp4"), decoder=decoder)
        reader.close()
        reader.close()
        with pytest.raises(ValueError, match="the reader is closed"):
            reader.frames_at([0.0])


def test_every_back_end_is_a_video_reader(make):
    for decoder in ["auto", *INSTALLED]:
        with open_video(make("constant.mp4"), decoder=decoder) as reader:
            assert isinstance(reader, VideoReader)
            assert reader.info.decoder == ("pyav" if decoder == "auto" else decoder)


def test_back_ends_agree_on_a_file(make):
    path = make("b_frames.mp4")
    with open_video(path, decoder="pyav") as one:
        for decoder in INSTALLED:
            with open_video(path, decoder=decoder) as other:
                assert replace(other.info, decoder="pyav") == one.info
                assert torch.equal(other.key_pts_seconds, one.key_pts_seconds)
                difference = one.frames_at([0.5]).frames.float() - other.frames_at([0.5]).frames.float()
            # the others convert colours without accurate rounding; another frame differs by more than 20
            assert difference.abs().mean() < 5


def test_a_frame_can_be_resized_to_a_square_with_another_filter(make):
    with open_video(make("b_frames.mp4")) as reader:
        square = Resize(32, mode="square", interpolation="bilinear")
        small = reader.frames_at([0.5], size=square).frames
        assert torch.equal(small, square(reader.frames_at([0.5]).frames))
        assert small.shape == (1, 32, 32, 3)


def test_an_unknown_decoder_is_refused_with_the_known_ones(make):
    with pytest.raises((ValueError, TypeError), match=r"(?s)decord.*pyav|pyav.*decord"):
        open_video(make("constant.mp4"), decoder="opencv")


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_the_doctor_learns_why_a_back_end_cannot_be_used(monkeypatch, make, decoder):
    monkeypatch.setitem(sys.modules, decoder, None)
    assert available_decoders()[decoder].startswith("cannot be used: ")
    assert available_decoders()["pyav"][0].isdigit()
    with pytest.raises(VideoError, match=rf'{decoder} cannot be used here \(.*\); use decoder="pyav"'):
        open_video(make("constant.mp4"), decoder=decoder)


def test_a_library_that_does_not_load_is_reported_and_not_fatal(monkeypatch, make, tmp_path):
    # what a build for another device raises: no ImportError
    package = tmp_path / "torchcodec"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libnvrtc.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    assert available_decoders()["torchcodec"].startswith("cannot be used: OSError: libnvrtc.so.13")
    with pytest.raises(VideoError, match=r"torchcodec cannot be used here \(OSError: libnvrtc"):
        open_video(make("constant.mp4"), decoder="torchcodec")
    with open_video(make("constant.mp4")) as reader:
        assert len(reader.frames_at([0.5]).frames) == 1


class Fake:
    """A back end that reads as pyav does, until it is told to give the wrong times."""

    def __init__(self, path, name, log):
        self.file = open_guarded(path, limits=Limits(), decoder=name)
        found = probe(self.file)
        self.right = CarefulPictures(self.file, found)
        self.reader = ProbedReader(self.file, found, self.pictures)
        self.contradicts = False
        self.log = log

    def pictures(self, wanted):
        self.log.append(self.file.decoder)
        if self.contradicts:
            raise ContradictionError(
                self.file.path, "decode", f"{self.file.decoder} is wrong", self.file.decoder
            )
        yield from self.right(wanted)


def test_auto_stays_with_a_back_end_until_it_contradicts(make):
    path, log = str(make("b_frames.mp4")), []
    first, other = (Fake(path, name, log) for name in ("first", "other"))

    def refuses():
        raise VideoError(path, "open", "not mine", "second")

    with AutoReader([lambda: first.reader, refuses, lambda: other.reader]) as auto:
        before = auto.frames_at([0.5, 1.0])
        first.contradicts = True
        after = auto.frames_at([0.5, 1.0])
        assert torch.equal(before.frames, after.frames)
        assert auto.info.decoder == "other"
        auto.frames_at([0.5])
        assert log == ["first", "first", "other", "other"]
        # nobody is left: the frames that are wrong do not come back
        other.contradicts = True
        with pytest.raises(ContradictionError, match="other is wrong"):
            auto.frames_at([0.5])
    for fake in (first, other):
        with pytest.raises(ValueError, match="closed"):
            fake.reader.frames_at([0.5])


def test_auto_raises_the_first_error_where_all_contradict(make):
    fakes = [Fake(str(make("b_frames.mp4")), name, []) for name in ("first", "other")]
    for fake in fakes:
        fake.contradicts = True
    with AutoReader([lambda fake=fake: fake.reader for fake in fakes]) as auto:
        with pytest.raises(ContradictionError, match="first is wrong"):
            auto.frames_at([0.5])
        assert auto.info.decoder == "first"


def test_auto_asks_no_other_back_end_about_a_damaged_file(make, monkeypatch, tmp_path):
    # another decoder would hide the damage
    data = bytearray(make("b_frames.mp4").read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    (tmp_path / "damaged.mp4").write_bytes(data)
    monkeypatch.setitem(DECODERS, "torchcodec", "no.such.module")
    with open_video(tmp_path / "damaged.mp4") as reader, pytest.raises(VideoError) as caught:
        reader.frames_at(reader.pts_seconds)
    assert not isinstance(caught.value, ContradictionError)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le", "bgra", "gray", "nv12"])
def test_colours_are_those_of_a_direct_conversion(pix_fmt):
    # the reader goes by three planes, which is faster
    noise = torch.randint(0, 256, (61, 93, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    frame = av.VideoFrame.from_ndarray(noise.numpy(), format="rgb24").reformat(format=pix_fmt)
    graph = av.filter.Graph()
    source = graph.add_buffer(width=93, height=61, format=frame.format, time_base=Fraction(1))
    scale = graph.add("scale", "flags=bicubic+accurate_rnd+full_chroma_int")
    graph.link_nodes(source, scale, graph.add("format", "rgb24"), graph.add("buffersink"))
    graph.configure()
    graph.vpush(frame)
    assert torch.equal(to_rgb(frame, Orientation()), torch.from_numpy(graph.vpull().to_ndarray()))


def test_a_written_video_is_read_bit_for_bit_as_ffmpeg_decodes_it(tmp_path, make):
    # lossless: what went in comes out, but for the colour conversion
    frames = [torch.full((32, 32, 3), value, dtype=torch.uint8).numpy() for value in (16, 128, 235)]
    write_video(tmp_path / "flat.mp4", frames, fps=3, crf=0)
    with open_video(tmp_path / "flat.mp4") as reader:
        values = reader.frames_at(reader.pts_seconds).frames[:, 16, 16]
    assert (values.int() - torch.tensor([16, 128, 235])[:, None]).abs().max() <= 1
