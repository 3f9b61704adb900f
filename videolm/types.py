"""The values that travel between rooms: small frozen dataclasses, checked when they are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video file before a frame is decoded. Times are in seconds of presentation time."""

    path: str
    container: str
    codec: str
    width: int
    """Pixels of the picture as it is shown, that is, after rotation."""
    height: int
    rotation: int
    """Degrees counter-clockwise by which the stored picture is turned before it is shown: 0, 90, 180 or 270."""
    pixel_aspect: float
    """Width of a stored pixel divided by its height; 1.0 where the file does not say."""
    num_frames: int
    """Frames that can be shown, counted from the packets and not from the header."""
    fps: float
    """Average frame rate in Hz."""
    start_seconds: float
    """Presentation time of the first frame."""
    last_seconds: float
    """Presentation time of the last frame."""
    duration_seconds: float
    """From the first frame's time to the end of the last frame."""
    times: Literal["stored", "counted"]
    """"counted": the file has no usable times; frames are read in order at the constant rate."""
    decoder: str
    """The back end that reads this file."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of one video, in the order in which they were asked for."""

    frames: UInt8[Tensor, "frames height width 3"]
    """RGB."""
    pts_seconds: Float[Tensor, " frames"]
    """float64; presentation time of each frame."""
    duration_seconds: float
    """Of the whole video, not of the clip."""
    source: str
    """Path or name that the clip comes from, for messages."""
    start_seconds: float = 0.0
    """Presentation time of the whole video's first frame."""

    def __post_init__(self) -> None:
        if self.frames.dtype != torch.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise ValueError(
                f"frames must be uint8 (T, H, W, 3), got {self.frames.dtype} {tuple(self.frames.shape)}"
            )
        if self.pts_seconds.dtype != torch.float64 or self.pts_seconds.shape != self.frames.shape[:1]:
            raise ValueError(
                f"pts_seconds must be float64 ({self.frames.shape[0]},), "
                f"got {self.pts_seconds.dtype} {tuple(self.pts_seconds.shape)}"
            )

    def __repr__(self) -> str:
        return f"Clip(frames={tuple(self.frames.shape)}, source={self.source!r})"


@dataclass(frozen=True, eq=False)
class VideoTokens:
    """What every head eats."""

    tokens: Float[Tensor, "batch tokens width"]
    """Last hidden states of the tower, frame by frame (each frame's class token first; all of them where a plan
    joined frames)."""
    mask: Bool[Tensor, "batch tokens"]
    """True = real, False = padding of a shorter clip."""
    sizes: Float[Tensor, "batch tokens"]
    """How many original tokens each one stands for."""
    pts_seconds: Float[Tensor, "batch tokens"]
    """Presentation time of the frame that a token belongs to, from any zero, for heads read differences; for a merged
    one the mean of its original tokens'."""
    embedding: Float[Tensor, "batch dim"]
    """Mean of the unit-length frame embeddings in the joint space, of unit length itself."""


@dataclass(frozen=True, eq=False)
class TextTokens:
    """A batch of sentences after the text tower."""

    tokens: Float[Tensor, "batch words dim"]
    """Hidden states after the final layer norm and the projection into the joint space."""
    mask: Bool[Tensor, "batch words"]
    """True = a token of the sentence, False = padding."""
    embedding: Float[Tensor, "batch dim"]
    """The end-of-text token's row, of unit length."""


@dataclass(frozen=True)
class Failure:
    """One video that could not be used, and why."""

    path: str
    stage: Literal["open", "decode", "encode", "timeout", "crash"]
    error: str
    backend: str = ""
    start: float | None = None
    """Seconds, as `end`: the span that could not be used; None for all of it."""
    end: float | None = None


@dataclass(frozen=True)
class ModelInfo:
    """Where a model comes from and what is known of it."""

    name: str
    trained: bool
    """False: random weights; nothing that comes out of it means anything."""
    weights_sha256: str
    """Hash of the weights' names, dtypes, shapes and bytes."""
    licence: str = "unknown"
    recipe: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors with the names they belong to; `np.asarray(embeddings)` gives the vectors."""

    vectors: np.ndarray[Any, np.dtype[np.float32]] | Tensor
    """float32 (n, d), of unit length."""
    ids: list[str]
    """Each video as it was named, or the sentence."""
    model: ModelInfo
    start: np.ndarray[Any, np.dtype[np.float64]] = field(default_factory=lambda: np.zeros(0))
    """Seconds; the span of the video that a row stands for (empty for texts)."""
    end: np.ndarray[Any, np.dtype[np.float64]] = field(default_factory=lambda: np.zeros(0))
    pts_seconds: list[np.ndarray[Any, np.dtype[np.float64]]] = field(default_factory=list)
    """The times of the frames that were used, a row each (empty for texts)."""
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.ids):
            raise ValueError(f"{len(self.ids)} ids but vectors of shape {tuple(self.vectors.shape)}")

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(zip(self.ids, self.vectors, strict=True))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, np.dtype[Any]]:
        return np.array(self.vectors, dtype=dtype) if copy else np.asarray(self.vectors, dtype=dtype)

    def __repr__(self) -> str:
        failed = f", failures={len(self.failures)}" if self.failures else ""
        return f"Embeddings({len(self)} x {self.vectors.shape[1]}, model={self.model.name!r}{failed})"


@dataclass(frozen=True)
class Hit:
    """One result of a search."""

    id: str
    path: Path
    score: float
    """Cosine of query and video, in [-1, 1]."""
    start: float
    """Seconds."""
    end: float


@dataclass(frozen=True)
class Caption:
    """What a model says of a video, or of a span of it."""

    text: str
    start: float
    """Seconds; the span that it is about."""
    end: float
    source: str
    """The video as it was named."""
    num_tokens: int
    """Tokens of the video that the head read."""
    reduce: str = ""
    """The plan by which the tower came to so few, as `budget` chose it or the model has it."""


@dataclass(frozen=True)
class Answer:
    """What a model answers to a question about a video."""

    text: str
    """What it said, or the likeliest candidate; of equal ones the first."""
    question: str
    source: str
    """The video as it was named."""
    method: Literal["generate", "likelihood", "similarity"]
    """How the answer came about: written word by word; the candidate that the language model finds likeliest; or the
    one whose sentence is most similar to the video, for a model that has no head for questions (zero-shot CLIP)."""
    num_tokens: int
    """Tokens of the video behind the tower; similarity reads only the one vector that they come with."""
    candidates: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    """Of each candidate: its log-likelihood, summed over its tokens; or the cosine times the logit scale."""
    probabilities: tuple[float, ...] = ()
    """Softmax of the scores: among these candidates."""
    reduce: str = ""
    """As in Caption."""
