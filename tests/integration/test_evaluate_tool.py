"""The evaluation tool from config to report, and the command that goes the same way."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.data import data_path
from tests.tiny import speaking_model, write_clip, write_random_clip
from videolm import cli
from videolm.datasets.protocol import CaptionProtocol, QuestionProtocol
from videolm.datasets.synthetic import render_world
from videolm.recipes import read_protocol

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "retrieval" / "msrvtt_zeroshot.yaml"
CAPTIONS = ROOT / "configs" / "captioning" / "msrvtt_eval.yaml"
QUESTIONS = [ROOT / "configs" / "videoqa" / f"{name}_eval.yaml" for name in ("msrvtt_qa", "nextqa")]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("evaluate_tool", ROOT / "tools" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = typer.Typer()
    app.command()(module.main)
    return app


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    rows = [
        "video_id,sentence",
        "video0,a red circle moves left",
        "video1,a blue square",
        "video2,a green star",
    ]
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(rows) + "\n")
    for i in (0, 2):
        write_clip(folder / "videos" / f"video{i}.mp4", seed=i)
    return folder


def arguments(benchmark, *more):
    return [str(CONFIG), "--data", str(benchmark), "--model", "mini", "--quiet", *more]


def test_a_missing_video_is_wrong_usage_until_it_is_allowed(tool, benchmark, tmp_path):
    answer = CliRunner().invoke(tool, arguments(benchmark))
    assert answer.exit_code == 2
    assert "1 of 3 videos are not in" in answer.stderr
    assert "video1; allow_missing=True (--allow-missing)" in answer.stderr

    answer = CliRunner().invoke(tool, arguments(benchmark, "--allow-missing", "--out", str(tmp_path)))
    assert answer.exit_code == 0
    assert "**Only 2 of 3 videos were ranked.**" in answer.stdout
    assert answer.stdout in (tmp_path / "report.md").read_text()
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["num_videos_listed"], written["num_videos_read"], written["missing"]) == (
        3,
        2,
        ["video1"],
    )
    assert written["protocol"]["num_frames"] == written["sampler"]["num_frames"] == 12
    assert {path.name for path in tmp_path.iterdir()} >= {"report.json", "report.md", "per_query.parquet"}


def test_a_wrong_override_names_the_config(tool, benchmark):
    answer = CliRunner().invoke(tool, arguments(benchmark, "--set", "splitt=test"))
    assert answer.exit_code == 2
    assert "msrvtt_zeroshot.yaml: " in answer.stderr


def test_the_command_takes_sampler_and_dtype(benchmark):
    answer = CliRunner().invoke(
        cli.app,
        [
            *("evaluate", "mini", str(benchmark), "--allow-missing", "--quiet", "--format", "json"),
            *("--sampler", "keyframes", "--dtype", "bfloat16"),
        ],
    )
    assert answer.exit_code == 0
    written = json.loads(answer.stdout)
    assert (written["sampler"]["kind"], written["protocol"]["dtype"]) == ("keyframes", "torch.bfloat16")


def test_a_folder_for_the_report_that_cannot_be_made_is_an_error_before_any_video(
    tool, benchmark, tmp_path, monkeypatch
):
    (tmp_path / "out").touch()
    monkeypatch.delattr("videolm.evaluation.evaluate")
    answer = CliRunner().invoke(tool, arguments(benchmark, "--out", str(tmp_path / "out")))
    assert "File exists" in answer.stderr


def test_clip_with_random_weights_on_the_real_clips_of_the_full_split(tool, tmp_path):
    """8 real clips of MSR-VTT's official test split with 20 captions each; one more file is no video."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in (7010, 7011, 7012, 7013, 7014, 7016, 7018, 7019):
        (videos / f"video{number}.mp4").write_bytes(data_path(f"clips/msrvtt_video{number}.mp4").read_bytes())
    (videos / "video7015.mp4").write_bytes(data_path("clips/odd/broken.mp4").read_bytes())
    model = write_random_clip(tmp_path / "clip", tokenizer=data_path("vocab/hf"), trained=False)
    answer = CliRunner().invoke(
        tool,
        [
            *(
                str(CONFIG),
                "--data",
                str(data_path("msrvtt")),
                "--videos",
                str(videos),
                "--model",
                str(model),
            ),
            *(
                "--set",
                "split=full-test",
                "--set",
                "num_frames=2",
                "--allow-missing",
                "--format",
                "json",
                "--quiet",
            ),
        ],
    )
    # one video could not be read
    assert answer.exit_code == 3
    report = json.loads(answer.stdout)
    assert (report["num_videos_listed"], report["num_videos_read"], len(report["missing"])) == (
        2990,
        8,
        2981,
    )
    assert [Path(failure["path"]).name for failure in report["failures"]] == ["video7015.mp4"]
    assert (report["t2v"]["num_queries"], report["v2t"]["num_queries"]) == (160, 8)
    assert not report["model"]["trained"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    render_world(out, num_videos=32, seed=2, split="test", workers=1)
    return out


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speaker")
    speaking_model().save(folder)
    return str(folder)


def test_the_configs_are_protocols_of_their_kind():
    assert read_protocol(CAPTIONS) == CaptionProtocol(
        benchmark="msrvtt-captions", split="full-test", dtype="float32"
    )
    for path, benchmark in zip(QUESTIONS, ("msrvtt-qa", "nextqa"), strict=True):
        assert read_protocol(path) == QuestionProtocol(benchmark=benchmark, dtype="float32")


def test_an_override_of_the_benchmark_decides_what_rules_there_are():
    protocol = read_protocol(CAPTIONS, ["benchmark=vatex-captions", "split=test", "num_beams=3"])
    assert protocol == CaptionProtocol(benchmark="vatex-captions", num_beams=3, dtype="float32")
    with pytest.raises(ValueError, match=r"msrvtt_eval\.yaml: .*prompt"):
        read_protocol(CAPTIONS, ["benchmark=msrvtt-qa"])
    with pytest.raises(ValueError, match=r"msrvtt_eval\.yaml: benchmark \('coco'\) must be one of"):
        read_protocol(CAPTIONS, ["benchmark=coco"])


def test_captions_of_a_world_from_config_to_report(tool, world, speaker, tmp_path):
    answer = CliRunner().invoke(
        tool,
        [
            *(str(CAPTIONS), "--data", str(world), "--model", speaker, "--set", "split=test"),
            *("--batch-size", "2", "--quiet", "--out", str(tmp_path)),
        ],
    )
    assert answer.exit_code == 0, answer.stderr
    assert "4 captions against 20 references each" in answer.stdout
    assert "| claims about | all videos |" in answer.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md", "per_sample.jsonl"}


def test_questions_on_a_world_from_the_command_line(world, speaker):
    answer = CliRunner().invoke(
        cli.app,
        [
            *("evaluate", speaker, str(world), "--benchmark", "msrvtt-qa", "--limit", "2"),
            *("--max-new-tokens", "2", "--quiet", "--format", "json"),
        ],
    )
    assert answer.exit_code == 0, answer.stderr
    report = json.loads(answer.stdout)
    assert (report["num_videos_listed"], report["num_videos_read"], report["method"]) == (4, 2, "generate")
    assert report["protocol"].items() >= {"limit": 2, "max_new_tokens": 2, "answers": "write"}.items()
    assert 0 < report["majority"]["score"] < 100


def test_a_video_that_cannot_be_read_ends_with_3_unless_that_is_allowed(world, speaker, tmp_path):
    folder = shutil.copytree(world, tmp_path / "world")
    next(iter(sorted((folder / "videos").iterdir()))).write_bytes(b"")
    command = ["evaluate", speaker, str(folder), "--benchmark", "msrvtt-captions", "--quiet"]
    answer = CliRunner().invoke(cli.app, command)
    assert answer.exit_code == 3
    assert "**Only 3 of 4 videos were captioned.**" in answer.stdout
    assert CliRunner().invoke(cli.app, [*command, "--allow-failures"]).exit_code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--benchmark", "msrvtt-captions", "--dsl"], "dsl (True) is no rule of msrvtt-captions"),
        (["--benchmark", "msrvtt", "--vocabulary", "10"], "vocabulary (10) is no rule of msrvtt"),
        (["--benchmark", "coco"], "benchmark ('coco') must be one of"),
        (["--benchmark", "msrvtt-qa"], "mini has no videoqa head"),
    ],
    ids=["captions", "retrieval", "unknown", "no head"],
)
def test_wrong_usage_of_the_command_says_what_is_right(world, more, message, monkeypatch):
    # the model that ships, as it was before it spoke
    monkeypatch.setattr("videolm.pipeline.loading.read_heads", lambda *_, **__: {})
    answer = CliRunner().invoke(cli.app, ["evaluate", "mini", str(world), *more])
    assert answer.exit_code == 2
    assert message in answer.stderr
