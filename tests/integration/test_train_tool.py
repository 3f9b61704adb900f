"""The training tool from recipe to model folder, small: it renders, decodes, trains, measures, saves and goes on."""

import importlib.util
from pathlib import Path

import pytest
import typer

import videolm

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "retrieval" / "synthetic_mini.yaml"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("train_tool", ROOT / "tools" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def overrides(folder, *more):
    return [
        f"data.folder={folder}",
        "data.num_videos=48",
        "data.cached_frames=8",
        "model.vision_width=16",
        "model.vision_heads=2",
        "model.vision_mlp_width=16",
        "model.vision_depth=1",
        "model.text_width=16",
        "model.text_heads=2",
        "model.text_mlp_width=16",
        "model.text_depth=1",
        "model.joint_dim=8",
        "training.num_steps=4",
        "training.batch_size=6",
        "training.difficulty=[{start: 0.0, value: 3}]",
        "training.validate_every=2",
        *more,
    ]


def test_a_recipe_becomes_a_model_with_its_scores(tool, tmp_path, capsys):
    tool.main(CONFIG, out=tmp_path / "run", override=overrides(tmp_path / "world"))
    model = videolm.load(tmp_path / "run" / "model")
    assert model.trained
    assert model.info.recipe["training"]["num_steps"] == 4
    assert {"t2v R@1", "v2t R@1"} <= model.info.scores.keys()
    assert "twins, all" in model.info.scores
    assert capsys.readouterr().out.count("validation: ") == 2

    # the same command finds nothing left to train, and another recipe does not touch the run
    tool.main(CONFIG, out=tmp_path / "run", override=overrides(tmp_path / "world"))
    assert videolm.load(tmp_path / "run" / "model").info == model.info
    with pytest.raises(typer.BadParameter, match="holds a run of another recipe"):
        tool.main(CONFIG, out=tmp_path / "run", override=overrides(tmp_path / "world", "training.lr=0.1"))


def test_validation_cannot_tell_twins_apart_without_a_temporal_slot(tool, tmp_path):
    recipe = tool.read_recipe(CONFIG, overrides(tmp_path / "world", "model.temporal=none"))
    tool.make_world(recipe)
    validation = tool.decode(recipe, "val", num_frames=8)
    training = tool.decode(recipe, "train", num_frames=8)
    tokenizer = tool.build_word_tokenizer(tool.VOCABULARY, context_length=48)
    for data in (validation, training):
        frames = data.frames
        rows = {video_id: i for i, video_id in enumerate(data.ids)}
        for twin in data.twins:
            assert (frames[rows[twin.video_a]] == frames[rows[twin.video_b]].flip(0)).all()
    scores = tool.validator(training, recipe, tokenizer)(tool.build_video_clip(recipe.model).eval())
    # ties up to rounding: nothing but chance is left
    assert 20 <= scores["val/twins_direction"] <= 80


def test_a_vocabulary_too_small_for_the_world_is_refused_before_any_work(tool, tmp_path):
    with pytest.raises(typer.BadParameter, match=r"model\.vocab_size \(64\)"):
        tool.main(CONFIG, out=tmp_path / "run", override=overrides(tmp_path / "world", "model.vocab_size=64"))
    assert not (tmp_path / "world").exists()
