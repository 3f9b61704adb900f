"""Sentences about a scene, each with what it claims, so that it can be checked against any scene.

A caption names one thing or all of them, in one of many phrasings; what it leaves out may be anything. The
claims decide how many videos of a world a sentence fits, and so the highest recall that is possible there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

import numpy as np

from videolm.datasets.synthetic.phrases import (
    COLLECTIVES,
    COLLIDES,
    COLLIDES_WITH,
    COLLIDING,
    NUMBERS,
    ON,
    PLACES,
    UNNAMED,
    article,
    background_name,
    gerund,
    goes_across,
    place_name,
    verbs_of,
)
from videolm.datasets.synthetic.scene import DIRECTIONS, Scene, Thing

NUM_CAPTIONS = 20
MAX_WORDS = 46
"""Commas and colons included, so that with a start and an end a context of 48 holds any caption."""


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


def write_captions(scene: Scene, *, number: int = NUM_CAPTIONS) -> list[Caption]:
    """`number` different captions; the first one names every thing with colour, shape and action."""
    rng = np.random.default_rng([scene.seed, 22, int(scene.backwards)])
    captions: list[Caption] = []
    texts: set[str] = set()
    for _ in range(4000):
        kind = rng.random() if captions else 0.5
        if len(scene.things) > 1 and kind < 0.15:
            caption = _of_one_thing(scene, rng)
        elif kind < 0.25:
            caption = _vague(scene, rng)
        else:
            caption = _full(scene, rng, rich=kind > 0.6)
        if caption.text not in texts and num_words(caption.text) <= MAX_WORDS:
            captions.append(caption)
            texts.add(caption.text)
            if len(captions) == number:
                return captions
    raise RuntimeError(f"scene {scene.seed} has fewer than {number} different captions")


def num_words(text: str) -> int:
    """Words, commas and colons."""
    return len(text.split()) + text.count(",") + text.count(":")


def thing_name(thing: Thing) -> str:
    """ "red circle"."""
    return f"{thing.colour} {thing.shape}"


@dataclass(frozen=True)
class _Clause:
    """A thing and what it does."""

    subject: str
    """The thing, perhaps with where it starts."""
    finite: str
    """ "moves left"."""
    gerund: str
    """ "moving left"."""
    claim: ThingClaim
    kind: Literal["plain", "compound", "sequence"]
    """One verb; one action whose words hold an "and"; or two actions."""

    @property
    def can_progress(self) -> bool:
        """Whether "is moving left" is good English for it."""
        return self.kind == "plain" and self.claim.program != ("still",)


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
    clause = _clause(scene, 0, rng, name, claim, places=rng.random() < 0.35)
    forms = [
        f"{clause.subject} {clause.finite}",
        f"{clause.subject} {clause.gerund}",
        f"there is {clause.subject} that {clause.finite}",
        f"a video of {clause.subject} that {clause.finite}",
        f"a video of {clause.subject} {clause.gerund}",
        f"we see {clause.subject} {clause.gerund}",
    ]
    if clause.can_progress:
        forms.append(f"{clause.subject} is {clause.gerund}")
    return Caption(_pick(rng, *forms), (clause.claim,))


def _together(scene: Scene, rng: np.random.Generator, order: list[int], rich: bool) -> Caption:
    clauses = []
    for index in order:
        name, claim = _noun(scene, index, rng, rich=rich)
        placed = rng.random() < 0.15
        clauses.append(_clause(scene, index, rng, name, claim, places=placed, commas=len(order) == 2))
    progress = all(clause.can_progress for clause in clauses) and rng.random() < 0.25
    parts = [f"{c.subject} is {c.gerund}" if progress else f"{c.subject} {c.finite}" for c in clauses]
    text = _pick(rng, *_joined(parts, {clause.kind for clause in clauses}))
    number = None
    if rng.random() < 0.15:
        number = len(order)
        text = _pick(rng, "", "there are ") + f"{NUMBERS[number - 1]} shapes: {text}"
    return Caption(text, tuple(clause.claim for clause in clauses), number=number)


def _joined(parts: list[str], kinds: set[str]) -> list[str]:
    """The ways to put two or three clauses into a sentence that stays easy to read."""
    if len(parts) == 3:
        a, b, c = parts
        return [f"{a}, {b}, and {c}"] + ([f"{a} while {b} and {c}"] if kinds == {"plain"} else [])
    joints = [", and ", ", while " if "sequence" in kinds else " while "]
    if kinds == {"plain"}:
        joints += [" and ", " as "]
    return [joint.join(parts) for joint in joints]


def _collision(scene: Scene, rng: np.random.Generator, order: list[int], rich: bool) -> Caption:
    (a, first), (b, second) = (_noun(scene, index, rng, rich=rich) for index in order)
    together = [f"{a} and {b} {phrase}" for phrase in COLLIDING]
    forms = together + [f"{a} {before} {b}{after}" for before, after in COLLIDES_WITH]
    return Caption(_pick(rng, *forms), (first, second), event="collide")


def _passing(scene: Scene, rng: np.random.Generator, rich: bool) -> Caption:
    (mover, first), (front, second) = (_noun(scene, index, rng, rich=rich) for index in (0, 1))
    clause = _clause(scene, 0, rng, mover, first, places=False)
    form = int(rng.integers(7))
    text = (
        f"{mover} {clause.finite} behind {front}",
        f"{mover} {clause.finite} and passes behind {front}",
        f"{mover} {clause.finite}, passing behind {front}",
        f"{mover} is {clause.gerund} behind {front}",
        f"there is {mover} that {clause.finite} behind {front}",
        f"behind {front}, {mover} {clause.finite}",
        f"{front} stays still while {mover} {clause.finite} behind it",
    )[form]
    if form < 5:
        claims = (clause.claim, second)
    else:
        claims = (replace(second, program=("still",)) if form == 6 else second, clause.claim)
    return Caption(text, claims, event="behind")


def _of_one_thing(scene: Scene, rng: np.random.Generator) -> Caption:
    index = int(rng.integers(len(scene.things)))
    name, claim = _noun(scene, index, rng, rich=True)
    if scene.event == "collide":
        return Caption(f"{name} {_pick(rng, *COLLIDES)}", (claim,), "collide")
    clause = _clause(scene, index, rng, name, claim, places=rng.random() < 0.5)
    return Caption(f"{clause.subject} {clause.finite}", (clause.claim,))


def _vague(scene: Scene, rng: np.random.Generator) -> Caption:
    """Leaves out the colour or the shape, or says only where things are."""
    if scene.event == "collide":
        things = _pick(rng, *(f"two {noun}" for noun in COLLECTIVES))
        text = f"{things} {_pick(rng, *COLLIDING)}"
        return _on_background(Caption(text, (), "collide", number=2), scene, rng)
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    kind = rng.integers(3)
    if kind == 0:
        claim = ThingClaim(thing.colour, None)
        names = [article(f"{thing.colour} {noun}") for noun in UNNAMED]
        name = _pick(rng, f"something {thing.colour}", *names)
    elif kind == 1:
        claim = ThingClaim(None, thing.shape)
        name = article(thing.shape)
    else:
        place = place_name(scene.place(index, "start"))
        claim = ThingClaim(thing.colour, thing.shape, start=place)
        name = article(thing_name(thing))
        if any(action in DIRECTIONS for action in thing.program):
            return Caption(f"{name} starts {PLACES[place]}", (claim,))
        return Caption(f"there is {name} {PLACES[place]}", (claim,))
    clause = _clause(scene, index, rng, name, claim, places=rng.random() < 0.5)
    return Caption(f"{clause.subject} {clause.finite}", (clause.claim,))


def _on_background(caption: Caption, scene: Scene, rng: np.random.Generator) -> Caption:
    where = background_name(scene.pattern, scene.tone)
    text = caption.text
    ahead = f"on {where}, {text}"
    behind = f"{text} {_pick(rng, *ON)} {where}"
    if text.startswith("a video of"):
        told = behind
    elif text.endswith(("off", *PLACES.values())):
        # "on and off on a plain gray background" stumbles
        told = ahead
    else:
        told = behind if ":" in text else _pick(rng, ahead, behind)
    return replace(caption, text=told, pattern=scene.pattern, tone=scene.tone)


def _noun(scene: Scene, index: int, rng: np.random.Generator, *, rich: bool) -> tuple[str, ThingClaim]:
    """ "a big red striped circle" and what it claims."""
    thing = scene.things[index]
    size = thing.size if rich and thing.size != "medium" and rng.random() < 0.7 else None
    texture = thing.texture if rich and thing.texture != "plain" and rng.random() < 0.8 else None
    words = [w for w in (size, thing.colour, texture, thing.shape) if w]
    if texture and rng.random() < 0.5:
        words = [w for w in (size, texture, thing.colour, thing.shape) if w]
    return article(" ".join(words)), ThingClaim(thing.colour, thing.shape, texture, size)


def _clause(
    scene: Scene,
    index: int,
    rng: np.random.Generator,
    name: str,
    claim: ThingClaim,
    *,
    places: bool,
    commas: bool = True,
) -> _Clause:
    """What a thing does, and the claim with it; with `places`, also where it starts or ends."""
    program = scene.program(index)
    claim = replace(claim, program=program)
    phrases = verbs_of(program)
    for step, action in enumerate(program):
        if not goes_across(action, *scene.way(index, step)):
            phrases[step] = tuple(verb for verb in phrases[step] if " from " not in verb)
    if len(program) == 2:
        finite, ing = _sequence(phrases, rng, commas)
        if not places:
            return _Clause(name, finite, ing, claim, "sequence")
        start = place_name(scene.place(index, "start"))
        return _Clause(f"{name} {PLACES[start]}", finite, ing, replace(claim, start=start), "sequence")
    verbs = phrases[0]
    if places:
        # "starts on the right and slides from right to left" says it twice
        verbs = tuple(verb for verb in verbs if " from " not in verb)
    finite = _pick(rng, *verbs)
    kind: Literal["plain", "compound"] = "compound" if " and " in finite else "plain"
    if not places:
        return _Clause(name, finite, gerund(finite), claim, kind)
    return _placed(scene, index, rng, _Clause(name, finite, gerund(finite), claim, kind))


def _placed(scene: Scene, index: int, rng: np.random.Generator, clause: _Clause) -> _Clause:
    """A clause of one action with where the thing starts or ends."""
    start, end = (place_name(scene.place(index, at)) for at in ("start", "end"))
    claim, finite = clause.claim, clause.finite
    form = rng.random()
    if form < 0.4:
        return replace(clause, subject=f"{clause.subject} {PLACES[start]}", claim=replace(claim, start=start))
    if not any(action in DIRECTIONS for action in scene.program(index)):
        finite, claim = f"{finite} {PLACES[start]}", replace(claim, start=start)
        return replace(clause, finite=finite, gerund=gerund(finite), claim=claim)
    if form < 0.7:
        finite, claim = f"starts {PLACES[start]} and {finite}", replace(claim, start=start)
    else:
        finite, claim = f"{finite} and ends {PLACES[end]}", replace(claim, end=end)
    return _Clause(clause.subject, finite, gerund(finite), claim, "compound")


def _sequence(phrases: list[tuple[str, ...]], rng: np.random.Generator, commas: bool) -> tuple[str, str]:
    """ "moves left and then spins" and "moving left and then spinning"; without `commas`, none in either."""
    firsts, seconds = phrases
    first = _pick(rng, *firsts)
    # "moves left and then moves up" is no good style
    second = _pick(rng, *(verb for verb in seconds if verb.split()[0] != first.split()[0]))
    is_double = "back" in f"{first} {second}"
    joint = ", then " if is_double else " and then "
    finite, ing = f"{first}{joint}{second}", f"{gerund(first)}{joint}{gerund(second)}"
    forms = [(finite, ing)] if commas or not is_double else []
    if commas:
        forms.append((f"first {first}, then {second}", ing))
    if second != "stays as it is":
        forms.append((f"{first} before {gerund(second)}", f"{gerund(first)} before {gerund(second)}"))
        forms.append((f"{second} after {gerund(first)}", f"{gerund(second)} after {gerund(first)}"))
    return forms[int(rng.integers(len(forms)))]


def _pick(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]
