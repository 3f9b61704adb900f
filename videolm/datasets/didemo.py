"""DiDeMo: unedited Flickr videos, whose descriptions of moments are joined to one paragraph a video.

Reads `train_data.json`, `val_data.json` and `test_data.json`: a list of {"video", "description", ...}. The same
video is named with two endings in places (`.mov` and `.mp4`), so its name without the ending is its id: with
the endings val and test would have 1,094 and 1,037 videos instead of the published 1,065 and 1,004. The
annotation covers the first 30 seconds of a video. Source: Hendricks et al., ICCV 2017.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from videolm.datasets.annotations import (
    CaptionedVideo,
    caption,
    check_split,
    grouped,
    read_json,
    unreadable,
    video_id,
    without_suffix,
)

Split = Literal["train", "val", "test"]


def read_split(folder: str | Path, split: Split) -> list[CaptionedVideo]:
    """The videos of a split with one paragraph each: its descriptions in the order of the file, with blanks."""
    check_split(split, get_args(Split))
    path = Path(folder) / f"{split}_data.json"
    try:
        pairs = [
            (
                video_id(without_suffix(moment["video"]), path),
                caption(moment["description"], path, f"moment {number}").strip(),
            )
            for number, moment in enumerate(read_json(path))
        ]
    except (KeyError, TypeError) as error:
        raise unreadable(path, error) from error
    return [CaptionedVideo(name, (" ".join(sentences),)) for name, sentences in grouped(pairs).items()]
