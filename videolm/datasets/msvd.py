"""MSVD (YouTube2Text): 1,970 short videos, each with dozens of captions, all of them queries.

Reads either `captions_msvd.json` ({id: [caption]}) with `train_list.txt`, `val_list.txt` and `test_list.txt`, or
the lower-case sentence files `msvd_sents_{train_noval,val,test}_lc_nopunc.txt` (a name, a tab, a sentence) with
`youtube_2id.txt`, the names of the video files. Source: Chen and Dolan, ACL 2011; split of Venugopalan et al.,
ICCV 2015.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from videolm.datasets.annotations import (
    CaptionedVideo,
    caption,
    check_split,
    chosen,
    exists,
    grouped,
    read_ids,
    read_json,
    read_lines,
    refuse_duplicates,
    unreadable,
    video_id,
)

Split = Literal["train", "val", "test"]
_SENTENCES = {"train": "train_noval", "val": "val", "test": "test"}
_NAMES = "youtube_2id.txt"


def read_split(folder: str | Path, split: Split) -> list[CaptionedVideo]:
    """The videos of a split with all their captions."""
    check_split(split, get_args(Split))
    folder = Path(folder)
    path = folder / "captions_msvd.json"
    if exists(path):
        return _read_json_form(path, folder / f"{split}_list.txt")
    sentences = folder / f"msvd_sents_{_SENTENCES[split]}_lc_nopunc.txt"
    if not exists(sentences) and exists(folder / "raw-captions.pkl"):
        raise ValueError(
            f"{folder / 'raw-captions.pkl'} is a pickle, which can run code when it is read, and is not opened; "
            f"use {path.name} or {sentences.name}"
        )
    return _read_sentence_form(sentences, folder / _NAMES)


def _read_json_form(path: Path, list_path: Path) -> list[CaptionedVideo]:
    data = read_json(path)
    try:
        captions = {
            name: [caption(text, path, name) for text in sentences] for name, sentences in data.items()
        }
    except (AttributeError, TypeError) as error:
        raise unreadable(path, error) from error
    return chosen(read_ids(list_path), captions, list_path=list_path, caption_path=path)


def read_names(path: Path) -> dict[str, str]:
    """The names of the video files by the short names `vid1`, `vid2`, ...: lines of a file's name, a blank, a name."""
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        file_name, _, name = line.partition(" ")
        if not name:
            raise ValueError(f"{path}, line {number}: {line!r} is not a file's name, a blank and a name")
        pairs.append((name.strip(), video_id(file_name, path)))
    for column in zip(*pairs, strict=True):
        refuse_duplicates(column, path)
    return dict(pairs)


def _read_sentence_form(path: Path, names_path: Path) -> list[CaptionedVideo]:
    file_names = read_names(names_path)
    sentences = []
    for number, line in enumerate(read_lines(path), start=1):
        name, _, text = line.partition("\t")
        if name not in file_names:
            raise ValueError(f"{path}, line {number}: {name!r} is not in {names_path.name}")
        sentences.append((file_names[name], caption(text, path, f"line {number}")))
    return [CaptionedVideo(name, tuple(captions)) for name, captions in grouped(sentences).items()]
