"""The verbs of a model that give text: caption and answer, whole or piece by piece."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch

from videolm.encoders.video_clip import VideoCLIP
from videolm.heads.presets import SpeakerShape
from videolm.pipeline import answers, captions
from videolm.pipeline.decoding import Decoder, Video
from videolm.pipeline.segments import check_window
from videolm.pipeline.speaking import HeadName, Speaker
from videolm.pipeline.talking import Talker
from videolm.pipeline.tokens import Eyes
from videolm.text.prompts import PromptTokenizer
from videolm.text.tokenizer import Tokenizer
from videolm.types import Caption, Clip, Failure, ModelInfo, TextTokens
from videolm.video.samplers import Kind
from videolm.video.worker import ClipRequest


class SpeakingVerbs:
    """What VideoLM, which sets these, can do with its heads."""

    model: VideoCLIP
    info: ModelInfo
    tokenizer: Tokenizer | None
    device: torch.device
    dtype: torch.dtype
    heads: dict[HeadName, Speaker]
    _eyes: Eyes

    def add_head(self, name: HeadName, speaker: Speaker) -> None:
        """Let the model speak, in the place of the head of this name if it has one; put on its device, in its dtype."""
        if name not in get_args(HeadName):
            raise ValueError(f"head {name!r} must be one of {', '.join(get_args(HeadName))}")
        speaker.head.eval().to(self.device, self.dtype)
        self.heads[name] = speaker

    def prompt_tokenizer(self, shape: SpeakerShape) -> PromptTokenizer:
        """The vocabulary of the text tower, for a head of this shape."""
        if self.tokenizer is None:
            raise ValueError(
                f"{self.info.name} has no tokenizer whose vocabulary a head could use; give it its own"
            )
        return PromptTokenizer(
            self.tokenizer.copy_backend(),
            start_token_id=shape.start_token_id,
            eos_token_id=shape.eos_token_id,
            pad_token_id=shape.pad_token_id,
        )

    def caption(
        self,
        videos: Video | Iterable[Video],
        *,
        prompt: str | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        num_frames: int | None = None,
        sampler: Kind | None = None,
        window: int | float | None = None,
        segments: Literal["auto"] | None = None,
        budget: int | None = None,
        batch_size: int = 8,
        workers: int = 2,
        decoder: Decoder = "auto",
        timeout: float = 60.0,
        on_error: Literal["raise", "skip"] = "raise",
        on_caption: Callable[[Caption | Failure], object] | None = None,
    ) -> Any:
        """A Caption of a video; of several, a list in their order.

        With `window` a caption for every so many seconds of a video (a rest shorter than half of that belongs to
        the last), with `segments="auto"` for every segment between cuts (see `pipeline.segments`): then a list of
        Captions for each video. Windows and segments of a long video are decoded a few at a time.

        `prompt` is what the caption goes on from; it, `num_beams` and `max_new_tokens` are by default those that
        the head was trained for. `budget` is the most tokens of a clip that the head may read: the tower merges
        as few as are needed for that (tome:r=...). More frames than the model was trained with are read in chunks.

        A video that cannot be used raises, or with `on_error="skip"` there is a Failure in its place, also for a single
        one; `on_caption` is given each result as soon as it is there. The other arguments are those of `encode_videos`.
        """
        if window is not None and segments is not None:
            raise ValueError(f"window ({window}) and segments ({segments!r}) cannot both be; leave one out")
        if segments not in (None, "auto"):
            raise ValueError(f"segments ({segments!r}) must be 'auto', or left out")
        if window is not None:
            check_window(window)
        check_on_error(on_error)
        check_at_least_one("num_beams", num_beams)
        check_at_least_one("max_new_tokens", max_new_tokens)
        check_at_least_one("budget", budget)
        check_at_least_one("batch_size", batch_size)
        talker = self._talker("captioning")
        rows: list[Any] = []

        def read() -> Iterator[Video]:
            for video in as_several(videos):
                rows.append([])
                yield video

        found = captions.caption(
            talker,
            read(),
            self._request(num_frames, sampler, decoder=decoder, timeout=timeout),
            prompt=captions.prompt_of(talker, prompt),
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            window=window,
            by_segments=segments is not None,
            budget=budget,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
        )
        for i, said in found:
            rows[i].append(said)
            if on_caption is not None:
                on_caption(said)
        if window is None and segments is None:
            rows = [said for [said] in rows]
        return rows[0] if is_one(videos) else rows

    def caption_stream(
        self,
        video: Video,
        *,
        prompt: str | None = None,
        max_new_tokens: int | None = None,
        num_frames: int | None = None,
        sampler: Kind | None = None,
        budget: int | None = None,
        workers: int = 2,
        decoder: Decoder = "auto",
        timeout: float = 60.0,
    ) -> Iterator[str]:
        """The caption of a video in pieces, as they are written; together the text that `caption` gives without beams.

        Closing the iterator ends the writing.
        """
        check_at_least_one("max_new_tokens", max_new_tokens)
        check_at_least_one("budget", budget)
        talker = self._talker("captioning")
        text = captions.prompt_of(talker, prompt)
        return captions.stream(
            talker,
            video,
            self._request(num_frames, sampler, decoder=decoder, timeout=timeout),
            prompt=text,
            question=text,
            max_new_tokens=max_new_tokens,
            budget=budget,
            workers=workers,
        )

    def answer(
        self,
        videos: Video | Sequence[Video],
        questions: str | Sequence[str],
        *,
        candidates: Sequence[str] | Sequence[Sequence[str]] | None = None,
        template: str = answers.SIMILARITY_TEMPLATE,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        num_frames: int | None = None,
        sampler: Kind | None = None,
        budget: int | None = None,
        batch_size: int = 8,
        workers: int = 2,
        decoder: Decoder = "auto",
        timeout: float = 60.0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Any:
        """The Answer to a question about a video; for lists a list.

        One question of several videos, several questions of one video (which is looked at once), or as many of both.
        With `candidates`, the same for all questions or a list for each, one of them is chosen: the one that the
        head for questions would most likely write, or, for a model without that head, the one whose sentence, made by
        `template`, is most similar to the video (zero-shot CLIP). Without them the answer is written; it is never
        matched with anything. `Answer.method` says which it was.

        The other arguments are those of `caption`.
        """
        check_on_error(on_error)
        check_at_least_one("num_beams", num_beams)
        check_at_least_one("max_new_tokens", max_new_tokens)
        check_at_least_one("budget", budget)
        check_at_least_one("batch_size", batch_size)
        pairs = answers.pair_up(list(as_several(videos)), questions, candidates)
        if "videoqa" in self.heads or candidates is None:
            talker = self._talker("videoqa")
            tokenizer: answers.KnowsWords = talker.speaker.tokenizer
            reply = answers.by_speaker(talker, num_beams=num_beams, max_new_tokens=max_new_tokens)
        else:
            tokenizer = self._text_tokenizer()
            answers.check_sentences_differ(pairs, tokenizer, template=template)
            reply = answers.by_similarity(
                lambda sentences: self._encode_words(sentences).embedding.float(),
                self.model.scale.detach(),
                template=template,
            )
        answers.warn_unknown(pairs, tokenizer, name=self.info.name)
        found = answers.answer(
            self._eyes,
            reply,
            pairs,
            self._request(num_frames, sampler, decoder=decoder, timeout=timeout),
            budget=budget,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
        )
        return next(found) if is_one(videos) and isinstance(questions, str) else list(found)

    def answer_stream(
        self,
        video: Video,
        question: str,
        *,
        max_new_tokens: int | None = None,
        num_frames: int | None = None,
        sampler: Kind | None = None,
        budget: int | None = None,
        workers: int = 2,
        decoder: Decoder = "auto",
        timeout: float = 60.0,
    ) -> Iterator[str]:
        """The answer to a question in pieces, as they are written, as `caption_stream` gives a caption."""
        check_at_least_one("max_new_tokens", max_new_tokens)
        check_at_least_one("budget", budget)
        talker = self._talker("videoqa")
        answers.warn_unknown(
            [(video, answers.Asked(question))], talker.speaker.tokenizer, name=self.info.name
        )
        return captions.stream(
            talker,
            video,
            self._request(num_frames, sampler, decoder=decoder, timeout=timeout),
            prompt=talker.speaker.question_prompt(question),
            question=talker.speaker.clean(question),
            max_new_tokens=max_new_tokens,
            budget=budget,
            workers=workers,
        )

    def _talker(self, name: HeadName) -> Talker:
        if name not in self.heads:
            verb = "caption" if name == "captioning" else "answer questions without candidates"
            raise ValueError(
                f"{self.info.name} cannot {verb}: it has no {name} head; `videolm models` says which models have one, "
                f"and tools/train.py trains one by a recipe of configs/{name}"
            )
        return Talker(self.info.name, self._eyes, self.heads[name], self._encode_words)

    def _encode_words(self, texts: Sequence[str]) -> TextTokens:
        input_ids, mask = self._text_tokenizer()(texts)
        with torch.inference_mode():
            return self.model.encode_text(input_ids.to(self.device), mask.to(self.device))

    def _text_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(
                f"{self.info.name} would read this by its text tower, but has no tokenizer for it"
            )
        return self.tokenizer

    def _request(
        self, num_frames: int | None, sampler: Kind | None, *, decoder: Decoder, timeout: float
    ) -> ClipRequest:
        raise NotImplementedError


def is_one(videos: Video | Iterable[Video]) -> bool:
    """Whether it is a video and not several."""
    return isinstance(videos, str | os.PathLike | Clip)


def as_several(videos: Video | Iterable[Video]) -> Iterable[Video]:
    """A video as a list of one."""
    return [videos] if isinstance(videos, str | os.PathLike | Clip) else videos


def check_at_least_one(name: str, value: int | None) -> None:
    """ValueError for a number below 1; None is one that was left out."""
    if value is not None and value < 1:
        raise ValueError(f"{name} ({value}) must be at least 1")


def check_on_error(on_error: str) -> None:
    """ValueError for what is no way to go on."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error ({on_error!r}) must be 'raise' or 'skip'")
