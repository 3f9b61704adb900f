"""Prompts end open, targets end, and together they are what the vocabulary makes of the whole text."""

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from videolm.text.prompts import PromptTokenizer
from videolm.text.tokenizer import build_word_tokenizer

SPECIAL = ["<pad>", "<s>", "</s>"]
TEXTS = ["Question: what colour is it? Answer: red", "Answer: blue red red", "a red circle"]


def byte_level(*, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """As GPT-2's: a space belongs to the word behind it."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 50, trainer)
    return backend


def sentence_piece() -> tokenizers.Tokenizer:
    """As Llama's: every word begins with its space, also the first."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<pad>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator([word for text in TEXTS for word in text.split()] * 50, trainer)
    return backend


def word_level() -> tokenizers.Tokenizer:
    words = [word.strip(":?").lower() for text in TEXTS for word in text.split()]
    return build_word_tokenizer(words, context_length=16).copy_backend()


BACKENDS = {"byte level": byte_level, "sentence piece": sentence_piece, "words": word_level}


def tokenizer(kind: str) -> PromptTokenizer:
    ids = (3, 4, 0) if kind == "words" else (1, 2, 0)
    return PromptTokenizer(BACKENDS[kind](), start_token_id=ids[0], eos_token_id=ids[1], pad_token_id=ids[2])


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("prompt", ["", "what colour is it answer"])
def test_prompt_and_target_are_the_tokens_of_the_whole_text(kind: str, prompt: str) -> None:
    made = tokenizer(kind)
    whole = BACKENDS[kind]().encode(f"{prompt} red".strip(), add_special_tokens=False).ids
    read = made.prompts([prompt])[0][0].tolist()
    written = made.targets(["red"], after=[prompt])[0]
    assert [*read, *written[0].tolist()] == [made.start_token_id, *whole, made.eos_token_id]
    assert made.decode(written) == ["red"]


def test_each_target_follows_its_own_prompt() -> None:
    made = tokenizer("byte level")
    ids, mask = made.targets(["red", "red", "red", " red"], after=["Answer:", "", "Answer: ", "Answer:"])
    rows = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
    behind, alone = ([*made.backend.encode(text).ids, 2] for text in (" red", "red"))
    assert behind != alone
    assert rows == [behind, alone, alone, behind]
    assert made.targets(["red"])[0][0].tolist() == alone
    with pytest.raises(ValueError, match="after has 1 prompts for 2 texts"):
        made.targets(["red", "blue"], after=["Answer:"])


def test_a_backend_that_adds_the_space_itself_gets_no_second_one() -> None:
    made = PromptTokenizer(
        byte_level(add_prefix_space=True), start_token_id=1, eos_token_id=2, pad_token_id=0
    )
    assert made.targets(["red"], after=["Answer:"])[0].tolist() == made.targets(["red"])[0].tolist()


@pytest.mark.parametrize("kind", BACKENDS)
def test_special_tokens_in_a_text_are_text(kind: str) -> None:
    made = tokenizer(kind)
    end = made.backend.id_to_token(made.eos_token_id)
    for ids in (made.prompts([f"red {end} blue"])[0][0, 1:], made.targets([f"red {end} blue"])[0][0, :-1]):
        assert not {made.start_token_id, made.eos_token_id} & set(ids.tolist())
    if kind == "byte level":
        assert made.decode(made.targets([f"red {end} blue"])[0]) == [f"red {end} blue"]


def test_prompts_are_padded_on_the_left_and_targets_on_the_right() -> None:
    made = tokenizer("words")
    red, blue, start, end, pad = *made.backend.encode("red blue", add_special_tokens=False).ids, 3, 4, 0
    ids, mask = made.prompts(["red blue", ""])
    assert ids.tolist() == [[start, red, blue], [pad, pad, start]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]
    ids, mask = made.targets(["red blue", ""])
    assert ids.tolist() == [[red, blue, end], [end, pad, pad]]
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    assert made.decode(ids) == ["red blue", ""]
    assert made.unknown_words("red and blue") == ["and"]


def test_wrong_texts_and_ids_are_named() -> None:
    with pytest.raises(TypeError, match=r"got one str; pass \['red'\]"):
        tokenizer("words").prompts("red")
    with pytest.raises(ValueError, match="texts is empty"):
        tokenizer("words").targets([])
    with pytest.raises(ValueError, match=r"eos_token_id \(999\) must be in \[0, "):
        PromptTokenizer(word_level(), start_token_id=3, eos_token_id=999, pad_token_id=0)
