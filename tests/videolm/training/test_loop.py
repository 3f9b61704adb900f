"""The loop learns, and a run that was stopped ends exactly where one that was not stopped ends."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.tiny import TINY, WORDS
from videolm.encoders.presets import build_video_clip
from videolm.text.tokenizer import build_word_tokenizer
from videolm.training.batches import Stage, TrainingVideo
from videolm.training.checkpoint import load_checkpoint, save_checkpoint
from videolm.training.frames import shift_pictures
from videolm.training.retrieval import Schedule, train
from videolm.video.transforms import Preprocess

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
SCHEDULE = Schedule(
    num_steps=40,
    batch_size=6,
    lr=3e-3,
    twin_share=0.5,
    num_frames=[Stage(0.0, 1), Stage(0.25, 4)],
    shift=1,
    checkpoint_every=7,
    validate_every=20,
)


def data():
    """Three colours, a bright spot that moves right in one video and left in its twin."""
    videos, frames = [], []
    for colour, rgb in COLOURS.items():
        clip = torch.tensor(rgb, dtype=torch.uint8).expand(4, 16, 16, 3).clone()
        for time in range(4):
            clip[time, 6:10, 4 * time : 4 * time + 4] = 250
        for twin in (clip, clip.flip(0)):
            row = len(videos)
            videos.append(TrainingVideo((f"a {colour} circle moves",), twin=row ^ 1))
            frames.append(twin)
    return videos, torch.stack(frames)


def run(out, *, schedule=SCHEDULE, stop_after=None, seed=0, **options):
    torch.manual_seed(seed)
    model = build_video_clip(TINY)
    videos, frames = data()
    train(
        model,
        build_word_tokenizer(WORDS, context_length=8),
        videos,
        frames,
        schedule,
        preprocess=Preprocess(image_size=16),
        out=out,
        should_stop=None if stop_after is None else Countdown(out, stop_after),
        **options,
    )
    return model


class Countdown:
    """True once the run has reached a step, whether it began at 0 or went on."""

    def __init__(self, out, stop_after):
        state = load_checkpoint(out)
        self.left = stop_after - (state["step"] if state else 0)

    def __call__(self):
        self.left -= 1
        return self.left <= 0


def losses(out):
    rows = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_a_stopped_run_ends_where_an_unbroken_one_ends(tmp_path):
    unbroken = run(tmp_path / "a")
    for stop in (13, 14, 31, None):
        # another seed at the start: everything has to come from the checkpoint
        resumed = run(tmp_path / "b", stop_after=stop, seed=stop or 1 if stop != 13 else 0)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_loss_falls(tmp_path):
    run(tmp_path / "one", stop_after=1)
    run(tmp_path / "all", schedule=replace(SCHEDULE, num_steps=120, shift=0))
    # twins share their sentence here, so the best that is possible is ln 2
    assert losses(tmp_path / "all")[-1][1] < math.log(2) + 0.05
    assert losses(tmp_path / "one")[-1][1] > math.log(2) + 0.2


def test_a_crash_between_checkpoints_repeats_no_line_of_the_log_and_no_number(tmp_path):
    def crash(model):
        raise RuntimeError("out of luck")

    unbroken = run(tmp_path / "a")
    with pytest.raises(RuntimeError, match="out of luck"):
        # at step 20, six steps after the last checkpoint
        run(tmp_path / "b", validate=crash)
    assert [step for step, _ in losses(tmp_path / "b")] == [10, 20]
    with (tmp_path / "b" / "log.jsonl").open("a") as log:
        log.write('{"step": 2')
    resumed = run(tmp_path / "b", seed=4)
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert all(map(torch.equal, unbroken.state_dict().values(), resumed.state_dict().values()))


def test_a_run_with_other_settings_is_not_gone_on_with(tmp_path):
    run(tmp_path, stop_after=3)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(lr, seed\)"):
        run(tmp_path, schedule=replace(SCHEDULE, lr=1e-9, seed=1))


def test_videos_that_would_never_be_seen_are_an_error(tmp_path):
    videos, frames = data()
    videos[0] = replace(videos[0], difficulty=3)
    with pytest.raises(ValueError, match="difficulty ends at 1, so that videos of 3 are never seen"):
        train(
            build_video_clip(TINY),
            build_word_tokenizer(WORDS, context_length=8),
            videos,
            frames,
            SCHEDULE,
            preprocess=Preprocess(image_size=16),
            out=tmp_path,
        )


def test_validation_and_tensorboard_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    seen = []
    run(tmp_path, tensorboard=True, validate=lambda model: seen.append(model.training) or {"val/r1": 1.0})
    assert seen == [False, False]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"step": 40, "val/r1": 1.0} in rows
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_bfloat16_keeps_the_weights_in_float32(tmp_path):
    model = run(tmp_path / "bfloat16", schedule=replace(SCHEDULE, num_steps=3, precision="bfloat16"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    run(tmp_path / "float32", schedule=replace(SCHEDULE, num_steps=3))
    (half,), (full,) = losses(tmp_path / "bfloat16"), losses(tmp_path / "float32")
    assert half != full
    assert half[1] == pytest.approx(full[1], rel=0.05)


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        run(tmp_path, schedule=replace(SCHEDULE, lr=1e30, max_grad_norm=1e30))


def test_rows_and_frames_must_match(tmp_path):
    videos, frames = data()
    with pytest.raises(ValueError, match=r"videos \(5\) must be as many as rows of frames \(6\)"):
        train(
            build_video_clip(TINY),
            build_word_tokenizer(WORDS, context_length=8),
            videos[:5],
            frames,
            SCHEDULE,
            preprocess=Preprocess(image_size=16),
            out=tmp_path,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, r"lr \(0.0\) must be above 0"),
        ({"lr": float("inf")}, r"lr \(inf\) must be above 0 and finite"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"shift": -2}, r"shift \(-2\)"),
        ({"num_frames": [Stage(0.0, 0)]}, "num_frames must have values of at least 1"),
        ({"difficulty": [Stage(0.0, 1), Stage(0.0, 2)]}, "difficulty must have rising starts"),
        ({"batch_size": 0}, r"batch_size \(0\)"),
        ({"twin_share": 1.5}, r"twin_share \(1.5\)"),
        ({"num_frames": [Stage(0.5, 1)]}, "num_frames must have rising starts from 0.0"),
    ],
    ids=str,
)
def test_a_schedule_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SCHEDULE, **change)


def test_a_shift_moves_all_frames_of_a_video_together():
    pictures = torch.zeros(8, 2, 9, 9, 3, dtype=torch.uint8)
    pictures[:, :, 4, 4] = 255
    moved = shift_pictures(pictures, 2, torch.Generator().manual_seed(0))
    assert moved.shape == pictures.shape
    spots = [tuple(map(int, frame[..., 0].nonzero()[0])) for clip in moved for frame in clip]
    assert spots[0::2] == spots[1::2]
    assert len(set(spots)) > 3
    assert all(2 <= y <= 6 and 2 <= x <= 6 for y, x in spots)


def test_a_checkpoint_holds_no_code(tmp_path):
    save_checkpoint(tmp_path, {"step": 1, "value": Fraction(1, 2)})
    with pytest.raises(Exception, match="Weights only load failed"):
        load_checkpoint(tmp_path)


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path):
    save_checkpoint(tmp_path, {"step": 1})
    code = (
        "import os, signal, sys, torch\n"
        "from videolm.training.checkpoint import save_checkpoint\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_checkpoint(sys.argv[1], {'step': 2})\n"
    )
    paths = os.pathsep.join([os.getcwd(), str(Path(os.getcwd()) / "kernels")])
    died = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, env=os.environ | {"PYTHONPATH": paths}
    )
    assert died.returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path) == {"step": 1}
