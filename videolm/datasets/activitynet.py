"""ActivityNet Captions: long YouTube videos, whose sentences on moments are joined to one paragraph a video.

Reads `train.json` and `val_1.json`: {id: {"duration", "timestamps", "sentences"}}. Retrieval is published on
val_1, 4,917 videos. Source: Krishna et al., ICCV 2017; the paragraph protocol is Zhang et al., ECCV 2018.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from videolm.datasets.annotations import (
    CaptionedVideo,
    caption,
    check_split,
    read_json,
    unreadable,
    video_id,
)

Split = Literal["train", "val_1"]


def read_split(folder: str | Path, split: Split) -> list[CaptionedVideo]:
    """The videos of a split with one paragraph each: its sentences in the order of the file, with blanks."""
    check_split(split, get_args(Split))
    path = Path(folder) / f"{split}.json"
    try:
        paragraphs = [
            (video_id(name, path), [caption(text, path, name).strip() for text in video["sentences"]])
            for name, video in read_json(path).items()
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise unreadable(path, error) from error
    for name, sentences in paragraphs:
        if not sentences:
            raise ValueError(f"{path}: video {name} has no sentence")
    return [CaptionedVideo(name, (" ".join(sentences),)) for name, sentences in paragraphs]
