"""Questions about a scene with their answers and, for multiple choice, five candidates.

Answers are short, as in MSRVTT-QA. A question is asked only where it has one answer: a thing is called by
colour, by shape or by both, whichever names it alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from videolm.datasets.synthetic.captions import thing_name
from videolm.datasets.synthetic.scene import COLOURS, DIRECTIONS, SHAPES, Scene

NUM_CANDIDATES = 5
_NUMBERS = ("one", "two", "three", "four", "five")
_DOING = {
    "grow": "grow",
    "shrink": "shrink",
    "clockwise": "spin",
    "counterclockwise": "spin",
    "bounce": "bounce",
    "blink": "blink",
    "still": "rest",
    "collide": "collide",
} | dict.fromkeys(DIRECTIONS, "move")
_IMPLIED = {"collide": {"move", "bounce"}, "bounce": {"move"}}
"""What is true as well of a thing that does this, so that it is no wrong answer."""
_DIRECTION_WORDS = {name: name.replace("-", " ") for name in DIRECTIONS}
_SPINS = {"clockwise": "clockwise", "counterclockwise": "counterclockwise"}


_Row = tuple[str, str, tuple[str, ...]]
"""Question, answer, and the words among which the wrong candidates are drawn."""


@dataclass(frozen=True)
class Question:
    """An open-ended question that is multiple choice as well."""

    text: str
    answer: str
    candidates: tuple[str, ...]
    """Five different ones (two for a question of yes or no), the answer among them, in random order."""

    @property
    def answer_index(self) -> int:
        return self.candidates.index(self.answer)


def write_questions(scene: Scene) -> list[Question]:
    """All questions that the scene can be asked, in a fixed order."""
    rng = np.random.default_rng([scene.seed, 23, int(scene.backwards)])
    rows: list[_Row] = [("how many shapes are there", _NUMBERS[len(scene.things) - 1], _NUMBERS)]
    for index, thing in enumerate(scene.things):
        rows += _look_rows(scene, index)
        rows += _action_rows(scene, index, thing_name(thing), rng)
    rows += _order_rows(scene)
    return [Question(text, answer, _candidates(answer, pool, rng)) for text, answer, pool in rows]


def _look_rows(scene: Scene, index: int) -> list[_Row]:
    thing = scene.things[index]
    rows: list[_Row] = []
    if sum(other.shape == thing.shape for other in scene.things) == 1:
        rows.append((f"what color is the {thing.shape}", thing.colour, tuple(COLOURS)))
    if sum(other.colour == thing.colour for other in scene.things) == 1:
        rows.append((f"what shape is {thing.colour}", thing.shape, SHAPES))
    return rows


def _action_rows(scene: Scene, index: int, name: str, rng: np.random.Generator) -> list[_Row]:
    program = scene.program(index)
    rows: list[_Row] = []
    implied = {also for action in program for also in _IMPLIED.get(_DOING[action], ())}
    doings = tuple(word for word in dict.fromkeys(_DOING.values()) if word not in implied)
    if len(program) == 1:
        rows.append((f"what does the {name} do", _DOING[program[0]], doings))
    else:
        rows.append((f"what does the {name} do first", _DOING[program[0]], doings))
        rows.append((f"what does the {name} do last", _DOING[program[1]], doings))
    for action in program:
        if action in DIRECTIONS and sum(a in DIRECTIONS for a in program) == 1:
            pool = tuple(_DIRECTION_WORDS.values())
            rows.append((f"which direction does the {name} move", _DIRECTION_WORDS[action], pool))
            # "left" is no wrong answer for a thing that goes up left
            other = [d for d in DIRECTIONS if not set(d.split("-")) & set(action.split("-"))]
            asked = action if rng.random() < 0.5 else str(rng.choice(other))
            answer = "yes" if asked == action else "no"
            rows.append((f"does the {name} move {_DIRECTION_WORDS[asked]}", answer, ("yes", "no")))
        if action in _SPINS:
            pool = (*_SPINS.values(), "left", "right", "up")
            rows.append((f"which way does the {name} spin", _SPINS[action], pool))
    asked = _DOING[program[0]] if rng.random() < 0.4 else str(rng.choice(doings))
    truth = asked in {_DOING[action] for action in program}
    rows.append((f"does the {name} {asked}", "yes" if truth else "no", ("yes", "no")))
    return rows


def _order_rows(scene: Scene) -> list[_Row]:
    """Which of two things acts first, where one waits while the other acts."""
    starts = [i for i in range(len(scene.things)) if scene.program(i)[0] != "still"]
    waits = [i for i in range(len(scene.things)) if scene.program(i)[0] == "still" and scene.program(i)[1:]]
    if len(starts) != 1 or not waits:
        return []
    thing = scene.things[starts[0]]
    if sum(other.shape == thing.shape for other in scene.things) > 1:
        return []
    return [("what shape acts first", thing.shape, SHAPES)]


def _candidates(answer: str, pool: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    wrong = [word for word in dict.fromkeys(pool) if word != answer]
    chosen = [str(w) for w in rng.permutation(wrong)[: NUM_CANDIDATES - 1]]
    return tuple(str(w) for w in rng.permutation([answer, *chosen]))
