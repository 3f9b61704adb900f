"""The dual encoder: a video tower, a text tower and the temperature between them."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from videolm.encoders.clip import ImageTower, TextTower
from videolm.types import TextTokens, VideoTokens


class VideoCLIP(nn.Module):
    """CLIP over the frames of a clip: unit-length frame embeddings, averaged, made of unit length again.

    Source of the average: `meanP` of CLIP4Clip, arXiv 2104.08860; an `aggregator` changes the frame embeddings
    before it. With one frame and neither that nor a temporal module the embedding is CLIP's. `logit_scale` is
    the logarithm of what multiplies the cosine in the training loss; SigLIP's sigmoid loss also adds `logit_bias`.
    """

    def __init__(
        self,
        *,
        vision: ImageTower,
        text: TextTower,
        aggregator: nn.Module | None = None,
        has_logit_bias: bool = False,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.text = text
        self.aggregator = aggregator
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        # SigLIP's starting value: nearly all pairs of a batch are no pair.
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if has_logit_bias else None

    @property
    def sees_frames_alone(self) -> bool:
        """Whether a frame's embedding depends on no other frame, so that a repeated one is computed once."""
        hooks = [hook for block in self.vision.blocks for hook in (block.pre, block.mid, block.tap)]
        return self.aggregator is None and all(hook is None for hook in hooks)

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
        grid = self.vision(frames, lengths=lengths)
        exists = torch.ones(batch, num_frames, dtype=torch.bool, device=frames.device)
        if lengths is not None:
            exists = torch.arange(num_frames, device=frames.device) < lengths[:, None]
        if pts_seconds is None:
            pts_seconds = torch.full((batch, num_frames), torch.nan, device=frames.device)

        num_tokens = grid.tokens.shape[2]
        sizes = grid.sizes
        if sizes is None:
            sizes = torch.ones(batch, num_frames, num_tokens, device=frames.device)
        frame_embeddings = self.vision.pool(grid)
        if self.aggregator is not None:
            frame_embeddings = self.aggregator(frame_embeddings, exists)
        frame_embeddings = _unit_length(frame_embeddings).masked_fill(~exists.unsqueeze(-1), 0)
        if repeats is not None:
            sizes = sizes * repeats.unsqueeze(-1)
            frame_embeddings = frame_embeddings * repeats.unsqueeze(-1)
        return VideoTokens(
            tokens=grid.tokens.flatten(1, 2),
            mask=exists.repeat_interleave(num_tokens, dim=1),
            sizes=sizes.flatten(1, 2),
            pts_seconds=pts_seconds.repeat_interleave(num_tokens, dim=1),
            # The sum has the direction of the mean.
            embedding=_unit_length(frame_embeddings.sum(dim=1)),
        )

    def encode_text(
        self, input_ids: Int[Tensor, "batch words"], mask: Bool[Tensor, "batch words"]
    ) -> TextTokens:
        """Words and embedding of each sentence; `mask` is True on the words, and padding is on the right.

        A SigLIP reads the padding too, as it was trained: its sentences are padded to `context_length`.
        """
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
