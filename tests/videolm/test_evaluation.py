"""Evaluation against a computation by hand, on a small world with a model that knows nothing."""

import json
import shutil

import numpy as np
import pytest

from tests.tiny import tiny_model
from videolm.datasets.msrvtt import read_queries, video_path
from videolm.datasets.synthetic import read_twins, render_world
from videolm.evaluation import evaluate, retrieval_scores
from videolm.search.extraction import NothingReadError


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


def test_video_to_text_is_that_of_the_transposed_matrix_whatever_the_order_of_queries(world):
    model = tiny_model()
    queries = read_queries(world)
    videos = model.encode_videos([video_path(world, query.video_id) for query in queries])
    row = {query.video_id: i for i, query in enumerate(queries)}
    shuffled = [queries[i] for i in (5, 2, 9, 0, 7, 1, 11, 3, 10, 4, 8, 6)]
    t2v, v2t = retrieval_scores(model, videos, shuffled, row)
    assert (t2v, v2t) == retrieval_scores(model, videos, queries, row)
    similarity = model.similarity(model.encode_texts([q.sentence for q in queries]), videos).numpy()
    columns = [(similarity[:, j], similarity[j, j]) for j in range(len(queries))]
    ranks = [1 + (column > own).sum() + ((column == own).sum() - 1) / 2 for column, own in columns]
    assert v2t.mean_rank == pytest.approx(np.mean(ranks))


def test_twin_accuracy_is_counted_sentence_by_sentence(world, report):
    model, twins = tiny_model(), read_twins(world, split="test")
    right = {}
    for twin in twins:
        a, b = (model.encode_videos([video_path(world, i)]) for i in (twin.video_a, twin.video_b))
        for sentence, own, other in ((twin.sentence_a, a, b), (twin.sentence_b, b, a)):
            texts = model.encode_texts([sentence])
            margin = float(model.similarity(texts, own) - model.similarity(texts, other))
            for kind in ("all", twin.kind):
                right.setdefault(kind, []).append(float(margin > 0))
    assert report.twin_accuracy == pytest.approx({kind: 100 * np.mean(v) for kind, v in right.items()})
    assert report.num_twin_pairs == {kind: len(v) // 2 for kind, v in right.items()}


def test_without_a_temporal_slot_twins_cannot_be_told_apart(world):
    model = tiny_model(temporal="none")
    for twin in read_twins(world, split="test"):
        videos = model.encode_videos([video_path(world, i) for i in (twin.video_a, twin.video_b)])
        assert np.allclose(videos.vectors[0], videos.vectors[1], atol=1e-6)


def test_the_report_says_what_was_measured(report, tmp_path):
    report.save(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["model"]["weights_sha256"] == tiny_model().info.weights_sha256
    assert written["t2v"]["r_sum"] == pytest.approx(report.t2v.r1 + report.t2v.r5 + report.t2v.r10)
    assert 80 <= written["ceiling_r1"] <= 100
    assert "text to video" in (tmp_path / "report.md").read_text()


def test_an_untrained_model_is_called_untrained(world):
    assert "untrained: random weights" in evaluate(tiny_model(trained=False), world).markdown()


def test_nothing_readable_is_an_error_that_says_why(world, tmp_path):
    folder = shutil.copytree(world, tmp_path / "world")
    for path in (folder / "videos").iterdir():
        path.write_bytes(b"")
    with pytest.raises(NothingReadError, match=r"none of the 12 videos .* could be read.*empty"):
        evaluate(tiny_model(), folder, show_progress_bar=False)


def test_a_video_that_cannot_be_read_is_left_out_and_reported(world, tmp_path):
    folder = shutil.copytree(world, tmp_path / "world")
    lost = video_path(folder, read_queries(folder)[3].video_id)
    lost.write_bytes(b"")
    report = evaluate(tiny_model(), folder, show_progress_bar=False)
    assert [failure.path for failure in report.failures] == [str(lost)]
    assert report.t2v.num_queries == 11
    assert "1 videos could not be read" in report.markdown()
