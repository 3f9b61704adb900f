"""TGIF-QA: four tasks on animated GIFs: what is in a frame, what repeats, how often, what comes before and after.

Reads the published `{Train,Test}_{frameqa,transition,action,count}_question.csv` with tabs between the columns
(gif_name, question, answer, vid_id and key, for multiple choice a1 to a5, for frameqa type), or
`{frameqa,transition,action,count}_{train,test}.csv` with commas (video, question, answer, qid, for multiple choice
a0 to a4; repository doc-doc/HQGA), where a video is named by its `key`. There is no validation split. Source: Jang
et al., CVPR 2017; repository YunseokJANG/tgif-qa.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, get_args

from videolm.datasets.annotations import caption, check_split, read_rows, video_id
from videolm.datasets.questions import VideoQuestion, checked, choice, the_one_of

Split = Literal["train", "test"]
Task = Literal["frameqa", "transition", "action", "count"]
FRAME_TYPES = ("object", "number", "color", "location")
"""Types of frameqa by their number in the published files; the other tasks are one type each."""
_NUM_CANDIDATES = 5


def read_split(folder: str | Path, split: Split, *, task: Task) -> list[VideoQuestion]:
    """The questions of one task in the order of the file; the answers of "count" are whole numbers."""
    check_split(split, get_args(Split))
    if task not in get_args(Task):
        raise ValueError(f"task ({task!r}) must be one of {', '.join(get_args(Task))}")
    published = Path(folder) / f"{split.title()}_{task}_question.csv"
    path = the_one_of([published, published.with_name(f"{task}_{split}.csv")])
    video, id, first, delimiter = (
        ("gif_name", "vid_id", 1, "\t") if path == published else ("video", "qid", 0, ",")
    )
    is_choice = task in ("transition", "action")
    candidates = [f"a{first + i}" for i in range(_NUM_CANDIDATES)] if is_choice else []
    rows = read_rows(path, (video, "question", "answer", id, *candidates), delimiter=delimiter)
    make = partial(_choice, candidates=candidates) if is_choice else _open
    return checked((make(row, row[id], video_id(row[video], path), task, path) for row in rows), path)


read_frameqa = partial(read_split, task="frameqa")
read_transition = partial(read_split, task="transition")
read_action = partial(read_split, task="action")
read_count = partial(read_split, task="count")


def _choice(
    row: dict[str, str], id: str, video: str, task: str, path: Path, *, candidates: list[str]
) -> VideoQuestion:
    return choice(
        id=id,
        video_id=video,
        question=row["question"],
        candidates=[row[name] for name in candidates],
        index=row["answer"],
        type=task,
        path=path,
    )


def _open(row: dict[str, str], id: str, video: str, task: str, path: Path) -> VideoQuestion:
    question = caption(row["question"], path, id, what="question")
    answer = caption(row["answer"], path, id, what="answer")
    if task == "count" and not (answer.isascii() and answer.isdigit()):
        raise ValueError(f"{path}, {id}: answer {answer!r} must be a whole number")
    return VideoQuestion(
        id, video, question, answer, _frame_type(row, path, id) if task == "frameqa" else task
    )


def _frame_type(row: dict[str, str], path: Path, id: str) -> str:
    """The type of the row or, where a file has none, by the form in which the generator writes each type."""
    if "type" not in row:
        forms = (("how many", "number"), ("what is the color", "color"), ("where", "location"))
        return next((type for form, type in forms if row["question"].startswith(form)), "object")
    if row["type"] not in map(str, range(len(FRAME_TYPES))):
        raise ValueError(
            f"{path}, {id}: type {row['type']!r} must be a number from 0 to {len(FRAME_TYPES) - 1}"
        )
    return FRAME_TYPES[int(row["type"])]
