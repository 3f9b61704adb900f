"""Sentences about a scene, each with what it claims, so that it can be checked against any scene.

A caption names one thing or all of them, in one of many phrasings; what it leaves out may be anything. The
claims decide how many videos of a world a sentence fits, and so the highest recall that is possible there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from videolm.datasets.synthetic.scene import DIRECTIONS, Scene, Thing

NUM_CAPTIONS = 20


@dataclass(frozen=True)
class ThingClaim:
    """What a sentence says of one thing; None where it says nothing."""

    colour: str | None
    shape: str | None
    texture: str | None = None
    size: str | None = None
    program: tuple[str, ...] | None = None
    start: str | None = None
    end: str | None = None

    def fits(self, scene: Scene, index: int) -> bool:
        thing = scene.things[index]
        return (
            self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
            and self.texture in (None, thing.texture)
            and self.size in (None, thing.size)
            and self.program in (None, scene.program(index))
            and (self.start is None or self.start == place_name(scene.place(index, "start")))
            and (self.end is None or self.end == place_name(scene.place(index, "end")))
        )


@dataclass(frozen=True)
class Caption:
    """A sentence and its claims."""

    text: str
    things: tuple[ThingClaim, ...]
    event: str | None = None
    number: int | None = None
    """How many things there are in all."""
    pattern: str | None = None
    tone: str | None = None

    def fits(self, scene: Scene) -> bool:
        """Whether everything the sentence says is true of the scene."""
        if self.event is not None and self.event != scene.event:
            return False
        if self.number is not None and self.number != len(scene.things):
            return False
        if self.pattern not in (None, scene.pattern) or self.tone not in (None, scene.tone):
            return False
        indices = range(len(scene.things))
        return any(
            all(claim.fits(scene, index) for claim, index in zip(self.things, order, strict=True))
            for order in permutations(indices, len(self.things))
        )


def place_name(place: tuple[float, float]) -> str:
    """ "top left", "middle", ... for a position in the central square."""
    x, y = place
    column = "left" if x < 0.38 else "right" if x > 0.62 else ""
    row = "top" if y < 0.38 else "bottom" if y > 0.62 else ""
    return f"{row} {column}".strip() or "middle"


def write_captions(scene: Scene, *, number: int = NUM_CAPTIONS) -> list[Caption]:
    """`number` different captions; the first one names every thing with colour, shape and action."""
    rng = np.random.default_rng([scene.seed, 22, int(scene.backwards)])
    captions = [_full(scene, rng, rich=False)]
    texts = {captions[0].text}
    for _ in range(4000):
        if len(captions) == number:
            return captions
        kind = rng.random()
        if len(scene.things) > 1 and kind < 0.15:
            caption = _of_one_thing(scene, rng)
        elif kind < 0.25:
            caption = _vague(scene, rng)
        else:
            caption = _full(scene, rng, rich=kind > 0.6)
        if caption.text not in texts:
            captions.append(caption)
            texts.add(caption.text)
    raise RuntimeError(f"scene {scene.seed} has fewer than {number} different captions")


def _full(scene: Scene, rng: np.random.Generator, *, rich: bool) -> Caption:
    """All things, each with what it does."""
    order = [int(i) for i in rng.permutation(len(scene.things))]
    if scene.event == "collide":
        caption = _collision(scene, rng, order, rich)
    elif scene.event == "behind":
        caption = _passing(scene, rng, rich)
    elif len(order) == 1:
        caption = _single(scene, rng, rich)
    else:
        caption = _together(scene, rng, order, rich)
    return _on_background(caption, scene, rng) if rich and rng.random() < 0.4 else caption


def _single(scene: Scene, rng: np.random.Generator, rich: bool) -> Caption:
    name, claim = _noun(scene, 0, rng, rich=rich)
    finite, ing, placed = _clause(scene, 0, rng, claim, places=rng.random() < 0.35)
    form = rng.integers(6)
    text = (
        f"{name} {finite}",
        f"{name} {ing}",
        f"there is {name} that {finite}",
        f"a video of {name} that {finite}",
        f"we see {name}, it {finite}",
        f"{name} is {ing}",
    )[form]
    return Caption(text, (placed,))


def _together(scene: Scene, rng: np.random.Generator, order: list[int], rich: bool) -> Caption:
    parts, claims = [], []
    for index in order:
        name, claim = _noun(scene, index, rng, rich=rich)
        finite, _, placed = _clause(scene, index, rng, claim, places=rng.random() < 0.15)
        parts.append(f"{name} {finite}")
        claims.append(placed)
    number = None
    if len(parts) == 2:
        text = parts[0] + _pick(rng, " while ", " and ", ", and ", " as ") + parts[1]
    else:
        text = f"{parts[0]}, {parts[1]}" + _pick(rng, " and ", ", and ", " while ") + parts[2]
    if rng.random() < 0.15:
        number = len(order)
        text = f"{('two', 'three')[number - 2]} shapes: {text}"
    return Caption(text, tuple(claims), number=number)


def _collision(scene: Scene, rng: np.random.Generator, order: list[int], rich: bool) -> Caption:
    (a, first), (b, second) = (_noun(scene, index, rng, rich=rich) for index in order)
    text = _pick(
        rng,
        f"{a} and {b} collide",
        f"{a} bumps into {b}",
        f"{a} and {b} run into each other and bounce apart",
        f"{a} collides with {b}",
        f"{a} hits {b} and they move apart again",
        f"{a} and {b} bump into each other",
    )
    return Caption(text, (first, second), event="collide")


def _passing(scene: Scene, rng: np.random.Generator, rich: bool) -> Caption:
    (mover, first), (front, second) = (_noun(scene, index, rng, rich=rich) for index in (0, 1))
    finite, ing, first = _clause(scene, 0, rng, first, places=False)
    text = _pick(
        rng,
        f"{mover} {finite} behind {front}",
        f"{mover} passes behind {front} while {ing}",
        f"{mover} {finite} and passes behind {front}",
        f"{front} stays still while {mover} {finite} behind it",
        f"{mover} disappears behind {front} while {ing}",
    )
    return Caption(text, (first, second), event="behind")


def _of_one_thing(scene: Scene, rng: np.random.Generator) -> Caption:
    index = int(rng.integers(len(scene.things)))
    if scene.event == "collide":
        name, claim = _noun(scene, index, rng, rich=True)
        return Caption(
            f"{name} " + _pick(rng, "bumps into another shape", "collides with something"),
            (claim,),
            "collide",
        )
    name, claim = _noun(scene, index, rng, rich=True)
    finite, _, placed = _clause(scene, index, rng, claim, places=rng.random() < 0.5)
    return Caption(f"{name} {finite}", (placed,))


def _vague(scene: Scene, rng: np.random.Generator) -> Caption:
    """Leaves out the colour or the shape, or says only where things are."""
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    if scene.event == "collide":
        text = _pick(
            rng, "two shapes collide", "two shapes bump into each other", "two things hit each other"
        )
        return Caption(f"{text} on {_background_name(scene)}", (), "collide", None, scene.pattern, scene.tone)
    kind = rng.integers(3)
    if kind == 0:
        claim = ThingClaim(thing.colour, None)
        name = _pick(
            rng, f"something {thing.colour}", f"{_a(thing.colour)} shape", f"{_a(thing.colour)} object"
        )
    elif kind == 1:
        claim = ThingClaim(None, thing.shape)
        name = _a(thing.shape)
    else:
        place = place_name(scene.place(index, "start"))
        claim = ThingClaim(thing.colour, thing.shape, start=place)
        return Caption(f"{_a(f'{thing.colour} {thing.shape}')} starts {_at(place)}", (claim,))
    finite, _, placed = _clause(scene, index, rng, claim, places=rng.random() < 0.5)
    return Caption(f"{name} {finite}", (placed,))


def _on_background(caption: Caption, scene: Scene, rng: np.random.Generator) -> Caption:
    where = _background_name(scene)
    text = _pick(rng, f"{caption.text} on {where}", f"on {where}, {caption.text}", f"{caption.text}, {where}")
    return Caption(text, caption.things, caption.event, caption.number, scene.pattern, scene.tone)


def _background_name(scene: Scene) -> str:
    pattern = "" if scene.pattern == "plain" else f"{scene.pattern} "
    name = f"plain {scene.tone}" if not pattern else f"{pattern}{scene.tone}"
    return f"{_a(name)} background"


def _noun(scene: Scene, index: int, rng: np.random.Generator, *, rich: bool) -> tuple[str, ThingClaim]:
    """ "a big red striped circle" and what it claims."""
    thing = scene.things[index]
    size = thing.size if rich and thing.size != "medium" and rng.random() < 0.7 else None
    texture = thing.texture if rich and thing.texture != "plain" and rng.random() < 0.8 else None
    words = [w for w in (size, thing.colour, texture, thing.shape) if w]
    if texture and rng.random() < 0.5:
        words = [w for w in (size, texture, thing.colour, thing.shape) if w]
    return _a(" ".join(words)), ThingClaim(thing.colour, thing.shape, texture, size)


def _clause(
    scene: Scene, index: int, rng: np.random.Generator, claim: ThingClaim, *, places: bool
) -> tuple[str, str, ThingClaim]:
    """What a thing does, as "moves left" and "moving left", and the claim with it."""
    program = scene.program(index)
    verbs = [_pick(rng, *_VERBS[action]) for action in program]
    if len(verbs) == 1:
        finite, ing = verbs[0], _ing(verbs[0])
    else:
        finite, ing = _sequence(program, verbs, rng)
    start = end = None
    if places and any(action in DIRECTIONS for action in program):
        if rng.random() < 0.6:
            start = place_name(scene.place(index, "start"))
            finite, ing = f"starts {_at(start)} and {finite}", f"starting {_at(start)} and {ing}"
        else:
            end = place_name(scene.place(index, "end"))
            finite, ing = f"{finite} and ends {_at(end)}", f"{ing} and ending {_at(end)}"
    elif places:
        start = place_name(scene.place(index, "start"))
        finite, ing = f"{finite} {_at(start)}", f"{ing} {_at(start)}"
    return finite, ing, ThingClaim(claim.colour, claim.shape, claim.texture, claim.size, program, start, end)


def _sequence(program: tuple[str, ...], verbs: list[str], rng: np.random.Generator) -> tuple[str, str]:
    first, second = verbs
    if program[1] == "still":
        tail = _pick(rng, "then stops", "then comes to rest", "then stands still")
        return f"{first} and {tail}", f"{_ing(first)} and {_ing_after(tail)}"
    if program[0] == "still":
        head = _pick(rng, "waits and then", "rests at first and then", "stands still and then")
        return f"{head} {second}", f"{_ing(head)} {_ing(second)}"
    form = rng.integers(4)
    if form == 0:
        return f"{first} and then {second}", f"{_ing(first)} and then {_ing(second)}"
    if form == 1:
        return f"first {first}, then {second}", f"first {_ing(first)}, then {_ing(second)}"
    if form == 2:
        return f"{first} before it {second}", f"{_ing(first)} before it {second}"
    return f"{second} after it {first}", f"{_ing(second)} after it {first}"


_GERUNDS = {
    "moves": "moving",
    "goes": "going",
    "slides": "sliding",
    "drifts": "drifting",
    "travels": "traveling",
    "rises": "rising",
    "sinks": "sinking",
    "falls": "falling",
    "climbs": "climbing",
    "grows": "growing",
    "gets": "getting",
    "becomes": "becoming",
    "expands": "expanding",
    "shrinks": "shrinking",
    "spins": "spinning",
    "turns": "turning",
    "rotates": "rotating",
    "bounces": "bouncing",
    "hops": "hopping",
    "jumps": "jumping",
    "blinks": "blinking",
    "flashes": "flashing",
    "vanishes": "vanishing",
    "stays": "staying",
    "stands": "standing",
    "rests": "resting",
    "does": "doing",
    "waits": "waiting",
    "stops": "stopping",
    "comes": "coming",
}


def _ing(verb: str) -> str:
    head, _, tail = verb.partition(" ")
    return f"{_GERUNDS[head]} {tail}".strip()


def _ing_after(tail: str) -> str:
    word, _, rest = tail.partition(" ")
    return f"{word} {_ing(rest)}"


def _diagonal(vertical: str, horizontal: str) -> tuple[str, ...]:
    corner = f"{'upper' if vertical == 'up' else 'lower'} {horizontal}"
    return (
        f"moves {vertical} and to the {horizontal}",
        f"goes diagonally {vertical} to the {horizontal}",
        f"slides toward the {corner}",
        f"drifts {vertical} and {horizontal}",
        f"moves toward the {corner} corner",
    )


_VERBS: dict[str, tuple[str, ...]] = {
    "left": (
        "moves to the left",
        "goes left",
        "slides from right to left",
        "drifts to the left",
        "travels left",
        "moves left",
    ),
    "right": (
        "moves to the right",
        "goes right",
        "slides from left to right",
        "drifts to the right",
        "travels right",
        "moves right",
    ),
    "up": ("moves up", "rises", "goes upward", "climbs from bottom to top", "slides up", "moves upward"),
    "down": (
        "moves down",
        "sinks",
        "goes downward",
        "falls from top to bottom",
        "slides down",
        "moves downward",
    ),
    "up-left": _diagonal("up", "left"),
    "up-right": _diagonal("up", "right"),
    "down-left": _diagonal("down", "left"),
    "down-right": _diagonal("down", "right"),
    "grow": ("grows", "gets bigger", "becomes larger", "expands", "grows larger"),
    "shrink": ("shrinks", "gets smaller", "becomes smaller", "shrinks away"),
    "clockwise": ("spins clockwise", "turns clockwise", "rotates clockwise"),
    "counterclockwise": ("spins counterclockwise", "turns counterclockwise", "rotates counterclockwise"),
    "bounce": ("bounces up and down", "hops up and down", "bounces", "jumps up and down"),
    "blink": ("blinks", "flashes on and off", "vanishes and comes back", "blinks on and off"),
    "still": ("stays still", "stands still", "rests", "stays in place"),
    "collide": ("moves",),
}


def _at(place: str) -> str:
    return "in the middle" if place == "middle" else f"at the {place}"


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _pick(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def thing_name(thing: Thing) -> str:
    """ "red circle"."""
    return f"{thing.colour} {thing.shape}"
