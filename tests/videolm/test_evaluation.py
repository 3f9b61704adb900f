"""Evaluation against a computation by hand, on a small world and small benchmarks, with a model that knows nothing."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.tiny import WORDS, tiny_model, write_clip
from videolm.datasets.msrvtt import read_queries, video_path
from videolm.datasets.protocol import RetrievalProtocol
from videolm.datasets.synthetic import read_twins, render_world
from videolm.evaluation import evaluate, locate_videos, retrieval_scores
from videolm.evaluation.plots import rank_shares
from videolm.metrics.retrieval import scores_of_ranks
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
    with pytest.raises(NothingReadError, match=r"none of the 12 videos could be read.*empty"):
        evaluate(tiny_model(), folder, show_progress_bar=False)


def test_a_video_that_cannot_be_read_is_left_out_and_reported(world, tmp_path):
    folder = shutil.copytree(world, tmp_path / "world")
    lost = video_path(folder, read_queries(folder)[3].video_id)
    lost.write_bytes(b"")
    report = evaluate(tiny_model(), folder, show_progress_bar=False)
    assert [failure.path for failure in report.failures] == [str(lost)]
    assert report.t2v.num_queries == 11
    assert "**Only 11 of 12 videos were ranked.**" in report.markdown()
    assert "1 videos could not be read" in report.markdown()


NUM_TEST = 8


def sentence(number):
    return " ".join(np.random.default_rng(number).choice(WORDS, size=5))


@pytest.fixture(scope="module")
def msrvtt(tmp_path_factory):
    """Like MSR-VTT 1k-A: 8 test videos, of which 3 have a source in training and 1 of these the same footage."""
    folder = tmp_path_factory.mktemp("msrvtt")
    ids = [f"video{i}" for i in range(NUM_TEST + 2)]
    # video8 and video9 are for training
    cuts = {"video0": ("a", 0, 10), "video1": ("a", 30, 40), "video2": ("b", 0, 9), "video8": ("a", 8, 20)}
    cuts["video9"] = ("b", 9, 12)
    videos = []
    for i, name in enumerate(ids):
        url, start, end = cuts.get(name, (f"own{i}", 0, 10))
        videos.append({"video_id": name, "url": url, "start time": start, "end time": end, "category": 1})
    captions = {name: [sentence(i), sentence(100 + i)] for i, name in enumerate(ids)}
    # the query of video3 is a caption of video4, too, but for its punctuation
    captions["video4"].append(sentence(3).title() + " .")
    sentences = [{"video_id": name, "caption": text} for name in ids for text in captions[name]]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    (folder / "MSRVTT_train.9k.csv").write_text("video_id\nvideo8\nvideo9\n")
    rows = [f"video{i},{sentence(i)}\n" for i in range(NUM_TEST)]
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("video_id,sentence\n" + "".join(rows))
    (folder / "MSRVTT_test.full.csv").write_text("video_id\nvideo4\nvideo5\n")
    (folder / "MSRVTT_train.full.csv").write_text("video_id\nvideo8\n")
    for i in range(NUM_TEST):
        write_clip(folder / "videos" / f"video{i}.mp4", seed=i)
    return folder


@pytest.fixture(scope="module")
def clean_report(msrvtt):
    return evaluate(
        tiny_model(), msrvtt, protocol=RetrievalProtocol(dsl=True, qb_norm=True), show_progress_bar=False
    )


def result(report, start):
    (found,) = [result for result in report.results if result.name.startswith(start)]
    return found


def per_query(report, tmp_path):
    report.save(tmp_path)
    rows = pq.read_table(tmp_path / "per_query.parquet").to_pylist()
    return {direction: [row for row in rows if row["direction"] == direction] for direction in ("t2v", "v2t")}


def test_1k_a_clean_scores_the_queries_that_are_left_among_all_videos(clean_report, tmp_path):
    queries = per_query(clean_report, tmp_path)
    for name, left_out in (
        ("1k-A clean: without the 1 whose footage", {"video0"}),
        ("1k-A clean: without the 3 from a source", {"video0", "video1", "video2"}),
        ("all", set()),
    ):
        for direction in ("t2v", "v2t"):
            kept = [row["rank"] for row in queries[direction] if row["target"] not in left_out]
            assert getattr(result(clean_report, name), direction) == scores_of_ranks(np.array(kept))
    assert "without the 3 from a source of 9k training | text to video | 5 |" in clean_report.markdown()


def test_without_the_training_list_the_clean_rows_are_left_out_and_that_is_said(msrvtt, tmp_path):
    folder = shutil.copytree(msrvtt, tmp_path / "msrvtt")
    (folder / "MSRVTT_train.9k.csv").unlink()
    report = evaluate(tiny_model(), folder, show_progress_bar=False)
    assert [r.name for r in report.results] == ["all", "random embeddings (the floor)"]
    assert report.notes[:-1] == ["1k-A clean needs MSRVTT_train.9k.csv, which is not there"]
    assert report.ceiling is not None


def test_without_the_annotation_the_ceiling_is_left_out_too_and_that_is_said(msrvtt, tmp_path):
    folder = shutil.copytree(msrvtt, tmp_path / "msrvtt")
    (folder / "MSRVTT_data.json").unlink()
    report = evaluate(tiny_model(), folder, show_progress_bar=False)
    assert report.notes[:-1] == [
        "1k-A clean needs MSRVTT_data.json, which is not there",
        "the ceiling needs MSRVTT_data.json, which is not there",
    ]
    assert report.ceiling is None


def without_times(annotation):
    del annotation["videos"][8]["start time"]


def without_captions(annotation):
    annotation["sentences"] = [s for s in annotation["sentences"] if s["video_id"] != "video7"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_times, r"MSRVTT_data\.json is not readable: KeyError: 'start time'"),
        (without_captions, r"video video7 has no caption in MSRVTT_data\.json"),
    ],
)
def test_a_damaged_annotation_is_an_error_before_any_video_is_encoded(
    msrvtt, tmp_path, monkeypatch, damage, message
):
    folder = shutil.copytree(msrvtt, tmp_path / "msrvtt")
    path = folder / "MSRVTT_data.json"
    annotation = json.loads(path.read_text())
    damage(annotation)
    path.write_text(json.dumps(annotation))
    monkeypatch.delattr("videolm.pipeline.VideoLM.encode_videos")
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_model(), folder, show_progress_bar=False)


def test_a_model_without_a_tokenizer_is_an_error_before_any_video_is_encoded(msrvtt, monkeypatch):
    model = tiny_model()
    model.tokenizer = None
    monkeypatch.delattr("videolm.pipeline.VideoLM.encode_videos")
    with pytest.raises(ValueError, match="cannot encode texts without a tokenizer"):
        evaluate(model, msrvtt, show_progress_bar=False)


def test_a_model_in_another_dtype_than_the_protocol_s_is_an_error_that_says_how_to_load_it(msrvtt):
    with pytest.raises(ValueError, match=r"'bfloat16'.*torch\.float32: load it with dtype=torch\.bfloat16"):
        evaluate(tiny_model(), msrvtt, protocol=RetrievalProtocol(dtype="bfloat16"), show_progress_bar=False)
    report = evaluate(
        tiny_model(), msrvtt, protocol=RetrievalProtocol(dtype="float32"), show_progress_bar=False
    )
    assert report.protocol["dtype"] == "torch.float32"


def test_the_protocol_s_sampler_decides_the_frames_and_is_reported(msrvtt, clean_report):
    protocol = RetrievalProtocol(sampler="linspace_endpoints")
    report = evaluate(tiny_model(), msrvtt, protocol=protocol, show_progress_bar=False)
    assert report.sampler["kind"] == "linspace_endpoints"
    assert report.sampler["num_frames"] == clean_report.sampler["num_frames"] == 3
    model = tiny_model()
    paths = [video_path(msrvtt, f"video{i}") for i in range(NUM_TEST)]
    videos = model.encode_videos(paths, sampler="linspace_endpoints")
    queries = read_queries(msrvtt)
    row = {query.video_id: i for i, query in enumerate(queries)}
    assert (report.t2v, report.v2t) == retrieval_scores(model, videos, queries, row)
    top_scores = clean_report.queries.ranking.t2v.top_scores
    assert not np.allclose(report.queries.ranking.t2v.top_scores, top_scores, atol=1e-4)


def test_the_report_says_what_brackets_transductive_and_the_decoder_mean(clean_report, msrvtt):
    text = clean_report.markdown()
    assert text.count("95 % interval of a percentile bootstrap over the videos") == 1
    assert text.count("Transductive: ") == 1
    versions = clean_report.environment["decoders"]
    assert f"files are read by the first of pyav {versions['pyav']}" in text
    by_name = evaluate(
        tiny_model(), msrvtt, protocol=RetrievalProtocol(decoder="pyav"), show_progress_bar=False
    )
    assert "files are read by" not in by_name.markdown()


def test_the_table_of_queries_is_what_the_matrix_says(msrvtt, clean_report, tmp_path):
    model, rows = tiny_model(), per_query(clean_report, tmp_path)
    ids = [f"video{i}" for i in range(NUM_TEST)]
    videos = model.encode_videos([video_path(msrvtt, name) for name in ids])
    similarity = model.similarity(model.encode_texts([sentence(i) for i in range(NUM_TEST)]), videos).numpy()
    for i, row in enumerate(rows["t2v"]):
        assert (row["query"], row["target"]) == (sentence(i), f"video{i}")
        order = np.argsort(-similarity[i], kind="stable")
        np.testing.assert_allclose(row["top_scores"], similarity[i][order], atol=1e-5)
        assert row["top_scores"][row["top_ids"].index(f"video{i}")] == pytest.approx(
            similarity[i, i], abs=1e-5
        )
        assert 1 + (similarity[i] > similarity[i, i] + 1e-5).sum() <= row["rank"] <= NUM_TEST
    assert [row["query"] for row in rows["v2t"]] == ids
    assert {row["target"] for row in rows["v2t"]} == set(ids)


def test_transductive_scores_are_labelled_and_change_no_plain_one(msrvtt, clean_report):
    plain = evaluate(tiny_model(), msrvtt, show_progress_bar=False)
    assert [r.name for r in clean_report.results if r.is_transductive] == [
        "DSL",
        "QB-Norm, 4 training sentences",
    ]
    assert result(clean_report, "QB-Norm").v2t is None
    assert [r for r in clean_report.results if not r.is_transductive] == plain.results
    assert "| DSL (transductive) | video to text |" in clean_report.markdown()
    assert "transductive" not in plain.markdown()


def test_a_query_that_fits_two_videos_bounds_the_recall(clean_report):
    assert clean_report.num_ambiguous == 1
    assert clean_report.ceiling == pytest.approx(100 * (NUM_TEST - 0.5) / NUM_TEST)
    assert "1 queries are, word for word, captions of another video" in clean_report.markdown()


def test_random_embeddings_are_the_floor(clean_report):
    floor = result(clean_report, "random")
    assert floor == clean_report.results[-1]
    assert 1 < floor.t2v.mean_rank < NUM_TEST


def test_every_caption_of_the_full_split_is_a_query(msrvtt, tmp_path):
    reports = [
        evaluate(
            tiny_model(),
            msrvtt,
            protocol=RetrievalProtocol(split="full-test", v2t=v2t, num_frames=2),
            show_progress_bar=False,
        )
        for v2t in ("group_max", "best_caption")
    ]
    assert [(r.t2v.num_queries, r.v2t.num_queries) for r in reports] == [(5, 2)] * 2
    assert reports[0].t2v == reports[1].t2v
    assert reports[0].as_json()["sampler"]["num_frames"] == 2
    groups, captions = (per_query(r, tmp_path / r.protocol["v2t"])["v2t"][0] for r in reports)
    assert set(groups["top_ids"]) == {"video4", "video5"}
    assert set(captions["top_ids"]) == {
        sentence(4),
        sentence(104),
        sentence(3).title() + " .",
        sentence(5),
        sentence(105),
    }
    written_for = {sentence(3).title() + " .": "video4"} | {
        sentence(start + i): f"video{i}" for i in (4, 5) for start in (0, 100)
    }
    assert captions["top_video_ids"] == [written_for[name] for name in captions["top_ids"]]
    assert groups["top_video_ids"] == groups["top_ids"]


def test_missing_videos_are_an_error_that_counts_and_names_them(msrvtt, tmp_path):
    write_clip(tmp_path / "some" / "video3.mp4")
    with pytest.raises(
        FileNotFoundError, match=r"7 of 8 videos are not in .*: video0, video1, .* and 2 more"
    ):
        evaluate(tiny_model(), msrvtt, videos=tmp_path, show_progress_bar=False)
    (tmp_path / "none").mkdir()
    with pytest.raises(NothingReadError, match="none of the 8 videos is in"):
        evaluate(tiny_model(), msrvtt, videos=tmp_path / "none", allow_missing=True, show_progress_bar=False)


def test_allowed_missing_videos_leave_with_their_queries_and_the_report_says_so(msrvtt, tmp_path):
    for i, name in ((1, "video1.avi"), (4, "deep/video4.mkv"), (5, "video5.mov")):
        write_clip(tmp_path / "clip.mp4", seed=i)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / "clip.mp4").rename(tmp_path / name)
    (tmp_path / "video6.webm").write_bytes(b"no video")
    report = evaluate(tiny_model(), msrvtt, videos=tmp_path, allow_missing=True, show_progress_bar=False)
    assert (report.num_listed, report.num_read, report.t2v.num_queries) == (8, 3, 3)
    assert report.missing == ["video0", "video2", "video3", "video7"]
    assert [failure.path for failure in report.failures] == [str(tmp_path / "video6.webm")]
    text = report.markdown()
    assert "**Only 3 of 8 videos were ranked.**" in text
    assert "4 videos have no file: video0, video2, video3, video7" in text
    assert "video6.webm: " in text


def test_a_limit_takes_the_first_videos_of_the_list(msrvtt):
    report = evaluate(tiny_model(), msrvtt, limit=3, show_progress_bar=False)
    assert report.queries.video_ids == ["video0", "video1", "video2"]
    assert report.protocol["limit"] == 3
    assert (report.num_listed, report.num_read, report.missing) == (8, 3, [])
    headline, *_ = text = report.markdown().splitlines()
    assert headline.endswith(", the first 3 of 8 videos, 3 queries")
    assert any("**Only 3 of 8 videos were ranked.**" in line for line in text)
    assert "> The limit took the first 3 of 8 videos." in text


def test_a_limit_beyond_the_list_is_none(msrvtt, clean_report):
    report = evaluate(tiny_model(), msrvtt, limit=NUM_TEST, show_progress_bar=False)
    assert not report.is_partial
    assert report.markdown().splitlines()[0] == clean_report.markdown().splitlines()[0]


def test_a_limit_below_one_is_an_error(msrvtt):
    with pytest.raises(ValueError, match=r"limit \(0\)"):
        evaluate(tiny_model(), msrvtt, limit=0)


def test_two_files_for_one_video_are_an_error(tmp_path):
    for name in ("video1.mp4", "b/video1.webm", "video2.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"2 files for video video1: b/video1\.webm, video1\.mp4"):
        locate_videos(tmp_path, ["video1", "video2"])
    assert locate_videos(tmp_path, ["video2", "video3"]) == {"video2": tmp_path / "video2.mp4"}


def test_names_with_dots_keep_them(tmp_path):
    (tmp_path / "0001_X_00.00.51.926-00.00.54.129.avi").touch()
    assert list(locate_videos(tmp_path, ["0001_X_00.00.51.926-00.00.54.129"])) == [
        "0001_X_00.00.51.926-00.00.54.129"
    ]


def test_a_report_with_a_plot_shows_it_and_one_without_matplotlib_says_so(
    clean_report, tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib")
    clean_report.save(tmp_path / "with")
    assert (tmp_path / "with" / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert "(ranks.png)" in (tmp_path / "with" / "report.md").read_text()
    monkeypatch.setattr("videolm.evaluation.retrieval_report.can_plot", lambda: False)
    clean_report.save(tmp_path / "without")
    assert sorted(path.name for path in (tmp_path / "without").iterdir()) == [
        "per_query.parquet",
        "report.json",
        "report.md",
    ]
    assert "plot of the ranks was left out" in (tmp_path / "without" / "report.md").read_text()


def test_the_report_tells_all_that_decides_a_number(clean_report):
    written = clean_report.as_json()
    assert written["model"]["weights_sha256"] == tiny_model().info.weights_sha256
    assert written["sampler"]["kind"] == "segment_middle"
    assert written["preprocessing"]["image_size"] == 16
    assert {"ties", "v2t", "seed", "decoder", "split", "dtype", "limit"} <= written["protocol"].keys()
    assert {"torch", "transformers", "decoders", "device"} <= written["environment"].keys()
    low, high = written["results"][0]["t2v_intervals"]["r1"]
    assert 0 <= low <= written["t2v"]["r1"] <= high <= 100


def test_shares_of_ranks_are_counted_by_hand():
    shares = rank_shares(np.array([1.0, 1.0, 1.5, 5.0, 10.5, 11.0, 600.0, 1000.0]))
    assert shares == {
        "1": 25.0,
        "2-5": 25.0,
        "6-10": 0.0,
        "11-50": 25.0,
        "51-100": 0.0,
        "101-500": 0.0,
        "501+": 25.0,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "mscoco"}, r"benchmark \('mscoco'\) must be one of msrvtt, msvd"),
        ({"split": "tset"}, r"split \('tset'\) must be one of test, train"),
        ({"split": "train", "qb_norm": True}, "train of msrvtt is for training"),
    ],
)
def test_a_benchmark_or_split_that_is_not_known_names_the_known_ones(msrvtt, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(tiny_model(), msrvtt, protocol=RetrievalProtocol(**change), show_progress_bar=False)


@pytest.mark.parametrize("change", [{"num_frames": 0}, {"dsl_scale": 0.0}, {"qb_norm_bank": -1}])
def test_a_protocol_out_of_range_names_the_value(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=rf"{name} \({value}\)"):
        RetrievalProtocol(**change)
