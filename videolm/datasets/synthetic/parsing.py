"""Captions read back: what a sentence in the world's language claims.

The grammar is small: a sentence is cut, longest phrase first, into things ("a big red circle"), actions,
places, events and the words between them, and each action and place belongs to the thing named last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from videolm.datasets.synthetic.captions import Caption, ThingClaim
from videolm.datasets.synthetic.phrases import (
    BACKGROUNDS,
    COLLECTIVES,
    COLLIDES,
    COLLIDES_WITH,
    COLLIDING,
    NUMBERS,
    ON,
    PLACES,
    STOPS,
    UNNAMED,
    VERBS,
    WAITS,
    gerund,
)
from videolm.datasets.synthetic.scene import COLOURS, SHAPES, SIZES, TEXTURES

_Kind = Literal["action", "place", "end", "after", "event", "background", "number", "nothing"]
_JOINTS = (
    *("there is", "there are", "a video of", "we see", "that", "is", "it", ",", ":"),
    *("and", "then", "first", "before", "while", "as", "starts", "starting"),
)
"""Words that carry no claim of their own, wherever they stand."""
_LOOKS = {
    **dict.fromkeys(COLOURS, "colour"),
    **dict.fromkeys(SIZES, "size"),
    **dict.fromkeys(TEXTURES, "texture"),
    **dict.fromkeys(SHAPES, "shape"),
    **dict.fromkeys((*UNNAMED, "something"), "noun"),
}


@dataclass(frozen=True)
class ParsedCaption:
    """What was understood of a sentence, and what was not."""

    caption: Caption
    """The sentence and its claims, things in the order in which they are named."""
    unknown: tuple[str, ...]
    """Words that are no part of any phrase of the world's language, as they came."""


@dataclass
class _Draft:
    """A caption being read."""

    things: list[ThingClaim] = field(default_factory=list)
    event: str | None = None
    number: int | None = None
    background: tuple[str | None, str | None] = (None, None)
    comes_first: bool = False
    """The next action is the earlier one."""
    is_end: bool = False
    """The next place is where the thing ends."""

    def tell(self, **claims: object) -> None:
        """Adds claims to the thing named last; where none was named, to one without a name."""
        if not self.things:
            self.things.append(ThingClaim(None, None))
        self.things[-1] = replace(self.things[-1], **claims)  # type: ignore[arg-type]


def parse_caption(text: str) -> ParsedCaption:
    """The claims of a sentence, and the words that were not understood.

    Of a caption of `write_captions`, exactly its claims and no unknown word. Of any other text, what can be
    found; there is no error. Of what is said of one thing twice, the later counts; actions add up.
    """
    words = re.findall(r"[,:]|[^\s,:]+", text.lower().rstrip(" ."))
    draft = _Draft()
    unknown = []
    at = 0
    while at < len(words):
        length, kind, value = _phrase(words[at:])
        if length:
            _understand(draft, kind, value)
        else:
            length, claim = _thing(words[at:])
            if claim is not None:
                draft.things.append(claim)
        if not length:
            unknown.append(words[at])
        at += max(length, 1)
    pattern, tone = draft.background
    caption = Caption(text, tuple(draft.things), draft.event, draft.number, pattern, tone)
    return ParsedCaption(caption, tuple(unknown))


def _understand(draft: _Draft, kind: _Kind, value: str) -> None:
    if kind == "action":
        done = (draft.things[-1].program or ()) if draft.things else ()
        draft.tell(program=(value, *done) if draft.comes_first else (*done, value))
        draft.comes_first = False
    elif kind == "place":
        draft.tell(**{"end" if draft.is_end else "start": value})
        draft.is_end = False
    elif kind == "after":
        draft.comes_first = True
    elif kind == "end":
        draft.is_end = True
    elif kind == "event":
        draft.event = value
    elif kind == "number":
        draft.number = NUMBERS.index(value) + 1
    elif kind == "background":
        draft.background = BACKGROUNDS[value]


def _thing(words: Sequence[str]) -> tuple[int, ThingClaim | None]:
    """How many words name a thing, and what they claim; 0 where they name none."""
    looks: dict[str, str] = {}
    length = 1 if words[0] in ("a", "an", "the") else 0
    for word in words[length:]:
        kind = _LOOKS.get(word)
        if kind is None or kind in looks:
            break
        looks[kind] = word
        length += 1
        # "something red" goes on after its noun
        if kind == "shape" or word in UNNAMED:
            break
    if not looks:
        return 0, None
    looks.pop("noun", None)
    return length, ThingClaim(
        looks.get("colour"), looks.get("shape"), looks.get("texture"), looks.get("size")
    )


def _phrase(words: Sequence[str]) -> tuple[int, _Kind, str]:
    """The longest phrase that the words begin with: its length, 0 where there is none, kind and value."""
    for length in range(min(len(words), _LONGEST), 0, -1):
        found = _PHRASES.get(tuple(words[:length]))
        if found is not None:
            return length, *found
    return 0, "nothing", ""


def _phrases() -> dict[tuple[str, ...], tuple[_Kind, str]]:
    table: dict[tuple[str, ...], tuple[_Kind, str]] = {}

    def add(kind: _Kind, value: str, *phrases: str) -> None:
        for phrase in phrases:
            table[tuple(re.findall(r"[,:]|[^\s,:]+", phrase))] = (kind, value)

    add("nothing", "", *_JOINTS)
    add("after", "", "after")
    add("end", "", "ends", "ending")
    for action, verbs in (*VERBS.items(), ("still", WAITS + STOPS)):
        add("action", action, *verbs, *map(gerund, verbs))
    for place, phrase in PLACES.items():
        add("place", place, phrase)
    for before, after in COLLIDES_WITH:
        add("event", "collide", before, *([after] if after else []))
    add("event", "collide", *COLLIDING, *COLLIDES)
    add("event", "behind", "behind", "passes behind", "passing behind")
    for name in BACKGROUNDS:
        add("background", name, name, *(f"{on} {name}" for on in ON))
    for number in NUMBERS:
        add("number", number, *(f"{number} {noun}" for noun in COLLECTIVES))
    return table


_PHRASES = _phrases()
_LONGEST = max(map(len, _PHRASES))
