"""Words against those of the Java tokeniser, on hand-picked sentences and on the 218,048 of five benchmarks."""

import gzip
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data import data_path
from videolm.metrics.ptb import tokenize

# each as pycocoevalcap 1.2 has it, under Java 17
JAVA = {
    "plain": ("A man is playing a guitar.", "a man is playing a guitar"),
    "spaces": ("  two\tdogs\nrun  ", "two dogs run"),
    "nothing": ("", ""),
    "only punctuation": ('"..." - !', ""),
    "commas without space": ("one,two , three;four:five", "one two three four five"),
    "runs of marks": ("hello!! what??? yes!?", "hello !! what ??? yes !?"),
    "ellipsis": ("wait... and wait .. and wait… now", "wait and wait and wait now"),
    "possessive": ("the man's dogs' bowl", "the man 's dogs bowl"),
    "curled possessive": ("the man\u2019s hat isn\u2019t red", "the man 's hat is n't red"),
    "clitics": ("it's they're I'm I've he'll she'd", "it 's they 're i 'm i 've he 'll she 'd"),
    "not": ("don't can't won't DON'T", "do n't ca n't wo n't do n't"),
    "not, already apart": ("he does n't", "he does n't"),
    "two clitics": ("he'd've shouldn't've", "he 'd 've should n't 've"),
    "assimilated": ("cannot gonna gotta wanna lemme gimme", "can not gon na got ta wan na lem me gim me"),
    "tis": ("'tis and 'twas", "'t is and 't was"),
    "apostrophe inside": (
        "o'clock O'Brien ma'am d'artagnan hawai'i",
        "o'clock o'brien ma'am d'artagnan hawai'i",
    ),
    "the letter o's": ("he blows o's", "he blows o 's"),
    "you all": ("y'all rock'n'roll", "y' all rock 'n' roll"),
    "quotes": ("'hello' \"you\" ``there'' \u201cand\u201d \u2018here\u2019", "hello you there and here"),
    "backtick": ("the cat`s tail", "the cat s tail"),
    "years": ("the '90s and the 90's and '48'", "the '90s and the 90 's and 48"),
    "feet": ("he jumps 5'10 high", "he jumps 5 '10 high"),
    "hyphens": (
        "a well-known t-shirt, a 10-year-old - a-- b a--b",
        "a well-known t-shirt a 10-year-old a b a b",
    ),
    "dashes": ("one \u2013 two \u2014 three\u2014four", "one two three four"),
    "brackets": ("(one) [two] {three}", "-lrb- one -rrb- -lsb- two -rsb- -lcb- three -rcb-"),
    "numbers": ("1,000 3.5 .5 10:30 +5 1,2,3 1st 4x4", "1,000 3.5 .5 10:30 +5 1,2,3 1st 4x4"),
    "number and word": ("at 10:30pm 5ft from MP3.5", "at 10:30 pm 5ft from mp3 .5"),
    "fractions": ("7 1/2 meter and 3/4", "7\u00a01/2 meter and 3/4"),
    "money": ("$5 20% 20$ £5 €5 #1", "$ 5 20 % 20 $ # 5 $ 5 # 1"),
    "slashes": (
        "and/or football/soccer s/he a / b couch/ a/b/c/d",
        "and/or football/soccer s/he a / b couch / a/b/c / d",
    ),
    "ampersand": ("AT&T at&t r & b", "at&t at & t r & b"),
    "abbreviations": (
        "Mr. Smith vs. Dr. Who etc. on Main St.",
        "mr. smith vs. dr. who etc. on main st.",
    ),
    "states": ("in Pa. with pa.", "in pa. with pa"),
    "no and number": ("no. 3 and no.10, he said no.", "no. 3 and no. 10 he said no"),
    "initials": ("the U.S. at 5 p.m. a.k.a the u.s. plan b.", "the u.s. at 5 p.m. a.k.a the u.s. plan b."),
    "no space after the end": ("the end.the man!he went", "the end.the man!he went"),
    "addresses": ("foo@bar.com @user #tag nick@nite", "foo@bar.com @user #tag nick@nite"),
    "link": ("see http://www.a.com/b-c_d now", "see http://www.a.com/b-c_d now"),
    "faces": (":) ;-) =D =3", ":-rrb- ;--rrb- =d = 3"),
    "signs": ("a\\b a|b a=b a+b x ** y <b> 2 > 1", "a \\ b a | b a = b a + b x ** y <b> 2 > 1"),
    "underscores": ("vlog_1 a__b", "vlog_1 a __ b"),
    "other letters": ("café NAÏVE ñandú 日本語 вeautiful", "café naïve ñandú 日本語 вeautiful"),
    "picture": ("a \U0001f600 face", "a face"),
}


@pytest.mark.parametrize("name", JAVA)
def test_words_are_those_of_the_java_tokenizer(name):
    sentence, words = JAVA[name]
    assert " ".join(tokenize(sentence)) == words


@given(st.text(max_size=60))
def test_every_text_becomes_words_without_space(text):
    words = tokenize(text)
    assert all(word and not word.isspace() and " " not in word for word in words)
    assert words == tokenize(f"  {text}\n")


@pytest.mark.parametrize("piece", ["a..b", "a,", "1._", "a--"])
def test_a_long_text_without_blanks_takes_no_time_in_its_square(piece):
    before = time.process_time()
    tokenize(piece * (120_000 // len(piece)))
    assert time.process_time() - before < 2


def _different(step: int) -> tuple[list[str], int]:
    with gzip.open(data_path("reference/ptb_tokens.tsv.gz"), "rt", encoding="utf-8", newline="\n") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][::step]
    return [sentence for sentence, words in rows if " ".join(tokenize(sentence)) != words], len(rows)


def test_a_tenth_of_real_sentences_equals_java():
    different, total = _different(10)
    assert total == 21_805
    assert different == []


@pytest.mark.slow
def test_real_sentences_equal_java_but_for_two():
    different, total = _different(1)
    assert total == 218_048
    assert len(different) == 2
    assert any("925 606 0946" in sentence for sentence in different)
    assert any(sentence.endswith("a capital T.") for sentence in different)
