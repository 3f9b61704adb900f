"""The dual encoder: a video tower, a text tower and the temperature between them."""

import math
from dataclasses import fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from videolm.encoders.blocks import Grid
from videolm.encoders.clip import ImageTower, TextTower
from videolm.encoders.near_duplicates import changed_patches, without_repeats
from videolm.types import TextTokens, VideoTokens


class VideoCLIP(nn.Module):
    """CLIP over the frames of a clip: unit-length frame embeddings, averaged, made of unit length again.

    Source of the average: `meanP` of CLIP4Clip, arXiv 2104.08860; an `aggregator` changes the frame embeddings
    before it. With one frame and neither that nor a temporal module the embedding is CLIP's. `logit_scale` is
    the logarithm of what multiplies the cosine in the training loss; SigLIP's sigmoid loss also adds `logit_bias`.

    Without a `text` tower, as in a captioning model, whose words are in its head, there is no `encode_text` and no
    temperature.

    With a `drop_threshold`, patches that did not change since the frame before are left out of the tokens (see
    `reduction_plans.drop_repeats`); `pixel_std` is what the pixels, once in [0, 1], were divided by. With
    `by_length` clips of different lengths go through the tower one length after the other: for a tower in which
    the frames that do not exist would count among the tokens that are reduced.
    """

    def __init__(
        self,
        *,
        vision: ImageTower,
        text: TextTower | None,
        aggregator: nn.Module | None = None,
        has_logit_bias: bool = False,
        drop_threshold: float | None = None,
        pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        by_length: bool = False,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.text = text
        self.aggregator = aggregator
        self.drop_threshold = drop_threshold
        self.pixel_std = pixel_std
        self.by_length = by_length
        self.logit_scale = None if text is None else nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        # SigLIP's starting value: nearly all pairs of a batch are no pair.
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if has_logit_bias else None

    @property
    def scale(self) -> nn.Parameter:
        """`logit_scale`; ValueError for a model that has none."""
        if self.logit_scale is None:
            raise ValueError(
                "this model has no text tower: it has no temperature between videos and sentences"
            )
        return self.logit_scale

    @property
    def sees_frames_alone(self) -> bool:
        """Whether a frame's embedding depends on no other frame, so that a repeated one is computed once."""
        hooks = [hook for block in self.vision.blocks for hook in (block.pre, block.mid, block.tap)]
        return (
            self.aggregator is None
            and self.drop_threshold is None
            and not getattr(self.vision.patch, "sees_time", False)
            and all(getattr(hook, "sees_frames_alone", False) for hook in (*hooks, self.vision.embed) if hook)
        )

    def encode_video(
        self,
        frames: Float[Tensor, "batch frames 3 height width"],
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        repeats: Int[Tensor, "batch frames"] | None = None,
        pts_seconds: Float[Tensor, "batch frames"] | None = None,
    ) -> VideoTokens:
        """Tokens and embedding of each clip; `frames` are preprocessed as the tower expects.

        `lengths[b]` in [1, T] is the number of frames of clip b that exist; what the others hold is of no
        matter, as long as it is finite. `repeats[b, t]` says how often frame t stands in clip b, once without it;
        only a model that `sees_frames_alone` takes it. Without `pts_seconds` the tokens' times are NaN. The
        embedding is float32 (float64 for a float64 model), the tokens are in the model's dtype.
        """
        batch, num_frames = frames.shape[:2]
        if lengths is not None and not bool(((lengths >= 1) & (lengths <= num_frames)).all()):
            raise ValueError(f"lengths ({lengths.tolist()}) must be from 1 to the {num_frames} frames given")
        if repeats is not None and not self.sees_frames_alone:
            raise ValueError(
                "repeats were given, but this model lets frames see each other: give every frame"
            )
        if pts_seconds is None:
            pts_seconds = torch.full((batch, num_frames), torch.nan, device=frames.device)
        if lengths is not None and self.by_length:
            return self._encode_by_length(frames, lengths, pts_seconds)
        grid = self.vision(frames, lengths=lengths)
        sizes, exists, token_seconds = _of_originals(grid, pts_seconds, lengths)

        # Behind the frames stand those that were added before a join.
        pooled = self.vision.pool(grid)[:, :num_frames]
        pooled_exists = exists[:, :, : grid.num_class_tokens].flatten(1)[:, :num_frames]
        if not grid.num_class_tokens:
            pooled_exists = exists.any(dim=2)
        if self.aggregator is not None:
            pooled = self.aggregator(pooled, pooled_exists)
        pooled = _unit_length(pooled).masked_fill(~pooled_exists.unsqueeze(-1), 0)
        if repeats is not None:
            sizes = sizes * repeats.unsqueeze(-1)
            pooled = pooled * repeats.unsqueeze(-1)
        video = VideoTokens(
            tokens=grid.tokens.flatten(1, 2),
            mask=exists.flatten(1),
            sizes=sizes.flatten(1),
            pts_seconds=token_seconds,
            # The sum has the direction of the mean.
            embedding=_unit_length(pooled.sum(dim=1)),
        )
        if self.drop_threshold is None:
            return video
        changed = changed_patches(
            frames,
            patch_size=self.vision.patch_size,
            threshold=self.drop_threshold,
            pixel_std=self.pixel_std,
            keep_one=self.vision.class_token is None,
        )
        return without_repeats(video, grid.assignment, changed)

    def _encode_by_length(
        self,
        frames: Float[Tensor, "batch frames 3 height width"],
        lengths: Int[Tensor, " batch"],
        pts_seconds: Float[Tensor, "batch frames"],
    ) -> VideoTokens:
        distinct = sorted(set(lengths.tolist()))
        groups = [(lengths == length).nonzero()[:, 0] for length in distinct]
        parts = [
            self.encode_video(frames[group, :length], pts_seconds=pts_seconds[group, :length])
            for group, length in zip(groups, distinct, strict=True)
        ]
        longest = max(part.mask.shape[1] for part in parts)
        order = torch.cat(groups).argsort()

        def whole(name: str) -> Tensor:
            rows = [getattr(part, name) for part in parts]
            if name != "embedding":
                # Of (B, M) or (B, M, D), in M.
                rows = [F.pad(row, (0, 0) * (row.ndim - 2) + (0, longest - row.shape[1])) for row in rows]
            return torch.cat(rows)[order]

        return VideoTokens(**{field.name: whole(field.name) for field in fields(VideoTokens)})

    def encode_text(
        self, input_ids: Int[Tensor, "batch words"], mask: Bool[Tensor, "batch words"]
    ) -> TextTokens:
        """Words and embedding of each sentence; `mask` is True on the words, and padding is on the right.

        A SigLIP reads the padding too, as it was trained: its sentences are padded to `context_length`.
        """
        if self.text is None:
            raise ValueError("this model has no text tower: it has no vectors of sentences")
        context_length, vocab_size = len(self.text.position), self.text.token.num_embeddings
        if input_ids.shape[1] > context_length:
            raise ValueError(
                f"input_ids has {input_ids.shape[1]} words, but the context_length of this tower is "
                f"{context_length}; truncate in the tokenizer"
            )
        if not bool(((input_ids >= 0) & (input_ids < vocab_size)).all()):
            raise ValueError(
                f"input_ids ({int(input_ids.min())} to {int(input_ids.max())}) must be in [0, {vocab_size}); "
                f"is the tokenizer the model's own?"
            )
        if self.text.pooling == "last" and input_ids.shape[1] != context_length:
            raise ValueError(
                f"input_ids has {input_ids.shape[1]} words, but this tower reads sentences at the last of "
                f"{context_length} places; pad in the tokenizer"
            )
        has_end = ((input_ids == self.text.eos_token_id) & mask).any(dim=1)
        if not bool(has_end.all()):
            raise ValueError(
                f"input_ids[{int((~has_end).int().argmax())}] has no end token ({self.text.eos_token_id}), "
                f"where a sentence is read; is the tokenizer the model's own?"
            )
        words = self.text(input_ids)
        return TextTokens(tokens=words, mask=mask, embedding=_unit_length(self.text.pool(words, input_ids)))


def _unit_length(vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Vectors of length 1, at least in float32: in bfloat16 a cosine would keep three digits."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def _of_originals(
    grid: Grid, pts_seconds: Float[Tensor, "batch frames"], lengths: Int[Tensor, " batch"] | None
) -> tuple[
    Float[Tensor, "batch grid_frames tokens"],
    Bool[Tensor, "batch grid_frames tokens"],
    Float[Tensor, "batch grid_tokens"],
]:
    """How many original tokens each one stands for, whether it exists, and their mean time, 0 where there is none."""
    batch, frames, num_tokens, _ = grid.tokens.shape
    num_frames, device = pts_seconds.shape[1], pts_seconds.device
    in_clip = torch.ones(batch, num_frames, dtype=torch.bool, device=device)
    if lengths is not None:
        in_clip = torch.arange(num_frames, device=device) < lengths[:, None]
    if grid.assignment is None:
        exists = in_clip.unsqueeze(-1).expand(-1, -1, num_tokens)
        return (
            torch.ones_like(exists, dtype=torch.float32),
            exists,
            pts_seconds.repeat_interleave(num_tokens, dim=1),
        )
    num_originals = grid.assignment.shape[1] // num_frames
    counts = (grid.assignment >= 0) & in_clip.repeat_interleave(num_originals, dim=1)
    seconds = pts_seconds.repeat_interleave(num_originals, dim=1).masked_fill(~counts, 0)
    rows = grid.assignment.clamp(min=0).long()
    # Differences to the earliest time, so that the mean of equal times is exactly that time.
    first = seconds.new_full((batch, frames * num_tokens), torch.inf)
    first = first.scatter_reduce(1, rows, seconds.masked_fill(~counts, torch.inf), "amin")
    since = (seconds - first.gather(1, rows)).masked_fill(~counts, 0)
    total = torch.zeros_like(first).scatter_add(1, rows, since)
    num_counted = torch.zeros(first.shape, device=device).scatter_add(1, rows, counts.float())
    sizes = num_counted.clone().view(batch, frames, num_tokens)
    # Class tokens are never merged, but joint frames have one for all.
    sizes[:, :, : grid.num_class_tokens].clamp_(max=1)
    mean_seconds = first.masked_fill(num_counted == 0, 0) + total / num_counted.clamp(min=1)
    return sizes, sizes > 0, mean_seconds
