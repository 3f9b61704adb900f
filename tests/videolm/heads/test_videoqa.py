"""Choosing an answer by similarity and by likelihood, the losses of a choice, and matching generated text."""

import math
from dataclasses import replace
from inspect import unwrap
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from videolm.heads.captioning import IGNORED, PrefixLM
from videolm.heads.presets import ConnectorShape, SpeakerShape, build_speaker
from videolm.heads.videoqa import (
    EmbeddedCandidates,
    LikelihoodQA,
    Prompt,
    SimilarityQA,
    TokenCandidates,
    YesNoQA,
    choice_cross_entropy,
    choice_hinge,
    match_answer,
    only_possible,
)
from videolm.types import TextTokens, VideoTokens

BATCH, TOKENS, WIDTH, DIM, VOCAB = 3, 5, 12, 8, 20
START, END, PAD, YES, NO = 0, 1, 2, 3, 4


@pytest.fixture(autouse=True)
def _same_numbers_every_run() -> None:
    torch.manual_seed(0)


def random_video(batch: int = BATCH) -> VideoTokens:
    mask = torch.arange(TOKENS) < torch.tensor([TOKENS, 3, 4])[:batch, None]
    return VideoTokens(
        tokens=torch.randn(batch, TOKENS, WIDTH, dtype=torch.float64),
        mask=mask,
        sizes=mask.float(),
        pts_seconds=torch.arange(TOKENS).float().expand(batch, -1),
        embedding=torch.nn.functional.normalize(torch.randn(batch, DIM, dtype=torch.float64), dim=1),
    )


def rows_of(values: Any, rows: list[int]) -> Any:
    """Some videos of a batch, or their questions or candidates."""
    return replace(values, **{name: v[rows] for name, v in vars(values).items() if isinstance(v, Tensor)})


def speaker(prefix_attention: str = "causal") -> PrefixLM:
    lm = {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "initializer_range": 0.5,
        "bos_token_id": START,
        "eos_token_id": END,
    }
    shape = SpeakerShape(
        connector=ConnectorShape(),
        lm=lm,
        start_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        prefix_attention=prefix_attention,
    )
    return build_speaker(shape, token_width=WIDTH, text_width=DIM).double().eval()


def prompt() -> Prompt:
    """Questions of 4, 2 and 3 words, padded on the left."""
    mask = torch.arange(4) >= 4 - torch.tensor([4, 2, 3])[:, None]
    return Prompt(torch.randint(5, VOCAB, (BATCH, 4)).masked_fill(~mask, PAD), mask)


def token_candidates() -> TokenCandidates:
    """Four a question, of one to three tokens with the end token; the last question has three."""
    lengths = torch.tensor([[3, 1, 2, 3], [2, 2, 3, 1], [1, 3, 2, 1]])
    token_mask = torch.arange(3) < lengths[..., None]
    ids = torch.randint(5, VOCAB, (BATCH, 4, 3)).masked_fill(~token_mask, PAD)
    mask = torch.ones(BATCH, 4, dtype=torch.bool)
    mask[2, 3] = False
    return TokenCandidates(ids.scatter(2, lengths[..., None] - 1, END), token_mask, mask)


def log_probabilities(lm: PrefixLM, video: VideoTokens, words: list[int]) -> Tensor:
    """log p of the token after each of `words`, from the whole sequence, nothing padded and no cache."""
    names = ("tokens", "mask", "sizes", "pts_seconds")
    real = replace(video, **{name: getattr(video, name)[video.mask][None] for name in names})
    ids = torch.tensor([words])
    return lm(lm.prefix(real), ids, torch.ones_like(ids, dtype=torch.bool))[0].log_softmax(dim=-1)


# Scores


def test_similarity_is_the_scaled_cosine_of_every_candidate() -> None:
    video, embedding = random_video(), torch.randn(BATCH, 4, DIM)
    mask = torch.ones(BATCH, 4, dtype=torch.bool)
    mask[1, 2] = False
    scores = SimilarityQA(torch.tensor(math.log(50.0))).score(
        video, None, EmbeddedCandidates(embedding, mask)
    )
    for row in range(BATCH):
        for column in range(4):
            cosine = torch.cosine_similarity(video.embedding[row], embedding[row, column].double(), dim=0)
            expected = 50 * cosine if mask[row, column] else torch.tensor(-torch.inf)
            torch.testing.assert_close(scores[row, column], expected.double(), rtol=1e-6, atol=1e-6)


def test_similarity_of_a_model_in_bfloat16_has_the_digits_of_its_embeddings() -> None:
    video, embedding = random_video(), torch.randn(BATCH, 4, DIM).bfloat16()
    scale, mask = torch.tensor(math.log(50.0)), torch.ones(BATCH, 4, dtype=torch.bool)
    rounded = replace(video, embedding=video.embedding.bfloat16())
    scores = SimilarityQA(scale.bfloat16()).score(rounded, None, EmbeddedCandidates(embedding, mask))
    assert scores.dtype == torch.float32
    exact = replace(video, embedding=rounded.embedding.double())
    expected = SimilarityQA(scale.bfloat16().double()).score(
        exact, None, EmbeddedCandidates(embedding.double(), mask)
    )
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)


def test_one_row_of_candidates_serves_all_videos() -> None:
    video, embedding = random_video(), torch.randn(1, 4, DIM)
    mask = torch.tensor([[True, False, True, True]])
    scorer = SimilarityQA(torch.tensor(2.0))
    torch.testing.assert_close(
        scorer.score(video, None, EmbeddedCandidates(embedding, mask)),
        scorer.score(
            video, None, EmbeddedCandidates(embedding.expand(BATCH, -1, -1), mask.expand(BATCH, -1))
        ),
    )


@torch.no_grad()
@pytest.mark.parametrize("length_normalize", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("prefix_attention", ["causal", "full"])
def test_likelihood_is_that_of_the_whole_sequence(prefix_attention: str, length_normalize: bool) -> None:
    lm, video, question, candidates = speaker(prefix_attention), random_video(), prompt(), token_candidates()
    scores = LikelihoodQA(lm, length_normalize).score(video, question, candidates)
    for row in range(BATCH):
        words = question.ids[row][question.mask[row]].tolist()
        for column in range(4):
            answer = candidates.ids[row, column][candidates.token_mask[row, column]].tolist()
            log_p = log_probabilities(lm, rows_of(video, [row]), words + answer)
            steps = [log_p[len(words) - 1 + step, token] for step, token in enumerate(answer)]
            expected = torch.stack(steps).sum() / (len(steps) if length_normalize else 1)
            if not candidates.mask[row, column]:
                expected = torch.tensor(-torch.inf)
            torch.testing.assert_close(scores[row, column].double(), expected.double(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_yes_or_no_is_read_after_each_candidate() -> None:
    lm, video, question, candidates = speaker(), random_video(), prompt(), token_candidates()
    scores = YesNoQA(lm, yes_token_id=YES, no_token_id=NO).score(video, question, candidates)
    for row in range(BATCH):
        words = question.ids[row][question.mask[row]].tolist()
        for column in range(4):
            answer = candidates.ids[row, column][candidates.token_mask[row, column]].tolist()
            log_p = log_probabilities(lm, rows_of(video, [row]), words + answer[:-1])[-1]
            expected = log_p[YES] - log_p[NO] if candidates.mask[row, column] else torch.tensor(-torch.inf)
            torch.testing.assert_close(scores[row, column].double(), expected.double(), rtol=1e-4, atol=1e-4)


# What must not matter


@torch.no_grad()
@pytest.mark.parametrize("kind", ["likelihood", "yes or no", "similarity"])
@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(4)))
def test_order_batch_and_padding_of_candidates_do_not_matter(kind: str, order: list[int]) -> None:
    torch.manual_seed(0)
    video, question = random_video(), prompt()
    if kind == "similarity":
        scorer = SimilarityQA(torch.tensor(2.0))
        candidates = EmbeddedCandidates(torch.randn(BATCH, 4, DIM), token_candidates().mask)
    else:
        lm, candidates = speaker(), token_candidates()
        scorer = LikelihoodQA(lm) if kind == "likelihood" else YesNoQA(lm, YES, NO)
    scores = scorer.score(video, question, candidates)
    shuffled = replace(candidates, **{name: part[:, order] for name, part in vars(candidates).items()})
    torch.testing.assert_close(
        scorer.score(video, question, shuffled), scores[:, order], rtol=1e-5, atol=1e-5
    )
    for row in range(BATCH):
        places = candidates.mask[row].nonzero()[:, 0].tolist()
        alone = rows_of(candidates, [row])
        alone = replace(alone, **{name: part[:, places] for name, part in vars(alone).items()})
        single = scorer.score(rows_of(video, [row]), rows_of(question, [row]), alone)
        torch.testing.assert_close(single[0], scores[row, places], rtol=1e-5, atol=1e-5)
        assert scores[row].isneginf().sum() == 4 - len(places)


@torch.no_grad()
def test_a_connector_that_reads_the_question_gets_its_words() -> None:
    shape = ConnectorShape(num_queries=2, query_width=8, num_heads=2, reads_question=True)
    lm = {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 64,
    }
    special = {"start_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    model = build_speaker(SpeakerShape(shape, lm, **special), token_width=WIDTH, text_width=DIM)
    scorer = LikelihoodQA(model.double().eval())
    video, question, candidates = random_video(), prompt(), token_candidates()
    words = [
        TextTokens(torch.randn(BATCH, 4, DIM).double(), question.mask, torch.randn(BATCH, DIM))
        for _ in range(2)
    ]
    one, other = (scorer.score(video, replace(question, words=w), candidates) for w in words)
    assert (one - other)[candidates.mask].abs().min() > 1e-6
    with pytest.raises(ValueError, match="question is missing"):
        scorer.score(video, question, candidates)


# Errors


def test_a_question_without_a_candidate_is_refused() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match=r"candidates of question 1 of the batch are all empty"):
        only_possible(torch.zeros(2, 2), mask)


def test_a_candidate_without_a_token_is_refused_rather_than_certain() -> None:
    candidates = token_candidates()
    candidates.token_mask[1, 2] = False
    with pytest.raises(ValueError, match=r"candidate 2 of question 1 has no token"):
        LikelihoodQA(speaker()).score(random_video(), prompt(), candidates)


def test_one_token_for_yes_and_no_is_refused() -> None:
    with pytest.raises(ValueError, match=r"yes_token_id and no_token_id are both 7"):
        YesNoQA(speaker(), yes_token_id=7, no_token_id=7)


# Losses


def scores_and_labels() -> tuple[Tensor, Tensor]:
    scores = torch.randn(4, 5, dtype=torch.float64)
    scores[0, 2] = scores[3, 4] = -torch.inf
    return scores, torch.tensor([1, IGNORED, 4, 0])


def test_cross_entropy_equals_its_sum_over_the_possible_candidates() -> None:
    scores, labels = scores_and_labels()
    losses = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        if label != IGNORED:
            losses.append(math.log(sum(math.exp(s) for s in row)) - row[label])
    assert choice_cross_entropy(scores, labels).item() == pytest.approx(sum(losses) / 3, abs=1e-12)


def test_hinge_equals_its_sum_without_the_label_itself() -> None:
    scores, labels = scores_and_labels()
    total = 0.0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        if label != IGNORED:
            total += sum(max(0.0, 0.5 + s - row[label]) for k, s in enumerate(row) if k != label)
    assert choice_hinge(scores, labels, margin=0.5).item() == pytest.approx(total / 3, abs=1e-12)


@pytest.mark.parametrize("loss", [choice_cross_entropy, choice_hinge])
def test_impossible_candidates_and_ignored_rows_get_no_gradient_and_no_nan(loss: Any) -> None:
    scores, labels = scores_and_labels()
    raw = torch.randn(4, 5, requires_grad=True)
    loss(raw.masked_fill(scores.isneginf(), -torch.inf), labels).backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    assert raw.grad[scores.isneginf()].eq(0).all()
    assert raw.grad[1].eq(0).all()
    assert raw.grad[0].ne(0).any()


@pytest.mark.parametrize("loss", [choice_cross_entropy, choice_hinge])
def test_a_batch_in_which_nothing_counts_teaches_nothing(loss: Any) -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    value = loss(scores, torch.full((2,), IGNORED))
    value.backward()
    assert value.item() == 0
    assert scores.grad is not None
    assert scores.grad.eq(0).all()


@pytest.mark.parametrize("loss", [choice_cross_entropy, choice_hinge])
@pytest.mark.parametrize("label", [3, -1], ids=["too high", "negative"])
def test_a_label_that_is_no_candidate_is_refused(loss: Any, label: int) -> None:
    with pytest.raises(
        ValueError, match=rf"label {label} of question 1 must be one of its candidates, \[0, 1, 2\]"
    ):
        loss(torch.zeros(2, 3), torch.tensor([0, label]))


def test_a_label_that_cannot_be_chosen_is_refused() -> None:
    scores = torch.tensor([[0.0, -torch.inf, 1.0]])
    with pytest.raises(ValueError, match=r"label 1 of question 0 must be one of its candidates, \[0, 2\]"):
        choice_cross_entropy(scores, torch.tensor([1]))


# Matching


@pytest.mark.parametrize(
    ("text", "candidates", "place"),
    [
        ("A dog.", ["cat", "dog"], 1),
        ("two dogs", ["dog", "cat"], None),
        ("", ["", "dog"], None),
        ("...", ["", "dog"], None),
        ("dog", ["cat", "dog", "dog"], 1),
        ("dog", ["the dog", "dog!"], None),
    ],
    ids=["case and article", "no candidate", "empty text", "no word", "same twice", "two that differ"],
)
def test_generated_text_matches_one_candidate_or_none(
    text: str, candidates: list[str], place: int | None
) -> None:
    assert unwrap(match_answer)(text, candidates) == place
