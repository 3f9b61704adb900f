"""Captions measured on a small rendered world and on the real list of MSR-VTT, against computations by hand."""

import json
import shutil

import pytest

from tests.data import data_path
from tests.tiny import speaking_model, tiny_model
from videolm.datasets import caption_catalog, msrvtt
from videolm.datasets.annotations import CaptionedVideo
from videolm.datasets.msrvtt import read_captions, video_path
from videolm.datasets.protocol import CaptionProtocol
from videolm.datasets.synthetic import attribute_scores, read_scenes, render_world
from videolm.evaluation import evaluate
from videolm.metrics import captioning
from videolm.search.extraction import NothingReadError
from videolm.types import Caption, Failure

CAPTIONS = CaptionProtocol(benchmark="msrvtt-captions")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    render_world(out, num_videos=96, seed=2, split="test", workers=1)
    return out


@pytest.fixture(scope="module")
def report(world):
    return evaluate(speaking_model(), world, protocol=CAPTIONS, show_progress_bar=False)


def saying(monkeypatch, texts):
    """A model that says of each video what `texts` has by the name of its file."""
    model = speaking_model()
    asked = []

    def caption(paths, **settings):
        asked.append(settings)
        return [Caption(texts[path.stem], 0.0, 1.0, str(path), num_tokens=1) for path in paths]

    monkeypatch.setattr(model, "caption", caption)
    return model, asked


def test_scores_are_those_of_what_the_model_says_against_all_captions(world, report):
    model, videos = speaking_model(), read_captions(world, split="test")
    said = {video.id: model.caption(video_path(world, video.id)).text for video in videos}
    assert report.hypotheses == said
    assert report.captions == captioning.evaluate(said, {video.id: video.captions for video in videos})
    assert report.attributes == attribute_scores(said, read_scenes(world, "test"))
    assert report.captions.min_references == 20


def test_the_report_says_what_was_measured_and_with_what(report, tmp_path):
    report.save(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["scores"] == report.captions.as_dict()
    assert written["scorer"].startswith("pycocoevalcap 1.2")
    assert written["attributes"]["all"]["colour"].keys() >= {"precision", "recall", "claimed"}
    assert {"num_beams", "max_new_tokens", "prompt", "dtype", "limit"} <= written["protocol"].keys()
    assert written["protocol"]["num_beams"] == 1
    text = (tmp_path / "report.md").read_text()
    assert "12 captions against 20 references each" in text.splitlines()[0]
    assert "| BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | ROUGE-L | CIDEr |" in text
    assert "| scorer | pycocoevalcap" in text
    assert "| claims about | all videos | 1 thing |" in text


def test_every_caption_stands_beside_its_references_and_scores(report, tmp_path):
    report.save(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "per_sample.jsonl").read_text().splitlines()]
    assert [row["video_id"] for row in rows] == list(report.hypotheses)
    assert rows[3]["hypothesis"] == report.hypotheses[rows[3]["video_id"]]
    assert len(rows[3]["references"]) == 20
    assert rows[3]["scores"].keys() == {"bleu_4", "rouge_l", "cider"}
    mean = sum(row["scores"]["cider"] for row in rows) / len(rows)
    assert mean == pytest.approx(report.captions.cider)


def test_captions_that_are_true_are_right_in_every_claim_and_the_card_says_so(world, monkeypatch):
    texts = {video.id: video.captions[0] for video in read_captions(world, split="test")}
    model, _ = saying(monkeypatch, texts)
    report = evaluate(model, world, protocol=CAPTIONS, show_progress_bar=False)
    for counts in report.attributes.all.values():
        assert counts.precision in (1.0, None)
    card = report.scores()
    assert card["colour precision, one thing"] == card["colour recall, one thing"] == 100.0
    assert card["BLEU-4"] == 100.0
    assert "| colour | 100.0 / 100.0 |" in report.markdown()


def test_what_the_protocol_says_reaches_the_model(world, monkeypatch):
    texts = {video.id: "a" for video in read_captions(world, split="test")}
    model, asked = saying(monkeypatch, texts)
    protocol = CaptionProtocol(
        benchmark="msrvtt-captions", num_beams=2, max_new_tokens=3, budget=7, prompt="a red", num_frames=2
    )
    report = evaluate(model, world, protocol=protocol, batch_size=4, show_progress_bar=False)
    wanted = {"num_beams": 2, "max_new_tokens": 3, "budget": 7, "prompt": "a red", "num_frames": 2}
    assert asked[0].items() >= (wanted | {"batch_size": 4, "on_error": "skip"}).items()
    assert report.protocol.items() >= wanted.items()
    assert report.sampler["num_frames"] == 2


def test_a_video_that_cannot_be_read_is_in_no_score_and_reported(world, report, tmp_path):
    folder = shutil.copytree(world, tmp_path / "world")
    broken, gone, *rest = report.hypotheses
    video_path(folder, broken).write_bytes(b"")
    video_path(folder, gone).unlink()
    with pytest.raises(FileNotFoundError, match="1 of 12 videos are not in"):
        evaluate(speaking_model(), folder, protocol=CAPTIONS, show_progress_bar=False)
    part = evaluate(speaking_model(), folder, protocol=CAPTIONS, allow_missing=True, show_progress_bar=False)
    assert part.hypotheses == {video_id: report.hypotheses[video_id] for video_id in rest}
    assert (part.num_listed, part.num_read, part.missing) == (12, 10, [gone])
    assert [failure.path for failure in part.failures] == [str(video_path(folder, broken))]
    assert "**Only 10 of 12 videos were captioned.**" in part.markdown()


def test_nothing_readable_is_an_error_that_says_why(world, monkeypatch):
    model = speaking_model()
    monkeypatch.setattr(
        model, "caption", lambda paths, **_: [Failure(str(path), "open", "no video") for path in paths]
    )
    with pytest.raises(NothingReadError, match=r"none of the 12 videos could be read; .*no video"):
        evaluate(model, world, protocol=CAPTIONS, show_progress_bar=False)


def test_a_limit_takes_the_first_videos_of_the_list(world, report):
    part = evaluate(speaking_model(), world, protocol=CAPTIONS, limit=3, show_progress_bar=False)
    assert list(part.hypotheses) == list(report.hypotheses)[:3]
    assert "the first 3 of 12 videos" in part.markdown()


def test_a_model_without_the_head_is_an_error(world):
    with pytest.raises(ValueError, match="tiny has no captioning head"):
        evaluate(tiny_model(), world, protocol=CAPTIONS)


def test_meteor_that_cannot_be_had_is_an_error_before_any_video(world, monkeypatch):
    model = speaking_model()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(model, "caption", None)
    with pytest.raises(FileNotFoundError, match="there is no program 'java'"):
        evaluate(model, world, protocol=CaptionProtocol(benchmark="msrvtt-captions", meteor=True))


def test_a_split_that_is_not_there_names_the_others(world):
    with pytest.raises(ValueError, match=r"split \('dev'\) must be one of test, train"):
        evaluate(speaking_model(), world, protocol=CaptionProtocol(benchmark="msrvtt-captions", split="dev"))


@pytest.mark.slow
def test_human_captions_of_msrvtt_have_the_published_codes_scores(tmp_path, monkeypatch):
    folder = data_path("msrvtt")
    golden = json.loads(data_path("reference/msrvtt_human_captions_golden.json").read_text())["scores"]
    videos = msrvtt.read_split(folder, "full-test")
    for video in videos:
        (tmp_path / f"{video.id}.mp4").touch()

    def read_others(_, split):
        return [CaptionedVideo(v.id, v.captions[1:]) for v in msrvtt.read_split(folder, split)]

    benchmark = caption_catalog.CaptionBenchmark("MSR-VTT", read_others, ("full-test",))
    monkeypatch.setitem(caption_catalog.CAPTION_BENCHMARKS, "msrvtt-captions", benchmark)
    model, _ = saying(monkeypatch, {video.id: video.captions[0] for video in videos})
    protocol = CaptionProtocol(benchmark="msrvtt-captions", split="full-test")
    report = evaluate(model, folder, protocol=protocol, videos=tmp_path, show_progress_bar=False)
    assert report.captions.as_dict() == pytest.approx(
        {name: golden[name] for name in report.captions.as_dict()}, abs=5e-5
    )
    assert "2,990 captions against 19 references each" in report.markdown()
    assert report.attributes is None
    assert "30.4" in report.markdown()


def test_the_list_of_retrieval_is_not_taken_for_the_one_of_captions(tmp_path, monkeypatch):
    ids = [video.id for video in msrvtt.read_captions(data_path("msrvtt"), split="test")][:3]
    for video_id in ids:
        (tmp_path / f"{video_id}.mp4").touch()
    model, _ = saying(monkeypatch, dict.fromkeys(ids, "a man is talking"))
    report = evaluate(
        model, data_path("msrvtt"), protocol=CAPTIONS, videos=tmp_path, limit=3, show_progress_bar=False
    )
    assert any("published scores of captions are those of full-test" in note for note in report.notes)
