"""The conversion tool from a stranger's file to a folder that opens."""

import argparse
import importlib.util
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from transformers import CLIPModel
from typer.testing import CliRunner

import videolm
from tests.tiny import tiny_model
from tests.videolm.encoders.reference import ReferenceCLIP, sentences
from videolm.video.transforms import Preprocess

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("convert_tool", ROOT / "tools" / "convert_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = typer.Typer()
    app.command()(module.main)

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture
def checkpoint(tmp_path):
    """Weights among what a training run keeps, and one thing that it does not."""
    torch.manual_seed(0)
    theirs = ReferenceCLIP().eval()
    content = {
        "state_dict": {f"module.clip.{key}": tensor for key, tensor in theirs.flat_state().items()},
        "config": argparse.Namespace(lr=1e-4),
        "meta": Bomb(tmp_path / "went off"),
    }
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    return theirs, tmp_path / "checkpoint.pth.tar"


def test_a_checkpoint_of_objects_becomes_a_folder_of_ours(run, checkpoint, tmp_path):
    theirs, file = checkpoint
    with pytest.raises(
        ValueError, match=r"an object of .*, which is more than tensors; tools/convert_weights\.py"
    ):
        videolm.load(file)
    code, output = run(file, tmp_path / "ours", "--name", "theirs", "--licence", "MIT")
    assert code == 0, output
    assert "CLIP4Clip" in output
    assert "left out: config, meta, argparse.Namespace, posix.mkdir" in output
    assert "no tokenizer beside the weights" in output
    assert not (tmp_path / "went off").exists()
    model = videolm.load(tmp_path / "ours", device="cpu")
    assert (model.info.name, model.info.licence) == ("theirs", "MIT")
    ids, mask = sentences()
    with torch.no_grad():
        expected = torch.nn.functional.normalize(theirs.text(ids), dim=1)
        np.testing.assert_allclose(model.model.encode_text(ids, mask).embedding, expected, atol=1e-5)


def test_transformers_opens_what_was_converted_for_it(run, checkpoint, tmp_path):
    theirs, file = checkpoint
    code, output = run(file, tmp_path / "clip", "--to", "transformers")
    assert code == 0, output
    model = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    ids, mask = sentences()
    pictures = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        found = model.get_text_features(input_ids=ids, attention_mask=mask.long()).pooler_output
        torch.testing.assert_close(found, theirs.text(ids), rtol=0, atol=1e-5)
        found = model.get_image_features(pixel_values=pictures).pooler_output
        torch.testing.assert_close(found, theirs.visual(pictures), rtol=0, atol=1e-4)
    assert videolm.load(tmp_path / "clip", device="cpu").preprocess == Preprocess(12)


def test_weights_that_do_not_say_their_activation_are_asked_for_it(run, tmp_path):
    torch.save(ReferenceCLIP(activation="gelu").flat_state(), tmp_path / "model.pt")
    code, output = run(tmp_path / "model.pt", tmp_path / "out")
    assert code == 1
    assert "nothing says which activation" in output
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "model.pt", tmp_path / "out", "--activation", "gelu")[0] == 0
    assert videolm.load(tmp_path / "out", device="cpu").shape.activation == "gelu"


def test_an_activation_that_the_file_contradicts_is_an_error(run, checkpoint, tmp_path):
    code, output = run(checkpoint[1], tmp_path / "out", "--activation", "gelu")
    assert code == 1
    assert "activation ('gelu') contradicts the layout or config, which says 'quick_gelu'" in output
    assert not (tmp_path / "out").exists()


def test_a_bomb_and_a_folder_in_use_are_refused(run, checkpoint, tmp_path):
    tiny_model().save(tmp_path / "used")
    code, output = run(checkpoint[1], tmp_path / "used")
    assert (code, "is not empty; name a new folder" in output) == (1, True)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    code, output = run(tmp_path / "bomb.pt", tmp_path / "out")
    assert (code, "compressed member" in output) == (1, True)
    code, output = run(tmp_path / "nothing.pt", tmp_path / "out")
    assert (code, "nothing.pt" in output) == (1, True)
