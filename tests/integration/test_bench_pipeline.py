"""The pieces of tools/bench/pipeline.py that decide what is compared."""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.tiny import write_clip
from videolm.types import VideoInfo
from videolm.video.readers import open_video
from videolm.video.samplers import one_fps_then_uniform

FILE = Path(__file__).parents[2] / "tools" / "bench" / "pipeline.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_pipeline", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seconds", [5, 12, 13, 30, 47])
def test_the_usual_way_and_ours_look_at_the_same_seconds(
    tool: ModuleType, seconds: int, tmp_path: Path
) -> None:
    path = write_clip(tmp_path / "a.mp4", num_frames=6)
    with open_video(path) as reader:
        fields = vars(reader.info) | {"duration_seconds": float(seconds), "last_seconds": seconds - 0.2}
    ours = one_fps_then_uniform(VideoInfo(**fields), num_frames=tool.NUM_FRAMES)
    assert torch.equal(ours, torch.tensor(tool.kept(seconds), dtype=torch.float64))


def test_a_ratio_is_taken_within_a_round(tool: ModuleType) -> None:
    def run(wall: float) -> dict[str, object]:
        parts = dict.fromkeys(tool.PARTS, 0.1)
        return {"wall": wall, "peak_mb": 1.0, "dtype": "float32", "vectors": [[1.0, 0.0]], **parts}

    runs = {"usual": [run(2.0), run(8.0), run(4.0)], "exact": [run(1.0), run(2.0), run(1.0)]}
    row = tool.summarise("exact", runs, gop=12)
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (4.0, 2.0, 4.0)
    assert row["cosine_min"] == 1.0


def test_rows_are_added_under_one_header(tool: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="the versions of what is compared are in the file")
    for way in ("usual", "exact"):
        tool.append(tmp_path / "new" / "rows.csv", [{"way": way, "ratio": 1.5}])
    with (tmp_path / "new" / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["way"] for row in rows] == ["usual", "exact"]
    assert all(row["torch"] == torch.__version__ for row in rows)


def test_memory_of_a_process_that_is_gone_is_none(tool: ModuleType) -> None:
    assert tool.memory_of_tree(os.getpid()) > 20
    assert tool.memory_of_tree(2**22 + 1) == 0.0


def test_pillow_prepares_as_we_do(tool: ModuleType) -> None:
    from videolm.video.transforms import Preprocess

    picture = torch.randint(
        0, 256, (240, 320, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    ours = Preprocess()(picture[None])[0].numpy()
    np.testing.assert_allclose(tool.prepare_with_pillow(picture.numpy()), ours, atol=2.5 / 255 / 0.26)
