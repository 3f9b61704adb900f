"""GIT against transformers' GitForCausalLM with the same random weights, and what only ours does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.videolm.heads.git_models import (
    END,
    PAD,
    START,
    encode,
    ours_of,
    random_frames,
    random_git,
)
from videolm.encoders.presets import build_video_clip
from videolm.encoders.weights import read_weights
from videolm.heads.git import GitConnector, frame_ordinals
from videolm.heads.resampler import Prefix
from videolm.types import VideoTokens

PROMPTS = torch.tensor([[START, 7, 8, 9], [START, 11, 12, 13]])
SEARCHES = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 4},
    "beams, length penalty": {"num_beams": 4, "length_penalty": 0.6},
}


def everywhere(ids: Tensor) -> Tensor:
    return torch.ones_like(ids, dtype=torch.bool)


def until_end(ids: Tensor) -> list[list[int]]:
    """Each row to its end token; transformers and ours may fill up to different lengths."""
    rows = [[*row, END] for row in ids.tolist()]
    return [row[: row.index(END)] for row in rows]


@pytest.mark.parametrize("num_frames", range(1, 7))
@torch.no_grad()
def test_logits_equal_those_of_transformers(num_frames: int, tmp_path: Path) -> None:
    theirs = random_git()
    tower, head = ours_of(theirs, tmp_path)
    frames = random_frames(2, num_frames)
    prefix = head.prefix(encode(tower, frames))
    expected = theirs(input_ids=PROMPTS, pixel_values=frames).logits
    other = theirs(input_ids=PROMPTS, pixel_values=-frames).logits
    assert prefix.embeds.shape[1] == 5 * num_frames
    assert (other - expected)[:, -1].abs().max() > 1e-3
    torch.testing.assert_close(
        head(prefix, PROMPTS, everywhere(PROMPTS)), expected[:, -PROMPTS.shape[1] :], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("num_frames", range(1, 7))
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("num_words", [1, 4], ids=["caption", "question"])
@torch.no_grad()
def test_what_it_writes_equals_transformers_token_for_token(
    num_frames: int, search: str, num_words: int, tmp_path: Path
) -> None:
    # transformers counts the cached picture tokens by the config, so it is told the number of frames.
    theirs = random_git(max_frames=num_frames)
    tower, head = ours_of(theirs, tmp_path)
    frames, prompts = random_frames(4, num_frames, seed=num_frames), PROMPTS[:1, :num_words].expand(4, -1)
    settings = SEARCHES[search] | {"max_new_tokens": 12, "do_sample": False}
    expected = theirs.generate(input_ids=prompts, pixel_values=frames, **settings)[:, num_words:]
    ids = head.generate(head.prefix(encode(tower, frames)), prompts, everywhere(prompts), **settings)
    assert until_end(ids) == until_end(expected)


@torch.no_grad()
def test_a_model_of_pictures_reads_one_without_a_time(tmp_path: Path) -> None:
    theirs = random_git(max_frames=None)
    tower, head = ours_of(theirs, tmp_path)
    assert isinstance(head.connector, GitConnector)
    assert head.connector.time is None
    frames = random_frames(2, 1)
    ours = head(head.prefix(encode(tower, frames)), PROMPTS, everywhere(PROMPTS))
    expected = theirs(input_ids=PROMPTS, pixel_values=frames[:, 0]).logits
    torch.testing.assert_close(ours, expected[:, -4:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_beyond_its_frames_times_are_interpolated_where_transformers_raises(tmp_path: Path) -> None:
    theirs = random_git(max_frames=3)
    tower, head = ours_of(theirs, tmp_path)
    frames = random_frames(1, 5)
    with pytest.raises(IndexError):
        theirs(input_ids=PROMPTS[:1], pixel_values=frames)
    video = encode(tower, frames)
    rows = torch.cat(list(theirs.git.img_temporal_embedding)).flatten(0, 1)
    between = [rows[0], (rows[0] + rows[1]) / 2, rows[1], (rows[1] + rows[2]) / 2, rows[2]]
    tokens = head.connector.norm(video.tokens) + torch.stack(between).repeat_interleave(5, dim=0)
    torch.testing.assert_close(head.prefix(video).embeds, head.connector.out(tokens))
    ids = head.generate(head.prefix(video), PROMPTS[:1], everywhere(PROMPTS[:1]), max_new_tokens=3)
    assert ids.shape == (1, 3)


@torch.no_grad()
def test_clips_of_different_lengths_in_a_batch_equal_single_ones(tmp_path: Path) -> None:
    tower, head = ours_of(random_git(), tmp_path)
    frames, lengths = random_frames(3, 4), torch.tensor([4, 2, 1])
    # padded on the left, in front of a question of another length
    prompts = torch.tensor([[START, 7, 8, 9], [PAD, PAD, START, 5], [PAD, PAD, PAD, START]])
    mask = prompts != PAD
    prefix = head.prefix(encode(tower, frames, lengths=lengths))
    together = head(prefix, prompts, mask)
    written = head.generate(prefix, prompts, mask, max_new_tokens=6, num_beams=3)
    targets = torch.tensor([[[6, END, PAD], [9, 10, END]]]).expand(3, -1, -1)
    scores = head.log_likelihood(prefix, prompts, mask, targets, targets != PAD)
    for row, length in enumerate(lengths.tolist()):
        alone = head.prefix(encode(tower, frames[row : row + 1, :length]))
        words = prompts[row : row + 1, mask[row]]
        logits = head(alone, words, everywhere(words))
        torch.testing.assert_close(together[row : row + 1, mask[row]], logits, atol=1e-5, rtol=1e-5)
        ids = head.generate(alone, words, everywhere(words), max_new_tokens=6, num_beams=3)
        assert until_end(written[row : row + 1]) == until_end(ids)
        score = head.log_likelihood(alone, words, everywhere(words), targets[:1], targets[:1] != PAD)
        torch.testing.assert_close(scores[row : row + 1], score, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_likelihood_with_the_shared_cache_equals_teacher_forcing(tmp_path: Path) -> None:
    tower, head = ours_of(random_git(), tmp_path)
    prefix = head.prefix(encode(tower, random_frames(2, 2)))
    targets = torch.tensor([[6, 9, END], [8, 5, END]])
    words = torch.cat([PROMPTS, targets[:, :-1]], dim=1)
    logits = head(prefix, words, everywhere(words))[:, -3:].log_softmax(dim=-1)
    expected = logits.gather(2, targets.unsqueeze(-1)).sum(dim=(1, 2))
    scores = head.log_likelihood(
        prefix, PROMPTS, everywhere(PROMPTS), targets[:, None], everywhere(targets)[:, None]
    )
    torch.testing.assert_close(scores[:, 0], expected)


@torch.no_grad()
def test_fewer_tokens_of_the_tower_are_a_shorter_prefix(tmp_path: Path) -> None:
    _, head = ours_of(random_git(), tmp_path)
    weights = read_weights(tmp_path)
    tower = build_video_clip(replace(weights.shape, reduce="tome:r=1")).eval()
    tower.load_state_dict(weights.state)
    video = encode(tower, random_frames(2, 3))
    assert frame_ordinals(video).tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 2
    prefix = head.prefix(video)
    assert prefix.embeds.shape[1] == 9
    assert head.generate(prefix, PROMPTS, everywhere(PROMPTS), max_new_tokens=3).shape == (2, 3)


def video_of(seconds: list[list[float]], mask: list[list[bool]]) -> VideoTokens:
    times = torch.tensor(seconds)
    return VideoTokens(
        tokens=torch.zeros(*times.shape, 8),
        mask=torch.tensor(mask),
        sizes=torch.ones(times.shape),
        pts_seconds=times,
        embedding=torch.zeros(len(times), 8),
    )


def test_ordinals_are_of_distinct_times_among_real_tokens() -> None:
    nan = float("nan")
    video = video_of([[2.0, 2.0, 9.5, 3.0], [1.0, nan, 0.0, 0.0]], [[True] * 4, [True, False, False, False]])
    assert frame_ordinals(video).tolist() == [[0, 0, 2, 1], [0, 0, 0, 0]]


def test_tokens_without_times_are_refused() -> None:
    video = video_of([[float("nan")]], [[True]])
    with pytest.raises(ValueError, match="tokens have no times"):
        frame_ordinals(video)


def test_tokens_between_two_frames_are_refused() -> None:
    whole = video_of([[0.0, 0, 0.5, 1, 1]], [[True] * 5])
    joined = replace(whole, sizes=torch.tensor([[1.0, 1, 2, 1, 1]]))
    with pytest.raises(ValueError, match="a reduction plan has joined frames"):
        GitConnector(width=8, out_width=4, max_frames=2, layer_norm_eps=1e-5)(joined)


def test_a_prefix_learns_through_the_decoder(tmp_path: Path) -> None:
    tower, head = ours_of(random_git(), tmp_path)
    video = encode(tower, random_frames(2, 2))
    targets = torch.tensor([[7, 8, 9, END], [11, 12, 13, END]])
    prefix = head.prefix(video)
    head.loss(prefix, PROMPTS, everywhere(PROMPTS), targets, label_smoothing=0.1).backward()
    assert head.connector.time.grad[:2].abs().min() > 0
    assert head.lm.position_embeddings.weight.grad[:4].abs().sum(dim=1).min() > 0
    assert isinstance(prefix, Prefix)
