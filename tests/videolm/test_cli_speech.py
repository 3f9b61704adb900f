from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import videolm
from tests.tiny import speaking_model, tiny_model, tiny_speaker, write_clip
from videolm import cli
from videolm.cli.speech import _failure_lines, split_candidates
from videolm.pipeline.speaking import Speaker
from videolm.types import Failure


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    speaking_model().save(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(3):
        write_clip(folder / f"{seed}.mp4", seed=seed, num_frames=30)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    write_clip(folder / "good.mp4", seed=1)
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_captions_of_a_folder_are_those_of_the_model(model_folder: Path, videos: Path) -> None:
    result = run("caption", videos, "--model", model_folder, "--format", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = json.loads(result.stdout)["captions"]
    expected = videolm.load(model_folder).caption(sorted(videos.iterdir()))
    assert [row["text"] for row in rows] == [caption.text for caption in expected]
    assert list(rows[0]) == ["text", "start", "end", "source", "num_tokens", "reduce"]
    assert [row["source"] for row in rows] == [str(path) for path in sorted(videos.iterdir())]


def test_a_table_is_lines_with_tabs(model_folder: Path, videos: Path) -> None:
    lines = run("caption", videos / "1.mp4", videos / "2.mp4", "--model", model_folder).stdout.splitlines()
    assert [line.split("\t")[:2] for line in lines] == [
        ["video", "seconds"],
        [str(videos / "1.mp4"), "0.0-6.0"],
        [str(videos / "2.mp4"), "0.0-6.0"],
    ]


def test_windows_budget_and_prompt_reach_the_model(model_folder: Path, videos: Path) -> None:
    options = ("--window", 2, "--budget", 9, "--prompt", "a red", "--max-new-tokens", 3, "--num-beams", 3)
    result = run("caption", videos / "0.mp4", "--model", model_folder, "--format", "json", *options)
    rows = json.loads(result.stdout)["captions"]
    assert [(row["start"], row["end"], row["num_tokens"], row["reduce"]) for row in rows] == [
        (0.0, 2.0, 9, "tome:r=2"),
        (2.0, 4.0, 9, "tome:r=2"),
        (4.0, 6.0, 9, "tome:r=2"),
    ]
    writing: dict[str, Any] = {"prompt": "a red", "max_new_tokens": 3, "num_beams": 3}
    model = videolm.load(model_folder)

    def texts(**writing: Any) -> list[str]:
        return [one.text for one in model.caption(videos / "0.mp4", window=2, budget=9, **writing)]

    assert [row["text"] for row in rows] == texts(**writing)
    # none of them is without effect
    for name in writing:
        assert texts(**{key: value for key, value in writing.items() if key != name}) != texts(**writing)
    assert run("caption", videos, "--model", model_folder, "--segments", "auto").exit_code == 0


def test_a_bad_video_is_reported_and_the_rest_goes_on(model_folder: Path, mixed: Path) -> None:
    result = run("caption", mixed, "--model", model_folder)
    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == 2
    assert f"{mixed / 'random.mp4'}: " in result.stderr
    assert "1 captions, 1 failed" in result.stderr
    assert run("caption", mixed, "--model", model_folder, "--allow-failures").exit_code == 0
    assert run("caption", mixed / "random.mp4", "--model", model_folder).exit_code == 4
    found = json.loads(run("caption", mixed, "--model", model_folder, "--format", "json").stdout)
    assert [caption["source"] for caption in found["captions"]] == [str(mixed / "good.mp4")]
    [failure] = found["failures"]
    assert (failure["path"], failure["stage"], failure["start"]) == (str(mixed / "random.mp4"), "open", None)


def test_spans_that_fail_for_one_reason_are_one_line() -> None:
    failures = [Failure("a.mp4", "decode", "damaged", "pyav", float(i), i + 1.0) for i in range(10)]
    failures += [Failure("a.mp4", "decode", "too dark", "", 10.0, 11.0), Failure("b.mp4", "open", "damaged")]
    shown = ", ".join(f"{i}.0-{i + 1}.0" for i in range(8))
    assert list(_failure_lines(failures)) == [
        f"  a.mp4 at {shown}, and 2 more: damaged",
        "  a.mp4 at 10.0-11.0: too dark",
        "  b.mp4: damaged",
    ]


def test_captions_are_printed_as_they_come_and_stay_when_interrupted(
    model_folder: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, num_written = Speaker.write, 0

    def write(*arguments: Any, **settings: Any) -> list[str]:
        nonlocal num_written
        num_written += 1
        if num_written > 2:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    monkeypatch.setattr(Speaker, "write", write)
    result = run("caption", videos, "--model", model_folder, "--batch-size", 1)
    assert result.exit_code == 130
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr == "interrupted; called again, it begins again\n"


def test_an_untrained_model_does_not_speak_unless_it_may(videos: Path, tmp_path: Path) -> None:
    model = tiny_model(trained=False)
    model.add_head("captioning", tiny_speaker(model=model))
    model.save(tmp_path)
    for command in (("caption", videos), ("ask", videos / "1.mp4", "red", "--candidates", "red,blue")):
        result = run(*command, "--model", tmp_path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "tiny has untrained weights, what it says means nothing" in result.stderr
    assert run("caption", videos, "--model", tmp_path, "--allow-untrained").exit_code == 0


def test_help_is_about_speaking() -> None:
    for command in ("caption", "ask"):
        text = " ".join(run(command, "--help").stdout.replace("│", " ").split())
        assert "GIT or BLIP-2" in text
        assert "OUT" not in text


def test_a_stream_prints_the_caption(model_folder: Path, videos: Path) -> None:
    result = run("caption", videos / "1.mp4", "--model", model_folder, "--stream")
    expected = videolm.load(model_folder).caption(videos / "1.mp4").text
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{expected}\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "json"), "leave out --format json"),
        (("--window", 2), "--stream cannot be with --window"),
        (("--num-beams", 2), "--stream cannot be with --num-beams"),
    ],
    ids=["json", "window", "beams"],
)
def test_what_cannot_be_streamed_is_refused(
    model_folder: Path, videos: Path, options: tuple[object, ...], message: str
) -> None:
    result = run("caption", videos / "1.mp4", "--model", model_folder, "--stream", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert run("caption", videos, "--model", model_folder, "--stream").exit_code == 2


def test_an_answer_is_printed(model_folder: Path, videos: Path) -> None:
    model = videolm.load(model_folder)
    question = "a red circle"
    result = run("ask", videos / "1.mp4", question, "--model", model_folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{model.answer(videos / '1.mp4', question).text}\n"
    streamed = run("ask", videos / "1.mp4", question, "--model", model_folder, "--stream")
    assert streamed.stdout == result.stdout


def test_candidates_are_printed_with_their_probabilities(model_folder: Path, videos: Path) -> None:
    command = ("ask", videos / "1.mp4", "a red circle", "--model", model_folder)
    table = run(*command, "--candidates", "green,blue circle")
    lines = [line.split("\t") for line in table.stdout.splitlines()]
    assert lines[0] == ["answer", "probability", "score"]
    assert float(lines[1][1]) >= float(lines[2][1])
    assert table.stderr == "chosen by likelihood\n"
    found = run(*command, "--candidates", "green", "--candidates", "blue circle", "--format", "json")
    answer = json.loads(found.stdout)
    assert answer["text"] == lines[1][0]
    assert (answer["candidates"], answer["method"]) == (["green", "blue circle"], "likelihood")


def test_one_list_is_split_at_commas_and_several_are_not() -> None:
    assert split_candidates(["a, b,c"]) == ["a", "b", "c"]
    assert split_candidates(["a, b", "c"]) == ["a, b", "c"]
    assert split_candidates(None) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a red circle", "--candidates", "red"), "must be two texts at least"),
        (("a red circle", "--candidates", "red,,blue"), "number 1 (from 0) is empty"),
        ((" ",), "the question (' ') has no word"),
    ],
    ids=["one", "empty", "question"],
)
def test_a_wrong_question_is_exit_code_2(
    model_folder: Path, videos: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("ask", videos / "1.mp4", *arguments, "--model", model_folder)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_question_is_about_one_video_that_is_there(model_folder: Path, videos: Path) -> None:
    missing = run("ask", videos / "no.mp4", "red", "--model", model_folder)
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "no.mp4 does not exist; give a folder, a video, or a .txt" in missing.stderr
    folder = run("ask", videos, "red", "--model", model_folder)
    assert folder.exit_code == 2
    assert "is about one video" in " ".join(folder.stderr.replace("│", " ").split())


def test_a_model_without_heads_says_so(videos: Path, tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "mute")
    result = run("caption", videos, "--model", tmp_path / "mute")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "tiny cannot caption: it has no captioning head" in result.stderr


def test_models_tells_which_speak() -> None:
    rows = json.loads(run("models", "--format", "json").stdout)
    assert all(isinstance(row["heads"], list) for row in rows)
    assert "heads" in run("models").stdout.splitlines()[0].split("\t")
