"""`load(reduce=)` and `--reduce`: any model with fewer tokens, and what is made with one is opened with one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import videolm
from tests.tiny import tiny_model, write_clip, write_folder, write_random_clip
from videolm import cli
from videolm.datasets.protocol import Protocol
from videolm.encoders.blocks import MLP
from videolm.evaluation import evaluate
from videolm.recipes import read_recipe

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
    from tests.tiny import TINY
    from videolm.encoders.presets import build_video_clip

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
    "reduce", ["tome:r=0/0/0/4", "vid_tldr:r=0/0/0/4", "top_k:keep=4,layers=3", "drop_repeats"]
)
def test_the_model_that_ships_merges_in_its_last_layer(reduce: str, tmp_path: Path) -> None:
    vectors = vectors_of(videolm.load("mini", reduce=reduce), write_clip(tmp_path / "a.mp4"))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("reduce", ["tome:r=4", "tempme"])
def test_the_model_that_ships_says_why_it_cannot_merge_earlier(reduce: str) -> None:
    with pytest.raises(
        ValueError, match="has fewer tokens from layer 0 on, but temporal 'divided' in layer 3"
    ):
        videolm.load("mini", reduce=reduce)


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


@pytest.mark.parametrize("reduce", ["tame:r=1", "tome:r=x", "tempme"])
def test_a_plan_that_cannot_be_is_refused(folder: Path, reduce: str) -> None:
    with pytest.raises(ValueError, match="reduce"):
        videolm.load(folder, reduce=reduce)


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


def test_an_index_is_opened_with_the_plan_that_made_it(folder: Path, videos: Path, tmp_path: Path) -> None:
    made = videolm.load(folder, reduce="tome:r=1").index(videos, tmp_path / "index", workers=0)
    opened = videolm.open_index(tmp_path / "index")
    assert [hit.id for hit in opened.search("a red circle")] == [
        hit.id for hit in made.search("a red circle")
    ]
    folder.rename(tmp_path / "moved")
    try:
        assert len(videolm.open_index(tmp_path / "index", tmp_path / "moved")) == 2
        with pytest.raises(ValueError, match="has the same weights but another shape"):
            videolm.open_index(tmp_path / "index", videolm.load(tmp_path / "moved"))
    finally:
        (tmp_path / "moved").rename(folder)


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
        evaluate(model, tmp_path, protocol=Protocol(reduce="none"))
