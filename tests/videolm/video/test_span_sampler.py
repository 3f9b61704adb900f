from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_clip
from videolm.types import Clip, VideoInfo
from videolm.video.isolation import open_decoding
from videolm.video.readers import open_video
from videolm.video.samplers import Sampler, SpanSampler
from videolm.video.worker import ClipRequest

SPANS = ((0.0, 2.0), (2.0, 4.5), (4.5, 6.0))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("videos") / "a.mp4", num_frames=30)


@pytest.fixture(scope="module")
def info(path: Path) -> VideoInfo:
    with open_video(path) as reader:
        return reader.info


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "segment_middle", "num_frames": 4},
        {"kind": "linspace_endpoints", "num_frames": 3},
        {"kind": "one_fps_then_uniform", "num_frames": 2},
        {"kind": "one_fps_then_uniform", "num_frames": 9},
        {"kind": "fps_capped", "fps": 2.0, "max_frames": 4},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_span_has_the_moments_of_a_video_of_its_own(info: VideoInfo, settings: dict[str, Any]) -> None:
    sampler = SpanSampler(**settings, spans=SPANS)
    seconds = sampler(info)
    assert len(seconds) == sum(sampler.counts)
    for (start, end), times in zip(SPANS, seconds.split(sampler.counts), strict=True):
        assert bool(((times >= start) & (times < end)).all())
    whole = SpanSampler(**settings, spans=((0.0, info.duration_seconds),))
    torch.testing.assert_close(whole(info), Sampler(**settings)(info))


def test_a_file_may_have_its_own_sampler(path: Path) -> None:
    sampler = Sampler("segment_middle", num_frames=3)
    chosen = {f.name: getattr(sampler, f.name) for f in fields(Sampler)}
    spans = SpanSampler(**chosen, spans=SPANS)
    for workers in (0, 2):
        with open_decoding(ClipRequest(sampler), workers=workers) as decoding:
            decoding.submit(str(path))
            decoding.submit(str(path), spans)
            decoding.submit(str(path))
            clips = [decoding.next_clip() for _ in range(3)]
        assert [len(clip.frames) for clip in clips if isinstance(clip, Clip)] == [3, 9, 3]
    assert asdict(spans)["spans"] == SPANS
