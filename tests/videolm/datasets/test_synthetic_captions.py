"""The language of the rendered world: captions a careful writer could have written, each fitting its scene."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from videolm.datasets.synthetic import VOCABULARY, plan_world, query_caption
from videolm.datasets.synthetic.captions import MAX_WORDS, num_words, write_captions
from videolm.datasets.synthetic.parsing import parse_caption
from videolm.datasets.synthetic.phrases import COLLIDING, STOPS, VERBS, WAITS, gerund, place_name

FINITE = {phrase.split()[0] for phrases in (*VERBS.values(), WAITS, STOPS) for phrase in phrases}


@pytest.fixture(scope="module")
def videos():
    return plan_world(300, seed=17)


@pytest.fixture(scope="module")
def texts(videos):
    return [caption.text for video in videos for caption in write_captions(video.scene)]


def test_captions_are_lower_case_words_with_commas_and_colons(texts):
    for text in texts:
        assert re.fullmatch(r"[a-z]+([,:]? [a-z]+)*", text), text
        assert not re.search(r"\b(\w+) \1\b", text), text


def test_articles_agree_with_the_word_after_them(texts):
    for text in texts:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


def test_after_is_before_and_after_comes_a_gerund(texts):
    pattern = r"(?<!there )(?<!as it )\b(is|before|after) (\w+)"
    followers = {match for text in texts for match in re.findall(pattern, text)}
    assert {word for word, _ in followers} == {"is", "before", "after"}
    assert not [follower for _, follower in followers if not follower.endswith("ing")]


def test_and_then_joins_equal_forms(texts):
    gerunds = {gerund(verb) for verb in FINITE}
    joined = [match for text in texts for match in re.findall(r"([^,:]*) and then (\w+)", text)]
    assert len(joined) > 100
    for before, after in joined:
        last = [word for word in before.split() if word in FINITE | gerunds][-1]
        assert (last in gerunds) == (after in gerunds), (before, after)


def test_every_verb_of_a_phrase_becomes_a_gerund():
    assert gerund("vanishes and comes back") == "vanishing and coming back"
    for phrase in (p for phrases in (*VERBS.values(), WAITS, STOPS) for p in phrases):
        assert not FINITE & set(gerund(phrase).split()), phrase


def test_a_thing_that_is_moving_does_nothing_else_besides(texts):
    progressive = [text for text in texts if re.search(r"\bis \w+ing\b", text)]
    assert len(progressive) > 50
    assert not [text for text in progressive if " then " in text or " before " in text or " after " in text]


def test_from_one_side_to_the_other_is_said_only_of_what_goes_from_one_to_the_other(videos):
    whole = {verb: action for action in VERBS for verb in VERBS[action] if " from " in verb}
    whole |= {gerund(verb): action for verb, action in whole.items()}
    checked = Counter()
    for scene in (video.scene for video in videos):
        ways = {
            action: scene.way(index, step)
            for index in range(len(scene.things))
            for step, action in enumerate(scene.program(index))
        }
        actions = [action for index in range(len(scene.things)) for action in scene.program(index)]
        for text in (caption.text for caption in write_captions(scene)):
            for verb, action in whole.items():
                # where two things do the same, the sentence may be about either
                if verb in text and actions.count(action) == 1:
                    before, after = re.findall(r"from (\w+) to (\w+)", verb)[0]
                    start, end = map(place_name, ways[action])
                    checked[action] += 1
                    assert before in start, (text, start)
                    assert after in end, (text, end)
    assert checked.keys() == {"left", "right", "up", "down"}


def test_a_way_is_where_a_thing_is_before_and_after_an_action(videos):
    for scene in (video.scene for video in videos):
        for index in range(len(scene.things)):
            program = scene.program(index)
            ways = [scene.way(index, step) for step in range(len(program))]
            assert ways[0][0] == pytest.approx(scene.place(index, "start"))
            assert ways[-1][1] == pytest.approx(scene.place(index, "end"))
            assert all(a[1] == pytest.approx(b[0]) for a, b in pairwise(ways))


def test_only_what_moved_stops(texts):
    stopping = re.compile(r"\b(stops|stopping|(comes|coming) to rest)\b")
    moved = Counter()
    for text in filter(stopping.search, texts):
        for claim in parse_caption(text).caption.things:
            if claim.program is not None and len(claim.program) == 2 and claim.program[1] == "still":
                moved[claim.program[0]] += 1
    assert {"left", "bounce", "clockwise"} <= moved.keys()
    resting = [text for text in texts if "as it is" in text]
    assert len(resting) > 20
    for text in texts:
        assert not re.search(
            r"(grow|shrink|bigger|smaller|larger|expand|blink|flash|back|off)\w*,? "
            r"(and then|then|before) (stop|com\w+ to rest)",
            text,
        ), text
        assert not re.search(
            r"(stops|comes to rest|stopping|coming to rest) after "
            r"(grow|shrink|gett|becom|expand|blink|flash|vanish)",
            text,
        ), text
    # a third verb would be too many
    assert not [text for text in resting if re.search(r"back,? (and |before )?(then )?(stay)", text)]


def test_captions_vary(videos, texts):
    openings = Counter(text.split()[0] for text in texts)
    assert {"a", "an", "there", "we", "on", "something", "two", "three", "behind"} <= openings.keys()
    joints = ("while", "as", "before", "after", "first", "starts", "ends", "against", *COLLIDING)
    assert not [joint for joint in joints if not any(joint in text for text in texts)]
    assert len(set(texts)) > 0.9 * len(texts)


def test_no_caption_is_longer_than_a_context_of_48(texts):
    assert max(num_words(text) for text in texts) <= MAX_WORDS


def test_the_first_caption_and_the_query_never_fit_the_twin(videos):
    scenes = {video.id: video.scene for video in videos}
    twins = [video for video in videos if video.twin]
    assert len(twins) > 100
    for video in twins:
        other = scenes[video.twin]
        assert not write_captions(video.scene, number=1)[0].fits(other)
        assert not query_caption(video.scene).fits(other)


def test_the_first_caption_is_the_same_however_many_are_asked(videos):
    for video in videos[:50]:
        assert write_captions(video.scene, number=1)[0] == write_captions(video.scene)[0]


def test_the_vocabulary_is_small_and_has_no_word_in_vain():
    assert len(set(VOCABULARY)) == len(VOCABULARY) < 245
