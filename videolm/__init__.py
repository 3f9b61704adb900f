"""videolm: finds the video that a sentence describes, says what happens in one, and answers questions about it.

Importing this package does no work: torch and the models are imported at the first use of a name below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videolm.pipeline import VideoLM, list_models, load, open_index
    from videolm.search.index import Index
    from videolm.types import Answer, Caption, Clip, Embeddings, Failure, Hit, ModelInfo, VideoInfo
    from videolm.video.readers import open_video

__version__ = "0.1.0"

_HOME = {
    "VideoLM": "videolm.pipeline",
    "list_models": "videolm.pipeline",
    "load": "videolm.pipeline",
    "open_index": "videolm.pipeline",
    "Index": "videolm.search.index",
    "Answer": "videolm.types",
    "Caption": "videolm.types",
    "Clip": "videolm.types",
    "Embeddings": "videolm.types",
    "Failure": "videolm.types",
    "Hit": "videolm.types",
    "ModelInfo": "videolm.types",
    "VideoInfo": "videolm.types",
    "open_video": "videolm.video.readers",
}

__all__ = [
    "Answer",
    "Caption",
    "Clip",
    "Embeddings",
    "Failure",
    "Hit",
    "Index",
    "ModelInfo",
    "VideoInfo",
    "VideoLM",
    "list_models",
    "load",
    "open_index",
    "open_video",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'videolm' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
