"""A config file becomes a recipe; what is wrong in it is named."""

from pathlib import Path

import pytest

from videolm.datasets.protocol import Protocol
from videolm.encoders.presets import build_video_clip
from videolm.recipes import read_protocol, read_recipe

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MINI = CONFIGS / "retrieval" / "synthetic_mini.yaml"


ZERO_SHOT = CONFIGS / "retrieval" / "msrvtt_zeroshot.yaml"
EVALUATIONS = (ZERO_SHOT,)


@pytest.mark.parametrize(
    "path", sorted(set(CONFIGS.rglob("*.yaml")) - set(EVALUATIONS)), ids=lambda path: path.stem
)
def test_every_config_is_a_recipe_that_builds(path):
    recipe = read_recipe(path)
    assert recipe.name in path.stem
    assert recipe.preprocessing.image_size == recipe.model.image_size
    build_video_clip(recipe.model)


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
    assert protocol == Protocol(num_frames=12, dtype="float32")
    assert (protocol.benchmark, protocol.split, protocol.dsl, protocol.qb_norm) == (
        "msrvtt",
        "test",
        False,
        False,
    )


def test_an_override_of_a_protocol_changes_one_value():
    protocol = read_protocol(ZERO_SHOT, ["split=full-test", "dsl=true", "sampler=keyframes", "dtype=auto"])
    assert protocol == Protocol(split="full-test", num_frames=12, dsl=True, sampler="keyframes")


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
