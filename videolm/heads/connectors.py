"""Connectors of published systems, beside `resampler.Resampler`: BLIP-2's, ClipCap's and EVLGen's."""

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from videolm.encoders.blocks import Block, Grid, init_blocks
from videolm.encoders.reducers import hooks_of
from videolm.encoders.reduction_plans import tome
from videolm.heads.resampler import Prefix, frames_of, key_bias, refuse_question
from videolm.types import TextTokens, VideoTokens


class QFormer(nn.Module):
    """Learned queries that gather each frame's tokens; those of all frames one after the other. Source: BLIP-2.

    arXiv 2301.12597; the transformer is transformers' Blip2QFormerModel: norms behind each part, attention to the
    tokens in every `cross_every`-th layer. `norm` is the last one of the tower, which VideoTokens come without. A
    token that stands for s original ones counts s times (a key bias of log s).
    """

    def __init__(
        self,
        *,
        width: int,
        out_width: int,
        num_queries: int,
        depth: int,
        query_width: int,
        num_heads: int,
        mlp_width: int,
        cross_every: int,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.queries = nn.Parameter(torch.randn(num_queries, query_width) * 0.02)
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=query_width,
                num_hidden_layers=depth,
                num_attention_heads=num_heads,
                intermediate_size=mlp_width,
                encoder_hidden_size=width,
                cross_attention_frequency=cross_every,
            )
        )
        self.out = nn.Linear(query_width, out_width)

    def forward(self, video: VideoTokens, question: TextTokens | None = None) -> Prefix:
        refuse_question(question)
        frames = frames_of(video)
        tokens = frames.gather(self.norm(video.tokens)).flatten(0, 1)
        mask = frames.mask.flatten(0, 1)
        sizes = frames.gather(video.sizes).flatten(0, 1)
        num_frames = frames.mask.shape[1]
        gathered = self.qformer(
            query_embeds=self.queries.expand(len(tokens), -1, -1),
            encoder_hidden_states=tokens,
            encoder_attention_mask=key_bias(sizes, mask).to(tokens.dtype)[:, None, None, :],
        ).last_hidden_state
        num_queries = len(self.queries)
        return Prefix(
            embeds=rearrange(self.out(gathered), "(b t) n d -> b (t n) d", t=num_frames),
            mask=repeat(mask.any(dim=1), "(b t) -> b (t n)", t=num_frames, n=num_queries),
        )


class MLPMapper(nn.Module):
    """The video's embedding as `num_queries` places of the prefix, by a two-layer MLP with tanh. Source: ClipCap.

    arXiv 2111.09734, its mapping network for a language model that is trained too.
    """

    def __init__(self, *, embedding_dim: int, out_width: int, num_queries: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        hidden = num_queries * out_width // 2
        self.mlp = nn.Sequential(
            nn.Linear(embedding_dim, hidden), nn.Tanh(), nn.Linear(hidden, num_queries * out_width)
        )

    def forward(self, video: VideoTokens, question: TextTokens | None = None) -> Prefix:
        refuse_question(question)
        rows: Tensor = self.mlp(video.embedding.to(video.tokens.dtype))
        return everywhere(rearrange(rows, "b (n d) -> b n d", n=self.num_queries))


class TransformerMapper(nn.Module):
    """The embedding as several places, that learned queries read in a transformer. Source: ClipCap.

    arXiv 2111.09734, its mapping network before a frozen language model: `num_queries` places made of the
    embedding stand before as many learned ones, every one sees every other, and what became of the learned ones is
    the prefix.
    """

    def __init__(
        self, *, embedding_dim: int, out_width: int, num_queries: int, depth: int, num_heads: int
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.spread = nn.Linear(embedding_dim, num_queries * out_width)
        self.queries = nn.Parameter(torch.randn(num_queries, out_width))
        layers = [
            nn.TransformerEncoderLayer(
                out_width, num_heads, 2 * out_width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        ]
        self.layers = nn.ModuleList(layers)

    def forward(self, video: VideoTokens, question: TextTokens | None = None) -> Prefix:
        refuse_question(question)
        spread = self.spread(video.embedding.to(self.queries.dtype))
        spread = rearrange(spread, "b (n d) -> b n d", n=self.num_queries)
        rows = torch.cat([spread, self.queries.expand(len(spread), -1, -1)], dim=1)
        for layer in self.layers:
            rows = layer(rows)
        return everywhere(rows[:, self.num_queries :])


class MergingConnector(nn.Module):
    """Transformer layers that merge `merged` tokens each, then a linear layer. Source: EVLGen, arXiv 2310.03291.

    With `per_frame` for each frame by itself, else for the mean of the frames, which needs a tower that keeps tokens of
    one index at one place. The first `num_class_tokens` of a frame are never merged. Blocks have their norms before
    each part, where the source's, which start from BERT, have them behind.
    """

    def __init__(
        self,
        *,
        width: int,
        out_width: int,
        depth: int,
        query_width: int,
        num_heads: int,
        mlp_width: int,
        merged: int,
        per_frame: bool,
        num_class_tokens: int,
    ) -> None:
        super().__init__()
        self.per_frame = per_frame
        self.num_class_tokens = num_class_tokens
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, query_width)
        _, mid = hooks_of(tome(depth, r=merged), has_unseen=False, num_aligned=0)
        blocks = [
            Block(
                width=query_width,
                num_heads=num_heads,
                mlp_width=mlp_width,
                activation="gelu",
                layer_norm_eps=1e-5,
                mid=mid.get(layer),
            )
            for layer in range(depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = nn.LayerNorm(query_width)
        self.out = nn.Linear(query_width, out_width)
        init_blocks(blocks, width=query_width)

    def forward(self, video: VideoTokens, question: TextTokens | None = None) -> Prefix:
        refuse_question(question)
        frames = frames_of(video)
        tokens, sizes = frames.gather(video.tokens), frames.gather(video.sizes)
        exists = frames.mask.any(dim=2)
        if bool((frames.mask != exists.unsqueeze(2)).any()):
            raise ValueError(
                "frames have unequal numbers of tokens, but this connector merges equally many of each; take a "
                "plan that leaves them so, such as tome:r=1, the same for all clips of a batch"
            )
        # A frame that does not exist has sizes of 0, whose logarithm no attention may see.
        sizes = sizes.masked_fill(~frames.mask, 1)
        # A frame that stands in its clip twice has sizes of 2, and nothing of it is merged.
        is_merged = bool((sizes != sizes[:, :, :1]).any())
        if not self.per_frame:
            if is_merged:
                raise ValueError(
                    "the tokens are merged in the tower already, each frame's in its own way, so that frames have no "
                    "mean; take reduce='none', or a connector with per_frame"
                )
            tokens = mean_of_frames(tokens, sizes[:, :, 0] * exists)
            exists = exists[:, :1]
        grid = Grid(
            self.down(self.norm(tokens)),
            sizes=sizes if is_merged else None,
            num_class_tokens=self.num_class_tokens,
        )
        for block in self.blocks:
            grid = block(grid)
        embeds = self.out(self.norm_out(grid.tokens))
        return Prefix(embeds.flatten(1, 2), exists.repeat_interleave(embeds.shape[2], dim=1))


def mean_of_frames(
    tokens: Float[Tensor, "batch frames tokens width"], counts: Float[Tensor, "batch frames"]
) -> Float[Tensor, "batch 1 tokens width"]:
    """Of each place, over the frames, each as often as it counts."""
    share = (counts / counts.sum(dim=1, keepdim=True)).to(tokens.dtype)
    return (tokens * share[:, :, None, None]).sum(dim=1, keepdim=True)


def everywhere(embeds: Float[Tensor, "batch prefix width"]) -> Prefix:
    """A prefix of which every place exists."""
    return Prefix(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device))
