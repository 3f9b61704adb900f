"""A model on any benchmark: the way in to all evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias, overload

from videolm.datasets.protocol import (
    CaptionProtocol,
    QuestionProtocol,
    RetrievalProtocol,
    protocol_of,
)
from videolm.evaluation.answer_report import AnswerReport
from videolm.evaluation.caption_report import CaptionReport
from videolm.evaluation.captioning import evaluate_captions
from videolm.evaluation.conditions import Run, check_model
from videolm.evaluation.retrieval import evaluate_retrieval
from videolm.evaluation.retrieval_report import RetrievalReport
from videolm.evaluation.videoqa import evaluate_answers
from videolm.pipeline import VideoLM

AnyProtocol: TypeAlias = RetrievalProtocol | CaptionProtocol | QuestionProtocol
AnyReport: TypeAlias = RetrievalReport | CaptionReport | AnswerReport


@overload
def evaluate(
    model: VideoLM,
    folder: str | Path,
    *,
    protocol: RetrievalProtocol = ...,
    videos: str | Path | None = ...,
    batch_size: int = ...,
    limit: int | None = ...,
    allow_missing: bool = ...,
    show_progress_bar: bool | None = ...,
) -> RetrievalReport: ...
@overload
def evaluate(
    model: VideoLM,
    folder: str | Path,
    *,
    protocol: AnyProtocol | str,
    videos: str | Path | None = ...,
    batch_size: int = ...,
    limit: int | None = ...,
    allow_missing: bool = ...,
    show_progress_bar: bool | None = ...,
) -> AnyReport: ...
def evaluate(
    model: VideoLM,
    folder: str | Path,
    *,
    protocol: AnyProtocol | str = "msrvtt",
    videos: str | Path | None = None,
    batch_size: int = 8,
    limit: int | None = None,
    allow_missing: bool = False,
    show_progress_bar: bool | None = None,
) -> AnyReport:
    """Measures a model on a split whose annotation is in `folder`; a rendered world is one, too.

    `protocol` is one, or the name of a benchmark whose plain one is taken. Videos are looked for in `videos`, by
    default `folder/videos`; `limit` takes the first of the split, for a trial. Missing files are a FileNotFoundError,
    or with `allow_missing` left out with all that is asked of them and reported, as is always what cannot be read;
    NothingReadError where nothing is left. ValueError where the model computes in another dtype, or with another plan
    to reduce tokens, than the protocol says, or has no head for what is asked.
    """
    if isinstance(protocol, str):
        protocol = protocol_of(protocol)
    if limit is not None and limit < 1:
        raise ValueError(f"limit ({limit}) must be at least 1")
    check_model(model, protocol)
    folder = Path(folder)
    where = folder / "videos" if videos is None else Path(videos)
    run = Run(folder, where, batch_size, limit, allow_missing, show_progress_bar)
    if isinstance(protocol, CaptionProtocol):
        return evaluate_captions(model, protocol, run)
    if isinstance(protocol, QuestionProtocol):
        return evaluate_answers(model, protocol, run)
    return evaluate_retrieval(model, protocol, run)
