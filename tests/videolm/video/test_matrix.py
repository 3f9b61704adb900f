"""Kinds of files x back ends x samplers: the picture that comes back is the one shown then, or VideoError."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from videolm.cli import app
from videolm.video import matrix, numbered
from videolm.video.matrix import Verdict, decoder_matrix, installed, judge
from videolm.video.numbered import FRAMES, kinds, read_number
from videolm.video.readers import DECODERS, VideoError, available_decoders, open_video
from videolm.video.samplers import Sampler

SAMPLERS = [
    Sampler("segment_middle", num_frames=7),
    Sampler("segment_random", num_frames=7),
    Sampler("linspace_endpoints", num_frames=5),
    Sampler("one_fps_then_uniform", num_frames=3),
    Sampler("keyframes", num_frames=6),
]
# matroska and flash store milliseconds
ROUNDED = 1.01e-3


def skip_unless_installed(decoder):
    version = available_decoders().get(decoder, "")
    if version.startswith("cannot"):
        pytest.skip(f"{decoder} {version}")


@pytest.mark.parametrize("decoder", ["auto", *DECODERS])
@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.file)
def test_every_picture_is_the_one_shown_at_its_time(make, kind, decoder):
    skip_unless_installed(decoder)
    refusals = []
    for sampler in SAMPLERS:
        try:
            with open_video(make(kind.file), decoder=decoder) as reader:
                start, keys = reader.info.start_seconds, reader.key_pts_seconds
                generator = torch.Generator().manual_seed(3)
                times = sampler(reader.info, generator=generator, key_seconds=keys)
                clip = reader.frames_at(times)
        except VideoError as error:
            refusals.append(str(error))
            continue
        found = [read_number(frame) for frame in clip.frames]
        shown = torch.tensor([kind.seconds[kind.numbers.index(number)] for number in found])
        assert (clip.pts_seconds - start - shown).abs().max() < ROUNDED, sampler.kind
        for number, time in zip(found, (times - start).tolist(), strict=True):
            assert kind.number_at(time - ROUNDED) <= number <= kind.number_at(time + ROUNDED), sampler.kind
    if kind.readable and decoder in ("auto", "pyav"):
        assert not refusals
    if kind.readable:
        assert all('decoder="pyav" reads it' in refusal for refusal in refusals)
    else:
        assert refusals


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.readable], ids=lambda kind: kind.file)
def test_what_is_said_of_a_file_is_so(make, kind):
    with open_video(make(kind.file)) as reader:
        info, pts, keys = reader.info, reader.pts_seconds, reader.key_pts_seconds
    assert info.decoder == "pyav"
    assert info.num_frames == len(pts) == len(kind.numbers)
    assert (pts - info.start_seconds - torch.tensor(kind.seconds)).abs().max() < ROUNDED
    assert info.times == ("counted" if "no times" in kind.name else "stored")
    assert info.rotation == {"rotated90.mov": 90, "rotated180.mp4": 180, "rotated270.mp4": 270}.get(
        kind.file, 0
    )
    assert (info.height, info.width) == ((61, 93) if kind.file == "odd.mkv" else (64, 96))
    assert info.start_seconds + info.duration_seconds > info.last_seconds == pts[-1]
    assert torch.isin(keys, pts).all()
    assert (keys.diff() > 0).all()


def test_the_matrix_has_no_wrong_cell_and_says_why_it_refuses(tmp_path):
    verdicts = list(decoder_matrix(tmp_path, decoders=["auto"]))
    assert [verdict.kind for verdict in verdicts] == [kind.name for kind in kinds()]
    for verdict in verdicts:
        assert verdict.outcome == ("right" if verdict.should_be_read else "refused"), verdict
        assert bool(verdict.reason) == (verdict.outcome == "refused")


def test_a_wrong_picture_and_a_wrong_time_are_seen(make):
    kind = kinds()[0]
    path = make(kind.file)
    assert judge(path, kind, decoder="pyav").outcome == "right"
    shifted = replace(kind, numbers=range(1, FRAMES + 1))
    verdict = judge(path, shifted, decoder="pyav")
    assert (verdict.outcome, verdict.reason) == ("wrong", "7 of 7 frames, the first is 3 instead of 4")
    late = replace(kind, seconds=[second + 0.01 * (second > 1) for second in kind.seconds])
    assert judge(path, late, decoder="pyav").reason == "times are off by 0.0100 s"
    short = replace(kind, numbers=kind.numbers[:40], seconds=kind.seconds[:40])
    assert judge(path, short, decoder="pyav").reason == "48 frames instead of 40"


def test_only_what_can_be_used_is_in_the_matrix(monkeypatch):
    monkeypatch.setattr(matrix, "available_decoders", lambda: {"pyav": "1", "decord": "cannot be used: no"})
    assert installed() == ["auto", "pyav"]


VERDICTS = [
    Verdict("H.264", "auto", "right"),
    Verdict("H.264", "decord", "right"),
    Verdict("MPEG-TS", "auto", "right"),
    Verdict("MPEG-TS", "decord", "refused", "for a reason"),
]


@pytest.mark.parametrize("wrong", [False, True])
def test_the_doctor_prints_the_matrix_and_fails_where_a_picture_is_wrong(monkeypatch, wrong):
    verdicts = [*VERDICTS, Verdict("GIF", "auto", "wrong", "3 of 7 frames")] if wrong else VERDICTS
    monkeypatch.setattr(matrix, "decoder_matrix", lambda folder: iter(verdicts))
    table = CliRunner().invoke(app, ["doctor", "--decoders"])
    assert table.exit_code == (1 if wrong else 0)
    assert table.stdout.splitlines()[:3] == [
        "file\tauto\tdecord",
        "H.264\tright\tright",
        "MPEG-TS\tright\trefused",
    ]
    assert "MPEG-TS\tdecord\trefused\tfor a reason" in table.stdout
    found = json.loads(CliRunner().invoke(app, ["doctor", "--decoders", "--format", "json"]).stdout)
    assert [row["outcome"] for row in found] == [verdict.outcome for verdict in verdicts]


def test_a_bar_code_is_read_at_any_size():
    for size in ((64, 96), (61, 93), (224, 336), (32, 48)):
        frames = numbered.numbered(70, height=size[0], width=size[1], first=190)
        found = [read_number(torch.from_numpy(frame)) for frame in frames]
        assert found == [number % 256 for number in range(190, 260)]
