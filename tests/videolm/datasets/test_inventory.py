"""What of a benchmark is there and what is missing, and the commands that say so."""

import json
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from tests.data import data_path
from videolm.cli.benchmarks import data
from videolm.datasets.catalog import BENCHMARKS, LSMDC, Size
from videolm.evaluation import check_benchmark

app = typer.Typer()
app.command()(data)
run = CliRunner().invoke


@pytest.fixture
def lsmdc(tmp_path):
    """All annotation of LSMDC, but only of two clips."""
    names = ("LSMDC16_annos_training.csv", "LSMDC16_annos_val.csv", "LSMDC16_challenge_1000_publictect.csv")
    for i, name in enumerate(names):
        (tmp_path / name).write_text(f"clip{i}\t0\t1\t0\t1\tSOMEONE sits.\n")
    return tmp_path


def statuses(found):
    return {check.split: check.status for check in found.checks}


@pytest.mark.slow
def test_the_real_msrvtt_annotation_is_whole_and_its_videos_are_missing():
    found = check_benchmark("msrvtt", data_path("msrvtt"))
    expected = dict.fromkeys(BENCHMARKS["msrvtt"].splits, "ok") | {
        "1kb-train": "optional",
        "1kb-test": "optional",
    }
    assert statuses(found) == expected
    assert found.num_videos == len(found.missing_videos) == 10_000
    assert not found.is_complete


@pytest.mark.parametrize(
    ("name", "folder", "there", "missing"),
    [
        ("msvd", "msvd", {"train", "val", "test"}, set()),
        ("didemo", "didemo", {"val", "test"}, {"train"}),
        ("activitynet", "activitynet_captions", {"val_1"}, {"train"}),
        ("nextqa", "nextqa", {"val", "test"}, {"train"}),
        ("msvd-qa", "msvd_qa", {"train", "val", "test"}, set()),
        ("tgif-action", "tgif_qa", {"test"}, {"train"}),
    ],
)
def test_the_other_real_annotations_have_their_published_sizes(name, folder, there, missing):
    found = statuses(check_benchmark(name, data_path(folder)))
    assert found == dict.fromkeys(there, "ok") | dict.fromkeys(missing, "missing")


def test_the_absence_of_what_is_not_in_the_usual_download_is_no_fault(tmp_path):
    (tmp_path / "vatex_validation_v1.0.json").write_text('[{"videoID": "v", "enCap": ["a"]}]')
    found = statuses(check_benchmark("vatex", tmp_path))
    assert (found["val"], found["test"], found["test-1500"]) == ("wrong", "missing", "optional")


def test_counts_that_differ_are_wrong_and_videos_are_found_by_name(lsmdc):
    (lsmdc / "films" / "one").mkdir(parents=True)
    for name in ("clip0.avi", "one/clip2.mkv", "other.mp4"):
        (lsmdc / "films" / name).touch()
    found = check_benchmark("lsmdc", lsmdc, videos=lsmdc / "films")
    assert set(statuses(found).values()) == {"wrong"}
    assert found.missing_videos == ["clip1"]
    assert ("test", "1,000 videos, 1,000 sentences", "1 videos, 1 sentences", "wrong") in found.rows()
    assert found.rows()[-1] == ("video files", "3 files", "2 files; missing: clip1", "missing")


def test_questions_are_counted_with_their_videos_where_these_are_known(tmp_path):
    (tmp_path / "test.csv").write_text("video,question,answer,qid\n7,what is it,cat,1\n7,who is it,man,2\n")
    (tmp_path / "count_test.csv").write_text("video,question,answer,qid\n52,how many,3,COUNT1\n")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "video7.mp4").touch()
    found = check_benchmark("msrvtt-qa", tmp_path)
    assert found.rows()[0] == ("test", "2,990 videos, 72,821 questions", "1 videos, 2 questions", "wrong")
    assert (found.num_videos, found.missing_videos) == (1, [])
    assert check_benchmark("tgif-count", tmp_path).rows()[0] == (
        "test",
        "3,554 questions",
        "1 questions",
        "wrong",
    )


def test_a_file_that_cannot_be_read_is_wrong_with_its_reason(tmp_path):
    (tmp_path / "val_1.json").write_text('{"v": {"sentences": ["a"]}, "v": {"sentences": ["b"]}}')
    val, train = check_benchmark("activitynet", tmp_path).checks
    assert (val.split, val.status) == ("val_1", "wrong")
    assert "1 keys are there more than once: 'v'" in val.found
    assert (train.found, train.status) == ("train.json is not there", "missing")


def test_the_command_names_what_is_missing_and_where_to_get_it(lsmdc):
    answer = run(app, ["lsmdc", "--dir", str(lsmdc)])
    assert answer.exit_code == 3
    assert "video files\t3 files\t0 files; missing: clip" in answer.stdout
    assert "MPII" in answer.stderr


def test_the_command_exits_with_0_where_all_is_there(lsmdc, monkeypatch):
    (lsmdc / "videos").mkdir()
    for i in range(3):
        (lsmdc / "videos" / f"clip{i}.avi").touch()
    small = {split: Size(1, 1) for split in LSMDC.splits}
    whole = replace(LSMDC, splits=small)
    monkeypatch.setattr("videolm.evaluation.inventory.BENCHMARKS", {"lsmdc": whole})
    answer = run(app, ["lsmdc", "--dir", str(lsmdc), "--format", "json"])
    assert answer.exit_code == 0
    told = json.loads(answer.stdout)
    assert told["is_complete"]
    assert told["missing_videos"] == []
    assert {check["status"] for check in told["checks"]} == {"ok"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mscoco", "--dir", "."], "must be one of msrvtt, msvd"),
        (["msvd", "--dir", "nowhere"], "nowhere is not a folder; get MSVD"),
    ],
)
def test_a_wrong_name_or_folder_is_wrong_usage(arguments, message):
    answer = run(app, arguments)
    assert answer.exit_code == 2
    assert message in answer.stderr


def test_every_benchmark_says_where_it_is_from_and_how_to_measure_on_it():
    for benchmark in BENCHMARKS.values():
        assert "http" in benchmark.source
        assert benchmark.terms
        measured = [size for size in benchmark.splits.values() if size.training]
        assert measured
        assert all(size.training in benchmark.splits for size in measured)
