"""LSMDC: clips of films, each with the one sentence that describes it for the blind.

Reads `LSMDC16_annos_training.csv`, `LSMDC16_annos_val.csv` and `LSMDC16_challenge_1000_publictect.csv`: six
columns with tabs between them and no header, the first the clip's name, the last its sentence. Source: Rohrbach
et al., IJCV 2017.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from videolm.datasets.annotations import (
    CaptionedVideo,
    caption,
    check_split,
    read_lines,
    refuse_duplicates,
    video_id,
)

Split = Literal["train", "val", "test"]
_FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
_NUM_COLUMNS = 6


def read_split(folder: str | Path, split: Split) -> list[CaptionedVideo]:
    """The clips of a split with their sentence."""
    check_split(split, get_args(Split))
    path = Path(folder) / _FILES[split]
    clips = []
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split("\t")
        if len(cells) != _NUM_COLUMNS:
            raise ValueError(
                f"{path}, line {number}: {len(cells)} columns, expected {_NUM_COLUMNS} between tabs"
            )
        clips.append(CaptionedVideo(video_id(cells[0], path), (caption(cells[-1], path, f"line {number}"),)))
    refuse_duplicates([clip.id for clip in clips], path)
    return clips
