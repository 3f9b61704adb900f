"""Reading captions back: what the world's own sentences claim, and what a model's sentence got right."""

import time
from dataclasses import replace
from fractions import Fraction
from itertools import permutations

import pytest

from videolm.datasets.synthetic import attribute_scores, parse_caption, plan_world, read_scenes, render_world
from videolm.datasets.synthetic.captions import Caption, ThingClaim, write_captions
from videolm.datasets.synthetic.scene import Scene, Thing
from videolm.datasets.synthetic.scoring import ATTRIBUTES, count_claims
from videolm.metrics.attributes import ClaimCounts, sum_claims

RED = Thing("red", "circle", "striped", "big", ("left", "grow"), 0.7, 0.5, 0.4)
BLUE = Thing("blue", "star", "plain", "small", ("still",), 0.2, 0.2, 0.0)


def scene_of(*things, event="none"):
    return Scene(
        things,
        event,
        "plain",
        "gray",
        shake=False,
        width=128,
        height=128,
        fps=Fraction(8),
        num_frames=17,
        seed=0,
    )


@pytest.fixture(scope="module")
def scenes():
    return [video.scene for video in plan_world(1000, seed=33)]


def test_every_caption_of_a_thousand_scenes_gives_back_exactly_its_claims(scenes):
    for scene in scenes:
        for caption in write_captions(scene):
            parsed = parse_caption(caption.text)
            assert parsed.caption == caption
            assert not parsed.unknown
            assert parsed.caption.fits(scene)


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("a red circle moves left", [ThingClaim("red", "circle", program=("left",))]),
        ("A red circle moves left.", [ThingClaim("red", "circle", program=("left",))]),
        ("the red circle spins clockwise after rising", [ThingClaim("red", "circle", program=("up", "clockwise"))]),
        ("moving left", [ThingClaim(None, None, program=("left",))]),
        ("a red circle", [ThingClaim("red", "circle")]),
        ("something red at the top", [ThingClaim("red", None, start="top")]),
        ("a red circle ends at the top", [ThingClaim("red", "circle", end="top")]),
        ("", []),
    ],
)  # fmt: skip
def test_other_sentences_give_what_can_be_found(text, things):
    parsed = parse_caption(text)
    assert parsed.caption == Caption(text, tuple(things))
    assert parsed.unknown == ()


def test_words_that_are_not_understood_are_named_and_the_rest_is_read():
    parsed = parse_caption("a red <unk> circle moves moves left, a cat sleeps behind a blue star")
    assert parsed.unknown == ("<unk>", "moves", "a", "cat", "sleeps")
    named = [(claim.colour, claim.shape) for claim in parsed.caption.things]
    assert named == [("red", None), (None, "circle"), ("blue", "star")]
    assert parsed.caption.things[1].program == ("left",)
    assert parsed.caption.event == "behind"


def test_no_text_whatever_raises():
    for text in (
        "after after",
        "ends",
        "on a",
        "a a a",
        "two",
        ": , :",
        "then moves left after",
        "\n",
        "première",
    ):
        parse_caption(text)


def test_every_claim_of_every_caption_counts_as_right(scenes):
    for scene in scenes[:60]:
        for index, caption in enumerate(write_captions(scene)):
            counts = count_claims(parse_caption(caption.text).caption, scene)
            assert tuple(counts) == ATTRIBUTES
            assert all(count.right == count.claimed for count in counts.values()), caption.text
            if index == 0:
                assert all(count.told == count.wanted for count in counts.values()), caption.text


@pytest.mark.parametrize(
    ("text", "attribute", "counts"),
    [
        ("a red circle moves left and then grows", "motion", (2, 2, 2, 2)),
        ("a red circle moves left and then grows", "order", (1, 1, 1, 1)),
        ("a red circle moves left after growing", "motion", (2, 2, 2, 2)),
        ("a red circle moves left after growing", "order", (1, 0, 1, 0)),
        ("a red circle moves right", "motion", (1, 0, 2, 0)),
        ("a red circle moves right", "order", (0, 0, 1, 0)),
        ("a blue circle moves left", "colour", (1, 0, 1, 0)),
        ("something red moves left", "shape", (0, 0, 1, 0)),
        ("a small dotted red circle", "size", (1, 0, 0, 0)),
        ("a small dotted red circle", "texture", (1, 0, 0, 0)),
        ("a red circle starts on the right", "place", (1, 1, 0, 0)),
        ("a red circle on a plain brown background", "background", (2, 1, 0, 0)),
        ("two shapes: a red circle and a green star", "count", (1, 0, 0, 0)),
        ("a red circle and a green star", "colour", (2, 1, 1, 1)),
        ("a red circle bumps into another shape", "event", (1, 0, 0, 0)),
        ("", "colour", (0, 0, 1, 0)),
    ],
)
def test_claims_about_one_thing_are_counted_by_hand(text, attribute, counts):
    assert count_claims(parse_caption(text).caption, scene_of(RED))[attribute] == ClaimCounts(*counts)


def test_claims_are_given_to_the_things_that_make_most_of_them_true():
    scene = scene_of(BLUE, RED)
    told = count_claims(parse_caption("a red circle grows, and a blue star stays still").caption, scene)
    assert (told["colour"], told["motion"]) == (ClaimCounts(2, 2, 2, 2), ClaimCounts(2, 2, 3, 2))
    crossed = count_claims(parse_caption("a red star grows, and a blue circle stays still").caption, scene)
    # by its colour and by what it does the first is the red circle, and only the shapes are wrong
    assert (crossed["colour"].right, crossed["shape"].right, crossed["motion"].right) == (2, 0, 2)


def test_the_match_is_the_best_of_all_and_the_first_of_equals(scenes):
    three = [scene for scene in scenes if len(scene.things) == 3]
    for scene, other in zip(three[:40], three[40:], strict=False):
        claims = (*other.things[:2], *scene.things, other.things[2])
        said = Caption("", tuple(ThingClaim(t.colour, t.shape, program=t.program) for t in claims))
        found = count_claims(said, scene)
        chosen = max(
            permutations(said.things, 3),
            key=lambda order: sum(
                (c.colour == t.colour) + (c.shape == t.shape) + len({*c.program} & {*scene.program(i)})
                for i, (c, t) in enumerate(zip(order, scene.things, strict=True))
            ),
        )
        of_chosen = count_claims(Caption("", chosen), scene)
        for name in ("colour", "shape", "motion", "order"):
            assert found[name].told == of_chosen[name].told, name


def test_a_caption_that_stammers_is_scored_in_no_time(scenes):
    scene = next(scene for scene in scenes if len(scene.things) == 3)
    before = time.process_time()
    scores = attribute_scores({"v": "red " * 1000}, {"v": scene})
    assert time.process_time() - before < 2
    assert scores.all["colour"].claimed == 1000


def test_a_collision_is_wanted_as_an_event_and_not_as_motions():
    scene = scene_of(replace(RED, program=("collide",)), replace(BLUE, program=("collide",)), event="collide")
    told = count_claims(
        parse_caption("a red circle hits a blue star, and they move apart again").caption, scene
    )
    assert (told["event"], told["motion"]) == (ClaimCounts(1, 1, 1, 1), ClaimCounts())
    assert count_claims(parse_caption("a red circle").caption, scene)["event"] == ClaimCounts(0, 0, 1, 0)


def test_scores_are_split_by_the_number_of_things_and_can_be_added():
    scenes = {"one": scene_of(RED), "two": scene_of(RED, BLUE)}
    captions = {"one": "a red circle wobbles", "two": "a green circle and a blue star"}
    scores = attribute_scores(captions, scenes)
    assert scores.by_things[1]["colour"] == ClaimCounts(1, 1, 1, 1)
    assert scores.by_things[2]["colour"] == ClaimCounts(2, 1, 2, 1)
    assert scores.all["colour"] == ClaimCounts(3, 2, 3, 2)
    assert (scores.num_captions, scores.num_understood, scores.unknown) == (2, 1, {"wobbles": 1})
    parts = [attribute_scores({key: captions[key]}, scenes) for key in captions]
    assert parts[0] + parts[1] == scores


def test_a_caption_without_a_scene_is_an_error():
    with pytest.raises(ValueError, match="captions has 1 videos without a scene"):
        attribute_scores({"video9": "a red circle"}, {})


def test_precision_and_recall_are_none_where_nothing_is_counted():
    counts = ClaimCounts(claimed=4, right=3, wanted=5, told=1)
    assert (counts.precision, counts.recall) == (0.75, 0.2)
    assert (ClaimCounts().precision, ClaimCounts().recall) == (None, None)
    assert sum_claims([{"a": counts}, {"a": counts, "b": counts}]) == {"a": counts + counts, "b": counts}
    with pytest.raises(ValueError, match="right <= claimed"):
        ClaimCounts(claimed=1, right=2)


def test_scenes_are_made_again_from_a_worlds_folder(tmp_path):
    videos = render_world(tmp_path, num_videos=8, seed=3, split="val", workers=1)
    assert read_scenes(tmp_path, "val") == {video.id: video.scene for video in videos}
