from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import videolm
from tests.tiny import tiny_model, write_clip, write_folder
from videolm import cli
from videolm.cli import output

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("videos"), num_videos=3)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good clips, a text file, an empty file and random bytes."""
    folder = write_folder(tmp_path_factory.mktemp("mixed"), num_videos=2)
    (folder / "notes.txt").write_text("not a video, and not named like one")
    (folder / "empty.mp4").touch()
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    return folder


@pytest.fixture
def index_folder(model_folder: Path, videos: Path, tmp_path: Path) -> Path:
    assert run("index", videos, tmp_path / "index", "--model", model_folder).exit_code == 0
    return tmp_path / "index"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


# index and search


def test_index_and_search_from_folder_to_hits(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    indexed = run("index", videos, tmp_path / "index", "--model", model_folder)
    assert (indexed.exit_code, indexed.stdout) == (0, "")
    assert indexed.stderr == f"indexed 3 videos into {tmp_path / 'index'}\n"
    found = run("search", tmp_path / "index", "a red circle", "-k", 2, "--format", "json")
    assert (found.exit_code, found.stderr) == (0, "")
    hits = json.loads(found.stdout)
    expected = videolm.open_index(tmp_path / "index").search("a red circle", k=2)
    assert [list(hit) for hit in hits] == [["id", "path", "score", "start", "end"]] * 2
    assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
    assert [hit["path"] for hit in hits] == [str(videos / hit.id) for hit in expected]
    assert hits[0]["score"] == pytest.approx(expected[0].score)


def test_a_table_on_no_terminal_is_lines_with_tabs(index_folder: Path) -> None:
    lines = run("search", index_folder, "a red circle", "-k", 2).stdout.splitlines()
    assert lines[0].split("\t") == ["score", "video", "seconds"]
    assert [len(line.split("\t")) for line in lines[1:]] == [3, 3]


def test_broken_videos_are_named_with_their_reason_and_make_the_exit_code_3(
    model_folder: Path, mixed: Path, tmp_path: Path
) -> None:
    result = run("index", mixed, tmp_path / "index", "--model", model_folder)
    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    assert lines[0].startswith("  empty.mp4: ")
    assert lines[1].startswith("  random.mp4: ")
    assert lines[2].startswith(f"indexed 2 videos, 2 failed (see {tmp_path / 'index/failures.jsonl'};")
    failures = [json.loads(line) for line in (tmp_path / "index/failures.jsonl").read_text().splitlines()]
    assert [failure["path"] for failure in failures] == ["empty.mp4", "random.mp4"]
    assert all(failure["error"] and failure["stage"] == "open" for failure in failures)
    assert videolm.open_index(tmp_path / "index").ids == ["00.mp4", "01.mp4"]


def test_allow_failures_makes_the_exit_code_0(model_folder: Path, mixed: Path, tmp_path: Path) -> None:
    result = run("index", mixed, tmp_path / "index", "--model", model_folder, "--allow-failures", "--quiet")
    assert result.exit_code == 0
    assert "2 failed" in result.stderr


def test_failures_stand_until_they_are_tried_again(model_folder: Path, mixed: Path, tmp_path: Path) -> None:
    for flags in [(), (), ("--retry-failed",)]:
        result = run("index", mixed, tmp_path / "index", "--model", model_folder, *flags)
        assert result.exit_code == 3
        assert "indexed 2 videos, 2 failed" in result.stderr


def test_nothing_readable_is_exit_code_4(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/empty.mp4").touch()
    result = run("index", tmp_path / "videos", tmp_path / "index", "--model", model_folder)
    assert result.exit_code == 4
    assert "none of the 1 videos" in result.stderr


def test_quiet_says_nothing_when_all_is_well(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    result = run("index", videos, tmp_path / "index", "--model", model_folder, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_other_settings_are_refused_until_overwrite(
    model_folder: Path, videos: Path, index_folder: Path
) -> None:
    command = ("index", videos, index_folder, "--model", model_folder, "--num-frames", 2)
    refused = run(*command)
    assert refused.exit_code == 2
    assert "sampler.num_frames is 3 there and 2 now" in refused.stderr
    assert run(*command, "--overwrite").exit_code == 0


def test_an_untrained_model_is_refused_until_allowed(videos: Path, tmp_path: Path) -> None:
    tiny_model(trained=False).save(tmp_path / "raw")
    command = ("index", videos, tmp_path / "index", "--model", tmp_path / "raw")
    refused = run(*command)
    assert refused.exit_code == 2
    assert "warning: tiny has untrained weights" in refused.stderr
    assert "--allow-untrained" in refused.stderr
    assert run(*command, "--allow-untrained").exit_code == 0
    assert "untrained" in run("search", tmp_path / "index", "blue").stderr


def test_a_moved_model_is_named_and_another_one_refused(
    model_folder: Path, videos: Path, tmp_path: Path
) -> None:
    tiny_model().save(tmp_path / "model")
    run("index", videos, tmp_path / "index", "--model", tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "moved")
    assert run("search", tmp_path / "index", "blue").exit_code == 2
    assert run("search", tmp_path / "index", "blue", "--model", tmp_path / "moved").exit_code == 0
    tiny_model(seed=1, name="other").save(tmp_path / "other")
    refused = run("search", tmp_path / "index", "blue", "--model", tmp_path / "other")
    assert refused.exit_code == 2
    assert "was made by 'tiny'" in refused.stderr
    assert "not by 'other'" in refused.stderr


# encode


def test_encode_writes_shards_and_on_request_npz(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    command = ("encode", videos, tmp_path / "out", "--model", model_folder)
    assert run(*command).stderr == f"3 videos (3 new) into {tmp_path / 'out'}\n"
    assert [path.name for path in (tmp_path / "out/shards").iterdir()] == ["00000.parquet"]
    assert not (tmp_path / "out/embeddings.npz").exists()
    again = run(*command, "--format", "npz")
    assert (again.exit_code, again.stderr) == (0, f"3 videos (0 new) into {tmp_path / 'out'}\n")
    with np.load(tmp_path / "out/embeddings.npz") as arrays:
        assert arrays["ids"].tolist() == ["00.mp4", "01.mp4", "02.mp4"]
        expected = videolm.load(model_folder).encode_videos(sorted(videos.iterdir()))
        np.testing.assert_allclose(arrays["vectors"], expected.vectors, atol=1e-6)


def test_what_was_encoded_is_not_encoded_again_for_an_index(
    model_folder: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("encode", videos, tmp_path / "out", "--model", model_folder).exit_code == 0
    monkeypatch.delattr("videolm.video.isolation.Workers.submit")
    assert run("index", videos, tmp_path / "out", "--model", model_folder).exit_code == 0


def test_jobs_that_share_a_folder_make_what_one_run_makes(
    model_folder: Path, videos: Path, tmp_path: Path
) -> None:
    command = ("encode", videos, tmp_path / "out", "--model", model_folder)
    for index in range(2):
        done = run(*command, "--shard", f"{index}/2")
        assert (done.exit_code, done.stdout) == (0, "")
        assert f" new) into {tmp_path / f'out/parts/{index}-of-2'}\n" in done.stderr
    assert run("index", *command[1:]).stderr == f"indexed 3 videos into {tmp_path / 'out'}\n"
    straight = videolm.load(model_folder).encode_videos(sorted(videos.iterdir()))
    np.testing.assert_allclose(videolm.open_index(tmp_path / "out").vectors, straight.vectors, atol=1e-6)


def test_an_export_of_jobs_is_gone_once_they_are_gathered(
    model_folder: Path, videos: Path, tmp_path: Path
) -> None:
    command = ("encode", videos, tmp_path / "out", "--model", model_folder, "--format", "npz")
    part = ("--shard", "0/2")
    exported = tmp_path / "out/parts/0-of-2/embeddings.npz"
    assert run(*command, *part).exit_code == 0
    assert exported.exists()
    assert run(*command).exit_code == 0
    assert not exported.exists()
    with np.load(tmp_path / "out/embeddings.npz") as arrays:
        assert len(arrays["ids"]) == 3
    # its videos are all there
    again = run(*command, *part)
    assert (again.exit_code, again.stderr) == (0, f"2 videos (0 new) into {exported.parent}\n")
    assert not exported.exists()


def test_auto_computes_as_the_folder_was_made(model_folder: Path, videos: Path, tmp_path: Path) -> None:
    command = ("encode", videos, tmp_path / "out", "--model", model_folder)
    assert run(*command, "--dtype", "bfloat16", "--shard", "0/2").exit_code == 0
    # a model of this size would compute in float32 everywhere
    assert run(*command, "--shard", "1/2").exit_code == 0
    assert run(*command).stderr == f"3 videos (0 new) into {tmp_path / 'out'}\n"
    assert run("index", *command[1:]).exit_code == 0
    refused = run(*command, "--dtype", "float32")
    assert refused.exit_code == 2
    assert "dtype is 'torch.bfloat16' there and 'torch.float32' now" in refused.stderr
    assert run(*command, "--overwrite").stderr == f"3 videos (3 new) into {tmp_path / 'out'}\n"
    assert json.loads((tmp_path / "out/run.json").read_text())["settings"]["dtype"] == "torch.float32"


@pytest.mark.parametrize("shard", ["2/2", "half", "1", "-1/2"])
def test_a_shard_that_there_is_not_is_exit_code_2(
    model_folder: Path, videos: Path, tmp_path: Path, shard: str
) -> None:
    result = run("encode", videos, tmp_path / "out", "--model", model_folder, "--shard", shard)
    assert result.exit_code == 2
    assert shard in result.stderr


def test_more_failures_than_allowed_are_exit_code_5(model_folder: Path, mixed: Path, tmp_path: Path) -> None:
    result = run("encode", mixed, tmp_path / "out", "--model", model_folder, "--max-failures", 1)
    assert result.exit_code == 5
    assert "stopped: 2 videos failed, 1 allowed (max_failures); the last: random.mp4: " in result.stderr


def test_frames_are_kept_for_the_next_model_on_request(
    model_folder: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model", model_folder, "--frame-cache", tmp_path / "cache")
    assert run("encode", videos, tmp_path / "one", *flags).exit_code == 0
    monkeypatch.delattr("videolm.video.isolation.Workers.submit")
    assert run("encode", videos, tmp_path / "two", *flags, "--timeout", 5).exit_code == 0


# info, models, doctor


def test_info_says_what_a_video_is(videos: Path) -> None:
    info = json.loads(run("info", videos / "00.mp4", "--format", "json").stdout)
    assert (info["width"], info["height"], info["num_frames"], info["codec"]) == (32, 24, 6, "h264")
    assert "width\t32" in run("info", videos / "00.mp4").stdout.splitlines()


def test_info_of_no_video_is_exit_code_4(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    result = run("info", tmp_path / "a.mp4")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "a.mp4" in result.stderr


def test_models_lists_what_ships(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videolm.pipeline.loading._ASSETS", model_folder.parent)
    listed = json.loads(run("models", "--format", "json").stdout)
    assert [(model["name"], model["layout"], model["scores"]) for model in listed[:1]] == [
        ("tiny", "videolm", {"R@1": 0.5})
    ]
    assert listed[1]["weights_sha256"] is None
    lines = run("models").stdout.splitlines()
    assert lines[1].startswith("tiny\tvideolm\t0 M\tApache-2.0\tthis package\t")
    assert lines[2].endswith("\tnot checked here\tnone\tnot measured here")


def test_doctor_says_versions_decoders_and_kernels() -> None:
    found = json.loads(run("doctor", "--format", "json").stdout)
    assert found["videolm"] == videolm.__version__
    assert found["decoders"].keys() == {"pyav", "decord", "torchcodec"}
    ops = {"temporal_attention", "token_merging", "frame_attention", "token_interaction"}
    assert found["kernels"].keys() == ops
    assert any(line.startswith("decoders: pyav\t") for line in run("doctor").stdout.splitlines())


@pytest.mark.parametrize(("gain", "dtype"), [(4.0, "torch.bfloat16"), (1.0, "torch.float32")])
def test_doctor_says_what_a_clip_computes_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gain: float, dtype: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("videolm.pipeline.video_lm.pick_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr("videolm.pipeline.precision.bfloat16_gain", lambda: gain)
    found = json.loads(run("doctor", "--format", "json").stdout)
    assert found["dtype"] == f"{dtype} (a model of CLIP's size)"


# Errors and what is printed


def test_usage_errors_are_exit_code_2(videos: Path, tmp_path: Path) -> None:
    for arguments in [
        ("index", videos),
        ("search", tmp_path, "blue", "-k", 0),
        ("index", videos, tmp_path / "x", "--decoder", "magic"),
        ("search", tmp_path / "no index", "blue"),
        ("index", tmp_path / "missing", tmp_path / "x", "--model", tmp_path / "no model"),
    ]:
        assert run(*arguments).exit_code == 2, arguments


def test_an_unexpected_error_is_exit_code_1_and_shows_its_place_on_request(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videolm.open_video", raiser(RuntimeError("out of luck")), raising=False)
    short = run("info", videos / "00.mp4")
    assert short.exit_code == 1
    assert short.stderr.splitlines()[0] == "error: RuntimeError: out of luck"
    assert "Traceback" not in short.stderr
    assert "Traceback" in run("info", videos / "00.mp4", "--verbose").stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/out"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "/out"), 2),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1),
    ],
)
def test_an_error_of_the_system_is_expected_where_it_names_a_file(
    videos: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, code: int
) -> None:
    monkeypatch.setattr("videolm.open_video", raiser(error), raising=False)
    result = run("info", videos / "00.mp4")
    assert result.exit_code == code
    assert str(error) in result.stderr
    assert ("not expected" in result.stderr) == (code == 1)


def test_a_name_in_an_error_cannot_forge_a_line(videos: Path, tmp_path: Path) -> None:
    result = run("search", tmp_path / "no\nerror: index", "blue")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "no\\nerror: index" in line


def test_a_timeout_of_more_than_a_week_is_exit_code_2(
    model_folder: Path, videos: Path, tmp_path: Path
) -> None:
    for timeout in ("inf", "1e19", "nan"):
        result = run("encode", videos, tmp_path / "out", "--model", model_folder, "--timeout", timeout)
        assert result.exit_code == 2
        assert "timeout" in result.stderr


def test_ctrl_c_is_exit_code_130(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videolm.open_video", raiser(KeyboardInterrupt()), raising=False)
    result = run("info", videos / "00.mp4")
    assert result.exit_code == 130
    assert "goes on where it was" in result.stderr


def raiser(error: BaseException) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("holiday ä 日本.mp4", "holiday ä 日本.mp4"),
        ("\u202e4pm.mp4", "\\u202e4pm.mp4"),
        ("a\nb\tc\x1b[2J", "a\\nb\\tc\\x1b[2J"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\udcff.mp4", "\\udcff.mp4"),
    ],
)
def test_invisible_characters_are_shown_as_escapes(text: str, expected: str) -> None:
    assert output.printable(text) == expected


def test_a_table_on_a_terminal_is_drawn_and_takes_no_markup_from_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.print_table(("score", "video"), [("0.5", "[red]a.mp4[/red]")])
    shown = capsys.readouterr().out
    assert "[red]a.mp4[/red]" in shown
    assert len(shown.splitlines()) > 3


def test_strange_names_of_files_cannot_write_to_the_terminal(model_folder: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "videos/\u202e4pm\x1b[2J.mp4")
    (tmp_path / "videos/bad\nname.mp4").touch()
    result = run("index", tmp_path / "videos", tmp_path / "index", "--model", model_folder)
    assert "bad\\nname.mp4" in result.stderr.splitlines()[0]
    table = run("search", tmp_path / "index", "blue").stdout
    assert "\\u202e4pm\\x1b[2J.mp4" in table
    hits = json.loads(run("search", tmp_path / "index", "blue", "--format", "json").stdout)
    assert hits[0]["id"] == "\u202e4pm\x1b[2J.mp4"


def test_version_and_help_are_given() -> None:
    assert run("--version").stdout.strip() == videolm.__version__
    commands = ["encode", "index", "search", "info", "models", "doctor"]
    shown = run("--help").stdout
    assert all(command in shown for command in commands)


def test_the_command_line_is_imported_without_torch() -> None:
    code = (
        "import sys, videolm.cli\n"
        "sys.exit(', '.join(n for n in ('torch', 'transformers', 'pyarrow', 'av') if n in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    paths = os.pathsep.join([os.getcwd(), str(Path(os.getcwd()) / "kernels")])
    command = [sys.executable, "-c", "from videolm.cli import main; main()", "doctor", "--format", "json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert said == b""
