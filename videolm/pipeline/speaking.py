"""What turns the tokens of a video into text: a language model behind a connector, and how it is asked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from videolm.heads.captioning import PrefixLM
from videolm.heads.language_models import max_places
from videolm.heads.presets import SpeakerShape
from videolm.heads.resampler import Prefix
from videolm.pipeline.tokens import UnusableClipError
from videolm.text.prompts import PromptTokenizer
from videolm.types import TextTokens, VideoTokens

HeadName = Literal["captioning", "videoqa"]
Batch = TypeVar("Batch", VideoTokens, TextTokens)


@dataclass(frozen=True, eq=False)
class Speaker:
    """A head that speaks, with its vocabulary and the forms of the texts it was trained with."""

    head: PrefixLM
    tokenizer: PromptTokenizer
    shape: SpeakerShape
    recipe: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)

    @property
    def reads_question(self) -> bool:
        """Whether its connector takes the question, as the text tower reads it, beside the video."""
        return self.shape.connector.reads_question

    def clean(self, question: str) -> str:
        """A question without a question mark that the template brings, or that is not in the vocabulary."""
        is_brought = self.shape.question_template.partition("{question}")[2].lstrip().startswith("?")
        if is_brought or self.tokenizer.unknown_words("?"):
            return question.rstrip(" ?")
        return question

    def question_prompt(self, question: str) -> str:
        """A question as the head was trained to read it."""
        return self.shape.question_template.replace("{question}", self.clean(question))

    def write(
        self,
        video: VideoTokens,
        prompts: Sequence[str],
        words: TextTokens | None = None,
        *,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """What it says after each video and its prompt; without numbers, with those it was trained for.

        Raises UnusableClipError, as the other ways to ask it do, where prefix and text have not enough places, or its
        numbers are not finite.
        """
        beams = self.shape.num_beams if num_beams is None else num_beams
        # transformers warns of a length penalty where nothing is ranked
        penalty = {"length_penalty": self.shape.length_penalty} if beams > 1 else {}
        with torch.inference_mode():
            ids = self._generate(
                video, prompts, words, max_new_tokens=max_new_tokens, num_beams=beams, **penalty
            )
        return self.tokenizer.decode(ids)

    def stream(
        self,
        video: VideoTokens,
        prompt: str,
        words: TextTokens | None = None,
        *,
        max_new_tokens: int | None = None,
    ) -> Generator[str, None, None]:
        """The pieces of what it says after one video and its prompt, as they come; together the text.

        Always without beams, which know their first word only at the end. The words are made in a thread; an error
        there is raised here, and closing the generator ends it.
        """
        pieces = _Pieces(self.tokenizer)

        def generate() -> None:
            try:
                with torch.inference_mode():
                    self._generate(
                        video,
                        [prompt],
                        words,
                        max_new_tokens=max_new_tokens,
                        num_beams=1,
                        streamer=pieces,
                        stopping_criteria=StoppingCriteriaList([_Stopped(pieces.stopped)]),
                    )
            # raised again where the pieces are taken
            except BaseException as error:
                pieces.waiting.put(error)

        thread = threading.Thread(target=generate, name="videolm-stream", daemon=True)
        thread.start()
        try:
            while (piece := pieces.waiting.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            pieces.stopped.set()
            thread.join()

    def log_likelihood(
        self,
        video: VideoTokens,
        prompts: Sequence[str],
        words: TextTokens | None,
        candidates: Sequence[Sequence[str]],
    ) -> list[list[float]]:
        """log p(candidate and its end | video, prompt) of the candidates of each video, in their order."""
        most = max(len(row) for row in candidates)
        rows = [[*row, *[""] * (most - len(row))] for row in candidates]
        ids, mask = self.tokenizer.targets(
            [text for row in rows for text in row],
            after=[prompt for prompt, row in zip(prompts, rows, strict=True) for _ in row],
        )
        for row, written in zip(candidates, ids.view(len(rows), most, -1).tolist(), strict=True):
            self._check_different(row, written[: len(row)])
        with torch.inference_mode():
            prefix, prompt_ids, prompt_mask = self._read(video, prompts, words, num_new=ids.shape[1])
            device = prompt_ids.device
            scores = self.head.log_likelihood(
                prefix,
                prompt_ids,
                prompt_mask,
                ids.view(len(rows), most, -1).to(device),
                mask.view(len(rows), most, -1).to(device),
            )
            _check_finite(scores)
        return [row[: len(given)] for row, given in zip(scores.tolist(), candidates, strict=True)]

    @staticmethod
    def _check_different(candidates: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        seen: dict[tuple[int, ...], str] = {}
        for text, row in zip(candidates, map(tuple, ids), strict=True):
            if row in seen:
                raise ValueError(
                    f"candidates {seen[row]!r} and {text!r} are the same words to this model; ask it in its vocabulary"
                )
            seen[row] = text

    def _generate(
        self,
        video: VideoTokens,
        prompts: Sequence[str],
        words: TextTokens | None,
        *,
        max_new_tokens: int | None,
        **settings: Any,
    ) -> Tensor:
        most = self.shape.max_new_tokens if max_new_tokens is None else max_new_tokens
        prefix, ids, mask = self._read(video, prompts, words, num_new=most)
        new: Tensor = self.head.generate(
            prefix,
            ids,
            mask,
            max_new_tokens=most,
            min_new_tokens=min(self.shape.min_new_tokens, most),
            do_sample=False,
            logits_processor=LogitsProcessorList([_Finite()]),
            **settings,
        ).cpu()
        return new

    def _read(
        self, video: VideoTokens, prompts: Sequence[str], words: TextTokens | None, *, num_new: int
    ) -> tuple[Prefix, Tensor, Tensor]:
        prefix = self._prefix(video, words)
        _check_finite(prefix.embeds[prefix.mask])
        ids, mask = self.tokenizer.prompts(prompts)
        self._check_room(prefix, num_words=ids.shape[1] + num_new)
        device = prefix.embeds.device
        return prefix, ids.to(device), mask.to(device)

    def _prefix(self, video: VideoTokens, words: TextTokens | None) -> Prefix:
        """The prefix of each clip as if it were alone.

        A budget may have left clips of a batch different numbers of tokens in a frame, which a connector that merges
        tokens cannot take together: those of one number go through it at once.
        """
        groups: dict[float, list[int]] = {}
        for row, (real, times) in enumerate(zip(video.mask.cpu(), video.pts_seconds.cpu(), strict=True)):
            groups.setdefault(int(real.sum()) / len(times[real].unique()), []).append(row)
        parts = [
            self.head.prefix(rows_of(video, rows), None if words is None else rows_of(words, rows))
            for rows in groups.values()
        ]
        longest = max(part.mask.shape[1] for part in parts)
        embeds = torch.cat([F.pad(part.embeds, (0, 0, 0, longest - part.embeds.shape[1])) for part in parts])
        mask = torch.cat([F.pad(part.mask, (0, longest - part.mask.shape[1])) for part in parts])
        back = torch.tensor([row for rows in groups.values() for row in rows], device=mask.device).argsort()
        return Prefix(embeds[back], mask[back])

    def _check_room(self, prefix: Prefix, *, num_words: int) -> None:
        places = max_places(self.head.lm)
        # GIT counts its words alone
        num_read = 0 if self.head.lm.config.model_type == "git" else int(prefix.mask.sum(dim=1).max())
        if places is not None and num_read + num_words > places:
            raise UnusableClipError(
                f"the language model has {places} places, but the video takes {num_read} of them and prompt and text "
                f"up to {num_words}; give budget= (--budget) for fewer tokens, or fewer frames (num_frames=), or "
                "caption window by window (window=)"
            )


class _Pieces:
    """A streamer of transformers: takes ids, gives pieces of text that no later one changes, and None at the end."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self.waiting: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0

    def put(self, value: Tensor) -> None:
        """The next ids of the only row; first an empty one, for the prompt is given as embeddings."""
        self._ids += value.flatten().tolist()
        text = self._text()
        # a word may still grow, or join the sign that follows it
        self._give(text[: max(text.rfind(" "), self._given)])

    def end(self) -> None:
        self._give(self._text())
        self.waiting.put(None)

    def _text(self) -> str:
        return self._tokenizer.decode(torch.tensor([self._ids], dtype=torch.int64))[0]

    def _give(self, text: str) -> None:
        if len(text) > self._given:
            self.waiting.put(text[self._given :])
            self._given = len(text)


class _Stopped:
    """A stopping criterion of transformers: ends `generate` after the token at which nobody listens any more."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)


class _Finite:
    """A processor of logits of transformers: raises where one is NaN or infinite; -inf is a word that cannot be."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        _check_finite(scores.amax(dim=-1))
        return scores


def _check_finite(numbers: Tensor) -> None:
    if not bool(numbers.isfinite().all()):
        raise UnusableClipError("the language model, or what it reads of the video, gave NaN or infinity")


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, in this order, one as often as it is named."""
    index = torch.tensor(rows, device=batch.tokens.device)
    return type(batch)(**{f.name: getattr(batch, f.name)[index] for f in fields(batch)})
