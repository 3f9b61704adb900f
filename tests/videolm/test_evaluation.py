"""Evaluation against a computation by hand, on a small world with a model that knows nothing."""

import json
import shutil

import numpy as np
import pytest

from tests.tiny import tiny_model
from videolm.datasets.msrvtt import read_queries, video_path
from videolm.datasets.synthetic import read_twins, render_world
from videolm.evaluation import evaluate


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    render_world(out, num_videos=96, seed=2, split="test", workers=1)
    return out


@pytest.fixture(scope="module")
def report(world):
    return evaluate(tiny_model(), world, show_progress_bar=False)


def test_recall_is_that_of_a_sorted_matrix(world, report):
    model = tiny_model()
    queries = read_queries(world)
    videos = model.encode_videos([video_path(world, query.video_id) for query in queries])
    similarity = model.similarity(model.encode_texts([query.sentence for query in queries]), videos).numpy()
    first = [int(np.argsort(-row, kind="stable")[0]) == i for i, row in enumerate(similarity)]
    assert report.t2v.num_queries == len(queries) == 12
    assert report.t2v.r1 == pytest.approx(100 * np.mean(first))


def test_twins_are_counted_by_kind(world, report):
    twins = read_twins(world, split="test")
    assert twins
    assert sum(report.num_twin_pairs.values()) == len(twins)
    assert all(0 <= value <= 100 for value in report.twin_accuracy.values())


def test_the_report_says_what_was_measured(report, tmp_path):
    report.save(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["model"]["weights_sha256"] == tiny_model().info.weights_sha256
    assert written["t2v"]["r_sum"] == pytest.approx(report.t2v.r1 + report.t2v.r5 + report.t2v.r10)
    assert 80 <= written["ceiling_r1"] <= 100
    assert "text to video" in (tmp_path / "report.md").read_text()


def test_an_untrained_model_is_called_untrained(world):
    assert "untrained: random weights" in evaluate(tiny_model(trained=False), world).markdown()


def test_a_video_that_cannot_be_read_is_left_out_and_reported(world, tmp_path):
    folder = shutil.copytree(world, tmp_path / "world")
    lost = video_path(folder, read_queries(folder)[3].video_id)
    lost.write_bytes(b"")
    report = evaluate(tiny_model(), folder, show_progress_bar=False)
    assert [failure.path for failure in report.failures] == [str(lost)]
    assert report.t2v.num_queries == 11
    assert "1 videos could not be read" in report.markdown()
