"""The training tool from recipe to model folder, small: it renders, decodes, trains, measures, saves and goes on."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
import typer

import videolm
from videolm.pipeline import VideoLM

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
    tool.make_world(recipe.data)
    validation = tool.decode(recipe.data, recipe.preprocessing, "val", num_frames=8)
    training = tool.decode(recipe.data, recipe.preprocessing, "train", num_frames=8)
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


@pytest.fixture(scope="module")
def towers(tool, tmp_path_factory):
    """A tiny dual encoder of the world's vocabulary, and the world's folder."""
    folder = tmp_path_factory.mktemp("towers")
    tool.main(CONFIG, out=folder / "run", override=overrides(folder / "world", "training.num_steps=1"))
    return folder / "run" / "model", folder / "world"


def speaker_overrides(towers, *more):
    model, world = towers
    return [
        f"model={model}",
        "towers=null",
        "head_from=null",
        f"data.folder={world}",
        "data.num_videos=48",
        "data.cached_frames=8",
        "head.connector.num_queries=2",
        "head.connector.depth=1",
        "head.connector.query_width=16",
        "head.connector.num_heads=2",
        "head.lm={model_type: gpt2, vocab_size: 256, n_embd: 16, n_layer: 1, n_head: 2, n_positions: 96, "
        "bos_token_id: 3, eos_token_id: 4}",
        "head.max_new_tokens=4",
        "training.num_steps=2",
        "training.batch_size=4",
        "training.difficulty=[{start: 0.0, value: 3}]",
        "training.num_frames=[{start: 0.0, value: 2}]",
        "training.validate_every=1",
        *more,
    ]


FROZEN = ["training.trains_towers=false", "training.contrastive_weight=0"]


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("captioning", FROZEN),
        ("captioning", ["training.trains_towers=true", "training.contrastive_weight=1"]),
        ("videoqa", []),
        ("videoqa", ["head.connector.reads_question=true"]),
    ],
    ids=["captions", "captions_and_towers", "answers", "answers_of_a_connector_that_reads"],
)
def test_a_recipe_becomes_a_head_with_its_scores(tool, towers, tmp_path, capsys, task, more):
    config = ROOT / "configs" / task / "synthetic_mini.yaml"
    out = tmp_path / "run"
    tool.main(config, out=out, override=speaker_overrides(towers, *more))
    before, model = videolm.load(towers[0]), videolm.load(out / "model")
    assert capsys.readouterr().out.count("validation: ") == 2
    assert list(model.heads) == [task]
    head = model.heads[task]
    assert head.recipe["training"]["num_steps"] == 2
    assert head.scores
    learned = "training.trains_towers=true" in more
    assert (model.info.weights_sha256 == before.info.weights_sha256) != learned
    assert (model.info.name, "start" in model.info.recipe) == (
        ("mini", True) if learned else ("mini_retrieval", False)
    )
    # nothing is left to train, and the words are those of the run
    tool.main(config, out=out, override=speaker_overrides(towers, *more))
    state = videolm.load(out / "model").heads[task].head.state_dict()
    assert all((value == state[name]).all() for name, value in head.head.state_dict().items())


def test_towers_and_captions_learn_together_from_scratch(tool, towers, tmp_path):
    config = ROOT / "configs" / "captioning" / "synthetic_mini.yaml"
    small = [
        line.replace("model.", "towers.model.")
        for line in overrides(towers[1])
        if line.startswith("model.") and "text_width" not in line
    ]
    head = [line for line in speaker_overrides(towers) if not line.startswith(("model=", "towers="))]
    naming = "[{kinds: [color], num_frames: 2, num_steps: 2, batch_size: 4, lr: 0.01}]"
    more = ["towers.model.text_width=16", f"towers.naming={naming}"]
    tool.main(config, out=tmp_path / "run", override=[*head, *small, *more])
    log = (tmp_path / "run" / "naming0" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 2
    model = videolm.load(tmp_path / "run" / "model")
    assert model.trained
    assert (model.info.name, list(model.heads)) == ("mini", ["captioning"])
    assert "t2v R@1" in model.info.scores
    assert model.caption(next((towers[1] / "videos").glob("*.mp4"))).num_tokens > 0


def test_a_second_head_keeps_the_first(tool, towers, tmp_path):
    answers, captions = (
        ROOT / "configs" / task / "synthetic_mini.yaml" for task in ("videoqa", "captioning")
    )
    tool.main(answers, out=tmp_path / "a", override=speaker_overrides(towers))
    more = [*FROZEN, f"model={tmp_path / 'a' / 'model'}"]
    tool.main(captions, out=tmp_path / "b", override=speaker_overrides(towers, *more))
    assert set(videolm.load(tmp_path / "b" / "model").heads) == {"captioning", "videoqa"}


def test_a_head_begins_as_another_of_the_model(tool, towers, tmp_path):
    answers, captions = (
        ROOT / "configs" / task / "synthetic_mini.yaml" for task in ("videoqa", "captioning")
    )
    tool.main(captions, out=tmp_path / "a", override=speaker_overrides(towers, *FROZEN))
    more = [f"model={tmp_path / 'a' / 'model'}", "head_from=captioning", "training.lr=1e-12"]
    tool.main(answers, out=tmp_path / "b", override=speaker_overrides(towers, *more))
    heads = videolm.load(tmp_path / "b" / "model").heads
    first, second = (heads[task].head.state_dict() for task in ("captioning", "videoqa"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name])
    headless = speaker_overrides(towers, "head_from=captioning")
    with pytest.raises(typer.BadParameter, match=r"'captioning'\) is no head of mini_retrieval: \[\]"):
        tool.main(answers, out=tmp_path / "c", override=headless)
    wider = speaker_overrides(towers, *more, "head.connector.num_queries=3")
    with pytest.raises(typer.BadParameter, match=r"(?s)has another shape than head: .*queries"):
        tool.main(answers, out=tmp_path / "d", override=wider)


def test_a_head_does_not_go_on_before_other_towers(tool, towers, tmp_path):
    config = ROOT / "configs" / "videoqa" / "synthetic_mini.yaml"
    start = shutil.copytree(towers[0], tmp_path / "start")
    tool.main(config, out=tmp_path / "run", override=speaker_overrides((start, towers[1])))
    model = videolm.load(start, dtype=torch.float32)
    with torch.no_grad():
        model.model.logit_scale += 1
    shutil.rmtree(start)
    parts = {name: getattr(model, name) for name in ("shape", "tokenizer", "preprocess", "sampler")}
    other = VideoLM(model.model, **parts, name="other", trained=True, dtype=torch.float32)
    other.save(start)
    with pytest.raises(typer.BadParameter, match="holds a run of another recipe"):
        tool.main(config, out=tmp_path / "run", override=speaker_overrides((start, towers[1])))


def test_words_that_a_head_could_not_say_are_refused_before_training(tool, towers, tmp_path):
    config = ROOT / "configs" / "videoqa" / "synthetic_mini.yaml"
    more = ["head.question_template='question: {question} ?'"]
    with pytest.raises(ValueError, match="1 words are not in the vocabulary, 'question' among them"):
        tool.main(config, out=tmp_path / "run", override=speaker_overrides(towers, *more))
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
