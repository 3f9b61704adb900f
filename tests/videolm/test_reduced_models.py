"""`load(reduce=)` and `--reduce`: any model with fewer tokens, and what is made with one is opened with one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import videolm
from tests.tiny import TINY, tiny_model, write_clip, write_folder, write_random_clip
from videolm import cli
from videolm.datasets.protocol import RetrievalProtocol
from videolm.encoders.blocks import MLP
from videolm.encoders.presets import build_video_clip
from videolm.evaluation import evaluate
from videolm.pipeline.exporting import export_transformers
from videolm.recipes import read_recipe
from videolm.types import Clip

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "videolm" / "assets" / "mini"
PLANS = ["tome:r=2", "tempme:r=1", "vid_tldr:r=4/2", "top_k:keep=0.5", "drop_repeats"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model without a temporal module."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(temporal="none").save(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("videos"), num_videos=2)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def vectors_of(model: videolm.VideoLM, video: Path) -> np.ndarray:
    return np.asarray(model.encode_videos(video, workers=0))


def test_every_plan_runs_on_a_clip_of_four_layers(tmp_path: Path) -> None:
    shape = replace(TINY, temporal="none", vision_depth=4)
    model = tiny_model(temporal="none")
    deep = videolm.VideoLM(
        build_video_clip(shape),
        shape=shape,
        tokenizer=model.tokenizer,
        preprocess=model.preprocess,
        sampler=model.sampler,
        name="deep",
        trained=True,
    )
    deep.save(tmp_path / "deep")
    video = write_clip(tmp_path / "a.mp4")
    whole = vectors_of(deep, video)
    for reduce in PLANS:
        vectors = vectors_of(videolm.load(tmp_path / "deep", reduce=reduce), video)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        # Near-duplicates are left out of the tokens, and not of the embedding.
        assert np.array_equal(vectors, whole) == (reduce == "drop_repeats")


@pytest.mark.parametrize(
    "reduce", ["tome:r=2", "tome:r=0/0/0/4", "vid_tldr:r=4/2", "top_k:keep=4,layers=1/3", "drop_repeats"]
)
def test_the_model_that_ships_takes_a_plan(reduce: str, tmp_path: Path) -> None:
    model = videolm.load("mini", reduce=reduce)
    vectors = vectors_of(model, write_clip(tmp_path / "a.mp4"))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert f"reduce={reduce!r}" in repr(model)


def test_the_model_that_ships_says_why_it_cannot_join_frames_before_its_last_layer() -> None:
    with pytest.raises(
        ValueError, match=r"has fewer tokens from layer 0 on, but temporal 'divided' in layer 3 .* 'tome:r=8'"
    ):
        videolm.load("mini", reduce="tempme")


def test_a_clip_has_one_vector_whatever_stands_beside_it(tmp_path: Path) -> None:
    joint = tiny_model(temporal="none")
    shape = replace(joint.shape, temporal="joint", vision_depth=3, reduce="tome:r=3")
    torch.manual_seed(0)
    model = videolm.VideoLM(
        build_video_clip(shape),
        shape=shape,
        tokenizer=None,
        preprocess=joint.preprocess,
        sampler=joint.sampler,
        name="joint",
        trained=True,
        device="cpu",
    )
    for block in model.model.vision.blocks:
        torch.nn.init.normal_(block.attention.qkv.weight, std=0.5)
    clips = [
        Clip(
            torch.randint(0, 256, (frames, 16, 16, 3), dtype=torch.uint8),
            torch.arange(frames).double(),
            9.0,
            "",
        )
        for frames in (2, 8, 3, 2)
    ]
    together = np.asarray(model.encode_videos(clips, workers=0))
    alone = np.concatenate([np.asarray(model.encode_videos(clip, workers=0)) for clip in clips])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_clip_of_transformers_is_loaded_with_a_plan(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    folder = write_random_clip(tmp_path / "clip", tokenizer=tmp_path / "tokenizer")
    model = videolm.load(folder, reduce="tome:r=4")
    assert model.shape.reduce == "tome:r=4"
    with torch.inference_mode():
        video = model.model.encode_video(torch.randn(1, 2, 3, 32, 32))
    assert video.tokens.shape[1] == 2 * (17 - 2 * 4)
    assert video.sizes.sum() == 2 * 17


def test_a_plan_and_a_short_dtype_go_together(folder: Path, videos: Path) -> None:
    short = videolm.load(folder, reduce="tome:r=1", dtype=torch.bfloat16)
    exact = videolm.load(folder, reduce="tome:r=1", dtype=torch.float32)
    assert all(m.activation == "silu" for m in short.model.vision.modules() if isinstance(m, MLP))
    cosine = (vectors_of(short, videos / "00.mp4") * vectors_of(exact, videos / "00.mp4")).sum()
    assert cosine > 0.999


def test_none_is_without_what_the_model_was_saved_with(folder: Path, tmp_path: Path) -> None:
    videolm.load(folder, reduce="tome:r=1").save(tmp_path / "reduced")
    assert json.loads((tmp_path / "reduced/videolm.json").read_text())["shape"]["reduce"] == "tome:r=1"
    assert videolm.load(tmp_path / "reduced").shape.reduce == "tome:r=1"
    for without in ("none", ""):
        assert (
            videolm.load(tmp_path / "reduced", reduce=without).identity() == videolm.load(folder).identity()
        )


@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        ("tame:r=1", r"reduce \('tame:r=1'\) must be 'none' or begin with one of tome"),
        ("tome:r=x", r"reduce \('tome:r=x'\): r \('x'\) must be a number"),
        ("tempme", r"reduce \('tempme'\): tempme needs a tower of 4 layers at least, this one has 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(folder: Path, reduce: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        videolm.load(folder, reduce=reduce)


def test_scores_are_those_of_the_plan_that_they_were_measured_with(folder: Path, tmp_path: Path) -> None:
    reduced = videolm.load(folder, reduce="tome:r=1")
    assert (videolm.load(folder).info.scores, reduced.info.scores) == ({"R@1": 0.5}, {})
    reduced.save(tmp_path / "reduced")
    assert videolm.load(tmp_path / "reduced", reduce="none").info.scores == {}


def test_a_plan_is_not_exported_without_a_word(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no place for reduce \('tome:r=1'\).*reduce='none' to export"):
        export_transformers(videolm.load(folder, reduce="tome:r=1"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_transformers(videolm.load(folder, reduce="none"), tmp_path / "out")


def test_a_plan_that_changes_no_vector_is_no_other_model(folder: Path) -> None:
    whole = videolm.load(folder).identity()
    assert videolm.load(folder, reduce="drop_repeats").identity() == whole
    assert videolm.load(folder, reduce="tome:r=0").identity() == whole
    assert videolm.load(folder, reduce="tome:r=1").identity() != whole


def test_a_card_of_more_layers_than_its_weights_have_tensors_is_refused(tmp_path: Path) -> None:
    tiny_model(temporal="none").save(tmp_path / "model")
    path = tmp_path / "model/videolm.json"
    card = json.loads(path.read_text())
    for name in ("vision_depth", "text_depth"):
        path.write_text(json.dumps(card | {"shape": card["shape"] | {name: 900}}))
        with pytest.raises(ValueError, match=f"too few for {name} 900"):
            videolm.load(tmp_path / "model")


def test_repeated_frames_are_computed_once_with_a_plan(folder: Path, tmp_path: Path) -> None:
    model = videolm.load(folder, reduce="tome:r=1")
    clip = model.encode_videos(write_clip(tmp_path / "short.mp4", num_frames=2), num_frames=6, workers=0)
    assert model.model.sees_frames_alone
    whole = videolm.load(folder, reduce="tome:r=1")
    whole.model.drop_threshold = 0.0
    assert not whole.model.sees_frames_alone
    every = whole.encode_videos(tmp_path / "short.mp4", num_frames=6, workers=0)
    np.testing.assert_allclose(np.asarray(clip), np.asarray(every), atol=1e-6)


def test_pixels_are_compared_as_the_model_normalises_them(folder: Path) -> None:
    model = videolm.load(folder, reduce="drop_repeats")
    assert list(model.model.pixel_std) == model.preprocess.std


# what is made with a plan


def test_an_index_is_opened_with_the_plan_that_made_it(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(MINI, tmp_path / "model")
    made = videolm.load(folder, reduce="tome:r=4").index(videos, tmp_path / "index", workers=0)
    opened_with: list[videolm.VideoLM] = []
    load = videolm.pipeline.loading.load

    def watched(*given: object, **named: object) -> videolm.VideoLM:
        opened_with.append(load(*given, **named))
        return opened_with[-1]

    monkeypatch.setattr("videolm.pipeline.loading.load", watched)
    videolm.open_index(tmp_path / "index")
    (model,) = opened_with
    whole = vectors_of(load(folder), videos / "00.mp4")
    assert np.abs(vectors_of(model, videos / "00.mp4") - whole).max() > 1e-4
    np.testing.assert_allclose(vectors_of(model, videos / "00.mp4"), made.vectors[:1], atol=1e-6)
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert len(videolm.open_index(tmp_path / "index", moved)) == 2
    with pytest.raises(
        ValueError, match=r"has the same weights but another reduce \('tome:r=4' there, '' here\)"
    ):
        videolm.open_index(tmp_path / "index", load(moved))


def test_an_index_opened_with_another_model_names_the_model_and_not_the_plan(
    folder: Path, videos: Path, tmp_path: Path
) -> None:
    videolm.load("mini", reduce="tome:r=2/1").index(videos, tmp_path / "index", workers=0)
    # It has one layer, for which this plan has one number too many.
    with pytest.raises(ValueError, match=r"was made by 'mini' .* not by 'tiny'"):
        videolm.open_index(tmp_path / "index", folder)


def test_an_index_of_before_some_setting_is_gone_on_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = write_folder(tmp_path / "videos", num_videos=2)
    today = videolm.VideoLM.identity

    def before(model: videolm.VideoLM) -> dict[str, Any]:
        identity = today(model)
        for key in ("reduce", "family", "aggregator"):
            del identity["shape"][key]
        return identity

    with monkeypatch.context() as then:
        then.setattr(videolm.VideoLM, "identity", before)
        videolm.load(folder).index(videos, tmp_path / "index", workers=0)
    write_clip(videos / "new.mp4", seed=5)
    assert len(videolm.load(folder).index(videos, tmp_path / "index", workers=0)) == 3
    assert len(videolm.open_index(tmp_path / "index")) == 3
    with pytest.raises(ValueError, match=r"made otherwise: .*shape.reduce is None there and 'tome:r=1' now"):
        videolm.load(folder, reduce="tome:r=1").index(videos, tmp_path / "index", workers=0)


def test_an_index_of_a_saved_plan_can_be_made_without(folder: Path, videos: Path, tmp_path: Path) -> None:
    videolm.load(folder, reduce="tome:r=1").save(tmp_path / "model")
    videolm.load(tmp_path / "model", reduce="none").index(videos, tmp_path / "index", workers=0)
    assert len(videolm.open_index(tmp_path / "index")) == 2


def test_a_command_goes_on_with_the_plan_that_it_began_with(
    folder: Path, videos: Path, tmp_path: Path
) -> None:
    command = ("index", videos, tmp_path / "index", "--model", folder, "--workers", 0)
    assert run(*command, "--reduce", "tome:r=1").exit_code == 0
    assert run(*command).exit_code == 0
    assert json.loads((tmp_path / "index/run.json").read_text())["settings"]["shape"]["reduce"] == "tome:r=1"
    assert run("search", tmp_path / "index", "a red circle", "--model", folder).exit_code == 0
    refused = run(*command, "--reduce", "none")
    assert refused.exit_code != 0
    assert "shape.reduce is 'tome:r=1' there and '' now" in refused.stderr
    wrong = run(*command, "--reduce", "tame")
    assert wrong.exit_code != 0
    assert "must be 'none' or begin with one of tome, tempme" in wrong.stderr


def test_a_recipe_trains_with_a_plan() -> None:
    path = ROOT / "configs/retrieval/synthetic_mini.yaml"
    assert read_recipe(path, ["model.temporal=none", "model.reduce=tome:r=2"]).model.reduce == "tome:r=2"
    with pytest.raises(ValueError, match="needs r, as in 'tome:r=8'"):
        read_recipe(path, ["model.reduce=tome"])


def test_a_protocol_names_the_plan_of_the_model(folder: Path, tmp_path: Path) -> None:
    model = videolm.load(folder, reduce="tome:r=1")
    with pytest.raises(
        ValueError, match=r"reduce \('none'\) of the protocol is not that of tiny, which has 'tome:r=1'"
    ):
        evaluate(model, tmp_path, protocol=RetrievalProtocol(reduce="none"))
