"""The short way through a file gives what the whole way gives, and decodes no more than it needs."""

from contextlib import closing

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.videolm.video.numbered import FPS, FRAMES, encode, patched, read_number
from videolm.video.numbered import kinds
from videolm.video.readers import Limits, VideoError, open_video
from videolm.video.readers.guard import open_guarded
from videolm.video.readers.probe import open_container, probe, video_stream
from videolm.video.readers.walks import in_order, key_frames_hold, needed_only
from videolm.video.samplers import keyframes

FAST = {"preset": "ultrafast", "g": "20"}
TIMES = [0.3, 12.0, 20.01, 28.9]
STORED = [kind.file for kind in kinds() if kind.readable and "no times" not in kind.name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("walks")


@pytest.fixture(scope="module")
def long_file(folder):
    return encode(folder / "long.mp4", "libx264", num_frames=700, options=FAST)


def walked(path, walk, wanted, **options):
    """Each wanted frame as (index, pixels), by one way through the file."""
    file = open_guarded(path, limits=Limits(), decoder="test")
    try:
        found = probe(file)
        with open_container(file) as container:
            stream = video_stream(container, file)
            frames = walk(container, stream, found, wanted, file, **options)
            return [(index, frame.to_ndarray(format="rgb24").tobytes()) for index, frame in frames]
    finally:
        file.close()


def found_in(path):
    file = open_guarded(path, limits=Limits(), decoder="test")
    try:
        return probe(file)
    finally:
        file.close()


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize("name", STORED)
def test_the_short_way_gives_the_same_pictures_as_the_whole_way(make, name, restarts):
    path = make(name)
    whole = dict(walked(path, in_order, range(len(found_in(path).pts))))

    @settings(max_examples=5, deadline=None, derandomize=True)
    @given(st.sets(st.sampled_from(sorted(whole)), min_size=1, max_size=6))
    def agrees(wanted):
        try:
            short = walked(path, needed_only, sorted(wanted), restarts=restarts)
        except VideoError:
            # the only kind whose key frames are none, and whose reader must go the whole way
            assert name == "refresh.mkv"
            assert restarts
            return
        assert short == [(index, whole[index]) for index in sorted(wanted)]

    agrees()


def test_a_long_file_is_read_from_its_key_frames(long_file):
    with open_video(long_file, limits=Limits(max_walked_frames=100)) as reader:
        numbers = [read_number(frame) for frame in reader.frames_at(TIMES).frames]
    assert numbers == [int(time * FPS) % 256 for time in TIMES]


def test_frames_that_no_other_refers_to_are_not_decoded(make, folder):
    # nothing is left of them but the byte that says so: to decode one is an error
    honest, hollow = make("one_key.mp4"), folder / "hollow.mp4"
    with av.open(str(honest)) as source, av.open(str(hollow), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            data = bytes(packet)
            # after the length of the unit: a slice (1) of a picture that others do not refer to (0 << 5)
            if data and data[4] == 1:
                copy = av.Packet(data[:5] + bytes(len(data) - 5))
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                packet = copy
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    wanted = [index for index, _ in walked(honest, in_order, range(FRAMES))][-1:]
    assert walked(hollow, needed_only, wanted, restarts=True) == walked(honest, in_order, wanted)
    with pytest.raises(av.error.InvalidDataError):
        walked(hollow, in_order, wanted)


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.mp4", "vp9.webm", "av1.mkv", "transport.ts"])
def test_only_the_asked_key_frames_are_decoded_and_each_once(make, name):
    with open_video(make(name), limits=Limits(max_walked_frames=4)) as reader:
        times = keyframes(reader.info, num_frames=8, key_seconds=reader.key_pts_seconds)
        clip = reader.frames_at(times)
    assert torch.equal(clip.pts_seconds, times)
    assert [read_number(frame) for frame in clip.frames] == [0, 12, 12, 24, 24, 36, 36, 36]


def test_a_table_of_key_frames_that_lies_does_no_harm(long_file):
    keys = [1, *range(15, 700, 20)][:35]
    lying = patched(long_file, long_file.with_name("lying.mp4"), b"stss", 8, keys)
    with open_video(lying) as reader, open_video(long_file) as honest:
        assert torch.equal(reader.frames_at(TIMES).frames, honest.frames_at(TIMES).frames)


@pytest.mark.parametrize("name", ["b_frames.mp4", "one_frame.mp4", "vp9.webm", "refresh.mkv"])
def test_key_frames_that_decoding_cannot_start_from_are_told(make, name):
    with closing(open_guarded(make(name), limits=Limits(), decoder="test")) as file:
        assert key_frames_hold(probe(file), file) == (name != "refresh.mkv")


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("mpeg4", {"g": "20"}),
        ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:keyint=20:open-gop=0:pools=1"}),
    ],
)
def test_key_frames_of_other_codecs_are_proved_before_they_are_used(folder, codec, options):
    honest = encode(folder / f"{codec}.mp4", codec, num_frames=200, options=options)
    lying = patched(honest, folder / f"{codec}_lies.mp4", b"stss", 8, [1, *range(15, 195, 20)])
    times = [4.1, 8.1]
    with open_video(honest, decoder="pyav") as reader, open_video(lying, decoder="pyav") as other:
        frames = reader.frames_at(times).frames
        assert [read_number(frame) for frame in frames] == [98, 194]
        assert torch.equal(frames, other.frames_at(times).frames)
        assert other.key_pts_seconds[1] == 14 / FPS
        assert reader._pictures.restarts_proved is True
        assert other._pictures.restarts_proved is False
    with open_video(honest, decoder="pyav") as reader:
        # so near the start it is not worth a proof
        reader.frames_at([0.1])
        assert reader._pictures.restarts_proved is None


def test_a_key_frame_that_needs_what_stood_before_it_is_read_with_it(folder):
    # the header says how to read another stream, the first frame corrects it
    one, other = (
        encode(folder / f"{params}.mp4", "libx264", num_frames=700, options=FAST | {"x264-params": params})
        for params in ("cabac=0", "cabac=1")
    )
    needy = folder / "needy.mp4"
    needy.write_bytes(with_wrong_header(one.read_bytes(), other.read_bytes()))
    with open_video(one) as reader:
        honest = reader.frames_at(TIMES).frames
    # few enough frames that the first picture is not among them
    with open_video(needy, limits=Limits(max_walked_frames=100)) as reader:
        assert torch.equal(reader.frames_at(TIMES[1:]).frames, honest[1:])


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
