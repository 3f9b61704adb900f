"""Playlists, scripts and references: no reader leaves its file, and a careless one is caught by the same traps."""

import av
import pytest

from tests.hostile.build import NO_FFMPEG, secret_folder, seeds
from tests.hostile.elsewhere import SECRET_CODE, write_elsewhere, write_no_files
from tests.hostile.pictures import ffmpeg_version, read_code
from tests.hostile.traps import Traps
from videolm.video.readers import DECODERS, VideoError, available_decoders, open_video

pytestmark = pytest.mark.skipif(ffmpeg_version() is None, reason=NO_FFMPEG)


@pytest.fixture
def traps(tmp_path):
    """Not yet set: enter the context when the files are made."""
    secrets = tmp_path / "outside"
    secrets.mkdir()
    for path in secret_folder().iterdir():
        (secrets / path.name).write_bytes(path.read_bytes())
    return Traps(secrets)


@pytest.fixture
def cases(tmp_path, traps):
    """By name."""
    folder = tmp_path / "files"
    folder.mkdir()
    made = write_elsewhere(
        folder,
        seeds=seeds()[0].path.parent,
        secrets=traps.secrets,
        tcp_port=traps.tcp_port,
        udp_port=traps.udp_port,
    )
    return {case.path.name: case for case in [*made, *write_no_files(folder)]}


def codes_of(reader):
    return {read_code(frame.numpy()) for frame in reader.frames_at(reader.pts_seconds[::10]).frames}


@pytest.mark.parametrize("decoder", ["auto", *DECODERS])
def test_no_reader_leaves_its_file(traps, cases, decoder):
    known = available_decoders().get(decoder, "")
    if known.startswith("cannot be used"):
        pytest.skip(known)
    answers = {}
    with traps:
        for name, case in cases.items():
            try:
                with open_video(case.path, decoder=decoder) as reader:
                    answers[name] = codes_of(reader)
            except VideoError as error:
                answers[name] = error
    assert traps.sprung == []
    for name, case in cases.items():
        if isinstance(answers[name], VideoError):
            assert answers[name].path == str(case.path)
            assert answers[name].reason
            assert case.expect != "frames" or decoder not in ("auto", "pyav"), answers[name]
        else:
            assert case.expect != "refuse", name
            assert SECRET_CODE not in answers[name]


def first_code(source, **options):
    """What a program sees that opens whatever it is given, as most do."""
    with av.open(source, timeout=(1.0, 1.0), **options) as container:
        frame = next(container.decode(video=0))
    return read_code(frame.to_ndarray(format="rgb24"))


def test_a_careless_reader_is_seen_to_read_another_file(traps, cases):
    with traps:
        assert first_code(str(cases["hls_abs.m3u8"].path)) == SECRET_CODE
    assert traps.sprung == ["the secret was opened: ['secret.ts']"]


def test_a_reference_inside_a_healthy_file_is_one_that_can_be_followed(traps, cases):
    options = {"enable_drefs": "1", "use_absolute_path": "1"}
    # it reads from the other file what stands at the places of its own pictures
    with traps, pytest.raises(av.FFmpegError):
        first_code(str(cases["reference.mov"].path), options=options)
    assert traps.sprung == ["the secret was opened: ['secret.mp4']"]


def test_a_careless_reader_is_seen_to_call(traps, cases):
    with traps, cases["hls_http.m3u8"].path.open("rb") as file, pytest.raises(av.FFmpegError):
        # a file object: FFmpeg has no list of protocols for it
        first_code(file)
    assert any("calls to the TCP port" in what for what in traps.sprung)


def test_a_careless_reader_is_seen_to_listen(traps, cases):
    with traps, cases["sdp.mp4"].path.open("rb") as file, pytest.raises(av.FFmpegError):
        first_code(file, format="sdp")
    assert "somebody had the UDP port open" in traps.sprung


@pytest.mark.parametrize("name", ["dash_as_m2ts_abs.mp4", "sdp_as_ts.ts", "boxed_hls_abs.m3u8"])
def test_the_first_bytes_alone_do_not_stop_a_playlist_in_disguise(cases, name):
    # these pass the look at the first bytes; the list of allowed formats refuses them
    with pytest.raises(VideoError) as caught:
        open_video(cases[name].path)
    assert "not a video" not in caught.value.reason
