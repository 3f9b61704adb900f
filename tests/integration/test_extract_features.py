"""The extraction tool on a benchmark's own files."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

import videolm
from tests.tiny import tiny_model, write_clip
from videolm.search.shards import read_shard, shard_paths

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("extract_tool", ROOT / "tools" / "extract_features.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A test list of four in MSR-VTT's form; one video has no file, and one file is in no list."""
    folder = tmp_path / "data"
    for number in (1, 2, 4, 7):
        write_clip(folder / f"videos/video{number}.mp4", seed=number)
    ids = [f"video{number}" for number in (4, 1, 2, 3)]
    rows = "".join(f"ret{n},msr{n},{video_id},a red circle\n" for n, video_id in enumerate(ids))
    (folder / "MSRVTT_JSFUSION_test.csv").write_text(f"key,vid_key,video_id,sentence\n{rows}")
    videos = [
        {"video_id": i, "category": 0, "url": "", "start time": 0.0, "end time": 1.0, "split": "test"}
        for i in ids
    ]
    sentences = [{"caption": "a red circle", "video_id": i, "sen_id": n} for n, i in enumerate(ids)]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    tiny_model().save(tmp_path / "model")
    return folder


def run(tool: ModuleType, *arguments: object) -> Result:
    app = typer.Typer()
    app.command()(tool.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ids(out: Path) -> list[str]:
    return sorted(name for path in shard_paths(out) for name in read_shard(path)["id"].to_pylist())


def test_the_videos_of_a_split_become_vectors_and_the_missing_ones_are_named(
    tool: ModuleType, data: Path, tmp_path: Path
) -> None:
    command = ("msrvtt", tmp_path / "out", "--data", data, "--model", tmp_path / "model")
    for shard in ("0/2", "1/2"):
        assert run(tool, *command, "--shard", shard).exit_code == 3
    result = run(tool, *command)
    assert result.exit_code == 3
    assert result.stderr.splitlines() == [
        "1 videos of msrvtt test have no file: video3",
        f"3 videos (0 new) into {tmp_path / 'out'}",
    ]
    assert ids(tmp_path / "out") == ["video1.mp4", "video2.mp4", "video4.mp4"]
    assert run(tool, *command, "--allow-failures").exit_code == 0
    settings = json.loads((tmp_path / "out/run.json").read_text())["settings"]
    assert settings["source"] == f"msrvtt test in {data / 'videos'}"


def test_a_folder_gives_what_the_command_gives(tool: ModuleType, data: Path, tmp_path: Path) -> None:
    flags = ("--model", tmp_path / "model", "--num-frames", 2, "--frame-cache", tmp_path / "cache")
    assert run(tool, data / "videos", tmp_path / "out", *flags).exit_code == 0
    videolm.load(tmp_path / "model").extract(data / "videos", tmp_path / "same", num_frames=2)
    rows = [read_shard(shard_paths(tmp_path / name)[0]) for name in ("out", "same")]
    assert rows[0]["id"].to_pylist() == rows[1]["id"].to_pylist()
    for column in ("embedding", "pts_seconds"):
        np.testing.assert_allclose(rows[0][column].to_pylist(), rows[1][column].to_pylist(), atol=1e-6)


def test_what_is_missing_is_said(tool: ModuleType, data: Path, tmp_path: Path) -> None:
    command = ("msrvtt", tmp_path / "out", "--model", tmp_path / "model")
    result = run(tool, *command)
    assert result.exit_code == 2
    assert "msrvtt needs --data" in result.stderr
    shutil.rmtree(data / "videos")
    (data / "videos").mkdir()
    result = run(tool, *command, "--data", data)
    assert result.exit_code == 2
    assert "holds no video of msrvtt test; give --videos" in result.stderr
    (data / "MSRVTT_JSFUSION_test.csv").unlink()
    result = run(tool, *command, "--data", data)
    assert result.exit_code == 2
    assert "MSRVTT_JSFUSION_test.csv" in result.stderr
    assert f"`videolm data msrvtt --dir {data}` says what is missing" in result.stderr


def test_what_only_a_benchmark_has_is_refused_for_a_folder(
    tool: ModuleType, data: Path, tmp_path: Path
) -> None:
    for option, value in (("--split", "train"), ("--data", data), ("--videos", data / "videos")):
        result = run(tool, data / "videos", tmp_path / "out", "--model", tmp_path / "model", option, value)
        assert result.exit_code == 2
        assert f"takes no {option}" in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
