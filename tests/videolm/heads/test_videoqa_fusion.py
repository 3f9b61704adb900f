"""Answers from question and video read together: against plain formulas in float64, and trained on small tasks."""

from collections.abc import Callable
from dataclasses import replace
from inspect import unwrap
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from videolm.heads.captioning import IGNORED
from videolm.heads.fusion import (
    AnswerVocabulary,
    ClassifierQA,
    CountQA,
    Fusion,
    JustAskQA,
    LabelCandidates,
    log_sum_exp,
)
from videolm.heads.videoqa import EmbeddedCandidates, choice_cross_entropy
from videolm.types import TextTokens, VideoTokens

BATCH, TOKENS, WORDS, WIDTH, DIM = 3, 6, 4, 12, 8


@pytest.fixture(autouse=True)
def _same_numbers_every_run() -> None:
    torch.manual_seed(0)


def video_of(tokens: Tensor, *, mask: Tensor | None = None, sizes: Tensor | None = None) -> VideoTokens:
    """Tokens of as many frames, a second apart."""
    batch, num_tokens = tokens.shape[:2]
    return VideoTokens(
        tokens=tokens,
        mask=torch.ones(batch, num_tokens, dtype=torch.bool) if mask is None else mask,
        sizes=torch.ones(batch, num_tokens) if sizes is None else sizes,
        pts_seconds=torch.arange(num_tokens).float().expand(batch, -1),
        embedding=tokens.mean(dim=1),
    )


def words_of(tokens: Tensor, mask: Tensor | None = None) -> TextTokens:
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    return TextTokens(tokens=tokens, mask=mask, embedding=tokens[:, -1])


def random_batch() -> tuple[VideoTokens, TextTokens]:
    """Videos of 6, 2 and 4 tokens, which stand for 0.5 to 3.5 original ones, and questions of 4, 3 and 1 words."""
    mask = torch.arange(TOKENS) < torch.tensor([6, 2, 4])[:, None]
    words = torch.arange(WORDS) < torch.tensor([4, 3, 1])[:, None]
    return (
        video_of(
            torch.randn(BATCH, TOKENS, WIDTH).double(), mask=mask, sizes=3 * torch.rand(BATCH, TOKENS) + 0.5
        ),
        words_of(torch.randn(BATCH, WORDS, DIM).double(), words),
    )


def fusion(**changes: Any) -> Fusion:
    settings = {
        "token_width": WIDTH,
        "text_width": DIM,
        "width": 16,
        "num_heads": 2,
        "max_frames": 3,
    } | changes
    made = Fusion(**settings)
    if made.time is not None:
        nn.init.normal_(made.time.table)
    return made.double()


def rows_of(values: Any, rows: list[int]) -> Any:
    return replace(values, **{name: part[rows] for name, part in vars(values).items()})


# The fused vector


@torch.no_grad()
def test_fusion_equals_torchs_attention_over_what_exists() -> None:
    ours = fusion(depth=1, max_frames=0)
    video, question = random_batch()
    block = ours.blocks[0]
    for row in range(BATCH):
        tokens, words = video.tokens[row][video.mask[row]], question.tokens[row][question.mask[row]]
        x = torch.cat([ours.pool[None], ours.words(words), ours.video(tokens)])
        counts = torch.cat([torch.ones(1 + len(words)), video.sizes[row][video.mask[row]]]).double()
        qkv = block.attention.qkv(F.layer_norm(x, (16,), block.ln_1.weight, block.ln_1.bias))
        query, key, value = qkv.view(len(x), 3, 2, 8).permute(1, 2, 0, 3)
        share = (query @ key.transpose(1, 2) / 8**0.5).exp() * counts
        attended = (share / share.sum(dim=-1, keepdim=True)) @ value
        x = x + block.attention.out(attended.transpose(0, 1).flatten(1))
        x = x + block.mlp.down(
            F.gelu(block.mlp.up(F.layer_norm(x, (16,), block.ln_2.weight, block.ln_2.bias)))
        )
        torch.testing.assert_close(
            ours(video, question)[row], F.layer_norm(x[0], (16,)), rtol=0, atol=1e-6, check_dtype=False
        )


@torch.no_grad()
def test_what_does_not_exist_does_not_matter() -> None:
    ours = fusion()
    video, question = random_batch()
    other = replace(video, tokens=video.tokens.masked_fill(~video.mask[..., None], 7.0))
    other_question = replace(question, tokens=question.tokens.masked_fill(~question.mask[..., None], -7.0))
    torch.testing.assert_close(ours(other, other_question), ours(video, question), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_token_of_size_two_is_two_tokens() -> None:
    ours = fusion(max_frames=0)
    tokens, question = torch.randn(1, 3, WIDTH).double(), words_of(torch.randn(1, WORDS, DIM).double())
    once = video_of(tokens, sizes=torch.tensor([[2.0, 1.0, 1.0]]))
    torch.testing.assert_close(ours(once, question), ours(video_of(tokens[:, [0, 0, 1, 2]]), question))


@torch.no_grad()
def test_only_a_time_table_tells_the_order_of_the_tokens() -> None:
    question, tokens = words_of(torch.randn(1, WORDS, DIM).double()), torch.randn(1, 3, WIDTH).double()
    forward, backward = video_of(tokens), video_of(tokens.flip(1))
    untimed = fusion(max_frames=0)
    torch.testing.assert_close(untimed(forward, question), untimed(backward, question))
    timed = fusion()
    assert (timed(forward, question) - timed(backward, question)).abs().max() > 1e-2


# Scorers


def scorer_of(kind: str) -> tuple[Any, Any]:
    """A scorer with random weights and candidates for it, 4 a question, the last question's third one masked."""
    mask = torch.ones(BATCH, 4, dtype=torch.bool)
    mask[2, 2] = False
    if kind == "classifier":
        labels = torch.stack([torch.randperm(5)[:4] for _ in range(BATCH)])
        return ClassifierQA(fusion(), num_answers=5).double(), LabelCandidates(labels, mask)
    embedding = torch.randn(BATCH, 4, DIM).double()
    return JustAskQA(fusion(), text_width=DIM, dim=6).double(), EmbeddedCandidates(embedding, mask)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["classifier", "just ask"])
@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(4)))
def test_order_batch_and_padding_of_candidates_do_not_matter(kind: str, order: list[int]) -> None:
    torch.manual_seed(0)
    scorer, candidates = scorer_of(kind)
    video, question = random_batch()
    scores = scorer.score(video, question, candidates)
    shuffled = replace(candidates, **{name: part[:, order] for name, part in vars(candidates).items()})
    torch.testing.assert_close(scorer.score(video, question, shuffled), scores[:, order])
    for row in range(BATCH):
        places = candidates.mask[row].nonzero()[:, 0].tolist()
        alone = rows_of(candidates, [row])
        alone = replace(alone, **{name: part[:, places] for name, part in vars(alone).items()})
        single = scorer.score(rows_of(video, [row]), rows_of(question, [row]), alone)
        torch.testing.assert_close(single[0], scores[row, places])
        assert scores[row].isneginf().sum() == 4 - len(places)


@torch.no_grad()
def test_a_classifiers_score_is_the_logit_of_the_answer() -> None:
    scorer, candidates = scorer_of("classifier")
    video, question = random_batch()
    logits, scores = scorer(video, question), scorer.score(video, question, candidates)
    for row, column in candidates.mask.nonzero().tolist():
        assert scores[row, column] == logits[row, candidates.labels[row, column]]


@torch.no_grad()
def test_just_ask_is_a_dot_product_and_takes_one_vocabulary_for_all_videos() -> None:
    scorer, _ = scorer_of("just ask")
    video, question = random_batch()
    answers = torch.randn(1, 7, DIM).double()
    scores = scorer.score(video, question, EmbeddedCandidates(answers, torch.ones(1, 7, dtype=torch.bool)))
    fused = scorer.question(scorer.fusion(video, question))
    for row in range(BATCH):
        for column in range(7):
            expected = fused[row] @ scorer.answer(answers[0, column])
            torch.testing.assert_close(scores[row, column], expected)


@torch.no_grad()
def test_counts_are_whole_numbers_from_one_to_ten() -> None:
    scorer = CountQA(fusion()).double()
    batch = random_batch()
    for raw, count in ((-3.0, 1), (0.4, 1), (2.5, 2), (3.5, 4), (6.6, 7), (99.0, 10)):
        scorer.regress[2].weight.zero_()
        scorer.regress[2].bias.fill_(raw)
        assert scorer.count(*batch).tolist() == [count] * BATCH
    assert scorer.loss(*batch, torch.tensor([98, 99, 101])).item() == pytest.approx((1 + 0 + 4) / 3)


# Clips


def test_log_sum_exp_is_over_the_clips_that_exist() -> None:
    logits, mask = torch.randn(2, 3, 4).double(), torch.tensor([[True, False, True], [True, True, True]])
    expected = torch.stack(
        [
            torch.stack([c.exp() for c in row[real]]).sum(dim=0).log()
            for row, real in zip(logits, mask, strict=True)
        ]
    )
    torch.testing.assert_close(log_sum_exp(logits, mask), expected)
    torch.testing.assert_close(log_sum_exp(logits)[1], expected[1])


def test_a_video_without_a_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="video 1 of the batch has no clip"):
        log_sum_exp(torch.zeros(2, 2, 3), torch.tensor([[True, False], [False, False]]))


# The vocabulary


def test_an_answer_outside_the_vocabulary_is_ignored_in_training() -> None:
    vocabulary = AnswerVocabulary(("red", "blue", "two"))
    assert vocabulary.labels(["two", "Red", "red", ""]).tolist() == [2, IGNORED, 0, IGNORED]


def test_options_find_their_places_and_blanks_are_masked() -> None:
    candidates = AnswerVocabulary(("red", "blue", "two")).candidates([["two", "", "red"], ["blue"]])
    assert candidates.mask.tolist() == [[True, False, True], [True, False, False]]
    assert candidates.labels[candidates.mask].tolist() == [2, 0, 1]


def test_an_option_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"candidates \['green'\] are not among the 2 answers"):
        AnswerVocabulary(("red", "blue")).candidates([["green", "red"]])


@pytest.mark.parametrize(
    ("answers", "message"),
    [((), "answers is empty"), (("red", "blue", "red"), "answer 'red' is in the vocabulary twice")],
    ids=["empty", "twice"],
)
def test_a_vocabulary_has_answers_once_each(answers: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerVocabulary(answers)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width \(16\) must be a multiple of num_heads \(3\)"):
        unwrap(Fusion.__init__)(Fusion.__new__(Fusion), token_width=4, text_width=4, width=16, num_heads=3)


# Training: the question asks for one of two things that a video shows, each on a token of its own.

NUM_KINDS = 4
Batch = tuple[VideoTokens, TextTokens, Tensor, Tensor]


def two_things(batch: int, *, seed: int) -> Batch:
    """Videos of two tokens among noise, a question about the one or the other, and what each of the two is."""
    generator = torch.Generator().manual_seed(seed)
    things = torch.randint(NUM_KINDS, (batch, 2), generator=generator)
    asked = torch.randint(2, (batch,), generator=generator)
    tokens = 0.1 * torch.randn(batch, TOKENS, WIDTH, generator=generator)
    place = torch.rand(batch, TOKENS, generator=generator).argsort(dim=1)[:, :2]
    looks = F.one_hot(things + torch.tensor([0, NUM_KINDS]), WIDTH).float()
    tokens = tokens.scatter_add(1, place[..., None].expand(-1, -1, WIDTH), looks)
    question = F.one_hot(asked, DIM).float().unsqueeze(1).expand(-1, WORDS, -1)
    return video_of(tokens), words_of(question), things, asked


def trained(model: nn.Module, loss: Callable[[Batch], Tensor], *, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        loss(two_things(64, seed=step)).backward()
        optimizer.step()
    model.eval()


def small_fusion() -> Fusion:
    return Fusion(token_width=WIDTH, text_width=DIM, width=32, num_heads=4)


def test_a_classifier_learns_what_the_question_asks_for() -> None:
    model = ClassifierQA(small_fusion(), num_answers=NUM_KINDS)

    def loss(batch: Batch) -> Tensor:
        video, question, things, asked = batch
        labels = things.gather(1, asked[:, None])[:, 0]
        # One answer in 16 is not in the vocabulary.
        return choice_cross_entropy(model(video, question), labels.where(torch.arange(64) % 16 > 0, IGNORED))

    trained(model, loss, steps=150)
    video, question, things, asked = two_things(500, seed=10_000)
    right = model(video, question).argmax(dim=1) == things.gather(1, asked[:, None])[:, 0]
    assert right.float().mean() > 0.95


def test_just_ask_learns_from_the_answers_embeddings() -> None:
    model = JustAskQA(small_fusion(), text_width=DIM, dim=16)
    answers = EmbeddedCandidates(torch.randn(1, NUM_KINDS, DIM), torch.ones(1, NUM_KINDS, dtype=torch.bool))

    def loss(batch: Batch) -> Tensor:
        video, question, things, asked = batch
        labels = things.gather(1, asked[:, None])[:, 0]
        return choice_cross_entropy(model.score(video, question, answers), labels)

    trained(model, loss, steps=150)
    video, question, things, asked = two_things(500, seed=10_000)
    # Options in another order for every question, as in multiple choice.
    order = torch.rand(500, NUM_KINDS).argsort(dim=1)
    options = EmbeddedCandidates(answers.embedding[0][order], torch.ones(500, NUM_KINDS, dtype=torch.bool))
    chosen = model.score(video, question, options).argmax(dim=1, keepdim=True)
    assert (order.gather(1, chosen) == things.gather(1, asked[:, None])).float().mean() > 0.95


def test_numbers_are_learned() -> None:
    model = CountQA(small_fusion())

    def count(batch: Batch) -> Tensor:
        _, _, things, asked = batch
        return things.gather(1, asked[:, None])[:, 0] * 2 + 1

    trained(model, lambda batch: model.loss(*batch[:2], count(batch)), steps=250)
    batch = two_things(500, seed=10_000)
    assert (model.count(*batch[:2]) == count(batch)).float().mean() > 0.95
