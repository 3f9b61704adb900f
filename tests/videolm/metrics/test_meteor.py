"""The protocol with small programs in the place of Java, and the golden values where there is a Java."""

import shutil
import sys
import time

import pytest

from tests.videolm.metrics.captions import GOLDEN, by_id, golden_human_scores, human_captions
from videolm.metrics.captioning import evaluate
from videolm.metrics.meteor import METEOR_VERSION, Meteor

# answers every SCORE with its number of fields, and EVAL with those numbers and their sum
HONEST = """
for line in sys.stdin:
    command, *fields = line.rstrip("\\n").split(" ||| ")
    answers = [f"{len(fields)}.0"] if command == "SCORE" else [*fields, str(sum(map(float, fields)))]
    print(*answers, sep="\\n", flush=True)
"""
DEAF = "time.sleep(60)"
ANSWERS_ONCE = "sys.stdin.readline(); print('1.0', flush=True); time.sleep(60)"
DIES = "sys.stdin.readline(); print('1.0', flush=True); sys.exit('Error: out of heap')"


@pytest.fixture
def program(tmp_path):
    """Writes an executable that behaves as told, whatever its arguments."""

    def write(body):
        path = tmp_path / "java"
        path.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_scores_come_in_order_with_the_whole_last(program):
    with Meteor(java=program(HONEST)) as meteor:
        assert meteor.score(["a dog", "a cat"], [["the dog"], ["the cat", "one cat"]]) == (5.0, [2.0, 3.0])
        assert meteor.score(["once more"], [["and again"]]) == (2.0, [2.0])


def test_evaluate_uses_an_open_program_and_leaves_it_open(program):
    references = {"b": ["a dog", "the dog"], "a": ["a cat", "the cat", "one cat"]}
    with Meteor(java=program(HONEST)) as meteor:
        for _ in range(2):
            scores = evaluate({"b": "a dog", "a": "a cat"}, references, meteor=meteor)
            assert scores.meteor == scores.as_dict()["meteor"] == 7.0
            assert {video: own.meteor for video, own in scores.per_video.items()} == {"b": 3.0, "a": 4.0}
            assert scores.scorer.endswith(METEOR_VERSION)


def test_without_java_meteor_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="METEOR was asked for and runs in Java, but there is no program"
    ):
        evaluate({"a": "a dog"}, {"a": ["a dog"]}, meteor=True)


def test_without_the_extra_the_error_names_it(program, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(ImportError, match=r"pip install 'videolm\[metrics\]'"):
        Meteor(java=program(HONEST))


def test_a_program_that_does_not_start_is_killed_in_time(program):
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"METEOR had no answer after 0\.5 s to 'SCORE"):
        Meteor(java=program(DEAF), start_timeout_seconds=0.5)
    assert time.monotonic() - began < 20


def test_a_program_that_stops_answering_is_killed_in_time(program):
    with (
        Meteor(java=program(ANSWERS_ONCE), answer_timeout_seconds=0.5) as meteor,
        pytest.raises(
            TimeoutError, match=r"no answer after 0\.5 s to 'SCORE \|\|\| a cat \|\|\| a dog' and was"
        ),
    ):
        meteor.score(["a dog"], [["a cat"]])


def test_a_program_that_stops_reading_is_killed_in_time(program):
    long = "word " * 100_000
    with (
        Meteor(java=program(ANSWERS_ONCE), answer_timeout_seconds=0.5) as meteor,
        pytest.raises(
            TimeoutError, match=r"no answer after 0\.5 s to 'SCORE .* word.*\.\.\.' and was killed"
        ),
    ):
        meteor.score([long], [[long]])


def test_what_the_program_started_is_killed_with_it(tmp_path):
    path = tmp_path / "java"
    path.write_text("#!/bin/sh\nsleep 60\n")
    path.chmod(0o755)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        Meteor(java=str(path), start_timeout_seconds=0.5)
    assert time.monotonic() - began < 20


def test_a_program_that_dies_is_quoted(program):
    with (
        Meteor(java=program(DIES)) as meteor,
        pytest.raises(RuntimeError, match=r"METEOR ended without an answer to 'SCORE.*: Error: out of heap"),
    ):
        meteor.score(["a dog"], [["a cat"]])


def test_closing_twice_is_nothing(program):
    meteor = Meteor(java=program(HONEST))
    meteor.close()
    meteor.close()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_golden_values_of_the_jar():
    if shutil.which("java") is None:
        pytest.skip("METEOR runs in Java, and there is no program 'java'")
    with Meteor() as meteor:
        for hypotheses, references, expected in GOLDEN.values():
            if "meteor" in expected:
                scores = evaluate(by_id(hypotheses), by_id(references), meteor=meteor)
                assert scores.meteor == pytest.approx(expected["meteor"], abs=1e-6)
        silent = evaluate({"a": "", "b": ""}, {"a": ["a dog", ""], "b": ["a cat", "the cat"]}, meteor=meteor)
        assert silent.meteor == 0
        scores = evaluate(*human_captions(), meteor=meteor)
        assert scores.meteor == pytest.approx(golden_human_scores()["meteor"], abs=1e-9)
