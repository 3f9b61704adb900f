"""A stem learns the answers to questions about clips, several answers share, and a stop changes nothing."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from tests.tiny import TINY
from videolm.encoders.clip import ImageTower
from videolm.encoders.presets import build_video_clip
from videolm.training.naming import AnswerNames, NamedAnswer, Naming, train_naming
from videolm.video.transforms import Preprocess

# a bright square goes from left to right in the even videos, and back in the odd ones
FRAMES = torch.zeros(8, 4, 16, 16, 3, dtype=torch.uint8)
for _video in range(8):
    for _frame in range(4):
        _place = 4 * (_frame if _video % 2 == 0 else 3 - _frame)
        FRAMES[_video, _frame, 2 + _video : 6 + _video, _place : _place + 4] = 255
ANSWERS = [NamedAnswer(row, "way", ("right", "left")[row % 2]) for row in range(8)]
SCHEDULE = Naming(
    kinds=["way"], num_frames=4, num_steps=40, batch_size=8, lr=1e-2, warmup_share=0.1, checkpoint_every=7
)


def tower(*, stem: str = "conv_time") -> ImageTower:
    torch.manual_seed(0)
    return build_video_clip(replace(TINY, patch_size=4, stem=stem, temporal="divided")).vision


@pytest.mark.parametrize("part", ["stem", "tower"])
def test_it_learns_which_way_things_go(part: Literal["stem", "tower"], tmp_path: Path) -> None:
    losses = []
    for steps in (1, 40):
        trained = tower()
        train_naming(
            trained,
            ANSWERS,
            FRAMES,
            replace(SCHEDULE, num_steps=steps, part=part),
            preprocess=Preprocess(image_size=16),
            out=tmp_path / str(steps),
        )
        log = (tmp_path / str(steps) / "log.jsonl").read_text().splitlines()
        losses.append(float(log[-1].split('"loss": ')[1].split(",")[0]))
    assert losses[0] > 0.3
    assert losses[1] < 0.05


def test_a_stopped_run_ends_where_another_ends(tmp_path: Path) -> None:
    ends = []
    for name, stops in (("whole", [999]), ("stopped", [5, 999])):
        for stop in stops:
            trained, calls = tower(), []

            def should_stop(calls: list[None] = calls, stop: int = stop) -> bool:
                calls.append(None)
                return len(calls) >= stop

            train_naming(
                trained,
                ANSWERS,
                FRAMES,
                replace(SCHEDULE, num_steps=12),
                preprocess=Preprocess(image_size=16),
                out=tmp_path / name,
                should_stop=should_stop,
            )
        ends.append(trained.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_answers_of_one_video_share_and_who_is_not_asked_does_not_count() -> None:
    names = AnswerNames(4, [[2], [3]])
    logits = torch.tensor([[2.0, 0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 9.0, 9.0, 9.0]])
    named = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
    first = torch.log_softmax(logits[:, :2], dim=1)
    of_kind = torch.log_softmax(logits[:, 2:], dim=1)
    expected = (-(first[0, 0] + first[0, 1]) / 2 - first[1, 1]) / 2 - of_kind[0, 1]
    torch.testing.assert_close(names.loss(logits, named), expected)


def test_questions_of_one_kind_count_alike_whatever_thing_they_are_about() -> None:
    # two videos are asked of the first thing, one of the second
    names = AnswerNames(4, [[2, 2]])
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 3.0]])
    named = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    first, second = (torch.log_softmax(logits[:, part], dim=1) for part in (slice(2), slice(2, 4)))
    torch.testing.assert_close(names.loss(logits, named), -(first[0, 0] + first[1, 0] + second[1, 1]) / 3)


def test_a_bound_stem_tells_which_of_two_things_goes_which_way(tmp_path: Path) -> None:
    # a bright and a grey square pass each other, either way round: of any video it is true that one goes right
    frames = torch.zeros(8, 4, 16, 16, 3, dtype=torch.uint8)
    ways = ("right", "left")
    answers = []
    for video in range(8):
        for thing, (word, value) in enumerate((("bright", 255), ("grey", 90))):
            is_left = (video + thing) % 2
            answers.append(NamedAnswer(video, "way", ways[is_left], f"which way does the {word} one go"))
            answers.append(NamedAnswer(video, "shade", word, "which shade has it"))
            top = 1 + video // 2 + 7 * thing
            for frame in range(4):
                place = 4 * (3 - frame if is_left else frame)
                frames[video, frame, top : top + 4, place : place + 4] = value

    def last_loss(bound_to: list[str]) -> float:
        out = tmp_path / f"{len(bound_to)}"
        schedule = replace(SCHEDULE, bound_to=bound_to, num_steps=80)
        train_naming(tower(), answers, frames, schedule, preprocess=Preprocess(image_size=16), out=out)
        log = (out / "log.jsonl").read_text().splitlines()
        return float(log[-1].split('"loss": ')[1].split(",")[0])

    # unbound, both answers share the target of every video; bound adds a second loss, which it learns to the end
    unbound, bound = last_loss([]), last_loss(["shade"])
    assert unbound == pytest.approx(math.log(2), abs=0.05)
    assert bound == pytest.approx(math.log(2), abs=0.15)


def test_a_kind_without_answers_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="colour"):
        train_naming(
            tower(),
            ANSWERS,
            FRAMES,
            replace(SCHEDULE, kinds=["way", "colour"]),
            preprocess=Preprocess(image_size=16),
            out=tmp_path,
        )
    with pytest.raises(ValueError, match="part is 'stem'"):
        train_naming(
            tower(stem="linear"),
            ANSWERS,
            FRAMES,
            replace(SCHEDULE, part="stem"),
            preprocess=Preprocess(image_size=16),
            out=tmp_path,
        )
    with pytest.raises(ValueError, match="kinds"):
        replace(SCHEDULE, kinds=["way", "way"])
