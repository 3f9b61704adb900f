"""Questions about the rendered world: of known types, and no type that a wording alone answers."""

import re
from collections import Counter, defaultdict

import pytest

from videolm.datasets.synthetic import QUESTION_TYPES, plan_world, question_type
from videolm.datasets.synthetic.questions import _NAME, _names, write_questions

TURNED = ("first action", "last action", "direction", "spin", "yes/no spin", "yes/no order")
"""Types whose answer changes when a video is played backwards."""


@pytest.fixture(scope="module")
def videos():
    return plan_world(2000, seed=5)


@pytest.fixture(scope="module")
def questions(videos):
    return {video.id: write_questions(video.scene) for video in videos}


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("how many shapes are there", "count"),
        ("what color is the ring", "color"),
        ("what shape is the pink object", "shape"),
        ("what does the red ring do", "action"),
        ("what does the red ring do first", "first action"),
        ("what does the red ring do last", "last action"),
        ("in which direction does the red ring move", "direction"),
        ("in which direction does the red ring move last", "direction"),
        ("which way does the red star spin", "spin"),
        ("which shape acts first", "which first"),
        ("does the red star blink", "yes/no action"),
        ("does the red star move up left", "yes/no direction"),
        ("does the red star spin clockwise", "yes/no spin"),
        ("does the red star move before spinning", "yes/no order"),
        ("does the red star move up before moving left", "yes/no order"),
        ("what does the ring do first", "first action"),
        ("does the pink object move up", "yes/no direction"),
        ("does the ring move", "yes/no action"),
    ],
)
def test_the_type_of_a_question(question, name):
    assert question_type(question) == name


def test_a_question_of_no_type_is_an_error():
    with pytest.raises(ValueError, match="'who is there'"):
        question_type("who is there")


def test_all_types_are_asked(questions):
    asked = Counter(question.type for rows in questions.values() for question in rows)
    assert asked.keys() == set(QUESTION_TYPES)
    assert min(asked.values()) > 50


def test_no_scene_is_asked_the_same_twice(questions):
    for rows in questions.values():
        assert len({question.text for question in rows}) == len(rows)


def test_yes_is_as_frequent_as_no_in_every_wording(questions):
    answers = defaultdict(Counter)
    for question in (question for rows in questions.values() for question in rows):
        if question.type.startswith("yes/no"):
            answers[question.type][question.answer] += 1
            answers[re.sub(_NAME, "it", question.text)][question.answer] += 1
    assert set().union(*answers.values()) == {"yes", "no"}
    for wording, count in answers.items():
        # four standard deviations of a fair coin
        spread = 4 * 0.5 / count.total() ** 0.5
        assert abs(count["yes"] / count.total() - 0.5) < max(spread, 0.03), (wording, count)


def test_what_bounces_is_not_asked_about_up_and_down(videos, questions):
    bouncing = 0
    for video in videos:
        for index, thing in enumerate(video.scene.things):
            if "bounce" not in video.scene.program(index):
                continue
            names = _names(video.scene, thing)
            for question in questions[video.id]:
                if question.type not in ("direction", "yes/no direction"):
                    continue
                if re.search(_NAME, question.text)[0] in names:
                    bouncing += 1
                    assert not re.search(r"move (up|down)$", question.text), question
                    assert not {"up", "down"} & {*question.candidates}, question
    assert bouncing > 20


def test_a_thing_is_called_by_whatever_names_it_alone(videos, questions):
    called = Counter()
    for video in videos:
        things = video.scene.things
        for question in questions[video.id]:
            if (name := re.search(_NAME, question.text)) is None:
                continue
            words = set(name[0].split()) - {"the", "object"}
            assert sum(words <= {thing.colour, thing.shape} for thing in things) == 1, question
            if question.type not in ("color", "shape"):
                called[len(words), "object" in name[0]] += 1
    # by colour and shape, by shape, by colour
    assert called.keys() == {(2, False), (1, False), (1, True)}
    assert min(called.values()) > 0.25 * called.total()


def test_the_place_of_the_right_candidate_tells_nothing(questions):
    rows = [question for rows in questions.values() for question in rows]
    places = Counter(question.answer_index for question in rows if len(question.candidates) == 5)
    assert max(places.values()) < 1.1 * min(places.values())


def test_twins_answer_questions_of_time_differently(videos, questions):
    compared = Counter()
    for video in videos:
        if not video.twin or video.scene.backwards:
            continue
        other = {question.text: question.answer for question in questions[video.twin]}
        for question in questions[video.id]:
            if question.text in other and question.type in TURNED:
                compared[question.type] += 1
                assert question.answer != other[question.text], question
            elif question.text in other and question.type == "yes/no direction":
                assert {question.answer, other[question.text]} != {"yes"}
    assert compared.keys() == set(TURNED)
