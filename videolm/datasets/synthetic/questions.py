"""Questions about a scene with their answers and, for multiple choice, five candidates.

Answers are short, as in MSRVTT-QA. A question is asked only where it has one answer: a thing is called by
colour, by shape or by both, whichever names it alone. Of the questions of yes or no, each wording is answered
by either about as often.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from videolm.datasets.synthetic.captions import thing_name
from videolm.datasets.synthetic.phrases import NUMBERS
from videolm.datasets.synthetic.scene import COLOURS, DIRECTIONS, INVERSE, SHAPES, Scene, Thing

NUM_CANDIDATES = 5
_NAME = rf"the (?:(?:{'|'.join(COLOURS)}) )?(?:{'|'.join(SHAPES)}|object)"
_TYPES = {
    "count": r"how many shapes are there",
    "color": r"what color is the \w+",
    "shape": r"what shape is the \w+ object",
    "action": rf"what does {_NAME} do",
    "first action": rf"what does {_NAME} do first",
    "last action": rf"what does {_NAME} do last",
    "direction": rf"in which direction does {_NAME} move( first| last)?",
    "spin": rf"which way does {_NAME} spin",
    "which first": r"which shape acts first",
    "yes/no order": rf"does {_NAME} [\w ]+ before [\w ]+",
    "yes/no action": rf"does {_NAME} \w+",
    "yes/no direction": rf"does {_NAME} move \w+( \w+)?",
    "yes/no spin": rf"does {_NAME} spin \w+",
}
QUESTION_TYPES = tuple(_TYPES)
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
_GERUND = {
    "grow": "growing",
    "shrink": "shrinking",
    "spin": "spinning",
    "bounce": "bouncing",
    "blink": "blinking",
    "rest": "resting",
    "move": "moving",
}
_IMPLIED = {"collide": {"move", "bounce"}, "bounce": {"move"}}
"""What is true as well of a thing that does this, so that it is no wrong answer."""
_TRUE_SHARE = {
    "grow": 0.06,
    "shrink": 0.06,
    "spin": 0.14,
    "bounce": 0.095,
    "blink": 0.115,
    "rest": 0.345,
    "collide": 0.05,
    "move": 0.44,
}
"""Of the things that can be asked whether they do it, the share that does."""
_YES_NO = ("yes", "no")


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

    @property
    def type(self) -> str:
        return question_type(self.text)


def question_type(question: str) -> str:
    """Which of `QUESTION_TYPES` a question of the world is; ValueError for any other question."""
    for name, pattern in _TYPES.items():
        if re.fullmatch(pattern, question):
            return name
    raise ValueError(
        f"question ({question!r}) is none that the rendered world asks: {', '.join(QUESTION_TYPES)}"
    )


def write_questions(scene: Scene) -> list[Question]:
    """All questions that the scene can be asked, in a fixed order."""
    rng = np.random.default_rng([scene.seed, 23, int(scene.backwards)])
    naming = np.random.default_rng([scene.seed, 29])  # twins are asked alike
    rows: list[_Row] = [("how many shapes are there", NUMBERS[len(scene.things) - 1], NUMBERS)]
    for index, thing in enumerate(scene.things):
        name = str(naming.choice(_names(scene, thing)))
        program = scene.program(index)
        rows += _look_rows(scene, thing)
        rows += _action_rows(program, name)
        rows += _direction_rows(program, name, rng)
        rows += _order_row(program, name, rng)
        rows += _doing_rows(program, name, rng)
    rows += _first_row(scene)
    return [Question(text, answer, _candidates(answer, pool, rng)) for text, answer, pool in rows]


def _names(scene: Scene, thing: Thing) -> list[str]:
    """By colour and shape, and by either where it is of this thing alone."""
    names = [f"the {thing_name(thing)}"]
    if sum(other.shape == thing.shape for other in scene.things) == 1:
        names.append(f"the {thing.shape}")
    if sum(other.colour == thing.colour for other in scene.things) == 1:
        names.append(f"the {thing.colour} object")
    return names


def _look_rows(scene: Scene, thing: Thing) -> list[_Row]:
    names = _names(scene, thing)
    rows: list[_Row] = []
    if (by_shape := f"the {thing.shape}") in names:
        rows.append((f"what color is {by_shape}", thing.colour, tuple(COLOURS)))
    if (by_colour := f"the {thing.colour} object") in names:
        rows.append((f"what shape is {by_colour}", thing.shape, SHAPES))
    return rows


def _action_rows(program: tuple[str, ...], name: str) -> list[_Row]:
    implied = {also for action in program for also in _IMPLIED.get(_DOING[action], ())}
    pool = tuple(word for word in dict.fromkeys(_DOING.values()) if word not in implied)
    if len(program) == 1:
        return [(f"what does {name} do", _DOING[program[0]], pool)]
    if all(action in DIRECTIONS for action in program):
        return []
    return [
        (f"what does {name} do first", _DOING[program[0]], pool),
        (f"what does {name} do last", _DOING[program[1]], pool),
    ]


def _direction_rows(program: tuple[str, ...], name: str, rng: np.random.Generator) -> list[_Row]:
    rows: list[_Row] = []
    # what bounces goes up and down besides
    directions = tuple(d for d in DIRECTIONS if "bounce" not in program or d not in ("up", "down"))
    moves = [action for action in program if action in directions]
    pool = tuple(_words(direction) for direction in directions)
    for action, when in zip(moves, ("",) if len(moves) == 1 else (" first", " last"), strict=False):
        rows.append((f"in which direction does {name} move{when}", _words(action), pool))
    if len(moves) == 1:
        # "left" is no wrong answer for a thing that goes up left, so a slanting way is asked of such a one
        action = moves[0]
        other = [d for d in directions if d != action and ("-" in d) == ("-" in action)]
        asked = action if rng.random() < 0.5 else str(rng.choice(other))
        rows.append((f"does {name} move {_words(asked)}", _yes(asked == action), _YES_NO))
    for action in program:
        if _DOING[action] == "spin":
            pool = (action, INVERSE[action], "left", "right", "up")
            rows.append((f"which way does {name} spin", action, pool))
            asked = action if rng.random() < 0.5 else INVERSE[action]
            rows.append((f"does {name} spin {asked}", _yes(asked == action), _YES_NO))
    return rows


def _order_row(program: tuple[str, ...], name: str, rng: np.random.Generator) -> list[_Row]:
    """Which of its two actions comes first."""
    if len(program) == 1:
        return []
    asked = program if rng.random() < 0.5 else program[::-1]
    told = [""] * 2
    if all(action in DIRECTIONS for action in program):
        told = [f" {_words(action)}" for action in asked]
    first, second = (_DOING[action] for action in asked)
    text = f"does {name} {first}{told[0]} before {_GERUND[second]}{told[1]}"
    return [(text, _yes(asked == program), _YES_NO)]


def _doing_rows(program: tuple[str, ...], name: str, rng: np.random.Generator) -> list[_Row]:
    """Whether it does this or that, drawn so that either answer is as likely whatever is asked."""
    does = {_DOING[action] for action in program}
    implied = {also for word in does for also in _IMPLIED.get(word, ())}
    rows: list[_Row] = []
    for word, share in _TRUE_SHARE.items():
        rare = min(share, 1 - share)
        chance = 0.5 * rare / (share if word in does else 1 - share)
        if rng.random() < chance and word not in implied - does:
            rows.append((f"does {name} {word}", _yes(word in does), _YES_NO))
    return rows


def _first_row(scene: Scene) -> list[_Row]:
    """Which of two things acts first, where one waits while the other acts."""
    starts = [i for i in range(len(scene.things)) if scene.program(i)[0] != "still"]
    waits = [i for i in range(len(scene.things)) if scene.program(i)[0] == "still" and scene.program(i)[1:]]
    if len(starts) != 1 or not waits:
        return []
    thing = scene.things[starts[0]]
    if sum(other.shape == thing.shape for other in scene.things) > 1:
        return []
    return [("which shape acts first", thing.shape, SHAPES)]


def _words(direction: str) -> str:
    return direction.replace("-", " ")


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _candidates(answer: str, pool: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    wrong = [word for word in dict.fromkeys(pool) if word != answer]
    chosen = [str(w) for w in rng.permutation(wrong)[: NUM_CANDIDATES - 1]]
    return tuple(str(w) for w in rng.permutation([answer, *chosen]))
