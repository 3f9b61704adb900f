"""Modules for the aggregator slot: they let a clip's frame embeddings see each other before they are averaged.

Source: arXiv 2104.08860 (CLIP4Clip), `seqTransf` and `seqLSTM`. Without a module the average is its `meanP`.
X-CLIP's multiframe integration transformer (arXiv 2208.02816) is one with `averages`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from videolm.encoders.blocks import Activation, Block, Grid, init_blocks

# CLIP4Clip's sequence transformer divides by sqrt(variance + 1e-12), its towers by sqrt(variance + 1e-5).
_LAYER_NORM_EPS = 1e-12


class SequenceTransformer(nn.Module):
    """frames + transformer(frames + position); a frame sees all that exist. Clips of `max_frames` at most.

    With `averages` each frame becomes the mean of those that exist. The average that follows, of frames made unit
    length, then has its direction: X-CLIP's, in which a frame of a longer embedding counts for more.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        max_frames: int,
        activation: Activation = "quick_gelu",
        layer_norm_eps: float = _LAYER_NORM_EPS,
        averages: bool = False,
    ) -> None:
        super().__init__()
        self.averages = averages
        self.position = nn.Parameter(torch.empty(max_frames, width))
        blocks = [
            Block(
                width=width,
                num_heads=num_heads,
                mlp_width=4 * width,
                activation=activation,
                layer_norm_eps=layer_norm_eps,
            )
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(blocks)

        nn.init.normal_(self.position, std=0.01)
        init_blocks(blocks, width=width)

    def forward(
        self, frames: Float[Tensor, "batch frames dim"], exists: Bool[Tensor, "batch frames"]
    ) -> Float[Tensor, "batch frames dim"]:
        num_frames, max_frames = frames.shape[1], len(self.position)
        if num_frames > max_frames:
            raise ValueError(
                f"{num_frames} frames, but this aggregator has positions for {max_frames} at most"
            )
        tokens = frames + self.position[:num_frames]
        # The frames of a clip are to this transformer what the tokens of a frame are to the tower.
        grid = Grid(tokens.unsqueeze(1), sizes=exists.unsqueeze(1).float())
        for block in self.blocks:
            grid = block(grid)
        frames = frames + grid.tokens.squeeze(1)
        if self.averages:
            share = exists.unsqueeze(-1) / exists.sum(dim=1)[:, None, None]
            frames = (frames * share.to(frames.dtype)).sum(dim=1, keepdim=True).expand_as(frames)
        return frames


class SequenceLSTM(nn.Module):
    """frames + lstm(frames), first frame first.

    It needs no mask: what does not exist stands at the end of a clip, and no frame hears of later ones.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(
        self, frames: Float[Tensor, "batch frames dim"], exists: Bool[Tensor, "batch frames"]
    ) -> Float[Tensor, "batch frames dim"]:
        heard: Tensor = self.lstm(frames)[0]
        return frames + heard
