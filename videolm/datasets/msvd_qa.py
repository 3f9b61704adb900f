"""MSVD-QA: 50,505 open questions on MSVD, made and written as those of MSRVTT-QA.

Reads `{train,val,test}_qa.json` or `{train,val,test}.csv` as `videolm.datasets.msrvtt_qa` does. The videos are
numbered; `youtube_mapping.txt` or `youtube_2id.txt` (a file's name, a blank, `vid1`) tells the names of their files.
Without either, the files are taken to be called `vid1`, `vid2`, ... The split is not MSVD's: of 1,200, 250 and 520
videos, 1,161, 245 and 504 have questions. Source: Xu et al., ACM MM 2017.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from videolm.datasets.annotations import check_split, exists
from videolm.datasets.msrvtt_qa import read_questions
from videolm.datasets.msvd import read_names
from videolm.datasets.questions import TypeRule, VideoQuestion, the_one_of

Split = Literal["train", "val", "test"]


def read_split(folder: str | Path, split: Split, *, type_rule: TypeRule = "just-ask") -> list[VideoQuestion]:
    """The questions of a split in the order of the file."""
    check_split(split, get_args(Split))
    folder = Path(folder)
    questions = read_questions(folder, split, prefix="vid", type_rule=type_rule)
    path = the_one_of([folder / "youtube_mapping.txt", folder / "youtube_2id.txt"])
    if not exists(path):
        return questions
    names = read_names(path)
    unknown = list(dict.fromkeys(q.video_id for q in questions if q.video_id not in names))
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} videos are not in it, the first is {unknown[0]}")
    return [replace(question, video_id=names[question.video_id]) for question in questions]
