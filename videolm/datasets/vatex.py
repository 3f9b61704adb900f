"""VATEX: YouTube videos of ten seconds with ten English captions each, all of them queries.

Reads the official `vatex_training_v1.0.json`, `vatex_validation_v1.0.json` and
`vatex_public_test_english_v1.1.json`: a list of {"videoID", "enCap": [caption], ...}. Published retrieval
numbers mostly split the 3,000 validation videos into 1,500 for validation and 1,500 for the test; they are the
splits "val-1500" and "test-1500", whose names are read from `val_list.txt` and `test_list.txt`. Source: Wang et
al., ICCV 2019; that split is Chen et al., CVPR 2020.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from videolm.datasets.annotations import (
    CaptionedVideo,
    caption,
    check_split,
    chosen,
    read_ids,
    read_json,
    refuse_duplicates,
    unreadable,
    video_id,
)

Split = Literal["train", "val", "test", "val-1500", "test-1500"]
_FILES = {
    "train": "vatex_training_v1.0.json",
    "val": "vatex_validation_v1.0.json",
    "test": "vatex_public_test_english_v1.1.json",
}
_LISTS = {"val-1500": "val_list.txt", "test-1500": "test_list.txt"}


def read_split(folder: str | Path, split: Split) -> list[CaptionedVideo]:
    """The videos of a split with all their English captions."""
    check_split(split, get_args(Split))
    folder = Path(folder)
    path = folder / _FILES["val" if split in _LISTS else split]
    try:
        pairs = [
            (
                video_id(video["videoID"], path),
                [caption(text, path, str(video["videoID"])) for text in video["enCap"]],
            )
            for video in read_json(path)
        ]
    except (KeyError, TypeError) as error:
        raise unreadable(path, error) from error
    refuse_duplicates([name for name, _ in pairs], path)
    list_path = folder / _LISTS[split] if split in _LISTS else path
    ids = read_ids(list_path) if split in _LISTS else [name for name, _ in pairs]
    return chosen(ids, dict(pairs), list_path=list_path, caption_path=path)
