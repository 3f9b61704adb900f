"""Captions of videos, of their windows or segments; whole, or piece by piece as they are written."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable
from contextlib import closing

from videolm.pipeline.decoding import Video
from videolm.pipeline.segments import Span, segments
from videolm.pipeline.spans import (
    CUT_SAMPLER,
    Cut,
    Piece,
    cut_windows,
    read_in_spans,
    read_whole,
    span_of,
)
from videolm.pipeline.talking import OnError, Talker, in_batches, look
from videolm.pipeline.tokens import Eyes
from videolm.types import Caption, Clip, Failure
from videolm.video.worker import ClipRequest


def caption(
    talker: Talker,
    videos: Iterable[Video],
    request: ClipRequest,
    *,
    prompt: str,
    num_beams: int | None,
    max_new_tokens: int | None,
    window: int | float | None,
    by_segments: bool,
    budget: int | None,
    batch_size: int,
    workers: int,
    on_error: OnError,
) -> Generator[tuple[int, Caption | Failure], None, None]:
    """Captions in the order of the videos and of their spans, each with the place of its video in the list."""
    if window is None and not by_segments:
        pieces = read_whole(videos, request, workers=workers, batch_size=batch_size)
    else:
        cut, frames = (cut_segments(talker.eyes), CUT_SAMPLER) if window is None else cut_windows(window)
        pieces = read_in_spans(videos, request, cut=cut, look=frames, workers=workers)

    def say(pieces: list[Piece], clips: list[Clip]) -> list[Caption]:
        seen = look(talker.eyes, clips, budget=budget)
        prompts = [prompt] * len(pieces)
        spans = [piece.span for piece in pieces if piece.span is not None]
        texts = talker.speaker.write(
            seen.video, prompts, talker.words(prompts), num_beams=num_beams, max_new_tokens=max_new_tokens
        )
        return [
            Caption(said, *span, piece.name, num_tokens, plan)
            for said, span, piece, num_tokens, plan in zip(
                texts, spans, pieces, seen.num_tokens, seen.plans, strict=True
            )
        ]

    with closing(pieces):
        yield from in_batches(pieces, say, batch_size=batch_size, on_error=on_error)


def stream(
    talker: Talker,
    video: Video,
    request: ClipRequest,
    *,
    prompt: str,
    question: str,
    max_new_tokens: int | None,
    budget: int | None,
    workers: int,
) -> Generator[str, None, None]:
    """The pieces of what the speaker says after a video and a prompt, as they are written.

    `question` is what a connector reads that takes one.
    """

    def say(pieces: list[Piece], clips: list[Clip]) -> list[Generator[str, None, None]]:
        seen = look(talker.eyes, clips, budget=budget)
        return [
            talker.speaker.stream(seen.video, prompt, talker.words([question]), max_new_tokens=max_new_tokens)
        ]

    with closing(read_whole([video], request, workers=workers, batch_size=1)) as pieces:
        [(_, texts)] = in_batches(pieces, say, batch_size=1, on_error="raise")
    assert not isinstance(texts, Failure)
    with closing(texts):
        yield from texts


def prompt_of(talker: Talker, prompt: str | None) -> str:
    """The prompt of a caption, by default that of the training; warns of unknown words."""
    if prompt is None:
        return talker.speaker.shape.caption_prompt
    if unknown := talker.speaker.tokenizer.unknown_words(prompt):
        # to whom called the verb that called this
        warnings.warn(f"{talker.name} does not know: {' '.join(unknown)}", stacklevel=3)
    return prompt


def cut_segments(eyes: Eyes) -> Cut:
    """Cuts where a video changes, by the embeddings of its frames, each seen alone."""

    def cut(clip: Clip) -> list[Span]:
        start, end = span_of(clip)
        return segments(eyes.frame_embeddings(clip), clip.pts_seconds, start=start, end=end)

    return cut
