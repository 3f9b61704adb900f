"""A speaker learns to say what it sees, the tower stays as it is, and a stopped run ends where another ends."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.tiny import TINY, WORDS
from videolm.encoders.presets import build_video_clip
from videolm.heads.captioning import IGNORED
from videolm.heads.presets import ConnectorShape, SpeakerShape, build_speaker
from videolm.text.prompts import PromptTokenizer
from videolm.text.tokenizer import build_word_tokenizer
from videolm.training import speaking
from videolm.training.batches import KindStage, Stage
from videolm.training.checkpoint import load_checkpoint
from videolm.training.speaking import Drawing, Lesson, SpeakerSchedule, teacher_forcing, train_speaker
from videolm.video.transforms import Preprocess

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
SHAPE = SpeakerShape(
    connector=ConnectorShape(num_queries=2, depth=1, query_width=16, num_heads=2, max_frames=4),
    lm={"model_type": "gpt2", "vocab_size": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    | {"bos_token_id": 3, "eos_token_id": 4},
    start_token_id=3,
    eos_token_id=4,
    pad_token_id=0,
    prefix_attention="full",
)
SCHEDULE = SpeakerSchedule(
    num_steps=30,
    batch_size=4,
    lr=1e-2,
    shift=1,
    num_frames=[Stage(0.0, 3)],
    lessons_per_video=2,
    label_smoothing=0.1,
    checkpoint_every=7,
)
FRAMES = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)[:, None, None, None].expand(3, 4, 16, 16, 3)
LESSONS = [Lesson(row, "", f"a {name} circle moves") for row, name in enumerate(COLOURS)]
ANSWERS = [
    Lesson(row, "a circle moves", name, "colour", question="a circle moves")
    for row, name in enumerate(COLOURS)
]


def tower():
    torch.manual_seed(0)
    return build_video_clip(TINY).eval()


def tokenizer():
    return build_word_tokenizer(WORDS, context_length=8)


def prompts(words):
    return PromptTokenizer(words.copy_backend(), start_token_id=3, eos_token_id=4, pad_token_id=0)


def run(out, *, schedule=SCHEDULE, lessons=LESSONS, questions=(), shape=SHAPE, stop_after=None):
    model, words = tower(), tokenizer()
    torch.manual_seed(1)
    speaker = build_speaker(shape, token_width=16, text_width=8)
    state = load_checkpoint(out)
    left = iter(range((stop_after or 1000) - (state["step"] if state else 0) - 1, -1, -1))
    train_speaker(
        speaker,
        model,
        lessons,
        FRAMES,
        schedule,
        prompt_tokenizer=prompts(words),
        text_tokenizer=words,
        twins={},
        preprocess=Preprocess(image_size=16),
        out=out,
        questions=questions,
        should_stop=lambda: next(left) == 0,
    )
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), tower().parameters(), strict=True)]
    assert all(same) or schedule.trains_towers
    return (speaker, model) if schedule.trains_towers else speaker


def said(speaker, prompt):
    pixels = Preprocess(image_size=16)(FRAMES[:, :3].flatten(0, 1)).unflatten(0, (3, 3))
    words = tokenizer()
    with torch.no_grad():
        model = tower()
        video = model.encode_video(pixels, pts_seconds=torch.arange(3.0).expand(3, -1))
        question = model.encode_text(*words([prompt] * 3)) if speaker.connector.question else None
        ids, mask = prompts(words).prompts([prompt] * 3)
        return prompts(words).decode(
            speaker.generate(speaker.prefix(video, question), ids, mask, max_new_tokens=6)
        )


def test_a_stopped_run_ends_where_an_unbroken_one_ends(tmp_path):
    unbroken = run(tmp_path / "a")
    for stop in (9, 14, None):
        resumed = run(tmp_path / "b", stop_after=stop)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


SURE = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
"""Without dropout, which the other tests keep: a run that goes on must draw it as if it had not stopped."""


def test_it_says_what_it_was_shown(tmp_path):
    shape = replace(SHAPE, lm=SHAPE.lm | SURE)
    speaker = run(tmp_path, schedule=replace(SCHEDULE, num_steps=250), shape=shape)
    assert said(speaker, "") == [lesson.target for lesson in LESSONS]


@pytest.mark.parametrize("reads_question", [False, True])
def test_it_answers_what_it_was_asked(tmp_path, reads_question):
    connector = replace(SHAPE.connector, reads_question=reads_question)
    shape = replace(SHAPE, connector=connector, lm=SHAPE.lm | SURE)
    speaker = run(tmp_path, schedule=replace(SCHEDULE, num_steps=250), lessons=ANSWERS, shape=shape)
    assert said(speaker, ANSWERS[0].prompt) == list(COLOURS)


def test_it_answers_beside_what_it_says(tmp_path):
    shape = replace(SHAPE, lm=SHAPE.lm | SURE)
    schedule = replace(SCHEDULE, num_steps=250, lessons_per_video=1, questions_per_video=2)
    speaker = run(tmp_path / "a", schedule=schedule, questions=ANSWERS, shape=shape)
    assert said(speaker, "") == [lesson.target for lesson in LESSONS]
    assert said(speaker, ANSWERS[0].prompt) == list(COLOURS)
    log = (tmp_path / "a" / "log.jsonl").read_text().splitlines()
    assert {"text_loss", "answer_loss"} <= json.loads(log[-1]).keys()
    with pytest.raises(ValueError, match=r"videos \[2\] have no question"):
        run(tmp_path / "b", schedule=schedule, questions=ANSWERS[:2])


def test_towers_learn_with_the_speaker_and_still_compare_and_go_on_where_they_were(tmp_path):
    schedule = replace(SCHEDULE, num_steps=20, trains_towers=True, contrastive_weight=1.0)
    speaker, towers = run(tmp_path / "a", schedule=schedule)
    run(tmp_path / "b", schedule=schedule, stop_after=13)
    resumed, again = run(tmp_path / "b", schedule=schedule)
    for one, other in ((speaker, resumed), (towers, again)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    before = tower().state_dict()
    still = [name for name, value in towers.state_dict().items() if torch.equal(value, before[name])]
    assert not still
    # without the contrastive loss nothing reaches the text tower
    _, towers = run(tmp_path / "c", schedule=replace(schedule, contrastive_weight=0.0))
    assert torch.equal(towers.text.token.weight, tower().text.token.weight)


def test_kinds_come_equally_often_and_others_are_of_the_same_video():
    lessons = [Lesson(row, "", "many", "many") for row in range(90)] + [
        Lesson(row, "", "few", "few") for row in range(9)
    ]
    generator = torch.Generator().manual_seed(0)
    drawn = Drawing(lessons, {})(1000, 3, generator)
    assert 430 < Counter(group[0].kind for group in drawn)["few"] < 570
    assert all(len(group) == 3 and len({lesson.row for lesson in group}) == 1 for group in drawn)
    with pytest.raises(ValueError, match="lessons is empty"):
        Drawing([], {})


def test_twins_stand_beside_each_other_and_no_lesson_comes_twice_for_a_video():
    lessons = [Lesson(row, "", f"{row} {i}") for row in range(20) for i in range(3)]
    twins = {row: row ^ 1 for row in range(20)}
    drawn = Drawing(lessons, twins)(40, 2, torch.Generator().manual_seed(0), twin_share=0.5)
    assert len(drawn) == 40
    rows = [group[0].row for group in drawn]
    pairs = sum(twins.get(row) == after for row, after in pairwise(rows))
    assert pairs >= 10
    assert all(group[0].target != group[1].target for group in drawn)


def test_hard_lessons_wait_and_are_never_left_out(tmp_path):
    hard = [replace(lesson, difficulty=2) for lesson in LESSONS]
    with pytest.raises(ValueError, match="difficulty ends at 1, so that lessons of 2 are never seen"):
        run(tmp_path, schedule=replace(SCHEDULE, difficulty=[Stage(0.0, 1)]), lessons=hard)
    waiting = replace(SCHEDULE, num_steps=4, difficulty=[Stage(0.0, 1), Stage(0.5, 2)])
    with pytest.raises(ValueError, match="lessons is empty"):
        run(tmp_path, schedule=waiting, lessons=hard)
    run(tmp_path, schedule=waiting, lessons=[LESSONS[0], *hard[1:]])


def test_some_kinds_come_before_the_rest(tmp_path, monkeypatch):
    asked = []

    def listen(tokenizer, texts):
        asked.append({target for _, target in texts})
        return teacher_forcing(tokenizer, texts)

    monkeypatch.setattr(speaking, "teacher_forcing", listen)
    stages = [KindStage(0.0, ["colour"]), KindStage(0.5, [])]
    run(tmp_path, schedule=replace(SCHEDULE, num_steps=8, kinds=stages), lessons=[*LESSONS, *ANSWERS])
    assert all(targets <= {*COLOURS} for targets in asked[:4])
    assert set().union(*asked[4:]) - {*COLOURS}
    for kinds, message in [
        ([KindStage(0.0, ["shape"]), KindStage(0.5, [])], r"kinds \['shape'\] have no lesson"),
        ([KindStage(0.0, ["colour"])], r"kinds ends at \['colour'\], so that lessons of others are never"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(tmp_path, schedule=replace(SCHEDULE, kinds=kinds), lessons=ANSWERS)


def test_only_targets_and_their_end_are_learned():
    words = tokenizer()
    ids, mask, targets = teacher_forcing(prompts(words), [("a circle", "moves"), ("", "red circle")])
    name = {i: token for token, i in words.copy_backend().get_vocab().items()} | {IGNORED: "-", 0: "."}
    assert [[name[i] for i in row] for row in ids.tolist()] == [
        ["<|start|>", "a", "circle", "moves", "<|end|>"],
        [".", ".", "<|start|>", "red", "circle"],
    ]
    assert [[name[i] for i in row] for row in targets.tolist()] == [
        ["-", "-", "moves", "<|end|>", "-"],
        ["-", "-", "red", "circle", "<|end|>"],
    ]
    assert mask.tolist() == [[True] * 5, [False] * 2 + [True] * 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions_per_video": -1}, r"questions_per_video \(-1\) must be at least 0"),
        ({"lessons_per_video": 0}, r"lessons_per_video \(0\) must be at least 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing \(1.0\) must be in \[0, 1\)"),
        ({"lr": 0.0}, r"lr \(0.0\) must be above 0"),
        (
            {"contrastive_weight": 1.0},
            r"contrastive_weight \(1.0\) must be finite and at least 0, and 0 unless",
        ),
        ({"num_frames": [Stage(0.5, 8)]}, "num_frames must have rising starts"),
        ({"kinds": [KindStage(0.5, [])]}, "kinds must have rising starts"),
    ],
    ids=["questions", "lessons", "smoothing", "lr", "contrast", "stages", "kinds"],
)
def test_a_schedule_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SCHEDULE, **change)
