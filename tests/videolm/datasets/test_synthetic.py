"""The rendered world: what its captions claim is true, its splits share nothing, its twins share every frame."""

import gzip
import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import videolm
from videolm.datasets.msrvtt import read_captions, read_queries, video_path
from videolm.datasets.synthetic import (
    VOCABULARY,
    plan_twins,
    plan_world,
    query_caption,
    read_twins,
    read_world,
    recall_ceiling,
    render_world,
    world_sheet,
)
from videolm.datasets.synthetic.captions import NUM_CAPTIONS, write_captions
from videolm.datasets.synthetic.draw import draw_frames
from videolm.datasets.synthetic.questions import NUM_CANDIDATES, write_questions
from videolm.datasets.synthetic.scene import (
    COLOURS,
    DIRECTIONS,
    FAMILY,
    INVERSE,
    SHAPES,
    SIZES,
    pose,
    split_of,
)
from videolm.datasets.synthetic.world import _LANGUAGE
from videolm.text.tokenizer import build_word_tokenizer
from videolm.video.readers import open_video
from videolm.video.samplers import segment_middle


@pytest.fixture(scope="module")
def plan():
    return plan_world(320, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    render_world(out, num_videos=24, seed=3, workers=1)
    return out


def test_every_caption_is_true_of_its_scene_and_no_two_are_the_same(plan):
    for video in plan[:160]:
        captions = write_captions(video.scene)
        assert len({caption.text for caption in captions}) == NUM_CAPTIONS
        assert all(caption.fits(video.scene) for caption in captions)


def test_claims_are_not_true_of_everything(plan):
    scenes = [video.scene for video in plan[:160]]
    captions = [write_captions(scene, number=1)[0] for scene in scenes]
    fitting = [caption.fits(scene) for caption in captions for scene in scenes]
    assert 1 / len(scenes) <= np.mean(fitting) < 0.05


def test_splits_share_no_combination_of_colour_shape_and_family(plan):
    seen = {}
    for video in plan:
        for thing in video.scene.things:
            families = frozenset(FAMILY[action] for action in thing.program)
            assert seen.setdefault((thing.colour, thing.shape, families), video.split) == video.split
    assert set(seen.values()) == {"train", "val", "test"}


def test_every_colour_and_shape_occurs_in_every_split():
    for split in ("train", "val", "test"):
        shown = {(c, s) for c in COLOURS for s in SHAPES for a in FAMILY if split_of(c, s, (a,)) == split}
        assert {c for c, _ in shown} == set(COLOURS)
        assert {s for _, s in shown} == set(SHAPES)


def test_an_action_and_its_inverse_belong_to_one_split():
    for action, inverse in INVERSE.items():
        assert INVERSE[inverse] == action
        assert FAMILY[action] == FAMILY[inverse]


def test_half_of_the_videos_have_a_twin_that_has_them(plan):
    by_id = {video.id: video for video in plan}
    twins = [video for video in plan if video.twin]
    assert 0.4 < len(twins) / len(plan) < 0.6
    for video in twins:
        other = by_id[video.twin]
        assert other.twin == video.id
        assert other.split == video.split
        assert other.scene == video.scene.reverse()


def test_a_twins_sentence_fits_itself_alone(plan):
    by_id = {video.id: video.scene for video in plan}
    pairs = plan_twins(plan)
    assert {pair.kind for pair in pairs} == {"direction", "rotation", "order"}
    for pair in pairs:
        a, b = by_id[pair.video_a], by_id[pair.video_b]
        assert not write_captions(a)[0].fits(b)
        assert not write_captions(b)[0].fits(a)


def test_twins_hold_the_same_frames_in_the_other_order_after_encoding(folder):
    pairs = [pair for split in ("train", "test") for pair in read_twins(folder, split=split)]
    assert len(pairs) >= 4
    for pair in pairs[:4]:
        sampled, everything = [], []
        for video_id in (pair.video_a, pair.video_b):
            with open_video(video_path(folder, video_id)) as reader:
                assert reader.info.num_frames % 2 == 1
                sampled.append(reader.frames_at(segment_middle(reader.info, num_frames=8)).frames)
                everything.append(reader.frames_at(reader.pts_seconds).frames)
        assert torch.equal(everything[0], everything[1].flip(0))
        # neither one frame nor a bag of sampled frames tells the twins apart
        assert torch.equal(sampled[0], sampled[1].flip(0))
        assert not torch.equal(sampled[0], sampled[1])


def test_files_are_real_h264_of_the_planned_size_and_rate(folder):
    for video in read_world(folder)[:8]:
        with open_video(video_path(folder, video.id)) as reader:
            info = reader.info
        assert info.codec == "h264"
        assert (info.width, info.height) == (video.scene.width, video.scene.height)
        assert info.num_frames == video.scene.num_frames
        assert info.fps == pytest.approx(float(video.scene.fps), rel=1e-3)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(folder, tmp_path):
    render_world(tmp_path / "again", num_videos=24, seed=3, split="test", workers=1)
    for path in sorted((tmp_path / "again" / "videos").iterdir()):
        assert path.read_bytes() == (folder / "videos" / path.name).read_bytes()
    annotation = (tmp_path / "again" / "MSRVTT_data.json").read_bytes()
    assert annotation == (folder / "MSRVTT_data.json").read_bytes()
    assert plan_world(24, seed=4)[0].scene != plan_world(24, seed=3)[0].scene


def test_a_folder_with_another_world_is_refused(folder):
    with pytest.raises(ValueError, match="holds another world"):
        render_world(folder, num_videos=24, seed=99, workers=1)


def test_a_folder_with_a_real_benchmark_is_left_as_it_is(tmp_path):
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo7010\n")
    (tmp_path / "test_qa.json.gz").write_bytes(gzip.compress(b"[]"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        ValueError, match=r"holds MSRVTT_train\.9k\.csv, test_qa\.json and no world\.json.*empty folder"
    ):
        render_world(tmp_path, num_videos=8, seed=3, workers=1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_videos_of_somebody_else_do_not_become_a_worlds(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "video0.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds videos and no world\.json"):
        render_world(tmp_path, num_videos=8, seed=3, workers=1)


def test_an_annotation_of_an_older_language_is_written_anew_and_no_video(tmp_path):
    render_world(tmp_path, num_videos=8, seed=3, split="test", workers=1)
    facts, text = (json.loads((tmp_path / n).read_text()) for n in ("world.json", "MSRVTT_data.json"))
    assert facts == {"version": 1, "language": 3, "seed": 3, "num_videos": 8}
    (tmp_path / "world.json").write_text('{"version": 1, "seed": 3, "num_videos": 8}')
    (tmp_path / "MSRVTT_data.json").write_text("{}")
    made = []
    render_world(tmp_path, num_videos=8, seed=3, split="test", workers=1, on_video=made.append)
    assert made == []
    assert json.loads((tmp_path / "world.json").read_text()) == facts
    assert json.loads((tmp_path / "MSRVTT_data.json").read_text()) == text


def test_a_world_is_of_the_old_language_until_all_of_its_annotation_is_new(tmp_path, monkeypatch):
    render_world(tmp_path, num_videos=8, seed=3, split="test", workers=1)
    old = '{"version": 1, "seed": 3, "num_videos": 8}'
    (tmp_path / "world.json").write_text(old)
    monkeypatch.setattr("videolm.datasets.synthetic.world.write_questions", lambda scene: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        render_world(tmp_path, num_videos=8, seed=3, split="test", workers=1)
    assert (tmp_path / "world.json").read_text() == old


def test_a_world_of_a_newer_language_is_refused(tmp_path):
    render_world(tmp_path, num_videos=8, seed=3, split="test", workers=1)
    facts = json.loads((tmp_path / "world.json").read_text()) | {"language": 99}
    (tmp_path / "world.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"a world of language 99.*use a newer videolm"):
        render_world(tmp_path, num_videos=8, seed=3, workers=1)


def test_the_language_has_another_version_when_any_of_its_texts_changes():
    texts = []
    for video in plan_world(100, seed=3):
        texts += [caption.text for caption in write_captions(video.scene)]
        texts += [f"{q.text} {q.answer} {q.candidates}" for q in write_questions(video.scene)]
    assert (_LANGUAGE, hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]) == (3, "5540b928bf1b7fb7")


def test_a_stopped_rendering_goes_on(folder, tmp_path):
    out = tmp_path / "stopped"
    render_world(out, num_videos=24, seed=3, split="test", workers=1)
    missing = sorted((out / "videos").iterdir())[0]
    missing.unlink()
    made = []
    render_world(out, num_videos=24, seed=3, split="test", workers=1, on_video=made.append)
    assert made == [missing.stem]


def test_the_readers_of_msrvtt_read_a_world(folder):
    train = read_captions(folder, split="train")
    test = read_queries(folder)
    assert len(train) + len(read_captions(folder, split="val")) + len(test) == 24
    assert all(len(video.captions) == NUM_CAPTIONS for video in train)
    assert {video.category for video in train} <= {1, 2, 3}
    assert all(video_path(folder, query.video_id).exists() for query in test)


def test_questions_have_msrvtt_qas_keys_and_one_right_candidate(folder):
    for split in ("train", "val", "test"):
        rows = json.loads((folder / f"{split}_qa.json").read_text())
        assert {"answer", "category_id", "id", "question", "video_id"} <= rows[0].keys()
        for row in rows:
            assert row["candidates"].count(row["answer"]) == 1
            assert row["candidates"][row["answer_index"]] == row["answer"]
            assert len(set(row["candidates"])) == (2 if row["answer"] in ("yes", "no") else NUM_CANDIDATES)


def test_questions_are_balanced_and_of_every_kind(plan):
    questions = [question for video in plan for question in write_questions(video.scene)]
    first_words = Counter(" ".join(question.text.split()[:2]) for question in questions)
    for kind in ("what color", "what shape", "how many", "in which", "what does", "which way"):
        assert first_words[kind] > 10, kind
    assert any("acts first" in question.text for question in questions)
    answers = Counter(question.answer for question in questions)
    assert 0.5 < answers["yes"] / answers["no"] < 2


def test_an_answer_about_direction_follows_the_reversal(plan):
    scene = next(v.scene for v in plan if v.twin and v.scene.things[0].program[0] in DIRECTIONS)
    asked = "which direction does the"
    forward, backward = (
        {q.text: q.answer for q in write_questions(s) if q.text.startswith(asked)}
        for s in (scene, scene.reverse())
    )
    assert forward.keys() == backward.keys()
    assert all(forward[text] != backward[text] for text in forward)


def test_the_vocabulary_covers_captions_questions_and_answers():
    # long enough that nothing is cut off
    tokenizer = build_word_tokenizer(VOCABULARY, context_length=200)
    for video in plan_world(40, seed=77):
        texts = [caption.text for caption in write_captions(video.scene)]
        texts += [t for q in write_questions(video.scene) for t in (q.text, *q.candidates)]
        input_ids, _ = tokenizer(texts)
        assert not (input_ids == 1).any(), "an unknown word"


def test_queries_fit_the_context_of_the_model_that_ships(plan):
    model = videolm.load()
    texts = [query_caption(video.scene).text for video in plan]
    texts += [text for pair in plan_twins(plan) for text in (pair.sentence_a, pair.sentence_b)]
    tokenizer = build_word_tokenizer(VOCABULARY, context_length=200)
    assert tokenizer(texts)[0].shape[1] <= model.shape.context_length
    assert not (model.tokenizer(texts)[0] == 1).any(), "a word that the model does not know"


def test_the_ceiling_counts_scenes_that_a_sentence_fits(plan):
    scenes = [video.scene for video in plan[:40]]
    captions = [query_caption(scene) for scene in scenes]
    alone = recall_ceiling(scenes, captions)
    assert 0.8 < alone <= 1
    assert recall_ceiling(scenes + scenes, captions + captions) == pytest.approx(alone / 2)


def test_things_that_meet_no_other_stay_in_the_central_square(plan):
    for scene in (video.scene for video in plan if video.scene.event == "none"):
        for thing in scene.things:
            for time in np.linspace(0, 1, 9):
                x, y, scale, *_ = pose(thing, time)
                radius = SIZES[thing.size] * scale
                assert radius <= x <= 1 - radius
                assert radius <= y <= 1 - radius


def test_pictures_show_the_thing_where_its_pose_says():
    scene = next(v.scene for v in plan_world(80, seed=3) if len(v.scene.things) == 1 and not v.scene.shake)
    scene = replace(scene, pattern="plain", tone="black", things=(replace(scene.things[0], texture="plain"),))
    frames = draw_frames(scene)
    side, (height, width) = min(scene.height, scene.width), (scene.height, scene.width)
    for index in (0, scene.num_frames // 2, scene.num_frames - 1):
        x, y, _, _, visible = pose(scene.things[0], index / (scene.num_frames - 1))
        bright = np.argwhere(frames[index].max(axis=-1) > 100)
        assert len(bright) > 0 if visible else len(bright) == 0
        if visible:
            centre = np.array([(height - side) / 2 + y * side, (width - side) / 2 + x * side])
            middle = (bright.min(axis=0) + bright.max(axis=0)) / 2
            # a triangle's or star's box is not centred on its middle
            assert np.abs(middle - centre).max() < 0.06 * side


def test_a_contact_sheet_has_a_row_for_each_video(plan):
    with pytest.raises(ValueError, match="at least one row"):
        world_sheet([])
    one, three = world_sheet(plan[:1]), world_sheet(plan[:3])
    assert three.height > 2.5 * one.height


def test_a_world_too_small_for_three_splits_is_refused():
    with pytest.raises(ValueError, match=r"num_videos \(4\) must be at least 8"):
        plan_world(4, seed=0)


def test_a_folder_that_is_no_world_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a rendered world"):
        read_world(tmp_path)
