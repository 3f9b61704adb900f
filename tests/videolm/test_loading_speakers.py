"""`load` on what transformers saves of a GIT or BLIP-2: from frames to what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import GitForCausalLM, PreTrainedModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import videolm
from tests.videolm.heads.git_models import END, START, random_blip2, random_git
from tests.videolm.test_loading import random_clip, write_tokenizer
from videolm.pipeline import VideoLM
from videolm.pipeline.exporting import export_transformers
from videolm.types import Clip
from videolm.video.samplers import Sampler

CLIP_SETTINGS = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


def write(theirs: PreTrainedModel, folder: Path, *, vocab_size: int, pad: int) -> Path:
    theirs.save_pretrained(folder)
    CLIPImageProcessorPil(**CLIP_SETTINGS).save_pretrained(folder)
    write_tokenizer(folder, vocab_size=vocab_size, start=START, end=END, pad=pad)
    return folder


@pytest.fixture
def git(tmp_path: Path) -> tuple[GitForCausalLM, Path]:
    theirs = random_git(max_frames=3)
    return theirs, write(theirs, tmp_path / "git", vocab_size=30, pad=0)


def pixels(clip: Clip, folder: Path) -> torch.Tensor:
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    frames: torch.Tensor = processor(list(clip.frames.numpy()), return_tensors="pt")["pixel_values"]
    return frames


@torch.no_grad()
def test_a_git_folder_captions_and_answers_as_transformers(git: tuple[GitForCausalLM, Path]) -> None:
    theirs, folder = git
    model = videolm.load(folder, device="cpu")
    assert model.sampler == Sampler("segment_middle", num_frames=3)
    assert model.trained
    clip = random_clip(3)
    settings = {"num_beams": 4, "length_penalty": 0.6, "max_new_tokens": 50, "do_sample": False}
    for question in (None, "a red circle"):
        words = (
            []
            if question is None
            else model.heads["videoqa"].tokenizer.prompts([question])[0][0, 1:].tolist()
        )
        prompt = torch.tensor([[START, *words]])
        ids = theirs.generate(input_ids=prompt, pixel_values=pixels(clip, folder)[None], **settings)
        expected = model.heads["captioning"].tokenizer.decode(ids[:, prompt.shape[1] :])[0]
        said = model.caption(clip) if question is None else model.answer(clip, question)
        assert said.text == expected
        assert said.num_tokens == 15


@torch.no_grad()
def test_its_vectors_are_class_tokens_and_it_has_none_of_sentences(git: tuple[GitForCausalLM, Path]) -> None:
    theirs, folder = git
    model, clip = videolm.load(folder, device="cpu"), random_clip(2)
    tokens = theirs.git.image_encoder(pixels(clip, folder)).last_hidden_state
    expected = F.normalize(F.normalize(tokens[:, 0], dim=1).mean(dim=0), dim=0)
    assert float(torch.from_numpy(model.encode_videos(clip).vectors)[0] @ expected) >= 0.9999
    with pytest.raises(ValueError, match="git has no text tower: it captions and answers"):
        model.encode_texts(["a red circle"])
    with pytest.raises(ValueError, match="no CLIPModel of transformers"):
        export_transformers(model, folder / "export")


def test_saved_in_our_format_it_says_the_same(git: tuple[GitForCausalLM, Path], tmp_path: Path) -> None:
    model, clip = videolm.load(git[1], device="cpu"), random_clip(5)
    model.save(tmp_path / "ours")
    again = videolm.load(tmp_path / "ours", device="cpu")
    assert again.shape == model.shape
    assert again.heads["videoqa"].shape == model.heads["videoqa"].shape
    assert again.heads["videoqa"] is again.heads["captioning"]
    assert again.caption(clip) == model.caption(clip)
    assert again.answer(clip, "moves") == model.answer(clip, "moves")
    np.testing.assert_array_equal(again.encode_videos(clip).vectors, model.encode_videos(clip).vectors)


def test_a_reduced_tower_gives_the_head_fewer_tokens(git: tuple[GitForCausalLM, Path]) -> None:
    model = videolm.load(git[1], device="cpu", reduce="tome:r=1")
    assert model.caption(random_clip(3)).num_tokens == 9


def test_more_tokens_of_a_video_than_places_for_words_are_read(git: tuple[GitForCausalLM, Path]) -> None:
    model = videolm.load(git[1], device="cpu")
    assert model.heads["captioning"].head.lm.config.max_position_embeddings == 64
    assert model.caption(random_clip(20)).num_tokens == 100


@pytest.mark.parametrize("kind", ["git", "blip2"])
def test_in_bfloat16_it_captions_too(kind: str, tmp_path: Path) -> None:
    theirs, vocab_size, pad = (random_git(), 30, 0) if kind == "git" else (random_blip2(), 30, 1)
    folder = write(theirs, tmp_path, vocab_size=vocab_size, pad=pad)
    model = videolm.load(folder, device="cpu", dtype=torch.bfloat16)
    assert model.heads["captioning"].head.lm.dtype == torch.bfloat16
    assert model.caption([random_clip(3), random_clip(1)])[1].num_tokens == 5


@pytest.mark.parametrize("kind", ["git", "blip2"])
@pytest.mark.parametrize("budget", [None, 9, 12])
def test_clips_of_a_batch_have_the_captions_that_they_have_alone(
    kind: str, budget: int | None, tmp_path: Path
) -> None:
    theirs, pad = (random_git(max_frames=3), 0) if kind == "git" else (random_blip2(), 1)
    model = videolm.load(write(theirs, tmp_path, vocab_size=30, pad=pad), device="cpu")
    for lengths in ((3, 1), (3, 2), (1, 3)):
        clips = [random_clip(length) for length in lengths]
        single = [model.caption(clip, budget=budget) for clip in clips]
        assert model.caption(clips, budget=budget) == single


def test_a_git_with_a_tensor_too_many_or_too_few_is_refused(git: tuple[GitForCausalLM, Path]) -> None:
    file = git[1] / "model.safetensors"
    tensors = load_file(file)
    bias = tensors.pop("output.bias")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors: 1 keys missing \(output\.bias\)"):
        videolm.load(git[1])
    save_file(
        tensors | {"output.bias": bias, "git.encoder.extra": bias.clone()}, file, metadata={"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"1 keys unknown \(git\.encoder\.extra\)"):
        videolm.load(git[1])


def test_a_git_without_its_vocabulary_is_refused(git: tuple[GitForCausalLM, Path]) -> None:
    (git[1] / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer for a head that speaks"):
        videolm.load(git[1])


@torch.no_grad()
def test_a_blip2_folder_captions_as_transformers(tmp_path: Path) -> None:
    theirs = random_blip2()
    folder = write(theirs, tmp_path / "blip2", vocab_size=30, pad=1)
    model, clip = videolm.load(folder, device="cpu"), random_clip(1)
    assert isinstance(model, VideoLM)
    assert model.sampler == Sampler("segment_middle", num_frames=4)
    ids = torch.tensor([[30, 30, 30, START]])
    written = theirs.generate(
        pixels(clip, folder), input_ids=ids, num_beams=5, max_new_tokens=30, do_sample=False
    )[:, 4:]
    caption = model.caption(clip)
    assert caption.text == model.heads["captioning"].tokenizer.decode(written)[0]
    assert model.caption(random_clip(3)).num_tokens == 15
    assert model.answer(clip, "a circle", candidates=["red", "moves"]).text in ("red", "moves")
