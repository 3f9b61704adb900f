"""MSRVTT-QA: 243,680 open questions on MSR-VTT, made from its captions by rule, each with an answer of one word.

Reads the published `{train,val,test}_qa.json`: a list of {"answer", "category_id", "id", "question", "video_id": a
number}; or `{train,val,test}.csv` with the columns video, question, answer and qid (repository doc-doc/HQGA, where
`type` is the category). A row of the json may also have `candidates`, `answer_index` and `type`, as in the rendered
world. The answers are as the rule made them, misspelt ones among them. Source: Xu et al., ACM MM 2017.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from videolm.datasets.annotations import caption, check_split, read_json, read_rows, unreadable
from videolm.datasets.questions import (
    TypeRule,
    VideoQuestion,
    checked,
    choice,
    the_one_of,
    words_type,
)

Split = Literal["train", "val", "test"]


def read_split(folder: str | Path, split: Split, *, type_rule: TypeRule = "just-ask") -> list[VideoQuestion]:
    """The questions of a split in the order of the file, on the videos `video0`, `video1`, ...

    `type_rule` is for the questions that have no type of their own: all of the published ones.
    """
    check_split(split, get_args(Split))
    return read_questions(Path(folder), split, prefix="video", type_rule=type_rule)


def read_questions(folder: Path, split: str, *, prefix: str, type_rule: TypeRule) -> list[VideoQuestion]:
    """The questions of MSRVTT-QA or MSVD-QA, whose files differ only in what their numbered videos are called."""
    path = the_one_of([folder / f"{split}_qa.json", folder / f"{split}.csv"])
    if path.suffix == ".csv":
        rows: list[dict[str, Any]] = [
            {"video_id": row["video"], "id": row["qid"], "question": row["question"], "answer": row["answer"]}
            for row in read_rows(path, ("video", "question", "answer", "qid"))
        ]
    else:
        rows = read_json(path)
    try:
        return checked((_question(row, path, prefix, type_rule) for row in rows), path)
    except (AttributeError, KeyError, TypeError) as error:
        raise unreadable(path, error) from error


def _question(row: dict[str, Any], path: Path, prefix: str, type_rule: TypeRule) -> VideoQuestion:
    id = str(_number(row["id"], path, "id"))
    video_id = f"{prefix}{_number(row['video_id'], path, 'video_id')}"
    question = caption(row["question"], path, f"question {id}", what="question")
    answer = caption(row["answer"], path, f"question {id}", what="answer")
    type = row["type"] if "type" in row else words_type(question, rule=type_rule)
    if not isinstance(type, str):
        raise ValueError(f"{path}, question {id}: type {type!r} must be a name")
    if "candidates" not in row and "answer_index" not in row:
        return VideoQuestion(id, video_id, question, answer, type)
    candidates = row["candidates"]
    if not isinstance(candidates, list) or not all(isinstance(text, str) for text in candidates):
        raise ValueError(f"{path}, question {id}: candidates {candidates!r} must be a list of texts")
    made = choice(
        id=id,
        video_id=video_id,
        question=question,
        candidates=candidates,
        index=row["answer_index"],
        type=type,
        path=path,
    )
    if made.answer != answer:
        raise ValueError(f"{path}, question {id}: candidate {made.answer!r} is not the answer {answer!r}")
    return made


def _number(value: object, path: Path, what: str) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()):
        raise ValueError(f"{path}: {what} {value!r} must be a number, as in video 7010")
    return int(text)
