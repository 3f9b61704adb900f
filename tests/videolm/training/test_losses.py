"""InfoNCE against its definition in float64, and what several captions of one video change."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from videolm.training.losses import clamp_logit_scale_, info_nce
from videolm.training.optim import adamw, warmup_cosine


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_definition(text, video, scale, ids):
    """Both directions row by row: minus the mean log-probability of the positives."""
    logits = (scale * text.double() @ video.double().T).tolist()
    total = 0.0
    for matrix in (logits, [list(column) for column in zip(*logits, strict=True)]):
        for i, row in enumerate(matrix):
            normaliser = math.log(sum(math.exp(value) for value in row))
            positives = [row[j] - normaliser for j in range(len(row)) if ids[j] == ids[i]]
            total -= sum(positives) / len(positives)
    return total / (2 * len(ids))


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4], [0, 1, 1, 2, 1]], ids=["distinct", "repeated"])
def test_info_nce_is_its_definition(ids):
    text, video = unit(5, 7, seed=1), unit(5, 7, seed=2)
    loss = info_nce(text, video, logit_scale=torch.tensor(2.0), video_ids=torch.tensor(ids))
    assert loss.item() == pytest.approx(by_definition(text, video, math.exp(2.0), ids), rel=1e-5)


def test_distinct_videos_give_the_loss_of_clip():
    text, video = unit(6, 8, seed=3), unit(6, 8, seed=4)
    logits = math.e * text @ video.T
    line = torch.arange(6)
    expected = (F.cross_entropy(logits, line) + F.cross_entropy(logits.T, line)) / 2
    assert torch.allclose(info_nce(text, video, logit_scale=torch.tensor(1.0), video_ids=line), expected)


def test_two_captions_of_a_video_are_no_negatives_of_each_other():
    video = unit(1, 4, seed=5).expand(2, 4)
    same = info_nce(video, video, logit_scale=torch.tensor(3.0), video_ids=torch.tensor([9, 9]))
    assert same.item() == pytest.approx(math.log(2))


def test_the_temperature_is_kept_in_clips_range():
    logit_scale = torch.nn.Parameter(torch.tensor(9.0))
    clamp_logit_scale_(logit_scale)
    assert logit_scale.exp().item() == pytest.approx(100, rel=1e-3)


def test_the_learning_rate_rises_then_falls_to_zero():
    rates = [warmup_cosine(step, warmup_steps=10, num_steps=110) for step in range(110)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert warmup_cosine(110, warmup_steps=10, num_steps=110) == pytest.approx(0)


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    decayed, kept = adamw(model, lr=1e-3, weight_decay=0.1).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert len(kept["params"]) == 3
