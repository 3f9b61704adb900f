"""From the tokens of a video to what a language model reads before its words: the prefix.

Every connector takes VideoTokens, and the question's TextTokens or None, and gives a Prefix.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from videolm.encoders.blocks import MLP, init_layers
from videolm.types import TextTokens, VideoTokens

Norm = Literal["pre", "post"]


@dataclass(frozen=True, eq=False)
class Prefix:
    """What stands before the words in a language model's sequence."""

    embeds: Float[Tensor, "batch prefix width"]
    mask: Bool[Tensor, "batch prefix"]
    """True = real. The words' positions do not count the others."""


class RelativeTime(nn.Module):
    """Adds to each token a learned vector of its place in the clip, from the first frame to the last.

    Token times between two rows of the table (of merged tokens, or where a clip has more frames than rows) get
    their mix, so that a clip may have any number of frames. A clip of one moment has the first row.
    """

    def __init__(self, *, width: int, max_frames: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(max_frames, width))

    def forward(self, video: VideoTokens) -> Float[Tensor, "batch tokens width"]:
        place = relative_times(video).clamp(0, 1) * (len(self.table) - 1)
        return video.tokens + mix_of_rows(self.table, place)


def mix_of_rows(
    table: Float[Tensor, "rows width"], place: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch width"]:
    """Row of the table at each place in [0, rows - 1], in between the linear mix of the two beside it."""
    low = place.floor().long()
    high = (low + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[low], table[high], (place - low).unsqueeze(-1).to(table.dtype))


def relative_times(video: VideoTokens) -> Float[Tensor, "batch tokens"]:
    """Time of each token, 0 at the clip's first real token and 1 at its last; 0 where the clip has one time only.

    Raises ValueError where times are missing: a head that tells earlier from later cannot do without.
    """
    times = times_of(video).float()
    first = times.masked_fill(~video.mask, torch.inf).amin(dim=1, keepdim=True)
    last = times.masked_fill(~video.mask, -torch.inf).amax(dim=1, keepdim=True)
    span = last - first
    return torch.where(video.mask & (span > 0), (times - first) / span, torch.zeros_like(times))


class Resampler(nn.Module):
    """Identity and a linear layer, or learned queries that gather the video's tokens, or each frame's.

    Without `num_queries` every token becomes one of the prefix: linear (LiMBeR, arXiv 2209.15162), with `mlp_width` a
    two-layer MLP (LLaVA-1.5, arXiv 2310.03744). With it, `depth` layers of attention among the queries, attention
    of the queries to the tokens, and an MLP: a perceiver or Q-Former (arXiv 2204.14198, 2301.12597). A token that
    stands for s original ones counts s times (a key bias of log s).

    `per_frame`: the queries once for each frame, which sees its own tokens only. `question_width` (of the words'
    TextTokens) lets a question take part in the queries' attention, as in InstructBLIP (arXiv 2305.06500), so that
    they gather what it asks for. `max_frames` rows tell the tokens' time. `maxima` puts one token for each frame
    before all others, the maxima over its own: what a small thing shows is found there at once, while queries have to
    learn where to look.
    """

    def __init__(
        self,
        *,
        width: int,
        out_width: int,
        num_queries: int = 0,
        depth: int = 2,
        query_width: int = 256,
        num_heads: int = 4,
        mlp_width: int = 0,
        per_frame: bool = False,
        question_width: int = 0,
        max_frames: int = 0,
        maxima: bool = False,
    ) -> None:
        super().__init__()
        if num_queries == 0 and (per_frame or question_width):
            raise ValueError("per_frame and question_width are for queries; num_queries (0) must be above 0")
        self.per_frame = per_frame
        self.time = RelativeTime(width=width, max_frames=max_frames) if max_frames else None
        self.norm = nn.LayerNorm(width)
        self.queries: nn.Parameter | None = None
        self.question: nn.Linear | None = None
        layers: list[QueryLayer] = []
        if num_queries:
            self.queries = nn.Parameter(torch.randn(num_queries, query_width) * query_width**-0.5)
            self.question = nn.Linear(question_width, query_width) if question_width else None
            layers = [
                QueryLayer(
                    width=query_width,
                    key_width=width,
                    num_heads=num_heads,
                    mlp_width=mlp_width or 4 * query_width,
                )
                for _ in range(depth)
            ]
        self.layers = nn.ModuleList(layers)
        last_width = query_width if num_queries else width
        self.out: nn.Module = nn.Linear(last_width, out_width)
        if not num_queries and mlp_width:
            self.out = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, out_width))
        self.best = nn.Linear(width, out_width) if maxima else None

    def forward(self, video: VideoTokens, question: TextTokens | None = None) -> Prefix:
        if (question is None) != (self.question is None):
            raise ValueError(
                f"question is {'missing' if question is None else 'given'}, but this connector was made "
                f"{'with' if self.question is not None else 'without'} question_width"
            )
        tokens = self.norm(video.tokens if self.time is None else self.time(video))
        gathered = self._gather(video, tokens, question)
        if self.best is None:
            return gathered
        frames = frames_of(video)
        best = frames.gather(tokens).masked_fill(~frames.mask.unsqueeze(-1), -torch.inf).amax(dim=2)
        exists = frames.mask.any(dim=2)
        best = self.best(best.masked_fill(~exists.unsqueeze(-1), 0))
        return Prefix(torch.cat([best, gathered.embeds], dim=1), torch.cat([exists, gathered.mask], dim=1))

    def _gather(
        self, video: VideoTokens, tokens: Float[Tensor, "batch tokens width"], question: TextTokens | None
    ) -> Prefix:
        if self.queries is None:
            return Prefix(self.out(tokens), video.mask)
        groups, sizes, exists = tokens.unsqueeze(1), video.sizes.unsqueeze(1), video.mask.unsqueeze(1)
        if self.per_frame:
            frames = frames_of(video)
            groups, sizes, exists = frames.gather(tokens), frames.gather(video.sizes), frames.mask
        num_groups = groups.shape[1]
        groups = groups.flatten(0, 1)
        bias = key_bias(sizes.flatten(0, 1), exists.flatten(0, 1)).to(tokens.dtype)
        queries = self.queries.expand(len(groups), -1, -1)
        words, word_bias = None, None
        if self.question is not None and question is not None:
            words = self.question(question.tokens.to(tokens.dtype)).repeat_interleave(num_groups, dim=0)
            word_bias = key_bias(None, question.mask).to(tokens.dtype).repeat_interleave(num_groups, dim=0)
        for layer in self.layers:
            queries, words = layer(queries, words, word_bias, groups, bias)
        return Prefix(
            embeds=self.out(queries).unflatten(0, (-1, num_groups)).flatten(1, 2),
            mask=exists.any(dim=2).repeat_interleave(queries.shape[1], dim=1),
        )


class QueryLayer(nn.Module):
    """Attention among queries (and words), of the queries to the tokens, and an MLP; norms before each."""

    def __init__(self, *, width: int, key_width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"query_width ({width}) must be a multiple of num_heads ({num_heads})")
        self.num_heads = num_heads
        self.ln_self = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.ln_cross = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(key_width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.ln_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width=width, mlp_width=mlp_width, activation="gelu")
        init_layers(self.qkv, self.self_out, self.mlp, width=width, residual_std=width**-0.5 / 2)

    def forward(
        self,
        queries: Float[Tensor, "groups queries width"],
        words: Float[Tensor, "groups words width"] | None,
        word_bias: Float[Tensor, "groups words"] | None,
        tokens: Float[Tensor, "groups tokens key_width"],
        bias: Float[Tensor, "groups tokens"],
    ) -> tuple[Float[Tensor, "groups queries width"], Float[Tensor, "groups words width"] | None]:
        num_queries = queries.shape[1]
        rows = queries if words is None else torch.cat([queries, words], dim=1)
        row_bias = None if word_bias is None else F.pad(word_bias, (num_queries, 0))
        query, key, value = self.qkv(self.ln_self(rows)).chunk(3, dim=-1)
        rows = rows + self.self_out(attend_heads(query, key, value, row_bias, num_heads=self.num_heads))
        queries = rows[:, :num_queries]
        key, value = self.key_value(tokens).chunk(2, dim=-1)
        query = self.query(self.ln_cross(queries))
        gathered = attend_heads(query, key, value, bias, num_heads=self.num_heads)
        queries = queries + self.cross_out(gathered)
        rows = queries if words is None else torch.cat([queries, rows[:, num_queries:]], dim=1)
        rows = rows + self.mlp(self.ln_mlp(rows))
        return rows[:, :num_queries], None if words is None else rows[:, num_queries:]


def attend_heads(
    query: Float[Tensor, "groups queries width"],
    key: Float[Tensor, "groups keys width"],
    value: Float[Tensor, "groups keys width"],
    bias: Float[Tensor, "groups keys"] | None,
    *,
    num_heads: int,
) -> Float[Tensor, "groups queries width"]:
    """softmax(q k^T / sqrt(Dh) + bias) v in every head; `bias` is one value a key."""

    def split(rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], num_heads, -1).transpose(1, 2)

    mask = None if bias is None else bias[:, None, None, :]
    out = F.scaled_dot_product_attention(split(query), split(key), split(value), attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def key_bias(
    sizes: Float[Tensor, "batch keys"] | None, mask: Bool[Tensor, "batch keys"]
) -> Float[Tensor, "batch keys"]:
    """log(size) of each key, and -inf for one that does not exist; a row in which none does has zeros, not NaN."""
    bias = (
        torch.zeros(mask.shape, device=mask.device) if sizes is None else sizes.float().clamp(min=1e-6).log()
    )
    return bias.masked_fill(~mask & mask.any(dim=1, keepdim=True), -torch.inf)


def refuse_question(question: TextTokens | None) -> None:
    """ValueError where a connector that reads no question got one."""
    if question is not None:
        raise ValueError("question is given, but this connector reads the video only; leave it out")


@dataclass(frozen=True, eq=False)
class Frames:
    """Which tokens belong to which frame of their clip, padded to the most frames and the most tokens."""

    places: Int[Tensor, "batch frames tokens"]
    """Where each token stands in its clip; 0 where there is none."""
    mask: Bool[Tensor, "batch frames tokens"]
    """True = a token."""

    def gather(self, rows: Float[Tensor, "batch all ..."]) -> Float[Tensor, "batch frames tokens ..."]:
        """What belongs to the tokens, frame by frame."""
        index = self.places.flatten(1)
        picked = rows[torch.arange(len(rows), device=rows.device)[:, None], index]
        return picked.view(*self.places.shape, *rows.shape[2:])


def frames_of(video: VideoTokens) -> Frames:
    """The frames of each clip, which are its runs of tokens of one time; a clip's do not depend on its neighbours.

    Two frames that follow each other with the same time count as one. Raises ValueError where times are missing,
    and where a reduction plan has joined frames: a time then comes back, or frames have unequal numbers of tokens of
    which some are merged.
    """
    times = times_of(video)
    # those that exist first, in their order
    order = (~video.mask).to(torch.int8).argsort(dim=1, stable=True)
    times, real, sizes = (rows.gather(1, order) for rows in (times, video.mask, video.sizes))
    begins = real & (F.pad(times[:, 1:] != times[:, :-1], (1, 0), value=True))
    frame = begins.long().cumsum(dim=1) - 1
    place = torch.arange(times.shape[1], device=times.device).expand_as(frame)
    slot = place - place.masked_fill(~begins, 0).cummax(dim=1).values
    comes_back = times.masked_fill(~begins, torch.nan).sort(dim=1).values
    comes_back = (comes_back[:, 1:] == comes_back[:, :-1]).any()
    ends = F.pad(begins[:, 1:] | ~real[:, 1:], (0, 1), value=True) & real
    fewest = slot.masked_fill(~ends, times.shape[1]).amin(dim=1)
    is_uneven = fewest < slot.masked_fill(~real, 0).amax(dim=1)
    is_merged = ((sizes > 1) & real).any(dim=1)
    # in one go: each of them makes the host wait for the device
    num_frames, num_slots, is_joined = torch.stack(
        [
            frame.masked_fill(~real, -1).amax() + 1,
            slot.masked_fill(~real, -1).amax() + 1,
            (comes_back | (is_uneven & is_merged).any()).long(),
        ]
    ).tolist()
    if is_joined:
        raise ValueError(
            "this connector reads frame by frame, but a reduction plan has joined frames, or the clip shows a time "
            "twice; take a plan that leaves frames apart, such as tome:r=1"
        )
    where = (frame * num_slots + slot).masked_fill(~real, num_frames * num_slots)
    # one more place, for what does not exist
    empty = torch.zeros(len(where), num_frames * num_slots + 1, dtype=torch.int64, device=where.device)
    places, exists = (
        empty.scatter(1, where, rows)[:, :-1].reshape(-1, num_frames, num_slots)
        for rows in (order, real.long())
    )
    return Frames(places, exists.bool())


def times_of(video: VideoTokens) -> Float[Tensor, "batch tokens"]:
    """The tokens' times; ValueError where they are missing."""
    if bool((video.pts_seconds.isnan() & video.mask).any()):
        raise ValueError("the tokens have no times (NaN); give pts_seconds to encode_video")
    return video.pts_seconds
