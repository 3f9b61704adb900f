"""How a model is measured on a benchmark of retrieval: all that decides a number beside the model and the files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from videolm.metrics.retrieval import Ties, VideoToText
from videolm.video.readers.guard import Decoder
from videolm.video.samplers import Kind

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""What a model computes in; "auto" is the faster of float32 and bfloat16 on the machine at hand."""


@dataclass(frozen=True)
class Protocol:
    """One benchmark, one split, one set of rules."""

    benchmark: str = "msrvtt"
    split: str = "test"
    num_frames: int | None = None
    """Frames a video; None: as the model was trained."""
    sampler: Kind | None = None
    """Which moments of a video are looked at; None: as the model was trained."""
    dtype: Dtype = "auto"
    reduce: str | None = None
    """How the vision tower comes to fewer tokens, as in "tome:r=16"; "none": it does not; None: as the model does."""
    decoder: Decoder = "auto"
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
        for name in ("dsl_scale", "qb_norm_beta", "qb_norm_bank"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be above 0")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames ({self.num_frames}) must be at least 1")
