"""How a model is measured on a benchmark: all that decides a number beside the model and the files."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from videolm.datasets.caption_catalog import CAPTION_BENCHMARKS
from videolm.datasets.catalog import BENCHMARKS
from videolm.datasets.question_catalog import QUESTION_BENCHMARKS
from videolm.metrics.retrieval import Ties, VideoToText
from videolm.metrics.videoqa import Normalisation
from videolm.video.readers.guard import Decoder
from videolm.video.samplers import Kind

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""What a model computes in; "auto" is the faster of float32 and bfloat16 on the machine at hand."""
Asking = Literal["auto", "write", "choose"]
"""How a question is answered: in words of its own, or by one of its candidates; "auto": as its benchmark has it."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One benchmark, one split, one set of rules: what every kind of benchmark needs."""

    benchmark: str
    split: str = "test"
    num_frames: int | None = None
    """Frames a video; None: as the model was trained."""
    sampler: Kind | None = None
    """Which moments of a video are looked at; None: as the model was trained."""
    dtype: Dtype = "auto"
    reduce: str | None = None
    """How the vision tower comes to fewer tokens, as in "tome:r=16"; "none": it does not; None: as the model does."""
    decoder: Decoder = "auto"

    def __post_init__(self) -> None:
        _check_at_least_one(self, "num_frames")


@dataclass(frozen=True, kw_only=True)
class RetrievalProtocol(Protocol):
    """Sentences and videos ranked by each other."""

    benchmark: str = "msrvtt"
    ties: Ties = "mean"
    v2t: VideoToText = "group_max"
    dsl: bool = False
    """Also dual softmax, a transductive column of its own."""
    dsl_scale: float = 100.0
    qb_norm: bool = False
    """Also querybank normalisation, text to video only, a transductive column of its own."""
    qb_norm_beta: float = 20.0
    qb_norm_bank: int = 5000
    """Sentences that are drawn from the training split."""
    seed: int = 0
    """Draws the bootstrap, the bank and the random embeddings of the floor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dsl_scale", "qb_norm_beta", "qb_norm_bank"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be above 0")


@dataclass(frozen=True, kw_only=True)
class SpeakingProtocol(Protocol):
    """What a head that writes is told."""

    num_beams: int | None = None
    """Without it, as with the next one, what the head was trained for."""
    max_new_tokens: int | None = None
    budget: int | None = None
    """Tokens of a video that the head reads at most; None: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least_one(self, "num_beams", "max_new_tokens", "budget")


@dataclass(frozen=True, kw_only=True)
class CaptionProtocol(SpeakingProtocol):
    """One caption a video against all of its references."""

    prompt: str | None = None
    """What a caption goes on from; None: what the head was trained with."""
    meteor: bool = False
    """Also METEOR, which needs Java."""


@dataclass(frozen=True, kw_only=True)
class QuestionProtocol(SpeakingProtocol):
    """One answer a question."""

    answers: Asking = "auto"
    vocabulary: int | None = None
    """Choose among so many of the most frequent answers of the training split."""
    template: str | None = None
    """The sentence of a candidate, for a model without a head for questions; None: that of `VideoLM.answer`."""
    normalisation: Normalisation = "exact"
    measure: Literal["auto", "accuracy"] = "auto"
    """"auto": as the benchmark has it, WUPS for NExT-OE and the squared error for counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least_one(self, "vocabulary")
        if self.vocabulary is not None and self.answers != "auto":
            raise ValueError(
                f"vocabulary ({self.vocabulary}) and answers ({self.answers!r}) cannot both be: a vocabulary is "
                "what is chosen from; leave one out"
            )


def protocol_class(benchmark: object) -> type[RetrievalProtocol | CaptionProtocol | QuestionProtocol]:
    """The kind of protocol that a benchmark takes; ValueError that lists the benchmarks."""
    if benchmark in BENCHMARKS:
        return RetrievalProtocol
    if benchmark in CAPTION_BENCHMARKS:
        return CaptionProtocol
    if benchmark in QUESTION_BENCHMARKS:
        return QuestionProtocol
    names = ", ".join([*BENCHMARKS, *CAPTION_BENCHMARKS, *QUESTION_BENCHMARKS])
    raise ValueError(f"benchmark ({benchmark!r}) must be one of {names}")


def protocol_of(benchmark: str, **rules: Any) -> RetrievalProtocol | CaptionProtocol | QuestionProtocol:
    """A benchmark's protocol; ValueError for a rule that has no meaning there."""
    kind = protocol_class(benchmark)
    known = [field.name for field in fields(kind)]
    if unknown := [name for name in rules if name not in known]:
        raise ValueError(
            f"{unknown[0]} ({rules[unknown[0]]!r}) is no rule of {benchmark}; it has {', '.join(known)}"
        )
    return kind(benchmark=benchmark, **rules)


def _check_at_least_one(protocol: Protocol, *names: str) -> None:
    for name in names:
        value = getattr(protocol, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
