"""Scores of sentences against videos."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def similarity(
    text: Float[Tensor, "texts dim"], video: Float[Tensor, "videos dim"]
) -> Float[Tensor, "texts videos"]:
    """similarity[i, j] = cosine(text[i], video[j]), at least in float32; the rows need not be of unit length.

    The separable score (`Dot`): each side is encoded alone, so the videos can be indexed. A row of zeros has
    no direction and scores 0; NaN stays NaN.
    """
    if text.shape[1] != video.shape[1]:
        raise ValueError(f"text has {text.shape[1]} columns but video {video.shape[1]}; one model makes both")
    dtype = torch.promote_types(torch.promote_types(text.dtype, video.dtype), torch.float32)
    return F.normalize(text.to(dtype), dim=1) @ F.normalize(video.to(dtype), dim=1).T
