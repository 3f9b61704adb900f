"""BLIP-2 before OPT, against transformers' Blip2ForConditionalGeneration with the same random weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.videolm.heads.git_models import END, START, encode, ours_of, random_blip2, random_frames
from tests.videolm.heads.test_git import SEARCHES, everywhere, until_end
from videolm.encoders.presets import build_video_clip
from videolm.encoders.weights import read_weights
from videolm.heads.speaker_weights import read_speaker
from videolm.types import VideoTokens

PROMPTS = torch.tensor([[START, 7, 8, 9], [START, 11, 12, 13]])
IMAGE_TOKENS = torch.full((2, 3), 30)


@torch.no_grad()
def test_logits_of_one_frame_equal_those_of_transformers(tmp_path: Path) -> None:
    theirs = random_blip2()
    tower, head = ours_of(theirs, tmp_path)
    frames = random_frames(2, 1)
    expected = theirs(input_ids=torch.cat([IMAGE_TOKENS, PROMPTS], dim=1), pixel_values=frames[:, 0]).logits
    ours = head(head.prefix(encode(tower, frames)), PROMPTS, everywhere(PROMPTS))
    torch.testing.assert_close(ours, expected[:, -4:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("num_words", [1, 4], ids=["caption", "question"])
@torch.no_grad()
def test_what_it_writes_of_one_frame_equals_transformers(search: str, num_words: int, tmp_path: Path) -> None:
    theirs = random_blip2()
    tower, head = ours_of(theirs, tmp_path)
    frames, prompts = random_frames(2, 1), PROMPTS[:, :num_words]
    settings = SEARCHES[search] | {"max_new_tokens": 10, "do_sample": False}
    ids = torch.cat([IMAGE_TOKENS, prompts], dim=1)
    expected = theirs.generate(frames[:, 0], input_ids=ids, **settings)[:, ids.shape[1] :]
    ours = head.generate(head.prefix(encode(tower, frames)), prompts, everywhere(prompts), **settings)
    assert until_end(ours) == until_end(expected)


@torch.no_grad()
def test_several_frames_are_their_queries_one_after_the_other(tmp_path: Path) -> None:
    theirs = random_blip2()
    tower, head = ours_of(theirs, tmp_path)
    frames = random_frames(2, 3)
    of_frames = [
        theirs.get_image_features(frame, return_dict=True).pooler_output for frame in frames.unbind(1)
    ]
    prefix = head.prefix(encode(tower, frames))
    torch.testing.assert_close(prefix.embeds, torch.cat(of_frames, dim=1), atol=1e-5, rtol=1e-5)
    short = head.prefix(encode(tower, frames, lengths=torch.tensor([3, 1])))
    assert short.mask.tolist() == [[True] * 9, [True] * 3 + [False] * 6]
    torch.testing.assert_close(short.embeds[short.mask], prefix.embeds[short.mask], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_token_that_stands_for_two_counts_twice(tmp_path: Path) -> None:
    tower, head = ours_of(random_blip2(), tmp_path)
    video = encode(tower, random_frames(1, 1))

    def some(rows: list[int], sizes: list[float]) -> VideoTokens:
        return replace(
            video,
            tokens=video.tokens[:, rows],
            mask=video.mask[:, rows],
            sizes=torch.tensor([sizes], dtype=torch.float32),
            pts_seconds=video.pts_seconds[:, rows],
        )

    twice = head.prefix(some([0, 1, 2, 2], [1, 1, 1, 1]))
    torch.testing.assert_close(head.prefix(some([0, 1, 2], [1, 1, 2])).embeds, twice.embeds)


@torch.no_grad()
def test_merged_tokens_of_the_tower_go_through(tmp_path: Path) -> None:
    _, head = ours_of(random_blip2(), tmp_path)
    weights = read_weights(tmp_path)
    tower = build_video_clip(replace(weights.shape, reduce="tome:r=1")).eval()
    tower.load_state_dict(weights.state)
    video = encode(tower, random_frames(2, 3))
    prefix = head.prefix(video)
    # Of one frame, every token as often as it stands for an original one.
    sizes = video.sizes[1].view(3, -1)[2]
    assert sizes.tolist() != [1.0] * len(sizes)
    rows = torch.arange(len(sizes)).repeat_interleave(sizes.long()) + 2 * len(sizes)
    alone = VideoTokens(
        tokens=video.tokens[1:, rows],
        mask=video.mask[1:, rows],
        sizes=torch.ones(1, len(rows)),
        pts_seconds=video.pts_seconds[1:, rows],
        embedding=video.embedding[1:],
    )
    torch.testing.assert_close(prefix.embeds[1:, 6:], head.prefix(alone).embeds, atol=1e-5, rtol=1e-5)


def test_an_encoder_and_decoder_is_refused(tmp_path: Path) -> None:
    random_blip2(language_model="t5").save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"config\.json: the language model is of type 't5'; only BLIP-2 before OPT"
    ):
        read_speaker(tmp_path / "model.safetensors")


def test_its_shape_has_the_end_token_of_the_generation_config(tmp_path: Path) -> None:
    random_blip2().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    speaker = read_speaker(tmp_path / "model.safetensors")
    assert speaker is not None
    assert (speaker.shape.start_token_id, speaker.shape.eos_token_id) == (START, 9)
    assert speaker.shape.question_template == "Question: {question} Answer:"
    assert END != 9
