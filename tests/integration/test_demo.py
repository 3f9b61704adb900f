"""The tour and the README's example, as a newcomer runs them, with the model that ships."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from videolm.datasets.synthetic import read_twins
from videolm.demo import describe, run_demo

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def found(place):
    return run_demo(place / "demo")


def test_the_demo_finds_the_right_clips_twins_included(place, found):
    twins = [answer for answer in found if answer.is_twin]
    assert len(twins) == 6
    assert sum(answer.is_right for answer in twins) >= 5
    assert sum(answer.is_right for answer in found) >= 8
    have_twins = {
        f"{video_id}.mp4"
        for pair in read_twins(place / "demo" / "world", split="test")
        for video_id in (pair.video_a, pair.video_b)
    }
    assert all(answer.is_twin == (answer.expected in have_twins) for answer in found)
    # the two sentences of a pair ask for two different videos
    assert all(a.expected != b.expected for a, b in zip(twins[::2], twins[1::2], strict=True))


def test_the_demo_leaves_a_picture_with_a_row_for_each_query(place, found):
    with Image.open(place / "demo" / "found.png") as picture:
        assert picture.height > 100 * len(found)


def test_the_demo_describes_and_answers(place, found):
    said = describe(place / "demo", found, num_videos=6)
    assert len({one.path for one in said}) == 6
    assert len({one.question for one in said}) > 1
    assert all(one.caption and one.truth for one in said)
    assert sum(one.is_right for one in said) >= 4
    with Image.open(place / "demo" / "said.png") as picture:
        assert picture.height > 100 * len(said)


def test_the_readmes_example_prints_what_the_readme_shows(place, found, monkeypatch):
    assert found
    example, shown = re.search(
        r"```python\n(.*?)```\n\n```\n(.*?)```", README.read_text(), re.DOTALL
    ).groups()
    monkeypatch.chdir(place)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), {})
    # scores may differ in the last digit from machine to machine
    digits = re.compile(r"\d\.\d\d\b")
    assert digits.sub("", printed.getvalue()) == digits.sub("", shown)
