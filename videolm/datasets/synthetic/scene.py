"""What there is in the rendered world: scenes as data, drawn from a seed.

A scene is symbolic: which things there are, what each does, on what background. `draw.py` makes pictures of
it, `captions.py` and `questions.py` make language of it, and a caption can be checked against it.

Every time-reversed scene is a scene too ("moves left" played backwards is "moves right"), so a scene and its
reverse form a twin pair: exactly the same frames in the other order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np

Split = Literal["train", "val", "test"]
TwinKind = Literal["direction", "rotation", "order"]

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (42, 92, 220),
    "yellow": (245, 215, 45),
    "orange": (245, 135, 30),
    "purple": (140, 60, 190),
    "pink": (250, 140, 190),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES = ("plain", "striped", "dotted")
SIZES = {"small": 0.1, "medium": 0.125, "big": 0.155}
"""Radius as a share of the central square; the medium one is never named in a caption."""
PATTERNS = ("plain", "gradient", "striped", "checkered", "speckled")
TONES = {
    "black": (18, 18, 22),
    "gray": (95, 95, 100),
    "brown": (92, 64, 44),
    "navy": (24, 34, 72),
    "olive": (74, 78, 44),
}

DIRECTIONS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-left": (-math.sqrt(0.5), -math.sqrt(0.5)),
    "up-right": (math.sqrt(0.5), -math.sqrt(0.5)),
    "down-left": (-math.sqrt(0.5), math.sqrt(0.5)),
    "down-right": (math.sqrt(0.5), math.sqrt(0.5)),
}
INVERSE = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "up-left": "down-right",
    "down-right": "up-left",
    "up-right": "down-left",
    "down-left": "up-right",
    "grow": "shrink",
    "shrink": "grow",
    "clockwise": "counterclockwise",
    "counterclockwise": "clockwise",
    "bounce": "bounce",
    "blink": "blink",
    "still": "still",
    "collide": "collide",
}
"""What an action looks like when the video is played backwards."""
FAMILIES = (
    "horizontal",
    "vertical",
    "falling",
    "rising",
    "size",
    "spin",
    "bounce",
    "blink",
    "still",
    "collide",
)
FAMILY = {
    "left": "horizontal",
    "right": "horizontal",
    "up": "vertical",
    "down": "vertical",
    "up-left": "falling",
    "down-right": "falling",
    "up-right": "rising",
    "down-left": "rising",
    "grow": "size",
    "shrink": "size",
    "clockwise": "spin",
    "counterclockwise": "spin",
    "bounce": "bounce",
    "blink": "blink",
    "still": "still",
    "collide": "collide",
}
"""Actions that become each other when played backwards share a family."""
_ACTIONS = (*DIRECTIONS, "grow", "shrink", "clockwise", "counterclockwise", "bounce", "blink")
_ROUND = ("circle", "ring")
_PATTERN: tuple[Split, ...] = (
    "train", "train", "test", "train", "train", "val", "train", "train", "test", "train",
)  # fmt: skip
_FORMATS = ((128, 128), (160, 120), (120, 160), (176, 144), (192, 144), (144, 144))
_RATES = (8, 10, 12, 15, 20, 24, 25)
GROWTH = 1.9
"""How many times bigger a thing is after it grew."""
BOUNCE_HEIGHT = 0.2


@dataclass(frozen=True)
class Thing:
    """One coloured shape and what it does. Positions are in the central square, (0, 0) its upper left corner."""

    colour: str
    shape: str
    texture: str
    size: str
    program: tuple[str, ...]
    """One action for the whole video, or two of which the second starts in the middle."""
    x: float
    y: float
    travel: float
    """Length of one movement."""


@dataclass(frozen=True)
class Scene:
    """Everything that decides a video."""

    things: tuple[Thing, ...]
    """Back to front."""
    event: Literal["none", "collide", "behind"]
    """"collide": both things meet in the middle; "behind": the first passes behind the second."""
    pattern: str
    tone: str
    shake: bool
    """The camera trembles."""
    width: int
    height: int
    fps: Fraction
    num_frames: int
    """Odd, so that frames sampled from the middles of segments are the same ones in the reversed video."""
    seed: int
    """Decides what no caption tells: exact shades, speckles, trembling."""
    backwards: bool = False

    def program(self, index: int) -> tuple[str, ...]:
        """What thing `index` does, as it is seen."""
        program = self.things[index].program
        return tuple(INVERSE[action] for action in reversed(program)) if self.backwards else program

    def place(self, index: int, at: Literal["start", "end"]) -> tuple[float, float]:
        """Where thing `index` is seen at the start or the end."""
        time = 1.0 if (at == "end") != self.backwards else 0.0
        x, y, *_ = pose(self.things[index], time)
        return x, y

    def way(self, index: int, step: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where thing `index` is seen at the start and the end of the action number `step` of its program."""
        thing = self.things[index]
        times = (step / len(thing.program), (step + 1) / len(thing.program))
        (ax, ay, *_), (bx, by, *_) = (pose(thing, 1 - t if self.backwards else t) for t in times)
        return (ax, ay), (bx, by)

    def reverse(self) -> Scene:
        """The same frames in the other order."""
        return replace(self, backwards=not self.backwards)


def pose(thing: Thing, time: float) -> tuple[float, float, float, float, bool]:
    """x, y, scale, angle in radians (clockwise) and visibility of a thing at `time` in [0, 1], played forwards."""
    x, y, scale, angle, visible = thing.x, thing.y, 1.0, 0.0, True
    if "shrink" in thing.program:
        scale = math.sqrt(GROWTH)
    if "grow" in thing.program:
        scale = 1 / math.sqrt(GROWTH)
    for phase, action in enumerate(thing.program):
        progress = min(max(time * len(thing.program) - phase, 0.0), 1.0)
        if action in DIRECTIONS:
            x += DIRECTIONS[action][0] * thing.travel * progress
            y += DIRECTIONS[action][1] * thing.travel * progress
        elif action == "grow":
            scale *= GROWTH**progress
        elif action == "shrink":
            scale *= GROWTH**-progress
        elif action in ("clockwise", "counterclockwise"):
            # slow enough that eight sampled frames never turn by half of a cross's or square's symmetry
            turn = math.radians(220 if len(thing.program) == 1 else 120) * progress
            angle += turn if action == "clockwise" else -turn
        elif action == "bounce":
            y -= BOUNCE_HEIGHT * abs(math.sin(2 * math.pi * progress))
        elif action == "blink":
            visible = visible and not (0.2 < progress < 0.45 or 0.55 < progress < 0.8)
        elif action == "collide":
            # there and back: `travel` is signed, towards the other thing
            x += thing.travel * (1 - abs(2 * progress - 1))
    return x, y, scale, angle, visible


def split_of(colour: str, shape: str, program: tuple[str, ...]) -> Split:
    """Which split may show a thing of this colour and shape do this, or the reverse of it.

    A Latin pattern: every colour, shape and program occurs in every split, no combination of them in two.
    """
    families = sum(FAMILIES.index(family) for family in {FAMILY[action] for action in program})
    number = list(COLOURS).index(colour) + 3 * SHAPES.index(shape) + 7 * families
    return _PATTERN[number % 10]


def sample_scene(seed: int, *, split: Split, twin: bool) -> Scene:
    """A scene of one to three things whose combinations all belong to `split`.

    With `twin`, one that a viewer tells from its reverse: by a direction, or by the order of two actions.
    """
    rng = np.random.default_rng([seed, 20])
    # twins that differ by order alone are rare among free draws
    actions = ("bounce", "blink") if twin and rng.random() < 0.15 else _ACTIONS
    while True:
        scene = _draw(rng, seed, split, actions)
        if not twin or is_telling(scene):
            return scene


def is_telling(scene: Scene) -> bool:
    """True where the reversed video needs another description."""
    reverse = scene.reverse()
    return any(scene.program(i) != reverse.program(i) for i in range(len(scene.things)))


def twin_kind(scene: Scene) -> TwinKind:
    """By what the twins differ: a movement or size, the sense of a rotation alone, or the order of actions alone.

    "order": every action looks the same backwards, and only which comes first differs.
    """
    turning = {a for thing in scene.things for a in thing.program if INVERSE[a] != a}
    if not turning:
        return "order"
    return "rotation" if all(FAMILY[action] == "spin" for action in turning) else "direction"


def _draw(rng: np.random.Generator, seed: int, split: Split, actions: tuple[str, ...]) -> Scene:
    event = (
        str(rng.choice(["none", "collide", "behind"], p=[0.82, 0.08, 0.1])) if actions == _ACTIONS else "none"
    )
    if event == "none":
        things = _free_things(rng, split, actions, number=int(rng.choice([1, 2, 3], p=[0.45, 0.37, 0.18])))
    else:
        things = _meeting_things(rng, split, event)
    width, height = _FORMATS[rng.integers(len(_FORMATS))]
    fps = int(rng.choice(_RATES))
    seconds = rng.uniform(1.8, 3.0)
    return Scene(
        things=things,
        event=event,  # type: ignore[arg-type]
        pattern=str(rng.choice(PATTERNS)),
        tone=str(rng.choice(list(TONES))),
        shake=bool(rng.random() < 0.25),
        width=width,
        height=height,
        fps=Fraction(fps),
        num_frames=int(seconds * fps) // 2 * 2 + 1,
        seed=seed,
    )


def _look(rng: np.random.Generator, split: Split, program: tuple[str, ...]) -> tuple[str, str, str, str]:
    """Colour, shape, texture and size for a thing with this program, allowed in this split."""
    while True:
        colour = str(rng.choice(list(COLOURS)))
        shape = str(rng.choice(SHAPES))
        spins = "clockwise" in program or "counterclockwise" in program
        if (spins and shape in _ROUND) or split_of(colour, shape, program) != split:
            continue
        texture = str(rng.choice(TEXTURES, p=[0.6, 0.2, 0.2]))
        size = str(rng.choice(list(SIZES), p=[0.25, 0.5, 0.25]))
        return colour, shape, texture, size


def _sample_program(rng: np.random.Generator, actions: tuple[str, ...], num_things: int) -> tuple[str, ...]:
    if num_things > 1 and rng.random() < 0.2:
        return ("still",)
    while True:
        first, second = (str(a) for a in rng.choice(actions, size=2))
        if rng.random() < 0.6:
            return (first,)
        kind = rng.random()
        program = (first, "still") if kind < 0.2 else ("still", first) if kind < 0.4 else (first, second)
        if FAMILY[program[0]] != FAMILY[program[1]]:
            return program


def _free_things(
    rng: np.random.Generator, split: Split, actions: tuple[str, ...], *, number: int
) -> tuple[Thing, ...]:
    """Things that do not touch each other while they move."""
    for _ in range(200):
        things: list[Thing] = []
        for _ in range(number):
            program = _sample_program(rng, actions, number)
            thing = _placed(rng, program, _look(rng, split, program))
            if any(_touch(thing, other) for other in things):
                break
            if any((thing.colour, thing.shape) == (other.colour, other.shape) for other in things):
                break
            things.append(thing)
        moving = any(t.program != ("still",) for t in things)
        if len(things) == number and moving:
            return tuple(things)
    return _free_things(rng, split, actions, number=number - 1)


def _placed(rng: np.random.Generator, program: tuple[str, ...], look: tuple[str, str, str, str]) -> Thing:
    """A thing whose whole way stays inside the central square."""
    colour, shape, texture, size = look
    travel = float(rng.uniform(0.42, 0.55) if len(program) == 1 else rng.uniform(0.34, 0.45))
    while True:
        origin = Thing(colour, shape, texture, size, program, 0.0, 0.0, travel)
        poses = [pose(origin, time) for time in np.linspace(0, 1, 33)]
        margin = SIZES[size] * max(p[2] for p in poses) + 0.02
        low_x, low_y = (margin - min(p[axis] for p in poses) for axis in (0, 1))
        high_x, high_y = (1 - margin - max(p[axis] for p in poses) for axis in (0, 1))
        if low_x <= high_x and low_y <= high_y:
            return replace(origin, x=float(rng.uniform(low_x, high_x)), y=float(rng.uniform(low_y, high_y)))
        travel *= 0.8


def _touch(a: Thing, b: Thing) -> bool:
    for time in np.linspace(0, 1, 17):
        ax, ay, a_scale, *_ = pose(a, time)
        bx, by, b_scale, *_ = pose(b, time)
        if math.hypot(ax - bx, ay - by) < SIZES[a.size] * a_scale + SIZES[b.size] * b_scale:
            return True
    return False


def _meeting_things(rng: np.random.Generator, split: Split, event: str) -> tuple[Thing, ...]:
    if event == "collide":
        looks = [_look(rng, split, ("collide",)) for _ in range(2)]
        while looks[0][:2] == looks[1][:2]:
            looks[1] = _look(rng, split, ("collide",))
        y = float(rng.uniform(0.25, 0.75))
        reach = (SIZES[looks[0][3]] + SIZES[looks[1][3]]) / 2
        left, right = 0.18, 0.82
        travel = 0.5 - reach - left
        return (
            Thing(*looks[0], ("collide",), left, y, travel),
            Thing(*looks[1], ("collide",), right, y, -travel),
        )
    direction = str(rng.choice(["left", "right", "up", "down"]))
    mover = _look(rng, split, (direction,))
    front = _look(rng, split, ("still",))
    while front[:2] == mover[:2] or front[1] == "ring":
        front = _look(rng, split, ("still",))
    dx, dy = DIRECTIONS[direction]
    travel = 0.6
    x, y = (float(v) for v in rng.uniform(0.42, 0.58, size=2))
    return (
        Thing(*mover, (direction,), x - dx * travel / 2, y - dy * travel / 2, travel),
        Thing(*front, ("still",), x, y, 0.0),
    )
