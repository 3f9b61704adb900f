"""The phrases of the world's captions, shared by what writes them and what reads them back."""

from __future__ import annotations

from typing import Literal

from videolm.datasets.synthetic.scene import DIRECTIONS, FAMILY, PATTERNS, TONES


def _diagonal(vertical: str, horizontal: str) -> tuple[str, ...]:
    corner = f"{'upper' if vertical == 'up' else 'lower'} {horizontal}"
    return (
        f"moves {vertical} and to the {horizontal}",
        f"moves diagonally {vertical} and {horizontal}",
        f"slides toward the {corner}",
        f"drifts {vertical} and {horizontal}",
        f"goes toward the {corner} corner",
    )


VERBS: dict[str, tuple[str, ...]] = {
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
    "shrink": ("shrinks", "gets smaller", "becomes smaller"),
    "clockwise": ("spins clockwise", "turns clockwise", "rotates clockwise"),
    "counterclockwise": ("spins counterclockwise", "turns counterclockwise", "rotates counterclockwise"),
    "bounce": ("bounces up and down", "hops up and down", "bounces", "jumps up and down"),
    "blink": ("blinks", "flashes on and off", "vanishes and comes back", "blinks on and off"),
    "still": ("stays still", "stands still", "remains still"),
}
"""What an action is called, in the third person."""
WAITS = ("waits", "stands still", "stays still")
"""Standing still before another action."""
_STOPS = ("stops", "comes to rest", "stands still")
_STAYS = ("stays as it is",)
STOPS = _STOPS + _STAYS
"""Standing still after another action: the end of a movement, or, last, of anything else."""

COLLIDING = (
    "collide",
    "bump into each other",
    "run into each other and bounce apart",
    "move toward each other and collide",
    "hit each other",
)
"""Of two things together."""
COLLIDES_WITH = (("bumps into", ""), ("collides with", ""), ("hits", ", and they move apart again"))
"""Of one thing with another: before and after the other is named."""
COLLIDES = ("bumps into another shape", "collides with something")
"""Of one thing alone."""

PLACES = {
    "top left": "at the top left",
    "top": "at the top",
    "top right": "at the top right",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "bottom left": "at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}
_ACROSS = {
    "left": ("right", "left"),
    "right": ("left", "right"),
    "up": ("bottom", "top"),
    "down": ("top", "bottom"),
}
NUMBERS = ("one", "two", "three", "four", "five")
COLLECTIVES = ("shapes", "things")
UNNAMED = ("shape", "object")
"""Nouns that leave out which shape it is."""

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
    "remains": "remaining",
    "waits": "waiting",
    "stops": "stopping",
    "comes": "coming",
    "passes": "passing",
    "starts": "starting",
    "ends": "ending",
}


def gerund(phrase: str) -> str:
    """ "vanishing and coming back" for "vanishes and comes back": every verb of the phrase."""
    return " ".join(_GERUNDS.get(word, word) for word in phrase.split())


def verbs_of(program: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The phrases for each action of a program, in the order of the actions."""
    if len(program) == 2 and program[0] == "still":
        return [WAITS, VERBS[program[1]]]
    if len(program) == 2 and program[1] == "still":
        if program[0] in DIRECTIONS or FAMILY[program[0]] in ("spin", "bounce"):
            return [VERBS[program[0]], _STOPS]
        # "vanishes and comes back, then stays as it is" is a verb too many
        return [tuple(verb for verb in VERBS[program[0]] if "back" not in verb), _STAYS]
    return [VERBS[action] for action in program]


def goes_across(action: str, start: tuple[float, float], end: tuple[float, float]) -> bool:
    """Whether an action leads from one side to the other, so that "from left to right" is true of it."""
    before, after = _ACROSS.get(action, ("nowhere", "nowhere"))
    return before in place_name(start) and after in place_name(end)


def place_name(place: tuple[float, float]) -> str:
    """ "top left", "middle", ... for a position in the central square."""
    x, y = place
    column = "left" if x < 0.38 else "right" if x > 0.62 else ""
    row = "top" if y < 0.38 else "bottom" if y > 0.62 else ""
    return f"{row} {column}".strip() or "middle"


def background_name(pattern: str, tone: str) -> str:
    """ "a striped brown background"."""
    name = f"{tone} gradient" if pattern == "gradient" else f"{pattern} {tone}"
    return f"{article(name)} background"


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


BACKGROUNDS = {background_name(pattern, tone): (pattern, tone) for pattern in PATTERNS for tone in TONES}
ON: tuple[Literal["on", "against"], ...] = ("on", "against")
