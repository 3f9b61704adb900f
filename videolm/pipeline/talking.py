"""What the verbs that give text share: the parts of a model they need, and batches in the order of the videos."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from videolm.pipeline.spans import Piece, defect_of
from videolm.pipeline.speaking import Speaker
from videolm.pipeline.tokens import Eyes, UnusableClipError
from videolm.types import Clip, Failure, TextTokens, VideoTokens
from videolm.video.readers.guard import VideoError

OnError = Literal["raise", "skip"]
Said = TypeVar("Said")

_NOT_FINITE = "the model gave a vector with NaN or infinity"


@dataclass(frozen=True, eq=False)
class Talker:
    """A model as its verbs see it."""

    name: str
    eyes: Eyes
    speaker: Speaker
    encode_words: Callable[[Sequence[str]], TextTokens]
    """The text tower, for a connector that reads the question."""

    def words(self, texts: Sequence[str]) -> TextTokens | None:
        """The texts as the connector reads them; None where it does not."""
        return self.encode_words(texts) if self.speaker.reads_question else None


@dataclass(frozen=True, eq=False)
class Seen:
    """A batch of clips behind the tower."""

    video: VideoTokens
    num_tokens: list[int]
    """Of each clip."""
    plans: list[str]
    """By which the tower came to so few tokens."""


def look(eyes: Eyes, clips: Sequence[Clip], *, budget: int | None) -> Seen:
    """The clips behind the tower; UnusableClipError where one gives NaN."""
    video, plans = eyes.tokens(clips, budget=budget)
    if not bool(video.embedding.isfinite().all()):
        raise UnusableClipError(_NOT_FINITE)
    return Seen(video, video.mask.sum(dim=1).tolist(), plans)


def in_batches(
    pieces: Iterable[Piece],
    say: Callable[[list[Piece], list[Clip]], list[Said]],
    *,
    batch_size: int,
    on_error: OnError,
) -> Generator[tuple[int, Said | Failure], None, None]:
    """What `say` makes of each piece and its clip, with the place of its video in the list, in the order of the pieces.

    Every batch but the last is full, however many pieces between its own cannot be used; of these the first raises, or
    with `on_error="skip"` each is a Failure in its place.
    """
    waiting: list[tuple[Piece, Clip | Failure]] = []
    num_clips = 0
    for piece in pieces:
        waiting.append((piece, _usable(piece, on_error)))
        num_clips += isinstance(waiting[-1][1], Clip)
        if num_clips == batch_size or num_clips == 0:
            yield from _say_batch(waiting, say, on_error)
            waiting, num_clips = [], 0
    yield from _say_batch(waiting, say, on_error)


def _usable(piece: Piece, on_error: OnError) -> Clip | Failure:
    clip = piece.clip
    if isinstance(clip, VideoError):
        if on_error == "raise":
            raise clip
        return Failure(piece.name, clip.stage, clip.reason, clip.decoder, *(piece.span or ()))
    if reason := defect_of(clip):
        if on_error == "raise":
            raise ValueError(f"{piece.name} is {reason}")
        return Failure(piece.name, "decode", reason)
    return clip


def _say_batch(
    waiting: Sequence[tuple[Piece, Clip | Failure]],
    say: Callable[[list[Piece], list[Clip]], list[Said]],
    on_error: OnError,
) -> list[tuple[int, Said | Failure]]:
    pieces = [piece for piece, clip in waiting if isinstance(clip, Clip)]
    clips = [clip for _, clip in waiting if isinstance(clip, Clip)]
    said: list[Said | Failure] = []
    try:
        said += say(pieces, clips) if clips else []
    except UnusableClipError:
        # one by one, to find whose fault it is
        for piece, clip in zip(pieces, clips, strict=True):
            one = _say_one(piece, clip, say, on_error)
            said.append(one)
    rest = iter(said)
    return [(piece.video, clip if isinstance(clip, Failure) else next(rest)) for piece, clip in waiting]


def _say_one(
    piece: Piece, clip: Clip, say: Callable[[list[Piece], list[Clip]], list[Said]], on_error: OnError
) -> Said | Failure:
    try:
        return say([piece], [clip])[0]
    except UnusableClipError as error:
        if on_error == "raise":
            raise UnusableClipError(f"{piece.name}: {error}") from error
        return Failure(piece.name, "encode", str(error), "", *(piece.span or ()))
