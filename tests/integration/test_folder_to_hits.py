"""The whole way on real clips: files of strangers in, the right answer or a reason out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import videolm
from tests.data import data_path
from tests.tiny import tiny_model, write_folder, write_random_clip
from videolm.search.shards import read_shard, shard_paths
from videolm.video.readers import open_video

ROOT = Path(__file__).resolve().parents[2]
# mp4, webm, avi without stored times, rotated mov, variable rate
CLIPS = ("cat.mp4", "flower.webm", "eye_makeup.avi", "keyboard_rot90.mov", "two_men_hug.mp4")
DAMAGED = ("broken.mp4", "corrupted.mp4")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from videolm.cli import main; main()", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_clip(tmp_path_factory.mktemp("models") / "clip", tokenizer=data_path("vocab/hf"))


@pytest.fixture(scope="module")
def holiday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "holiday"
    (folder / "damaged").mkdir(parents=True)
    for name in CLIPS:
        shutil.copy(data_path(f"clips/{name}"), folder)
    for name in DAMAGED:
        shutil.copy(data_path(f"clips/odd/{name}"), folder / "damaged")
    return folder


def test_real_clips_are_indexed_and_damaged_ones_named(
    clip_folder: Path, holiday: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        command("index", holiday, tmp_path / "index", "--model", clip_folder, "--num-frames", 4),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"indexed {len(CLIPS)} videos, {len(DAMAGED)} failed")
    index = videolm.open_index(tmp_path / "index")
    assert index.ids == sorted(CLIPS)
    assert [failure.path for failure in index.failures] == [f"damaged/{name}" for name in DAMAGED]

    model = videolm.load(clip_folder)
    for name in CLIPS:
        vector = np.asarray(model.encode_videos(holiday / name, num_frames=4))[0]
        hit = index.search(vector=vector, k=1)[0]
        assert (hit.id, hit.path) == (name, holiday / name)
        assert hit.score == pytest.approx(1, abs=1e-5)
    assert sorted(hit.id for hit in index.search("a cat that plays", k=99)) == sorted(CLIPS)


def test_vectors_of_real_clips_equal_those_of_transformers(clip_folder: Path, holiday: Path) -> None:
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    paths = [holiday / name for name in CLIPS]
    embeddings = videolm.load(clip_folder).encode_videos(paths, num_frames=4)
    for path, vector, times in zip(paths, np.asarray(embeddings), embeddings.pts_seconds, strict=True):
        with open_video(path) as reader:
            frames = list(reader.frames_at(times.tolist()).frames.numpy())
        with torch.inference_mode():
            output = theirs.get_image_features(processor(frames, return_tensors="pt")["pixel_values"])
        features = torch.nn.functional.normalize(getattr(output, "pooler_output", output), dim=-1)
        expected = torch.nn.functional.normalize(features.mean(dim=0), dim=0).numpy()
        assert float(vector @ expected) >= 0.9999, path


def test_a_killed_command_goes_on_where_it_was_and_ends_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model().save(tmp_path / "model")
    videos = write_folder(tmp_path / "videos", num_videos=60)
    code = (
        "from videolm.search import shards; shards._SECONDS_PER_SHARD = 0.0; "
        "from videolm.cli import main; main()"
    )
    arguments = ["encode", videos, tmp_path / "out", "--model", tmp_path / "model", "--batch-size", "1"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment())
    while len(shard_paths(tmp_path / "out")) < 5 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = rows(tmp_path / "out").keys()
    assert 5 <= len(finished) < 60

    opened: list[str] = []

    def note(path: Path, **settings: object) -> object:
        opened.append(Path(path).name)
        return open_video(path)

    monkeypatch.setattr("videolm.video.worker.open_video", note)
    model = videolm.load(tmp_path / "model")
    assert model.extract(videos, tmp_path / "out", workers=0).num_videos == 60
    assert len(opened) == 60 - len(finished)
    assert not finished & set(opened)
    model.extract(videos, tmp_path / "straight")
    resumed, straight = rows(tmp_path / "out"), rows(tmp_path / "straight")
    assert sorted(resumed) == sorted(straight)
    for name, vector in resumed.items():
        np.testing.assert_allclose(vector, straight[name], atol=1e-6)


def rows(out: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for path in shard_paths(out):
        table = read_shard(path)
        for name, vector in zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True):
            assert name not in found
            found[name] = vector
    return found
