"""A causal language model that reads a video first: captions, and answers to a question as its prompt.

The sequence is [prefix | prompt | target]. A prompt always has a token at least, the one that starts a text, so
that the first word of a caption has something to follow.
"""

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from videolm.heads.language_models import (
    PrefixAttention,
    add_lora,
    check_language_model,
    forget_generation_config,
    max_places,
)
from videolm.heads.prefix_mask import let_prefix_see_itself, positions, seeing_itself
from videolm.heads.resampler import Prefix
from videolm.types import TextTokens, VideoTokens

Tune = Literal["full", "lora", "frozen"]
# What the keys, values and logits of candidates that are read together may take.
_BYTES_AT_ONCE = 2**30
_REFUSED_SETTINGS = {
    "eos_token_id": "it is the head's own",
    "pad_token_id": "it is the head's own",
    "inputs_embeds": "it is made of prefix and prompt",
    "attention_mask": "it is made of prefix and prompt",
    "generation_config": "give what is in it by name",
    "return_dict_in_generate": "token ids are returned",
    "prefill_chunk_size": "the prefix is read in one piece",
}
IGNORED = -100
"""Target of a place that does not count in the loss."""


class PrefixLM(nn.Module):
    """A causal language model of transformers behind a connector, by `inputs_embeds`.

    `language_models.check_language_model` says which models will do. What came with a checkpoint for `generate`,
    sampling and penalties, is forgotten: only what is asked for counts.
    `connector(video, question)` makes the Prefix, a question's TextTokens being None where it takes none.
    With `prefix_attention="full"` the places of the prefix see each other in both directions, as in GIT (arXiv
    2205.14100); the words see the prefix and the words before them either way. Positions count what exists, so that
    neither padding nor a shorter clip moves a word.

    `tune` says what of the language model is trained: all of it, low-rank additions (LoRA, by peft), or nothing; the
    connector always is.
    """

    def __init__(
        self,
        lm: Any,
        connector: nn.Module,
        *,
        start_token_id: int,
        eos_token_id: int,
        pad_token_id: int,
        prefix_attention: PrefixAttention = "causal",
        tune: Tune = "full",
        lora_rank: int = 8,
    ) -> None:
        super().__init__()
        check_language_model(lm, prefix_attention=prefix_attention)
        forget_generation_config(lm)
        self.lm: Any = lm
        self.connector = connector
        self.start_token_id = start_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.prefix_attention = prefix_attention
        self._lm_asks_for_prefix = "prefix_mask" in signature(lm.forward).parameters
        if prefix_attention == "full":
            self.lm.register_forward_pre_hook(let_prefix_see_itself, with_kwargs=True)
        if tune == "lora":
            add_lora(self.lm, rank=lora_rank)
        elif tune == "frozen":
            self.lm.requires_grad_(False)

    def prefix(self, video: VideoTokens, question: TextTokens | None = None) -> Prefix:
        """What the language model reads of the video, in its dtype."""
        prefix: Prefix = self.connector(video, question)
        return Prefix(prefix.embeds.to(self.lm.dtype), prefix.mask)

    def forward(
        self,
        prefix: Prefix,
        input_ids: Int[Tensor, "texts words"],
        mask: Bool[Tensor, "texts words"],
    ) -> Float[Tensor, "texts words vocab"]:
        """Logits of the token that follows each word, every word given (teacher forcing).

        As many texts for every row of the prefix, those of one after another; several share what is read of it.
        """
        if len(input_ids) != len(prefix.embeds):
            return self._several(prefix, input_ids, mask)
        embeds, exists = self._join(prefix, input_ids, mask)
        with self._in_view(prefix):
            out = self.lm(
                inputs_embeds=embeds,
                attention_mask=exists,
                position_ids=positions(exists),
                use_cache=False,
                logits_to_keep=input_ids.shape[1],
                **self._told(prefix.mask),
            )
        logits: Tensor = out.logits
        return logits

    def _several(
        self,
        prefix: Prefix,
        input_ids: Int[Tensor, "texts words"],
        mask: Bool[Tensor, "texts words"],
    ) -> Float[Tensor, "texts words vocab"]:
        if len(input_ids) % len(prefix.embeds):
            raise ValueError(
                f"{len(input_ids)} texts cannot be of {len(prefix.embeds)} videos, the same number of each"
            )
        self._check_vocabulary("input_ids", input_ids)
        self._check_room(prefix, mask)
        with self._in_view(prefix):
            read = self._read(prefix.embeds, prefix.mask, prefix.mask)
            return self._continue(read.past_key_values, prefix.mask, prefix.mask, input_ids, mask)

    def loss(
        self,
        prefix: Prefix,
        input_ids: Int[Tensor, "texts words"],
        mask: Bool[Tensor, "texts words"],
        targets: Int[Tensor, "texts words"],
        *,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, ""]:
        """Mean cross entropy of the targets; `targets[b, l]` follows word l, IGNORED where it does not count.

        0 where none counts.
        """
        logits = self(prefix, input_ids, mask).float()
        total = F.cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        return total / (targets != IGNORED).sum().clamp(min=1)

    @torch.no_grad()
    def generate(
        self,
        prefix: Prefix,
        prompt_ids: Int[Tensor, "batch words"],
        prompt_mask: Bool[Tensor, "batch words"],
        **settings: Any,
    ) -> Int[Tensor, "batch new"]:
        """New tokens only, by transformers' own `generate`, which takes `settings` (max_new_tokens, num_beams, ...).

        Prompts of different lengths are padded on the left. With `num_return_sequences` rows of one video follow each
        other. A row that ended early is filled with `pad_token_id`. Without `do_sample` nothing is drawn.
        """
        for name, why in _REFUSED_SETTINGS.items():
            if name in settings:
                raise ValueError(f"{name} ({settings[name]!r}) is no setting here: {why}")
        if settings.get("cache_implementation") not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation ({settings['cache_implementation']!r}) must be 'dynamic', which grows with "
                "the text"
            )
        _check_on_left(prompt_mask)
        # the last token is written, not read
        num_more = max((settings.get("max_new_tokens") or 1) - 1, 0)
        embeds, exists = self._join(prefix, prompt_ids, prompt_mask, num_more=num_more)
        with self._in_view(prefix):
            ids: Tensor = self.lm.generate(
                inputs_embeds=embeds,
                attention_mask=exists.long(),
                eos_token_id=self.eos_token_id,
                pad_token_id=self.pad_token_id,
                **self._told(prefix.mask),
                **settings,
            )
        return ids

    def log_likelihood(
        self,
        prefix: Prefix,
        prompt_ids: Int[Tensor, "batch words"],
        prompt_mask: Bool[Tensor, "batch words"],
        target_ids: Int[Tensor, "batch candidates target"],
        target_mask: Bool[Tensor, "batch candidates target"],
    ) -> Float[Tensor, "batch candidates"]:
        """log p(target | prefix, prompt) of each candidate, summed over its tokens, float32.

        Prefix and prompt are read once, and their keys and values shared by a video's candidates. Prompts are padded
        on the left, targets on the right; a target without a token has log-likelihood 0.
        """
        _check_on_left(prompt_mask)
        if bool((target_mask[:, :, 1:] & ~target_mask[:, :, :-1]).any()):
            raise ValueError("targets must be padded on the right: their first token follows the prompt")
        if not target_ids.numel():
            return torch.zeros(target_ids.shape[:2], device=target_ids.device)
        self._check_vocabulary("target_ids", target_ids)
        embeds, exists = self._join(prefix, prompt_ids, prompt_mask, num_more=target_ids.shape[2])
        with self._in_view(prefix):
            read = self._read(embeds, exists, prefix.mask)
        at_once = self._candidates_at_once(read.past_key_values, target_ids)
        parts = zip(*(torch.split(rows, at_once, dim=1) for rows in (target_ids, target_mask)), strict=True)
        scores = [self._continued(read, exists, prefix.mask, ids, mask) for ids, mask in parts]
        return torch.cat(scores, dim=1)

    def _continued(
        self,
        read: Any,
        exists: Bool[Tensor, "batch all"],
        prefix_mask: Bool[Tensor, "batch prefix"],
        target_ids: Int[Tensor, "batch candidates target"],
        target_mask: Bool[Tensor, "batch candidates target"],
    ) -> Float[Tensor, "batch candidates"]:
        """log p of targets behind what was `read`, whose cache is afterwards what it was."""
        num_candidates = target_ids.shape[1]
        ids, mask = target_ids.flatten(0, 1), target_mask.flatten(0, 1)
        cache = read.past_key_values
        rest = self._continue(cache, exists, prefix_mask, ids, mask)
        cache.crop(-ids.shape[1])
        cache.batch_select_indices(torch.arange(0, len(ids), num_candidates, device=ids.device))
        first = read.logits[:, -1:].repeat_interleave(num_candidates, dim=0)
        logits = torch.cat([first, rest[:, :-1]], dim=1).float()
        chosen = logits.log_softmax(dim=-1).gather(2, ids.unsqueeze(-1)).squeeze(-1)
        return chosen.masked_fill(~mask, 0).sum(dim=1).view(target_ids.shape[:2])

    def _read(
        self,
        embeds: Float[Tensor, "batch all width"],
        exists: Bool[Tensor, "batch all"],
        prefix_mask: Bool[Tensor, "batch prefix"],
    ) -> Any:
        """The language model's output, with its cache and the logits of the last place alone."""
        return self.lm(
            inputs_embeds=embeds,
            attention_mask=exists,
            position_ids=positions(exists),
            use_cache=True,
            logits_to_keep=1,
            **self._told(prefix_mask),
        )

    def _continue(
        self,
        cache: Any,
        exists: Bool[Tensor, "batch all"],
        prefix_mask: Bool[Tensor, "batch prefix"],
        input_ids: Int[Tensor, "texts words"],
        mask: Bool[Tensor, "texts words"],
    ) -> Float[Tensor, "texts words vocab"]:
        """Logits of texts behind what was read, as many for every row, which `cache` holds afterwards."""
        times = len(input_ids) // len(exists)
        cache.batch_repeat_interleave(times)
        known = torch.cat([exists.repeat_interleave(times, dim=0), mask], dim=1)
        logits: Tensor = self.lm(
            input_ids=input_ids,
            attention_mask=known,
            position_ids=positions(known)[:, exists.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            **self._told(prefix_mask.repeat_interleave(times, dim=0)),
        ).logits
        return logits

    def _candidates_at_once(self, cache: Any, target_ids: Int[Tensor, "batch candidates target"]) -> int:
        """Of each video, so that their keys and values, and twice their logits, stay within _BYTES_AT_ONCE."""
        batch, _, length = target_ids.shape
        held: int = sum(rows.nbytes for layer in cache.layers for rows in (layer.keys, layer.values)) // batch
        grown = held + held * length // cache.get_seq_length()
        logits = 2 * 4 * length * self.lm.get_input_embeddings().num_embeddings
        at_once: int = _BYTES_AT_ONCE // ((grown + logits) * batch)
        return max(1, at_once)

    def _join(
        self,
        prefix: Prefix,
        input_ids: Int[Tensor, "batch words"],
        mask: Bool[Tensor, "batch words"],
        *,
        num_more: int = 0,
    ) -> tuple[Float[Tensor, "batch all width"], Bool[Tensor, "batch all"]]:
        """ValueError where these and `num_more` places have no room in the model, or an id is not in it."""
        self._check_vocabulary("input_ids", input_ids)
        self._check_room(prefix, mask, num_more=num_more)
        words = self.lm.get_input_embeddings()(input_ids)
        return torch.cat([prefix.embeds, words], dim=1), torch.cat([prefix.mask, mask], dim=1)

    def _check_room(self, prefix: Prefix, mask: Bool[Tensor, "texts words"], *, num_more: int = 0) -> None:
        places = max_places(self.lm)
        if places is not None and prefix.mask.shape[1] + mask.shape[1] + num_more > places:
            # GIT counts its words alone
            num_read = 0 if self._lm_asks_for_prefix else int(prefix.mask.sum(dim=1).max())
            num_words = int(mask.sum(dim=1).max()) + num_more
            if num_read + num_words > places:
                raise ValueError(
                    f"the language model has {places} places, but the video takes {num_read} of them and prompt and "
                    f"text up to {num_words}; give it fewer tokens of the video (a budget), fewer frames or fewer "
                    "words"
                )

    def _check_vocabulary(self, name: str, ids: Int[Tensor, "*batch words"]) -> None:
        vocab_size = self.lm.get_input_embeddings().num_embeddings
        if not bool(((ids >= 0) & (ids < vocab_size)).all()):
            raise ValueError(
                f"{name} ({int(ids.min())} to {int(ids.max())}) must be in [0, {vocab_size}), the vocabulary of the "
                "language model; is the tokenizer the head's own?"
            )

    def _in_view(self, prefix: Prefix) -> AbstractContextManager[None]:
        if self.prefix_attention == "causal":
            return nullcontext()
        return seeing_itself(num_places=prefix.embeds.shape[1])

    def _told(self, prefix_mask: Bool[Tensor, "batch prefix"]) -> dict[str, Tensor]:
        """What a language model that tells the prefix from the words, as GIT's does, gets beside the rest."""
        return {"prefix_mask": prefix_mask} if self._lm_asks_for_prefix else {}


def _check_on_left(prompt_mask: Bool[Tensor, "batch words"]) -> None:
    if not bool(prompt_mask[:, -1].all()):
        raise ValueError("prompts must be padded on the left: their last token is what the answer follows")
