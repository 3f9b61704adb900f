"""The heads of a saved model, and the cards that cannot be trusted."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import videolm
from tests.tiny import speaking_model, tiny_model, write_clip
from videolm.heads.presets import build_speaker
from videolm.pipeline import VideoLM
from videolm.pipeline.speaking import Speaker

TWO = ["green", "blue circle"]


def shape_with(**values: Any) -> Any:
    return lambda heads: heads["captioning"]["shape"].update(values)


def lm_with(**values: Any) -> Any:
    return lambda heads: heads["captioning"]["shape"]["lm"].update(values)


@pytest.fixture(scope="module")
def model() -> VideoLM:
    return speaking_model()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_clip(folder / f"{seed}.mp4", seed=seed, num_frames=30) for seed in range(2)]


@pytest.fixture
def saved(model: VideoLM, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_speaks_as_before(model: VideoLM, paths: list[Path], saved: Path) -> None:
    loaded = videolm.load(saved, device="cpu")
    assert loaded.caption(paths) == model.caption(paths)
    assert loaded.answer(paths[0], "red", candidates=TWO) == model.answer(paths[0], "red", candidates=TWO)
    mine, theirs = model.heads["captioning"], loaded.heads["captioning"]
    assert (mine.shape, mine.recipe, mine.scores) == (theirs.shape, theirs.recipe, theirs.scores)
    assert sorted(path.name for path in saved.iterdir()) == [
        "captioning.safetensors",
        "model.safetensors",
        "tokenizer.json",
        "videolm.json",
        "videoqa.safetensors",
    ]


def test_heads_are_no_part_of_a_models_identity(model: VideoLM, saved: Path) -> None:
    assert model.identity() == tiny_model().identity() == videolm.load(saved, device="cpu").identity()


def test_a_head_with_a_vocabulary_of_its_own_has_a_file_for_it(tmp_path: Path, paths: list[Path]) -> None:
    model = speaking_model()
    model.heads["captioning"].tokenizer.backend.add_tokens(["extra"])
    model.save(tmp_path / "model")
    assert (tmp_path / "model/captioning.tokenizer.json").exists()
    assert not (tmp_path / "model/videoqa.tokenizer.json").exists()
    loaded = videolm.load(tmp_path / "model", device="cpu")
    assert loaded.heads["captioning"].tokenizer.backend.token_to_id("extra") is not None
    assert loaded.caption(paths) == model.caption(paths)


def test_float16_halves_the_file_and_is_read_back(model: VideoLM, tmp_path: Path, saved: Path) -> None:
    model.save(tmp_path / "half", dtype=torch.float16)
    sizes = [(folder / "captioning.safetensors").stat().st_size for folder in (tmp_path / "half", saved)]
    assert sizes[0] < 0.6 * sizes[1]
    assert videolm.load(tmp_path / "half", device="cpu").heads.keys() == model.heads.keys()


def test_loading_draws_nothing_from_the_random_generator(saved: Path) -> None:
    before = torch.get_rng_state()
    videolm.load(saved, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_another_head_are_refused(saved: Path) -> None:
    shutil.copy(saved / "videoqa.safetensors", saved / "captioning.safetensors")
    with pytest.raises(
        ValueError, match=r"captioning\.safetensors is not the file that videolm\.json describes"
    ):
        videolm.load(saved)
    (saved / "captioning.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"captioning\.safetensors is not readable"):
        videolm.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda heads: heads.update(singing={}),
            r"names heads that this version does not know: \['singing'\]",
        ),
        (
            lambda heads: heads["captioning"].pop("shape"),
            r"head 'captioning' is not of this version: 'shape'",
        ),
        (lambda heads: heads["captioning"]["shape"].update(x=1), "is not of this version: .*unexpected"),
        (lambda heads: heads["captioning"]["shape"]["lm"].update(n_layer=3), "do not fit its shape: .*h.2"),
        (lambda heads: heads["captioning"]["shape"]["lm"].update(n_embd=20), "do not fit its shape"),
        (lambda heads: heads.update(captioning=[1]), r"videolm\.json: heads must be an object"),
        (shape_with(max_new_tokens="9"), r"max_new_tokens \('9'\) must be of type int"),
        (shape_with(max_new_tokens=True), r"max_new_tokens \(True\) must be of type int"),
        (shape_with(num_beams=0), r"num_beams \(0\) must be at least 1"),
        (shape_with(caption_prompt=None), r"caption_prompt \(None\) must be of type str"),
        (shape_with(start_token_id=99), r"start_token_id \(99\) must be in \[0, "),
        (shape_with(lm=[1]), "head 'captioning' is not of this version: lm"),
        (shape_with(lm={"name": "no/body"}), "lm names weights elsewhere \\('no/body'\\)"),
        (shape_with(lm={"model_type": "nope"}), "head 'captioning' cannot be built: ValueError: .*nope"),
        (shape_with(lm={"model_type": "vit"}), "head 'captioning' cannot be built: ValueError"),
        (lm_with(n_embd="x"), "head 'captioning' cannot be built: .*n_embd"),
        (lm_with(n_head=3), "head 'captioning' cannot be built: ValueError: .*divisible"),
        (lm_with(n_head=0), "head 'captioning' cannot be built: ZeroDivisionError"),
        (lm_with(n_layer=10**12), "tensors are too few for n_layer 1000000000000"),
        (lm_with(n_positions=10**11), "do not fit its shape|its tables would take"),
        (lm_with(vocab_size=10**11), r"do not fit its shape: .*\(100000000000, 16\)"),
        (lm_with(attn_implementation="some/kernel"), "lm has attn_implementation .* a card cannot choose"),
        (lm_with(deep={"auto_map": {}}), "lm has auto_map"),
        (
            lambda heads: heads["videoqa"].clear() or heads["videoqa"].update(same_as="videoqa"),
            "head 'videoqa' is the same as 'videoqa', which is not there",
        ),
        (
            lambda heads: heads["captioning"]["vocabulary"].update(file="../x.json"),
            r"vocabulary of head 'captioning' \('\.\./x\.json'\) must be captioning\.tokenizer\.json or",
        ),
    ],
    ids=[
        *(
            "unknown",
            "missing",
            "more",
            "deeper",
            "wider",
            "list",
            "text",
            "bool",
            "beams",
            "prompt",
            "start",
        ),
        *("lm-list", "lm-name", "lm-nope", "lm-vit", "lm-text", "heads", "no-heads", "deepest", "longest"),
        *("widest", "kernel", "code", "same", "elsewhere"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(saved: Path, change: Any, message: str) -> None:
    card = json.loads((saved / "videolm.json").read_text())
    change(card["heads"])
    (saved / "videolm.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=message):
        videolm.load(saved)


def test_what_an_earlier_save_left_is_not_read(tmp_path: Path, paths: list[Path]) -> None:
    first = speaking_model()
    first.heads["captioning"].tokenizer.backend.add_tokens(["extra"])
    first.save(tmp_path)
    model = speaking_model()
    del model.heads["videoqa"]
    model.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"captioning.safetensors", "model.safetensors", "tokenizer.json", "videolm.json"}
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "captioning.tokenizer.json")
    loaded = videolm.load(tmp_path, device="cpu")
    assert loaded.heads["captioning"].tokenizer.backend.token_to_id("extra") is None
    assert loaded.heads.keys() == {"captioning"}


def test_another_vocabulary_is_refused(saved: Path) -> None:
    file = saved / "tokenizer.json"
    file.write_text(file.read_text().replace('"circle"', '"square"'))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the vocabulary of head 'captioning'"):
        videolm.load(saved)


def test_a_speaker_for_both_is_saved_and_built_once(tmp_path: Path, paths: list[Path]) -> None:
    model = tiny_model()
    for name in ("captioning", "videoqa"):
        model.add_head(
            name, speaking_model().heads["captioning"] if not model.heads else model.heads["captioning"]
        )
    model.save(tmp_path)
    assert not (tmp_path / "videoqa.safetensors").exists()
    assert json.loads((tmp_path / "videolm.json").read_text())["heads"]["videoqa"] == {
        "same_as": "captioning"
    }
    loaded = videolm.load(tmp_path, device="cpu")
    assert loaded.heads["videoqa"] is loaded.heads["captioning"]
    assert loaded.answer(paths[0], "red") == model.answer(paths[0], "red")


def test_a_head_that_began_with_named_weights_is_saved_with_its_own(
    model: VideoLM, tmp_path: Path, paths: list[Path]
) -> None:
    speaker = model.heads["captioning"]
    speaker.head.lm.save_pretrained(tmp_path / "lm")
    shape = replace(speaker.shape, lm={"name": str(tmp_path / "lm")})
    head = build_speaker(shape, token_width=16, text_width=8)
    named = tiny_model()
    named.add_head("captioning", Speaker(head, speaker.tokenizer, shape))
    shutil.rmtree(tmp_path / "lm")
    named.save(tmp_path / "model")
    loaded = videolm.load(tmp_path / "model", device="cpu")
    lm = loaded.heads["captioning"].shape.lm
    assert lm["model_type"] == "gpt2"
    assert not {"_name_or_path", "transformers_version", "dtype"} & lm.keys()
    assert loaded.caption(paths) == named.caption(paths)


def test_a_head_with_low_rank_additions_is_read_back(
    model: VideoLM, tmp_path: Path, paths: list[Path]
) -> None:
    pytest.importorskip("peft")
    shape = replace(model.heads["captioning"].shape, tune="lora", lora_rank=2)
    tuned = tiny_model()
    head = build_speaker(shape, token_width=16, text_width=8)
    tuned.add_head("captioning", Speaker(head, model.heads["captioning"].tokenizer, shape))
    tuned.save(tmp_path)
    assert videolm.load(tmp_path, device="cpu").caption(paths) == tuned.caption(paths)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
def test_a_model_that_speaks_can_be_copied(model: VideoLM, paths: list[Path], copied: Any) -> None:
    other = copied(model)
    assert other.caption(paths[0]) == model.caption(paths[0])
    assert "".join(other.caption_stream(paths[0])) == model.caption(paths[0]).text
