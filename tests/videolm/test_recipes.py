"""A config file becomes a recipe; what is wrong in it is named."""

from pathlib import Path

import pytest

from videolm.datasets.protocol import RetrievalProtocol
from videolm.encoders.presets import build_video_clip
from videolm.heads.presets import build_speaker
from videolm.recipes import Recipe, SpeakerRecipe, read_protocol, read_recipe

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MINI = CONFIGS / "retrieval" / "synthetic_mini.yaml"


ZERO_SHOT = CONFIGS / "retrieval" / "msrvtt_zeroshot.yaml"
SPEAKERS = [CONFIGS / task / "synthetic_mini.yaml" for task in ("captioning", "videoqa")]


def test_the_config_of_a_dual_encoder_builds():
    recipe = read_recipe(MINI)
    assert isinstance(recipe, Recipe)
    assert recipe.name == "mini_retrieval"
    assert recipe.preprocessing.image_size == recipe.model.image_size
    build_video_clip(recipe.model)


@pytest.mark.parametrize("path", SPEAKERS, ids=lambda path: path.parent.name)
def test_the_config_of_a_speaker_builds_on_its_towers(path):
    recipe, captions = read_recipe(path), read_recipe(SPEAKERS[0])
    assert isinstance(recipe, SpeakerRecipe)
    assert recipe.task == path.parent.name
    # the towers are those that learned with the captions, on the same world
    assert recipe.model == (None if recipe == captions else captions.name)
    assert recipe.data == read_recipe(MINI).data
    towers = captions.towers.model
    assert recipe.head.lm["vocab_size"] == towers.vocab_size
    assert recipe.head.eos_token_id == towers.eos_token_id
    build_video_clip(towers)
    build_speaker(recipe.head, token_width=towers.vision_width, text_width=towers.joint_dim)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=singing", "singing"),
        ("head.connector.kind=rope", "rope"),
        ("head.tune=some", "some"),
        ("head.question_template=what", r"must hold \{question\}"),
        ("data.cached_frames=4", r"at least the 8 of num_frames"),
        ("training.lessons_per_video=0", "lessons_per_video"),
        ("training.twin_share=2", "twin_share"),
        ("training.trains_towers=false", "0 unless trains_towers"),
        ("training.contrastive_weight=0", "towers that begin from scratch need"),
        ("task=videoqa", "needs captions"),
        ("model=mini", "and not both"),
        ("head_from=captioning", "model, which is missing"),
        ("task=videoqa model=mini towers=null training.contrastive_weight=0", "asked beside captions"),
    ],
)
def test_a_wrong_value_of_a_speaker_is_named_with_its_file(override, message):
    with pytest.raises(ValueError, match=rf"(?s)synthetic_mini\.yaml: .*{message}"):
        read_recipe(SPEAKERS[0], override.split())


def test_an_override_changes_one_value():
    recipe = read_recipe(MINI, ["model.temporal=none", "training.lr=1e-5"])
    assert recipe.model.temporal == "none"
    # YAML reads 1e-5 as a word; the declared type decides
    assert recipe.training.lr == 1e-5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lrr=1", "lrr"),
        ("model.temporal=sometimes", "sometimes"),
        ("training.num_steps=many", "many"),
        ("training.lr=-1", "lr"),
        ("sampler.kind=random", "random"),
        ("name=../../x", "plain name"),
        ("name=${oc.env:HOME}", "interpolation"),
        ("model.image_size=128", "must be that of preprocessing"),
        ("data.cached_frames=4", "cached_frames"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_file(override, message):
    with pytest.raises(ValueError, match=rf"(?s)synthetic_mini\.yaml: .*{message}"):
        read_recipe(MINI, [override])


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n"], ids=["syntax", "list"])
def test_a_file_that_is_no_recipe_is_named(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.yaml: "):
        read_recipe(path)


def test_the_zero_shot_protocol_is_that_of_1k_a_with_12_frames_and_nothing_transductive():
    protocol = read_protocol(ZERO_SHOT)
    assert protocol == RetrievalProtocol(num_frames=12, dtype="float32")
    assert (protocol.benchmark, protocol.split, protocol.dsl, protocol.qb_norm) == (
        "msrvtt",
        "test",
        False,
        False,
    )


def test_an_override_of_a_protocol_changes_one_value():
    protocol = read_protocol(ZERO_SHOT, ["split=full-test", "dsl=true", "sampler=keyframes", "dtype=auto"])
    assert protocol == RetrievalProtocol(split="full-test", num_frames=12, dsl=True, sampler="keyframes")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("splitt=test", "splitt"),
        ("ties=average", "average"),
        ("v2t=max", "max"),
        ("num_frames=0", "num_frames"),
        ("sampler=random", "random"),
        ("dtype=float8", "float8"),
        ("split=${oc.env:HOME}", "interpolation"),
    ],
)
def test_a_wrong_key_or_value_of_a_protocol_is_named_with_its_file(override, message):
    with pytest.raises(ValueError, match=rf"(?s)msrvtt_zeroshot\.yaml: .*{message}"):
        read_protocol(ZERO_SHOT, [override])
