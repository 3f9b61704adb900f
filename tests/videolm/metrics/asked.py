"""A question as the metrics need it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    id: str
    answer: str
    type: str = "what"
    candidates: tuple[str, ...] = ()
    other_answers: tuple[str, ...] = ()
