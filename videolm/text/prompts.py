"""Texts as a language model reads and writes them: prompts that end open, targets that end, and back to text."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from videolm.text.tokenizer import unknown_words

Ids = Int[Tensor, "batch words"]
Mask = Bool[Tensor, "batch words"]


class PromptTokenizer:
    """Token ids of prompts and targets, without the special tokens that the backend would add.

    A prompt is the start token and the words, open at its end and padded on the left; a target is the words and the
    end token, padded on the right. Lower-casing and splitting are the backend's. Text is text: a special token that
    somebody writes into it is split as any other characters are.

    The backend is this tokenizer's from here on: its padding and truncation are switched off.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, start_token_id: int, eos_token_id: int, pad_token_id: int
    ) -> None:
        vocab_size = backend.get_vocab_size()
        for name, value in (
            ("start_token_id", start_token_id),
            ("eos_token_id", eos_token_id),
            ("pad_token_id", pad_token_id),
        ):
            if not 0 <= value < vocab_size:
                raise ValueError(f"{name} ({value}) must be in [0, {vocab_size}), inside the vocabulary")
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self.backend = backend
        self.start_token_id = start_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self._marks_spaces = _marks_spaces(backend)

    def prompts(self, texts: Sequence[str]) -> tuple[Ids, Mask]:
        """int64 ids and the mask that is True on them; an empty text is the start token alone."""
        rows = [[self.start_token_id, *ids] for ids in self._words(texts)]
        ids, mask = self._pad([row[::-1] for row in rows])
        return ids.flip(1), mask.flip(1)

    def targets(self, texts: Sequence[str], *, after: Sequence[str] | None = None) -> tuple[Ids, Mask]:
        """int64 ids and the mask that is True on them, the end token among them.

        `after` are the prompts that they follow, one each; without, they follow the start token. Where a vocabulary
        keeps the space with the word behind it, as GPT-2's, a text behind words begins with one, as it would be
        written.
        """
        if after is not None and len(after) != len(texts):
            raise ValueError(f"after has {len(after)} prompts for {len(texts)} texts; give each text its own")
        if after is not None and self._marks_spaces:
            texts = [_spaced(text, prompt) for text, prompt in zip(texts, after, strict=True)]
        return self._pad([[*ids, self.eos_token_id] for ids in self._words(texts)])

    def decode(self, ids: Int[Tensor, "batch new"]) -> list[str]:
        """The text of each row up to its first end token, special tokens left out."""
        texts = []
        for row in ids.tolist():
            if self.eos_token_id in row:
                row = row[: row.index(self.eos_token_id)]
            texts.append(self.backend.decode(row, skip_special_tokens=True).strip())
        return texts

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that become the unknown token."""
        return unknown_words(self.backend, text)

    def save(self, path: str | Path) -> None:
        """Writes the backend as tokenizer.json to `path`."""
        self.backend.save(str(path))

    def _words(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str):
            raise TypeError(f"texts must be a sequence of texts, got one str; pass [{texts!r}]")
        if not texts:
            raise ValueError("texts is empty; pass at least one text")
        return [list(e.ids) for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def _pad(self, rows: list[list[int]]) -> tuple[Ids, Mask]:
        longest = max(len(row) for row in rows)
        ids = torch.tensor([row + [self.pad_token_id] * (longest - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(longest) < lengths[:, None]


def _marks_spaces(backend: tokenizers.Tokenizer) -> bool:
    """Whether a word has other ids behind another one than at the beginning of a text."""
    alone, twice = (backend.encode(text, add_special_tokens=False).ids for text in ("a", "a a"))
    return bool(twice != [*alone, *alone])


def _spaced(text: str, prompt: str) -> str:
    is_apart = not prompt or prompt[-1].isspace() or not text or text[0].isspace()
    return text if is_apart else f" {text}"
