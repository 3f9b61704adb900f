"""Precision and recall of the single claims that sentences make: this colour, that motion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class ClaimCounts:
    """Claims of one sort, counted over any number of sentences; counts of other sentences may be added."""

    claimed: int = 0
    """Claims made."""
    right: int = 0
    """Claims made that are true."""
    wanted: int = 0
    """Facts that a full sentence tells."""
    told: int = 0
    """Of those, the ones that the sentence tells."""

    def __post_init__(self) -> None:
        if not (0 <= self.right <= self.claimed and 0 <= self.told <= self.wanted):
            raise ValueError(
                f"counts ({self}) must have 0 <= right <= claimed and 0 <= told <= wanted: "
                "count a claim before it is judged, and a fact before it is looked for"
            )

    def __add__(self, other: ClaimCounts) -> ClaimCounts:
        return ClaimCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def precision(self) -> float | None:
        """Share of the claims that are true, in [0, 1]; None where none was made."""
        return self.right / self.claimed if self.claimed else None

    @property
    def recall(self) -> float | None:
        """Share of the wanted facts that are told, in [0, 1]; None where none is wanted."""
        return self.told / self.wanted if self.wanted else None


def sum_claims(counts: Iterable[Mapping[str, ClaimCounts]]) -> dict[str, ClaimCounts]:
    """Counts of many sentences added sort by sort, for the micro-average: every claim weighs the same."""
    total: dict[str, ClaimCounts] = {}
    for row in counts:
        for name, count in row.items():
            total[name] = total.get(name, ClaimCounts()) + count
    return total
