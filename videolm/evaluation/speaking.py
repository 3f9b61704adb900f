"""What evaluations of heads that speak share: every video asked once, and which of them could not be read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from videolm.datasets.protocol import SpeakingProtocol
from videolm.encoders.weights import weights_sha256
from videolm.evaluation.videos import named
from videolm.pipeline import VideoLM
from videolm.pipeline.answers import KnowsWords
from videolm.pipeline.head_files import own_state
from videolm.pipeline.speaking import HeadName
from videolm.search.extraction import NothingReadError
from videolm.search.progress import Progress
from videolm.types import Failure

_VIDEOS_AT_ONCE = 32
Said = TypeVar("Said")


def ask_each(
    paths: Mapping[str, Path],
    ask: Callable[[Sequence[str]], Sequence[Said | Failure]],
    *,
    show_progress_bar: bool | None,
) -> tuple[dict[str, Said], list[Failure]]:
    """What is said of each video, by id, and those that could not be read; `ask` gets the ids of some at a time.

    Raises NothingReadError where that is all of them.
    """
    ids = list(paths)
    said: dict[str, Said] = {}
    failures: list[Failure] = []
    with Progress(len(ids), show=show_progress_bar) as progress:
        for first in range(0, len(ids), _VIDEOS_AT_ONCE):
            some = ids[first : first + _VIDEOS_AT_ONCE]
            for video_id, found in zip(some, ask(some), strict=True):
                progress.advance(failed=isinstance(found, Failure))
                if isinstance(found, Failure):
                    failures.append(found)
                else:
                    said[video_id] = found
    if not said:
        first_one = failures[0]
        raise NothingReadError(
            f"none of the {len(ids)} videos could be read; {first_one.path}: {first_one.error}"
        )
    return said, failures


def describe_head(model: VideoLM, name: HeadName, protocol: SpeakingProtocol) -> dict[str, Any]:
    """How a head wrote: the protocol's numbers, or those that it was trained for."""
    shape = model.heads[name].shape
    hashed = "rounded" if model.is_rounded else weights_sha256(own_state(model.heads[name].head))[:12]
    return {
        "num_beams": shape.num_beams if protocol.num_beams is None else protocol.num_beams,
        "max_new_tokens": shape.max_new_tokens
        if protocol.max_new_tokens is None
        else protocol.max_new_tokens,
        "length_penalty": shape.length_penalty,
        "head_weights": hashed,
    }


def unknown_words_notes(texts: Iterable[str], tokenizer: KnowsWords, *, of: str) -> list[str]:
    """Says how many of the texts have words that the model does not know, and the first of them."""
    rows = [tokenizer.unknown_words(text) for text in dict.fromkeys(texts)]
    words = sorted({word for row in rows for word in row})
    if not words:
        return []
    num_texts = sum(bool(row) for row in rows)
    return [
        f"{num_texts:,} of {len(rows):,} different {of} have words that the model does not know: {named(words)}"
    ]


@contextmanager
def without_word_warnings() -> Iterator[None]:
    """The words that a model does not know are counted once for the whole benchmark, and not warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* does not know: ")
        yield
