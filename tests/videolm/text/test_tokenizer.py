"""CLIP's tokenizer against recorded ids, and the project's own word-level one."""

import gzip
import json
import shutil
from inspect import unwrap
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data import data_path
from videolm.text.tokenizer import Tokenizer, build_word_tokenizer, load_tokenizer

WORDS = ["red", "circle", "moves", "a", "?", ",", "What", "colour", "3"]
START, END, UNKNOWN, PAD = 3, 4, 1, 0


def clip_tokenizer(context_length: int = 77) -> Tokenizer:
    return load_tokenizer(data_path("vocab/hf"), context_length=context_length, eos_token_id=49407)


def word_tokenizer(context_length: int = 40) -> Tokenizer:
    return build_word_tokenizer(WORDS, context_length=context_length)


def words_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids, mask = tokenizer([text])
    assert mask.all()
    return ids[0].tolist()


def test_clip_ids_are_those_of_transformers() -> None:
    strings = json.loads(data_path("vocab/tokens.json").read_text(encoding="utf-8"))["strings"]
    tokenizer = clip_tokenizer(context_length=1000)
    assert len(strings) == 113
    wrong = [s["text"] for s in strings if words_of(tokenizer, s["text"]) != s["clip_ids_transformers"]]
    assert wrong == []


def test_vocab_and_merges_give_the_same_ids(tmp_path: Path) -> None:
    model = json.loads(data_path("vocab/hf/tokenizer.json").read_text(encoding="utf-8"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    older = load_tokenizer(tmp_path, context_length=77, eos_token_id=49407)
    texts = ["A photo of a cat.", "naïve café — it's 3 o'clock", ""]
    assert torch.equal(older(texts)[0], clip_tokenizer()(texts)[0])


def test_padding_goes_to_the_longest_and_is_masked() -> None:
    ids, mask = clip_tokenizer()(["a cat", "a photo of a cat", ""])
    assert ids.dtype == torch.int64
    assert ids.shape == (3, 7)
    assert mask.sum(dim=1).tolist() == [4, 7, 2]
    assert ids[~mask].eq(49407).all()
    assert word_tokenizer()(["red", "a red circle"])[0].tolist() == [
        [START, words_of(word_tokenizer(), "red")[1], END, PAD, PAD],
        words_of(word_tokenizer(), "a red circle"),
    ]


@pytest.mark.parametrize("context_length", [2, 3, 7])
def test_truncation_keeps_the_end_token(context_length: int) -> None:
    full = words_of(clip_tokenizer(), "a photo of a cat on a red sofa")
    cut = words_of(clip_tokenizer(context_length), "a photo of a cat on a red sofa")
    assert cut == [*full[: context_length - 1], 49407]


def test_word_ids_are_fixed_special_tokens_then_sorted_words() -> None:
    tokenizer = word_tokenizer()
    assert tokenizer.vocab_size == 5 + len(WORDS)
    in_order = sorted(word.lower() for word in WORDS)
    assert words_of(tokenizer, " ".join(in_order)) == [START, *range(5, 5 + len(WORDS)), END]
    assert words_of(tokenizer, "<|pad|> <|unk|> <|mask|>") == [START, 0, 1, 2, END]
    again = build_word_tokenizer([*reversed(WORDS), "RED"], context_length=40)
    assert words_of(again, "a red circle") == words_of(tokenizer, "a red circle")


def test_case_is_folded_and_punctuation_stands_alone() -> None:
    tokenizer = word_tokenizer()
    assert words_of(tokenizer, "What colour,a RED\tcircle??") == words_of(
        tokenizer, "what colour , a red circle ? ?"
    )
    assert UNKNOWN not in words_of(tokenizer, "What colour,a RED\tcircle??")
    assert words_of(tokenizer, "a blue circle").count(UNKNOWN) == 1


def test_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    word_tokenizer().save(tmp_path / "model")
    loaded = load_tokenizer(tmp_path / "model", context_length=6, eos_token_id=END)
    assert loaded.pad_token_id == PAD
    texts = ["a red circle", "what?", "a red circle moves a red circle"]
    for ours, theirs in zip(loaded(texts), word_tokenizer(context_length=6)(texts), strict=True):
        assert torch.equal(ours, theirs)


def test_saved_clip_tokenizer_is_the_same(tmp_path: Path) -> None:
    clip_tokenizer().save(tmp_path)
    loaded = load_tokenizer(tmp_path, context_length=77, eos_token_id=49407)
    assert torch.equal(loaded(["A Photo of a cat!"])[0], clip_tokenizer()(["A Photo of a cat!"])[0])


def test_padding_and_truncation_of_the_file_are_not_ours(tmp_path: Path) -> None:
    word_tokenizer().save(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_padding(length=12)
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path, context_length=40, eos_token_id=END)
    assert words_of(loaded, "a red circle moves") == words_of(word_tokenizer(), "a red circle moves")


@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=4), context_length=st.integers(2, 9))
def test_any_text_gives_start_words_and_one_end(texts: list[str], context_length: int) -> None:
    # Special tokens may be written in a text; what is claimed is claimed of plain words.
    texts = [text.replace("|", " ") for text in texts]
    ids, mask = word_tokenizer(context_length)(texts)
    assert ids.shape == mask.shape
    assert ids.shape[1] == int(mask.sum(dim=1).max()) <= context_length
    assert ids[:, 0].eq(START).all()
    assert ids.eq(END).sum(dim=1).eq(1).all()
    assert torch.equal(ids.eq(END).int().argmax(dim=1), mask.sum(dim=1) - 1)


@pytest.mark.parametrize("word", ["t-shirt", "two words", "what's", ""])
def test_a_word_of_several_tokens_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"must be one token each"):
        build_word_tokenizer(["red", word], context_length=8)


def test_wrong_arguments_are_refused() -> None:
    tokenizer = word_tokenizer()
    with pytest.raises(TypeError, match=r"got one str; pass \['a cat'\]"):
        tokenizer("a cat")
    with pytest.raises(ValueError, match=r"texts is empty"):
        tokenizer([])
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str, got NoneType"):
        unwrap(Tokenizer.__call__)(tokenizer, ["a", None])
    with pytest.raises(ValueError, match=r"context_length \(1\) must be at least 2"):
        word_tokenizer(context_length=1)


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    word_tokenizer().save(tmp_path)
    with pytest.raises(ValueError, match=r"eos_token_id \(49407\) must be in \[0, 14\)"):
        load_tokenizer(tmp_path, context_length=40, eos_token_id=49407)
    wrong_end = load_tokenizer(tmp_path, context_length=40, eos_token_id=5)
    with pytest.raises(ValueError, match=r"ends a sentence with token 4, not with eos_token_id \(5\)"):
        wrong_end(["red"])


def test_absent_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer; looked for tokenizer.json"):
        load_tokenizer(tmp_path, context_length=40, eos_token_id=END)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer"):
        load_tokenizer(tmp_path, context_length=40, eos_token_id=END)


BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"


def test_openais_bpe_file_gives_the_same_ids(tmp_path: Path) -> None:
    shutil.copy(data_path(f"vocab/{BPE_FILE}"), tmp_path)
    tokenizer = load_tokenizer(tmp_path, context_length=77, eos_token_id=49407)
    assert tokenizer.vocabulary_sha256() == clip_tokenizer().vocabulary_sha256()
    texts = ["A photo of a cat.", "naïve café — it's 3 o'clock", "", "🙂 <|endoftext|>"]
    assert torch.equal(tokenizer(texts)[0], clip_tokenizer()(texts)[0])


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"header\na b\n"), gzip.compress(b"\na\n")],
    ids=["no gzip", "another list", "no header"],
)
def test_another_bpe_file_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / BPE_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{BPE_FILE}: (not )?openai/CLIP's vocabulary"):
        load_tokenizer(tmp_path, context_length=77, eos_token_id=49407)


def write_siglip_tokenizer(folder: Path, *, tokenizer_class: str, pad_token: str) -> None:
    """A vocabulary of letters and pieces, with the special tokens where both SigLIPs have them."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁cat", *"abcdefghijklmnopqrstuvwxyz,!"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2)
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": tokenizer_class, "pad_token": pad_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("tokenizer_class", "pad_token", "pad_token_id", "same"),
    [("SiglipTokenizer", "</s>", 1, "a cat"), ("GemmaTokenizerFast", "<pad>", 0, "a  cat,!")],
)
def test_siglips_text_fills_the_context_in_the_form_of_its_training(
    tokenizer_class: str, pad_token: str, pad_token_id: int, same: str, tmp_path: Path
) -> None:
    write_siglip_tokenizer(tmp_path, tokenizer_class=tokenizer_class, pad_token=pad_token)
    tokenizer = load_tokenizer(tmp_path, context_length=16, eos_token_id=1, fill_context=True)
    ids, mask = tokenizer(["A  Cat,!"])
    assert ids.shape == mask.shape == (1, 16)
    assert torch.equal(ids, tokenizer([same])[0])
    num_words = int(mask.sum())
    assert ids[0, num_words - 1] == 1
    assert ids[0, num_words:].eq(pad_token_id).all()
    assert 2 not in ids

    tokenizer.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again", context_length=16, eos_token_id=1, fill_context=True)
    assert torch.equal(again(["A  Cat,!"])[0], ids)
    again.save(tmp_path / "third")
    assert (tmp_path / "third/tokenizer.json").read_text() == (tmp_path / "again/tokenizer.json").read_text()


def test_damaged_settings_of_a_tokenizer_are_named(tmp_path: Path) -> None:
    write_siglip_tokenizer(tmp_path, tokenizer_class="SiglipTokenizer", pad_token="</s>")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config.json: not readable as JSON"):
        load_tokenizer(tmp_path, context_length=16, eos_token_id=1)
