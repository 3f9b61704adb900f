"""What came out of an evaluation, and with what: for programs, for people, and sample by sample."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from videolm.evaluation.videos import named
from videolm.files import replace_file, write_json, write_text
from videolm.types import Failure, ModelInfo
from videolm.video.samplers import Sampler


@dataclass(frozen=True, kw_only=True)
class Report(ABC):
    """What the reports of all kinds of benchmarks tell."""

    model: ModelInfo
    benchmark: str
    protocol: dict[str, Any]
    """Split, rules and seeds: all that decides a number beside the model and the files."""
    num_listed: int
    """Videos that the benchmark lists, whatever the limit."""
    num_read: int
    """Videos that were found and could be read: those that the scores are of."""
    missing: list[str] = field(default_factory=list)
    """Ids of the videos without a file."""
    failures: list[Failure] = field(default_factory=list)
    """Videos whose file could not be read."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Device, decoders and versions."""
    notes: list[str] = field(default_factory=list)

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """The few numbers that a model's card carries, rounded to a tenth."""

    @abstractmethod
    def counted(self) -> str:
        """How much was scored, as in "1,000 queries"."""

    @abstractmethod
    def partial_warning(self) -> str:
        """The sentences that say what becomes of scores of only a part of the videos."""

    @abstractmethod
    def tables(self) -> list[list[str]]:
        """The lines of the report's parts for people."""

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """Plain values for report.json, beside those that every report has."""

    @abstractmethod
    def save_samples(self, folder: Path) -> list[str]:
        """Writes what was found for each sample; gives the lines that report.md gets about it."""

    @property
    def sampler(self) -> dict[str, Any]:
        """As the model's, with the protocol's kind and number of frames if it names them."""
        num_frames, kind = self.protocol["num_frames"], self.protocol["sampler"]
        sampler = self.model.sampler | ({} if num_frames is None else {"num_frames": num_frames})
        if kind is None or kind == sampler["kind"]:
            return sampler
        return asdict(Sampler(kind, num_frames=sampler["num_frames"]))

    @property
    def is_partial(self) -> bool:
        """Videos are missing, unreadable or beyond the limit."""
        return self.num_read < self.num_listed

    def as_json(self) -> dict[str, Any]:
        """Plain values for report.json."""
        return {
            "model": {
                key: getattr(self.model, key) for key in ("name", "trained", "weights_sha256", "licence")
            },
            "sampler": self.sampler,
            "preprocessing": self.model.preprocessing,
            "benchmark": self.benchmark,
            "protocol": self.protocol,
            "num_videos_listed": self.num_listed,
            "num_videos_read": self.num_read,
            **self.details(),
            "notes": self.notes,
            "environment": self.environment,
            "missing": self.missing,
            "failures": [asdict(failure) for failure in self.failures],
        }

    def markdown(self) -> str:
        """The report for people."""
        trained = "" if self.model.trained else " (**untrained: random weights**)"
        limit = f"{self._limit()}, " if self._limit() else ""
        parts = [
            [f"{self.model.name}{trained} on {self.benchmark}, {limit}{self.counted()}"],
            self._left_out(),
            *self.tables(),
            [f"- {note}" for note in self.notes],
            self._made_with(),
        ]
        return "\n\n".join("\n".join(part) for part in parts if part)

    def save(self, folder: str | Path) -> None:
        """Writes report.json, report.md, and a file with what was found for each sample."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.markdown()
        more = self.save_samples(folder)
        write_text(folder / "report.md", "\n\n".join([text, *more]) + "\n")
        write_json(folder / "report.json", self.as_json())

    def _limit(self) -> str:
        """What the limit leaves; nothing where it cuts nothing off."""
        limit = self.protocol["limit"]
        if limit is None or limit >= self.num_listed:
            return ""
        return f"the first {limit:,} of {self.num_listed:,} videos"

    def _left_out(self) -> list[str]:
        if not self.is_partial:
            return []
        lines = [f"> {self.partial_warning()}", ">"]
        if limit := self._limit():
            lines.append(f"> The limit took {limit}.")
        if self.missing:
            lines.append(
                f"> {len(self.missing):,} videos have no file: {named(self.missing)} (all names in report.json)"
            )
        if self.failures:
            lines.append(f"> {len(self.failures):,} videos could not be read:")
            lines += [f"> {Path(failure.path).name}: {failure.error}" for failure in self.failures]
        return lines

    def _made_with(self) -> list[str]:
        values = {
            **{name: value for name, value in self.protocol.items() if name != "num_frames"},
            "sampler": self.sampler,
            "resize": self.model.preprocessing,
            "weights": self.model.weights_sha256[:12],
            **self.environment,
        }
        return ["| made with | |", "| --- | --- |"] + [
            f"| {name} | {_plain(value)} |" for name, value in values.items()
        ]


def write_samples(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes per_sample.jsonl, an object a line."""

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    replace_file(folder / "per_sample.jsonl", write)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
