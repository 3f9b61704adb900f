"""Sentences to token ids, by the tokenizers that transformers brings."""

import gzip
import hashlib
import json
import re
import string
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from jaxtyping import Bool, Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

# Ids 0 to 4 of every vocabulary built here, in this order.
PAD, UNKNOWN, MASK, START, END = "<|pad|>", "<|unk|>", "<|mask|>", "<|start|>", "<|end|>"
_SPECIAL_TOKENS = (PAD, UNKNOWN, MASK, START, END)

_BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
_NUM_BPE_MERGES = 48894
_MAX_BPE_CHARACTERS = 8_000_000


class Tokenizer:
    """Token ids of a batch of sentences, each from its start token to its end token.

    Lower-casing, splitting and the special tokens are the backend's, as its tokenizer.json says. With
    `fill_context` every sentence is padded to `context_length`, for towers that read the padding too.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        context_length: int,
        eos_token_id: int,
        pad_token_id: int,
        fill_context: bool = False,
    ) -> None:
        if context_length < 2:
            raise ValueError(f"context_length ({context_length}) must be at least 2, for start and end")
        vocab_size = backend.get_vocab_size()
        for name, value in (("eos_token_id", eos_token_id), ("pad_token_id", pad_token_id)):
            if not 0 <= value < vocab_size:
                raise ValueError(f"{name} ({value}) must be in [0, {vocab_size}), inside the vocabulary")
        # What the file says of padding and truncation is the caller's to decide.
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.context_length = context_length
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.fill_context = fill_context

    def vocabulary_sha256(self) -> str:
        """Hash of all tokens with their ids."""
        vocabulary = sorted(self._backend.get_vocab().items())
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()

    def unknown_words(self, text: str) -> list[str]:
        """The words of a sentence that become the unknown token; never any where the vocabulary has none."""
        return unknown_words(self._backend, text)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special ones included."""
        return self._backend.get_vocab_size()

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[Int[Tensor, "batch words"], Bool[Tensor, "batch words"]]:
        """int64 ids and the mask that is True on them, padded on the right to the longest sentence or the context.

        A sentence longer than `context_length` loses its last words and keeps its end token. An empty one is
        start and end alone.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be a sequence of sentences, got one str; pass [{texts!r}]")
        if not texts:
            raise ValueError("texts is empty; pass at least one sentence")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{i}] must be a str, got {type(text).__name__}")
        rows = [self._cut(encoding.ids) for encoding in self._backend.encode_batch(list(texts))]
        longest = self.context_length if self.fill_context else max(len(row) for row in rows)
        input_ids = torch.tensor([row + [self.pad_token_id] * (longest - len(row)) for row in rows])
        num_words = torch.tensor([len(row) for row in rows])
        return input_ids, torch.arange(longest) < num_words[:, None]

    def copy_backend(self) -> tokenizers.Tokenizer:
        """The vocabulary and its rules, for another use of them."""
        return tokenizers.Tokenizer.from_str(self._backend.to_str())

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json, from which `load_tokenizer` makes the same tokenizer."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        # A copy, because the padding that the file names is not done by the backend here.
        backend = self.copy_backend()
        if self.fill_context:
            backend.enable_padding(
                length=self.context_length,
                pad_id=self.pad_token_id,
                pad_token=backend.id_to_token(self.pad_token_id),
            )
        backend.save(str(Path(folder) / "tokenizer.json"))

    def _cut(self, ids: list[int]) -> list[int]:
        if not ids or ids[-1] != self.eos_token_id:
            last = ids[-1] if ids else None
            raise ValueError(
                f"the tokenizer ends a sentence with token {last}, not with eos_token_id "
                f"({self.eos_token_id}); is it the model's own?"
            )
        return (
            ids if len(ids) <= self.context_length else [*ids[: self.context_length - 1], self.eos_token_id]
        )


def unknown_words(backend: tokenizers.Tokenizer, text: str) -> list[str]:
    """The words of a text that become the unknown token; never any where the vocabulary has none."""
    unknown = backend.token_to_id(getattr(backend.model, "unk_token", None) or UNKNOWN)
    if unknown is None:
        return []
    # without special tokens: a vocabulary may use its end token for what it does not know
    encoding = backend.encode(text, add_special_tokens=False)
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    return [text[start:end] for token, (start, end) in spans if token == unknown]


def load_tokenizer(
    folder: str | Path, *, context_length: int, eos_token_id: int, fill_context: bool = False
) -> Tokenizer:
    """The tokenizer of a local folder: tokenizer.json, CLIP's vocab.json with merges.txt, or OpenAI's BPE file.

    Pads with `<|pad|>` where the vocabulary has it, then with what tokenizer.json or tokenizer_config.json say,
    and otherwise with the end token; a tower that reads at the first end token sees no difference. SigLIP's text
    is put into the form of its training: lower case, and for the first SigLIP without punctuation.
    """
    folder = Path(folder)
    backend = _read_backend(folder)
    settings = _read_settings(folder)
    if fill_context:
        _add_siglip_normalizers(backend, settings.get("tokenizer_class"))
    return Tokenizer(
        backend,
        context_length=context_length,
        eos_token_id=eos_token_id,
        pad_token_id=_pad_token_id(backend, settings, eos_token_id=eos_token_id),
        fill_context=fill_context,
    )


def _read_backend(folder: Path) -> tokenizers.Tokenizer:
    backend: tokenizers.Tokenizer
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(file))
        # The library raises Exception itself, whatever is wrong with the file.
        except Exception as error:
            raise ValueError(f"{file}: not a tokenizer ({error})") from error
    from transformers import CLIPTokenizer

    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
    elif (folder / _BPE_FILE).is_file():
        vocab, merges = _read_bpe(folder / _BPE_FILE)
        backend = CLIPTokenizer(vocab=vocab, merges=merges).backend_tokenizer
    else:
        raise FileNotFoundError(
            f"{folder} has no tokenizer; looked for tokenizer.json, vocab.json with merges.txt, and {_BPE_FILE}"
        )
    return backend


def _read_bpe(file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of openai/CLIP's file: bytes, bytes that end a word, merges, start and end."""
    try:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            # It unpacks to 3 million characters; a file that was made to fill the memory is cut here.
            lines = stream.read(_MAX_BPE_CHARACTERS).split("\n")
        merges = [(left, right) for left, right in (line.split() for line in lines[1 : _NUM_BPE_MERGES + 1])]
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{file}: not openai/CLIP's vocabulary ({error})") from error
    if len(merges) != _NUM_BPE_MERGES:
        raise ValueError(
            f"{file}: openai/CLIP's vocabulary has {_NUM_BPE_MERGES:,} merges, this {len(merges):,}"
        )
    # Bytes that can be seen stand for themselves, in front of the others.
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    num_hidden = 256 - len(visible)
    letters = [*map(chr, visible), *map(chr, range(256, 256 + num_hidden))]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(left + right for left, right in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return {token: i for i, token in enumerate(tokens)}, merges


def _read_settings(folder: Path) -> dict[str, object]:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not readable as JSON ({error})") from error
    return settings if isinstance(settings, dict) else {}


def _pad_token_id(backend: tokenizers.Tokenizer, settings: dict[str, object], *, eos_token_id: int) -> int:
    named = settings.get("pad_token")
    if isinstance(named, dict):
        named = named.get("content")
    for pad_token_id in (
        backend.token_to_id(PAD),
        (backend.padding or {}).get("pad_id"),
        backend.token_to_id(named) if isinstance(named, str) else None,
    ):
        if pad_token_id is not None:
            return int(pad_token_id)
    return eos_token_id


def _add_siglip_normalizers(backend: tokenizers.Tokenizer, tokenizer_class: object) -> None:
    """What SigLIP's training did to text, in front of the backend's own normalizer unless that does it."""
    own = backend.normalizer

    def keeps(text: str) -> bool:
        return own is None or text in own.normalize_str(text)

    steps: list[normalizers.Normalizer] = []
    if keeps("A"):
        steps.append(normalizers.Lowercase())
    if tokenizer_class == "SiglipTokenizer" and keeps(","):
        steps += [
            normalizers.Replace(tokenizers.Regex(f"[{re.escape(string.punctuation)}]"), ""),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    if steps:
        backend.normalizer = normalizers.Sequence([*steps, *([own] if own else [])])


def build_word_tokenizer(words: Sequence[str], *, context_length: int) -> Tokenizer:
    """A lower-case word-level tokenizer: ids 0-4 are pad, unknown, mask, start and end, then `words`, sorted.

    Text is split at white space, and every punctuation mark is a token of its own; a word that is not in
    `words` becomes unknown. The order and repetition of `words` do not matter.
    """
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    known = sorted({word.lower() for word in words})
    for word in known:
        pieces = [piece for piece, _ in split.pre_tokenize_str(word)]
        if pieces != [word]:
            raise ValueError(
                f"words ({word!r}) must be one token each, but text is split into {pieces}; pass those"
            )
        if word in _SPECIAL_TOKENS:
            raise ValueError(f"words ({word!r}) must not repeat a special token")
    vocab = {token: i for i, token in enumerate((*_SPECIAL_TOKENS, *known))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = split
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocab[START]), (END, vocab[END])]
    )
    # written back, a comma stands at the word before it
    backend.decoder = decoders.WordPiece(cleanup=True)
    backend.add_special_tokens(list(_SPECIAL_TOKENS))
    return Tokenizer(backend, context_length=context_length, eos_token_id=vocab[END], pad_token_id=vocab[PAD])
