"""NExT-QA: why, how, before and after in everyday videos, as multiple choice and as open questions.

Reads `{train,val,test}.csv` of one of the two: with the columns a0 to a4 and the number of the right one (multiple
choice), or with the answer's text (open-ended, NExT-OE). The test of NExT-OE has a second answer for about half of
its questions in `add_reference_answer_test.json`, {video: {qid: text}}.

| type | asks |
| --- | --- |
| CW, CH | why, how (causal) |
| TN, TP, TC | what comes next, came before, happens at the same time (temporal); published tables count TP as TN |
| DC, DL, DO, DB | how many, where, other, yes or no (descriptive); DB only in NExT-OE |

Three validation and eight test questions have two equal candidates, two of those the right one twice. Videos are
named by their number, which is also the last part of each path in `map_vid_vidorID.json`. Source: Xiao et al., CVPR
2021; repositories doc-doc/NExT-QA and doc-doc/NExT-OE.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from videolm.datasets.annotations import caption, check_split, read_json, read_rows, unreadable, video_id
from videolm.datasets.questions import VideoQuestion, checked, choice

Split = Literal["train", "val", "test"]
_TYPES = ("CW", "CH", "TN", "TP", "TC", "DC", "DL", "DO", "DB")
_CANDIDATES = ("a0", "a1", "a2", "a3", "a4")


def read_split(folder: str | Path, split: Split) -> list[VideoQuestion]:
    """The multiple-choice questions of a split in the order of the file; ids are VIDEO_QID, as in published results."""
    path = _path(folder, split)
    return checked(
        (
            choice(
                id=f"{row['video']}_{row['qid']}",
                video_id=video_id(row["video"], path),
                question=row["question"],
                candidates=[row[name] for name in _CANDIDATES],
                index=row["answer"],
                type=_type(row, path),
                path=path,
            )
            for row in read_rows(path, ("video", "question", "answer", "qid", "type", *_CANDIDATES))
        ),
        path,
    )


def read_open_split(folder: str | Path, split: Split) -> list[VideoQuestion]:
    """The open questions of a split in the order of the file, those of the test with their second answers."""
    path = _path(folder, split)
    rows = read_rows(path, ("video", "question", "answer", "qid", "type"))
    if _CANDIDATES[0] in rows[0]:
        raise ValueError(f"{path} has candidates: it is multiple choice (nextqa), not open-ended (nextoe)")
    more = _more_answers(path.parent / "add_reference_answer_test.json") if split == "test" else {}
    questions = []
    for row in rows:
        id = f"{row['video']}_{row['qid']}"
        questions.append(
            VideoQuestion(
                id=id,
                video_id=video_id(row["video"], path),
                question=caption(row["question"], path, id, what="question"),
                answer=caption(row["answer"], path, id, what="answer"),
                type=_type(row, path),
                other_answers=(more.pop(id),) if id in more else (),
            )
        )
    if more:
        raise ValueError(f"{path} has no question {next(iter(more))}, but a second answer to it")
    return checked(questions, path)


def _path(folder: str | Path, split: str) -> Path:
    check_split(split, get_args(Split))
    return Path(folder) / f"{split}.csv"


def _type(row: dict[str, str], path: Path) -> str:
    if row["type"] not in _TYPES:
        raise ValueError(
            f"{path}, question {row['qid']} of {row['video']}: type {row['type']!r} must be one of "
            f"{', '.join(_TYPES)}"
        )
    return row["type"]


def _more_answers(path: Path) -> dict[str, str]:
    try:
        return {
            f"{video}_{qid}": caption(text, path, f"{video}_{qid}", what="answer")
            for video, answers in read_json(path).items()
            for qid, text in answers.items()
        }
    except AttributeError as error:
        raise unreadable(path, error) from error
