"""The report of a benchmark of captioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videolm.datasets.synthetic import ATTRIBUTES, AttributeScores
from videolm.evaluation.report import Report, write_samples
from videolm.evaluation.videos import named
from videolm.metrics.attributes import ClaimCounts
from videolm.metrics.captioning import CaptionScores

_NAMES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "meteor": "METEOR",
}
_ON_CARD = ("colour", "shape", "motion", "order")


@dataclass(frozen=True, kw_only=True)
class CaptionReport(Report):
    """How well the captions of a model fit the references."""

    captions: CaptionScores
    attributes: AttributeScores | None = None
    """Of a rendered world, whose truth is known: what is right of what the captions claim."""
    hypotheses: Mapping[str, str]
    """By video id, as `references`."""
    references: Mapping[str, Sequence[str]]

    def scores(self) -> dict[str, float]:
        """CIDEr and BLEU-4; of a world also precision and recall of the claims on videos of one thing."""
        whole = self.captions.as_dict()
        scores = {_NAMES[name]: 100 * whole[name] for name in ("cider", "bleu_4")}
        if self.attributes is not None:
            one = self.attributes.by_things.get(1, {})
            for name in _ON_CARD:
                counts = one.get(name, ClaimCounts())
                for measure, share in (("precision", counts.precision), ("recall", counts.recall)):
                    scores |= {} if share is None else {f"{name} {measure}, one thing": 100 * share}
        return {name: round(value, 1) for name, value in scores.items()}

    def counted(self) -> str:
        fewest, most = self.captions.min_references, self.captions.max_references
        references = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        return f"{self.captions.num_videos:,} captions against {references} references each"

    def partial_warning(self) -> str:
        return (
            f"**Only {self.num_read:,} of {self.num_listed:,} videos were captioned.** The others are in no score, and "
            "CIDEr goes by the words of all references: these numbers do not compare with those of the whole benchmark."
        )

    def tables(self) -> list[list[str]]:
        scores = self.captions.as_dict()
        table = [
            _row([_NAMES[name] for name in scores]),
            _row(["---"] * len(scores)),
            _row([f"{100 * value:.1f}" for value in scores.values()]),
        ]
        legend = ["All times 100, as papers print them; CIDEr is CIDEr-D, whose 10 is then 1000."]
        return [table, legend, *_attribute_parts(self.attributes)]

    def details(self) -> dict[str, Any]:
        attributes = self.attributes
        return {
            "scores": self.captions.as_dict(),
            "num_captions": self.captions.num_videos,
            "min_references": self.captions.min_references,
            "max_references": self.captions.max_references,
            "tokeniser": self.captions.tokenizer,
            "scorer": self.captions.scorer,
            "attributes": None
            if attributes is None
            else {
                "all": _as_json(attributes.all),
                "by_number_of_things": {
                    str(number): _as_json(row) for number, row in attributes.by_things.items()
                },
                "num_captions": attributes.num_captions,
                "num_understood": attributes.num_understood,
                "unknown_words": dict(attributes.unknown.most_common()),
            },
        }

    def save_samples(self, folder: Path) -> list[str]:
        """Writes per_sample.jsonl."""
        write_samples(
            folder,
            (
                {
                    "video_id": video_id,
                    "hypothesis": text,
                    "references": list(self.references[video_id]),
                    "scores": {
                        name: value
                        for name, value in asdict(self.captions.per_video[video_id]).items()
                        if value is not None
                    },
                }
                for video_id, text in self.hypotheses.items()
            ),
        )
        return []


def _attribute_parts(attributes: AttributeScores | None) -> list[list[str]]:
    if attributes is None:
        return []
    parts = {"all videos": attributes.all} | {
        f"{number} thing{'s' if number > 1 else ''}": row for number, row in attributes.by_things.items()
    }
    lines = [_row(["claims about", *parts]), _row(["---"] * (1 + len(parts)))]
    lines += [_row([name, *(_cell(row[name]) for row in parts.values())]) for name in ATTRIBUTES]
    legend = [
        "Precision / recall in percent of what the captions claim of the world, by the number of things in a video; "
        "-: nothing was claimed, or nothing has to be.",
        f"{attributes.num_understood:,} of {attributes.num_captions:,} captions were understood to the last word.",
    ]
    if attributes.unknown:
        legend.append(f"Not understood: {named([word for word, _ in attributes.unknown.most_common()])}")
    return [lines, legend]


def _cell(counts: ClaimCounts) -> str:
    shares = (counts.precision, counts.recall)
    return " / ".join("-" if share is None else f"{100 * share:.1f}" for share in shares)


def _as_json(row: Mapping[str, ClaimCounts]) -> dict[str, dict[str, Any]]:
    return {
        name: asdict(counts) | {"precision": counts.precision, "recall": counts.recall}
        for name, counts in row.items()
    }


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
