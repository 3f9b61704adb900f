"""ActivityNet-QA: 58,000 open questions on long YouTube videos, ten a video, written by hand.

Reads `{train,val,test}_q.json`, a list of {"video_name", "question", "question_id"}, and `{train,val,test}_a.json`, a
list of {"answer", "type": 0 to 8, "question_id"}. Source: Yu et al., AAAI 2019; repository MILVLG/activitynet-qa.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from videolm.datasets.annotations import (
    caption,
    check_split,
    read_json,
    refuse_duplicates,
    unreadable,
    video_id,
)
from videolm.datasets.questions import VideoQuestion, checked

Split = Literal["train", "val", "test"]
TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")
"""By their number in the files."""


def read_split(folder: str | Path, split: Split) -> list[VideoQuestion]:
    """The questions of a split in the order of the answers' file, on the videos `v_NAME`."""
    check_split(split, get_args(Split))
    path, answers_path = (Path(folder) / f"{split}_{kind}.json" for kind in "qa")
    try:
        asked = [(_id(row, path), row["video_name"], row["question"]) for row in read_json(path)]
        answers = [(_id(row, answers_path), row["answer"], row["type"]) for row in read_json(answers_path)]
        for ids, source in (([a[0] for a in asked], path), ([a[0] for a in answers], answers_path)):
            refuse_duplicates(ids, source)
        questions = {id: (video_id(f"v_{name}", path), text) for id, name, text in asked}
        unpaired = sorted(questions.keys() ^ {id for id, _, _ in answers})
        if unpaired:
            raise ValueError(
                f"{answers_path.name} and {path.name} in {folder}: {len(unpaired)} ids are in only one of them, "
                f"the first is {unpaired[0]}"
            )
        return checked(
            (
                VideoQuestion(
                    id=id,
                    video_id=questions[id][0],
                    question=caption(questions[id][1], path, id, what="question"),
                    answer=caption(answer, answers_path, id, what="answer"),
                    type=_type(number, answers_path, id),
                )
                for id, answer, number in answers
            ),
            answers_path,
        )
    except (KeyError, TypeError) as error:
        raise unreadable(path, error) from error


def _id(row: Any, path: Path) -> str:
    return caption(row["question_id"], path, "question_id", what="id")


def _type(number: object, path: Path, id: str) -> str:
    if not isinstance(number, int) or not 0 <= number < len(TYPES):
        raise ValueError(f"{path}, {id}: type {number!r} must be a number from 0 to {len(TYPES) - 1}")
    return TYPES[number]
