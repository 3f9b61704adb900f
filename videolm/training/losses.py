"""Losses on a batch of texts and videos."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def info_nce(
    text: Float[Tensor, "batch dim"],
    video: Float[Tensor, "batch dim"],
    *,
    logit_scale: Float[Tensor, ""],
    video_ids: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE, the mean of both directions; all rows of one video are each other's positives.

    `text[i]` and `video[i]` are of unit length and belong to video `video_ids[i]`; `logit_scale` is the
    logarithm of the inverse temperature. The target of a row is uniform over its positives, so two captions of
    one video in a batch are no false negatives. Also known as NT-Xent or the CLIP loss.

    Source: arXiv 2103.00020, section 2.3; several positives as in arXiv 2004.11362, equation 2.
    """
    # autocast would round the logits of near pairs, as twins are, to the same number
    with torch.autocast(text.device.type, enabled=False):
        logits = logit_scale.exp() * text.float() @ video.float().T
    positive = (video_ids[:, None] == video_ids[None, :]).to(logits.dtype)
    target = positive / positive.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def clamp_logit_scale_(logit_scale: Tensor) -> None:
    """Keeps the inverse temperature at 100 or below, in place, as CLIP does after every step."""
    with torch.no_grad():
        logit_scale.clamp_(max=math.log(100))
