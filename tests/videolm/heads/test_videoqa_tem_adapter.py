"""Tem-Adapter: its parts against plain loops, its two corrected defects, and a task that needs the frames' order."""

from dataclasses import replace
from inspect import unwrap
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from videolm.heads.captioning import IGNORED
from videolm.heads.tem_adapter import TemAdapter, frame_tokens, sinusoids
from videolm.heads.videoqa import EmbeddedCandidates, choice_hinge
from videolm.types import VideoTokens

BATCH, FRAMES, CANDIDATES, DIM = 3, 5, 4, 16


@pytest.fixture(autouse=True)
def _same_numbers_every_run() -> None:
    torch.manual_seed(0)


def random_batch() -> tuple[VideoTokens, EmbeddedCandidates]:
    """Videos of 5, 2 and 4 frames; the last question has three candidates."""
    exists = torch.arange(FRAMES) < torch.tensor([5, 2, 4])[:, None]
    frames = torch.randn(BATCH, FRAMES, DIM, dtype=torch.float64)
    video = frame_tokens(frames, exists, torch.arange(FRAMES).float().expand(BATCH, -1))
    mask = torch.ones(BATCH, CANDIDATES, dtype=torch.bool)
    mask[2, 1] = False
    return video, EmbeddedCandidates(torch.randn(BATCH, CANDIDATES, DIM, dtype=torch.float64), mask)


def adapter(**changes: Any) -> TemAdapter:
    """With random weights, and texts that the frames change much."""
    made = TemAdapter(dim=DIM, num_heads=4, aligner_width=8, **changes).double().eval()
    torch.nn.init.ones_(made.semantic.share)
    return made


def rows_of(values: Any, rows: list[int]) -> Any:
    return replace(values, **{name: part[rows] for name, part in vars(values).items()})


# Scores


@torch.no_grad()
def test_scores_equal_a_loop_over_videos_and_candidates() -> None:
    model = adapter()
    video, candidates = random_batch()
    scores = model.score(video, None, candidates)
    semantic, temporal = model.semantic, model.temporal
    for row in range(BATCH):
        frames = video.tokens[row][video.mask[row]]
        average = temporal.encoder((frames + sinusoids(len(frames), DIM).double())[None])[0].mean(dim=0)
        for column in range(CANDIDATES):
            text = candidates.embedding[row, column]
            looked = semantic.decoder(semantic.text(text)[None, None], semantic.frames(frames)[None])
            expected = average @ (text + semantic.out(looked)[0, 0])
            if not candidates.mask[row, column]:
                expected = torch.tensor(-torch.inf, dtype=torch.float64)
            torch.testing.assert_close(scores[row, column], expected, rtol=0, atol=1e-10)


@torch.no_grad()
@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(CANDIDATES)))
def test_order_batch_and_padding_of_candidates_do_not_matter(order: list[int]) -> None:
    """The published code mixes the videos of a batch: there, one video alone has other scores."""
    torch.manual_seed(0)
    model = adapter()
    video, candidates = random_batch()
    scores = model.score(video, None, candidates)
    shuffled = EmbeddedCandidates(candidates.embedding[:, order], candidates.mask[:, order])
    torch.testing.assert_close(model.score(video, None, shuffled), scores[:, order])
    for row in range(BATCH):
        places = candidates.mask[row].nonzero()[:, 0].tolist()
        alone = EmbeddedCandidates(candidates.embedding[[row]][:, places], candidates.mask[[row]][:, places])
        torch.testing.assert_close(model.score(rows_of(video, [row]), None, alone)[0], scores[row, places])


@torch.no_grad()
def test_a_new_adapter_scores_by_the_frames_average_and_the_text() -> None:
    model = TemAdapter(dim=DIM, num_heads=4).double().eval()
    video, candidates = random_batch()
    encoded = model.temporal(video.tokens, video.mask)
    average = torch.stack([e[real].mean(dim=0) for e, real in zip(encoded, video.mask, strict=True)])
    expected = torch.einsum("bd,bcd->bc", average, candidates.embedding)
    scores = model.score(video, None, candidates)
    torch.testing.assert_close(scores[candidates.mask], expected[candidates.mask], rtol=0, atol=0.01)


def test_places_are_sines_and_cosines() -> None:
    places = sinusoids(7, 5)
    for place in range(7):
        for column in range(5):
            angle = torch.tensor(place / 10000 ** (column // 2 * 2 / 5))
            expected = angle.cos() if column % 2 else angle.sin()
            torch.testing.assert_close(places[place, column], expected, rtol=0, atol=1e-6)


# Losses


@torch.no_grad()
def test_each_frame_is_told_from_those_before_it() -> None:
    """A decoder that is given only the frames before t says the same of frame t: it was not given frame t itself."""
    model = adapter()
    video, candidates = random_batch()
    temporal, answer = model.temporal, candidates.embedding[:, 0]
    encoded = temporal(video.tokens, video.mask)
    errors = []
    for row in range(BATCH):
        num_frames = int(video.mask[row].sum())
        frames = video.tokens[row, :num_frames]
        placed = frames + sinusoids(num_frames, DIM).double()
        memory = encoded[row, :num_frames] + answer[row]
        for t in range(1, num_frames):
            told = temporal.decoder(
                placed[None, :t], memory[None], tgt_mask=torch.ones(t, t, dtype=torch.bool).triu(1)
            )
            errors.append((told[0, -1] - frames[t]).square().mean())
    loss = temporal.next_frame_loss(video.tokens, encoded, answer, video.mask)
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_loss_is_hinge_and_next_frame_with_the_right_answers_text() -> None:
    model = adapter(hinge_weight=0.5)
    video, candidates = random_batch()
    labels = torch.tensor([1, 0, 3])
    right = candidates.embedding[range(BATCH), labels]
    encoded = model.temporal(video.tokens, video.mask)
    expected = 0.5 * choice_hinge(model.score(video, None, candidates), labels)
    expected = expected + model.temporal.next_frame_loss(video.tokens, encoded, right, video.mask)
    torch.testing.assert_close(model.loss(video, candidates, labels), expected)


@torch.no_grad()
def test_a_video_of_one_frame_has_no_next_one() -> None:
    model = adapter(hinge_weight=0.0)
    video, candidates = random_batch()
    one = frame_tokens(video.tokens[:, :1], video.mask[:, :1], video.pts_seconds[:, :1])
    assert model.loss(one, candidates, torch.zeros(BATCH, dtype=torch.long)).item() == 0


def test_every_weight_learns() -> None:
    model = adapter().train()
    model.loss(*random_batch(), torch.tensor([1, 0, 3])).backward()
    silent = {
        name for name, weight in model.named_parameters() if weight.grad is None or weight.grad.eq(0).all()
    }
    assert silent == set()


# Errors


def test_tokens_of_a_tower_are_refused() -> None:
    video, candidates = random_batch()
    wide = replace(video, tokens=torch.zeros(BATCH, FRAMES, 24))
    with pytest.raises(
        ValueError, match=r"tokens of width 24, .* of width 16; make the video by frame_tokens"
    ):
        adapter().score(wide, None, candidates)


def test_a_loss_needs_every_label() -> None:
    with pytest.raises(ValueError, match=r"labels \(\[0, -100, 1\]\) must all be candidates"):
        adapter().loss(*random_batch(), torch.tensor([0, IGNORED, 1]))


@pytest.mark.parametrize("mask", [[False, False], [False, True]], ids=["no frame", "a gap"])
def test_frames_stand_at_the_start(mask: list[bool]) -> None:
    with pytest.raises(ValueError, match="mask must be True on the first frames of each video, one at least"):
        unwrap(frame_tokens)(torch.zeros(1, 2, 4), torch.tensor([mask]), torch.zeros(1, 2))


# Training: which of four things came first, and which then.

NUM_THINGS = 4


def ordered_things(batch: int, looks: Tensor, *, seed: int) -> tuple[VideoTokens, EmbeddedCandidates, Tensor]:
    """Videos of six frames that show one thing and then another; the candidates are both orders of two pairs."""
    generator = torch.Generator().manual_seed(seed)
    things = torch.rand(batch, NUM_THINGS, generator=generator).argsort(dim=1)[:, :2]
    other = torch.rand(batch, NUM_THINGS, generator=generator).argsort(dim=1)[:, :2]
    exists = torch.ones(batch, 6, dtype=torch.bool)
    frames = looks[things].repeat_interleave(3, dim=1)
    frames = frames + 0.05 * torch.randn(frames.shape, generator=generator)
    video = frame_tokens(frames, exists, torch.arange(6).float().expand(batch, -1))
    pairs = torch.stack([things, things.flip(1), other, other.flip(1)], dim=1)
    # A text's embedding tells first and then apart, as a tower does that has learned to.
    texts = looks[pairs[..., 0]] + looks[pairs[..., 1]].roll(1, dims=-1)
    # The other pair may be the shown one; then either place is right, and neither is counted.
    same = (other.sort(dim=1).values == things.sort(dim=1).values).all(dim=1)
    mask = torch.ones(batch, 4, dtype=torch.bool)
    mask[same, 2:] = False
    order = torch.rand(batch, 4, generator=generator).argsort(dim=1)
    candidates = EmbeddedCandidates(
        texts.gather(1, order[..., None].expand(-1, -1, texts.shape[2])), mask.gather(1, order)
    )
    return video, candidates, (order == 0).int().argmax(dim=1)


def test_the_order_of_two_events_is_learned() -> None:
    looks = torch.nn.functional.normalize(torch.randn(NUM_THINGS, DIM), dim=1)
    model = TemAdapter(dim=DIM, num_heads=4, aligner_width=16, hinge_weight=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(200):
        optimizer.zero_grad()
        model.loss(*ordered_things(64, looks, seed=step)).backward()
        optimizer.step()
    video, candidates, labels = ordered_things(500, looks, seed=10_000)
    chosen = model.eval().score(video, None, candidates).argmax(dim=1)
    assert (chosen == labels).float().mean() > 0.95
