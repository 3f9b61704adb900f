"""Tem-Adapter: a small adapter of frozen image embeddings and texts for multiple-choice questions.

Source: arXiv 2308.08414 and github.com/XLiu443/Tem-adapter. Two defects of that code are put right. It repeats the
videos of a batch one after the other beside the candidates, of which those of one video follow each other, so that
with more than one video a candidate is aligned with the frames of another; here it sees its own. And its decoder is
asked for the frame that it is given, which it can copy; here for the next one.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from videolm.heads.captioning import IGNORED
from videolm.heads.videoqa import EmbeddedCandidates, choice_hinge, only_possible
from videolm.types import VideoTokens


def frame_tokens(
    embeddings: Float[Tensor, "batch frames dim"],
    mask: Bool[Tensor, "batch frames"],
    pts_seconds: Float[Tensor, "batch frames"],
) -> VideoTokens:
    """One token a frame, its embedding in the joint space: what TemAdapter reads as a video.

    A dual encoder gives the embeddings when each frame is a clip of its own:
    `model.encode_video(frames.flatten(0, 1).unsqueeze(1)).embedding.unflatten(0, frames.shape[:2])`. Frames that do
    not exist stand at the end.
    """
    if not bool(mask[:, 0].all()) or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("mask must be True on the first frames of each video, one at least, and then False")
    embeddings = embeddings.masked_fill(~mask.unsqueeze(-1), 0)
    return VideoTokens(
        tokens=embeddings,
        mask=mask,
        sizes=mask.to(torch.float32),
        pts_seconds=pts_seconds,
        embedding=F.normalize(embeddings.sum(dim=1), dim=-1),
    )


class TemAdapter(nn.Module):
    """Dot product of the frames' average, after a layer among them, with each text, after a look at the frames.

    A candidate's text is one sentence of question and answer, embedded by the encoder of the frames; `dim` is their
    joint space. The question itself is not read.
    """

    def __init__(
        self, *, dim: int, num_heads: int = 16, aligner_width: int = 128, hinge_weight: float = 0.01
    ) -> None:
        super().__init__()
        self.hinge_weight = hinge_weight
        self.semantic = SemanticAligner(dim=dim, width=aligner_width, num_heads=num_heads)
        self.temporal = TemporalAligner(dim=dim, num_heads=num_heads)

    def score(
        self, video: VideoTokens, question: object, candidates: EmbeddedCandidates
    ) -> Float[Tensor, "batch candidates"]:
        """`video` is made by `frame_tokens`. No temperature: of two models the scores do not compare."""
        frames, texts = self._read(video, candidates)
        return self._score(self.temporal(frames, video.mask), frames, texts, video.mask, candidates.mask)

    def loss(
        self, video: VideoTokens, candidates: EmbeddedCandidates, labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Hinge of the scores times `hinge_weight`, and the squared error of the next frame, told from the answer.

        Every label is a candidate, none IGNORED: the frames are told with the right answer's text.
        """
        if bool((labels == IGNORED).any()):
            raise ValueError(
                f"labels ({labels.tolist()}) must all be candidates; leave out questions without"
            )
        frames, texts = self._read(video, candidates)
        encoded = self.temporal(frames, video.mask)
        scores = self._score(encoded, frames, texts, video.mask, candidates.mask)
        hinge = choice_hinge(scores, labels)
        right = texts[torch.arange(len(texts), device=texts.device), labels]
        return self.hinge_weight * hinge + self.temporal.next_frame_loss(frames, encoded, right, video.mask)

    def _read(self, video: VideoTokens, candidates: EmbeddedCandidates) -> tuple[Tensor, Tensor]:
        """Frames and texts in the adapter's dtype, texts for each video."""
        dtype, dim = self.semantic.share.dtype, len(self.semantic.share)
        if video.tokens.shape[2] != dim:
            raise ValueError(
                f"video has tokens of width {video.tokens.shape[2]}, but this adapter reads frame embeddings "
                f"of width {dim}; make the video by frame_tokens"
            )
        return video.tokens.to(dtype), candidates.embedding.to(dtype).expand(len(video.tokens), -1, -1)

    def _score(
        self, encoded: Tensor, frames: Tensor, texts: Tensor, exists: Tensor, possible: Tensor
    ) -> Tensor:
        average = encoded.masked_fill(~exists.unsqueeze(-1), 0).sum(dim=1) / exists.sum(dim=1, keepdim=True)
        scores = torch.einsum("bd,bcd->bc", average, self.semantic(texts, frames, exists))
        return only_possible(scores.to(torch.promote_types(scores.dtype, torch.float32)), possible)


class SemanticAligner(nn.Module):
    """text + share * decoder(text, frames): each text looks at its video's frames, and at no other text.

    The decoder is one layer with norms first, in `width` numbers; `share` starts at 1e-4.
    """

    def __init__(self, *, dim: int, width: int, num_heads: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.frames = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.LayerNorm(width))
        self.text = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.decoder = nn.TransformerDecoderLayer(
            width, num_heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))
        self.share = nn.Parameter(torch.full((dim,), 1e-4))

    def forward(
        self,
        texts: Float[Tensor, "batch candidates dim"],
        frames: Float[Tensor, "batch frames dim"],
        exists: Bool[Tensor, "batch frames"],
    ) -> Float[Tensor, "batch candidates dim"]:
        num_candidates = texts.shape[1]
        looked = self.decoder(
            self.text(texts).flatten(0, 1).unsqueeze(1),
            self.frames(frames).repeat_interleave(num_candidates, dim=0),
            memory_key_padding_mask=~exists.repeat_interleave(num_candidates, dim=0),
        )
        update: Tensor = self.out(looked).view(texts.shape)
        return texts + self.share * update


class TemporalAligner(nn.Module):
    """One transformer layer among the frames, and the task that teaches it their order.

    A decoder predicts each frame from those before it, with the layer's output plus the right answer's embedding as
    its memory. As published the memory holds all frames, the one to be predicted among them: the task is to find it
    there by its place and by what the text says, not to guess it.
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.TransformerEncoderLayer(dim, num_heads, dropout=dropout, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(dim, num_heads, dropout=dropout, batch_first=True)

    def forward(
        self, frames: Float[Tensor, "batch frames dim"], exists: Bool[Tensor, "batch frames"]
    ) -> Float[Tensor, "batch frames dim"]:
        encoded: Tensor = self.encoder(self._placed(frames), src_key_padding_mask=~exists)
        return encoded

    def next_frame_loss(
        self,
        frames: Float[Tensor, "batch frames dim"],
        encoded: Float[Tensor, "batch frames dim"],
        answer: Float[Tensor, "batch dim"],
        exists: Bool[Tensor, "batch frames"],
    ) -> Float[Tensor, ""]:
        """Mean squared error of frame t + 1 as told from frames 0 to t, over those that exist; 0 if none follows."""
        num_steps = frames.shape[1] - 1
        if num_steps == 0:
            return frames.new_zeros(())
        later = torch.ones(num_steps, num_steps, dtype=torch.bool, device=frames.device).triu(1)
        told = self.decoder(
            self._placed(frames)[:, :-1],
            encoded + answer.unsqueeze(1),
            tgt_mask=later,
            tgt_key_padding_mask=~exists[:, :-1],
            memory_key_padding_mask=~exists,
        )
        error = (told - frames[:, 1:]).square().mean(dim=2)
        loss: Tensor = error[exists[:, 1:]].sum() / exists[:, 1:].sum().clamp(min=1)
        return loss

    def _placed(self, frames: Tensor) -> Tensor:
        placed: Tensor = self.dropout(frames + sinusoids(frames.shape[1], frames.shape[2]).to(frames))
        return placed


def sinusoids(num_places: int, width: int) -> Float[Tensor, "places width"]:
    """sin and cos of place / 10000^(2i / width), in turn. Source: arXiv 1706.03762, section 3.5."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(num_places).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]
