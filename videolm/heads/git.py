"""GIT's decoder and what it reads of a video. Source: arXiv 2205.14100; equal to transformers' GitForCausalLM.

Prefix and words go through one transformer with norms behind each layer's parts, as BERT's. The prefix enters as it
is; a word is the norm of its embedding and its place among the words.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, GitConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.git.modeling_git import GitEncoder, GitPreTrainedModel

from videolm.heads.resampler import Prefix, frames_of, mix_of_rows, refuse_question
from videolm.types import TextTokens, VideoTokens


class GitDecoder(GitPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The part of a GIT that speaks, as a causal language model of transformers; of its config no picture is used.

    `prefix_mask` says which places of the sequence's beginning are the prefix's, True on those that exist. Positions
    count prefix and words, those that exist, and the decoder takes the prefix off again. That the prefix sees
    all of itself is in the mask that PrefixLM makes.
    """

    _tied_weights_keys = {"output.weight": "word_embeddings.weight"}  # noqa: RUF012 (of transformers' base class)

    def __init__(self, config: GitConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.encoder = GitEncoder(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """What words are before they know their places."""
        return self.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        """The layer whose rows are the vocabulary."""
        return self.output

    def forward(
        self,
        input_ids: Int[Tensor, "batch words"] | None = None,
        *,
        position_ids: Int[Tensor, "batch all"],
        prefix_mask: Tensor,
        attention_mask: Tensor | None = None,
        inputs_embeds: Float[Tensor, "batch all width"] | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the last `logits_to_keep` places, of all where it is 0."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        has_read_prefix = past_key_values is not None and past_key_values.get_seq_length() > 0
        num_places = 0 if has_read_prefix else prefix_mask.shape[1]
        embeds = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        places = (position_ids - prefix_mask.sum(dim=1, keepdim=True)).clamp(min=0)[:, num_places:]
        words = self.norm(embeds[:, num_places:] + self.position_embeddings(places))
        embeds = torch.cat([embeds[:, :num_places], self.dropout(words)], dim=1)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        hidden = self.encoder(embeds, attention_mask=mask, past_key_values=past_key_values).last_hidden_state
        return CausalLMOutputWithPast(
            logits=self.output(hidden[:, -logits_to_keep:]), past_key_values=past_key_values
        )


class GitConnector(nn.Module):
    """Every token of every frame, told the place of its frame: norm, + time, linear layer, norm.

    `norm` is the last one of the tower, which VideoTokens come without. `max_frames` rows tell a frame's place among
    those of its clip, the first row that of the first; more frames than rows take their mix, evenly over the table.
    With `max_frames=0`, of a checkpoint that was trained with pictures only, no frame knows its place.
    """

    def __init__(self, *, width: int, out_width: int, max_frames: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.time = nn.Parameter(torch.zeros(max_frames, width)) if max_frames else None
        self.out = nn.Sequential(nn.Linear(width, out_width), nn.LayerNorm(out_width, eps=layer_norm_eps))

    def forward(self, video: VideoTokens, question: TextTokens | None = None) -> Prefix:
        refuse_question(question)
        tokens = self.norm(video.tokens)
        if self.time is not None:
            ordinal = frame_ordinals(video)
            last = ordinal.amax(dim=1, keepdim=True).clamp(min=1)
            last_row = len(self.time) - 1
            tokens = tokens + mix_of_rows(self.time, ordinal * (last_row / last).clamp(max=1))
        return Prefix(self.out(tokens), video.mask)


def frame_ordinals(video: VideoTokens) -> Int[Tensor, "batch tokens"]:
    """Place of each token's time among the distinct times of its clip, from 0; 0 for padding.

    Two frames of one time count as one. Raises ValueError where times are missing or a plan has joined frames, so that
    there are times between theirs.
    """
    frames_of(video)
    times, mask = video.pts_seconds, video.mask
    ascending = times.masked_fill(~mask, torch.inf).sort(dim=1)
    is_later = ascending.values[:, 1:] > ascending.values[:, :-1]
    rank = torch.cat([torch.zeros_like(is_later[:, :1]), is_later], dim=1).cumsum(dim=1)
    return torch.zeros_like(rank).scatter(1, ascending.indices, rank).masked_fill(~mask, 0)
