"""A rendered world on disk: real H.264 files with MSR-VTT's and MSRVTT-QA's own annotation files.

OUT/
  videos/video0.mp4 ...      every frame of a twin is an independent picture, so twins decode alike
  MSRVTT_data.json           all captions; `category` is the number of things
  MSRVTT_train.9k.csv  MSRVTT_val.full.csv  MSRVTT_JSFUSION_test.csv
  train_qa.json  val_qa.json  test_qa.json   with candidates, answer_index and type besides
  twins.csv                  split, kind, video_a, sentence_a, video_b, sentence_b
  world.json                 seed and number of videos, from which everything can be made again, and the versions of
                             the pictures and of the language
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from videolm.datasets.annotations import exists
from videolm.datasets.synthetic.captions import Caption, write_captions
from videolm.datasets.synthetic.draw import draw_frames
from videolm.datasets.synthetic.questions import write_questions
from videolm.datasets.synthetic.scene import Scene, Split, TwinKind, sample_scene, twin_kind
from videolm.datasets.synthetic.sheet import SheetRow, contact_sheet
from videolm.files import write_text
from videolm.video.writer import write_video

_VERSION = 1
"""Of the pictures: raised when a scene or its picture changes."""
_LANGUAGE = 3
"""Of captions and questions: raised when any of them changes. A `world.json` without it is of version 1."""
_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_LISTS: dict[Split, str] = {
    "train": "MSRVTT_train.9k.csv",
    "val": "MSRVTT_val.full.csv",
    "test": "MSRVTT_JSFUSION_test.csv",
}
_ANNOTATION = (
    *("MSRVTT_data.json", *_LISTS.values()),
    *("twins.csv", *(f"{split}_qa.json" for split in _SPLITS)),
)


@dataclass(frozen=True)
class WorldVideo:
    """One video of a world before it is rendered."""

    id: str
    split: Split
    scene: Scene
    twin: str | None
    """Id of the video with the same frames in the other order."""


@dataclass(frozen=True)
class TwinPair:
    """Two videos with the same frames in opposite order, each with a sentence that fits only itself."""

    split: Split
    kind: TwinKind
    video_a: str
    sentence_a: str
    video_b: str
    sentence_b: str


def plan_world(num_videos: int, *, seed: int) -> list[WorldVideo]:
    """All videos of a world: an eighth of them test, a fortieth validation, half of each in twin pairs.

    The splits share no combination of colour, shape and family of action. The same arguments give the same
    world.
    """
    if num_videos < 8:
        raise ValueError(f"num_videos ({num_videos}) must be at least 8, so that every split has a video")
    num_test = num_videos // 8
    num_val = max(num_videos // 40, 1)
    counts = {"train": num_videos - num_val - num_test, "val": num_val, "test": num_test}
    videos: list[WorldVideo] = []
    for number, split in enumerate(_SPLITS):
        videos += _plan_split(
            split, counts[split], first_id=len(videos), seed=1_000_003 * seed + 101 * number
        )
    return videos


def _plan_split(split: Split, count: int, *, first_id: int, seed: int) -> Iterator[WorldVideo]:
    planned = 0
    while planned < count:
        name = f"video{first_id + planned}"
        scene_seed = seed * 1_000_000 + planned
        # a pair, then two without a twin, so that half of the videos have one
        if planned % 4 == 0 and planned + 1 < count:
            scene = sample_scene(scene_seed, split=split, twin=True)
            other = f"video{first_id + planned + 1}"
            yield WorldVideo(name, split, scene, other)
            yield WorldVideo(other, split, scene.reverse(), name)
            planned += 2
        else:
            yield WorldVideo(name, split, sample_scene(scene_seed, split=split, twin=False), None)
            planned += 1


def query_caption(scene: Scene) -> Caption:
    """The sentence of a video in the test list: the one of its captions that says most."""
    return max(write_captions(scene), key=_detail)


def _detail(caption: Caption) -> int:
    told = [value for claim in caption.things for value in vars(claim).values()]
    extra = (caption.event, caption.number, caption.pattern, caption.tone)
    return sum(value is not None for value in (*told, *extra))


def plan_twins(videos: list[WorldVideo]) -> list[TwinPair]:
    """The twin pairs with the first caption of each, which names every thing and what it does."""
    by_id = {video.id: video for video in videos}
    pairs = []
    for a in videos:
        if a.twin is not None and not a.scene.backwards:
            b = by_id[a.twin]
            sentences = [write_captions(video.scene, number=1)[0].text for video in (a, b)]
            pairs.append(TwinPair(a.split, twin_kind(a.scene), a.id, sentences[0], b.id, sentences[1]))
    return pairs


def recall_ceiling(scenes: list[Scene], captions: list[Caption]) -> float:
    """Expected R@1 of a reader that knows exactly which scenes a sentence is true of and guesses among them.

    `captions[i]` was written for `scenes[i]`, but may be true of others as well.
    """
    fitting = [sum(caption.fits(scene) for scene in scenes) for caption in captions]
    return sum(1 / count for count in fitting) / len(fitting)


def render_world(
    out: str | Path,
    *,
    num_videos: int,
    seed: int,
    split: Split | Literal["all"] = "all",
    workers: int = 2,
    on_video: Callable[[str], object] | None = None,
) -> list[WorldVideo]:
    """Writes a world below `out` and returns the videos of `split`, the only ones whose files are made.

    Annotation covers all splits, and is written anew whenever it is asked for: where it is of an older language,
    it is of this one afterwards, and `world.json` says so. A video file that is there already is kept, so that a
    stopped run goes on. ValueError for a folder with another world, and for one with annotation or videos that is
    no world, such as MSR-VTT itself. `on_video` is called with the id of each finished file.
    """
    out = Path(out)
    videos = plan_world(num_videos, seed=seed)
    facts = {"version": _VERSION, "language": _LANGUAGE, "seed": seed, "num_videos": num_videos}
    _claim(out, facts)
    _write_annotation(out, videos)
    # only now, so that an annotation that is left half old is not taken for a new one
    write_text(out / "world.json", json.dumps(facts) + "\n")
    (out / "videos").mkdir(exist_ok=True)
    wanted = [video for video in videos if split in ("all", video.split)]
    missing = [(video, str(out)) for video in wanted if not _file(out, video).exists()]
    for video_id in _render_all(missing, workers):
        if on_video is not None:
            on_video(video_id)
    return wanted


def world_sheet(videos: Sequence[WorldVideo]) -> Image.Image:
    """A contact sheet of some videos, eight frames of each under its first caption."""
    rows = []
    for video in videos:
        frames = draw_frames(video.scene)
        picked = [(2 * i + 1) * len(frames) // 16 for i in range(8)]
        caption = write_captions(video.scene, number=1)[0].text
        rows.append(SheetRow(f"{video.id}: {caption}", frames[picked]))
    return contact_sheet(rows)


def read_world(folder: str | Path) -> list[WorldVideo]:
    """The plan of a rendered world, made again from the seed in its `world.json`, whatever its language."""
    path = Path(folder) / "world.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} not found: {folder} is not a rendered world (`videolm render` makes one)"
        )
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["version"] != _VERSION:
        raise ValueError(f"{path}: world version {facts['version']}, this videolm renders version {_VERSION}")
    return plan_world(facts["num_videos"], seed=facts["seed"])


def read_scenes(folder: str | Path, split: Split) -> dict[str, Scene]:
    """What the videos of a split show, by video id, made again from the seed of a rendered world."""
    return {video.id: video.scene for video in read_world(folder) if video.split == split}


def read_twins(folder: str | Path, *, split: Split) -> list[TwinPair]:
    """The twin pairs of a split, from `twins.csv`; none where a folder has no such file."""
    path = Path(folder) / "twins.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [TwinPair(**row) for row in csv.DictReader(file) if row["split"] == split]  # type: ignore[arg-type]


def _file(out: Path, video: WorldVideo) -> Path:
    return out / "videos" / f"{video.id}.mp4"


def _render_all(jobs: list[tuple[WorldVideo, str]], workers: int) -> Iterator[str]:
    if workers == 1 or len(jobs) < 2:
        yield from map(_render, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        yield from pool.map(_render, jobs, chunksize=4)


def _render(job: tuple[WorldVideo, str]) -> str:
    video, out = job
    frames = draw_frames(video.scene)
    write_video(
        _file(Path(out), video), list(frames), fps=video.scene.fps, crf=20, intra_only=video.twin is not None
    )
    return video.id


def _claim(out: Path, facts: dict[str, int]) -> None:
    path = out / "world.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if any(found.get(name) != value for name, value in facts.items() if name != "language"):
            raise ValueError(
                f"{out} holds another world ({found}), asked for {facts}; choose an empty folder"
            )
        if found.get("language", 1) > _LANGUAGE:
            raise ValueError(
                f"{out} holds a world of language {found['language']}, this videolm writes language {_LANGUAGE}; "
                "use a newer videolm or choose an empty folder"
            )
        return
    foreign = [name for name in _ANNOTATION if exists(out / name)]
    foreign += ["videos"] if any((out / "videos").glob("*")) else []
    if foreign:
        raise ValueError(
            f"{out} holds {', '.join(foreign)} and no world.json, so that it is no rendered world, and nothing in "
            "it is overwritten; choose an empty folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(facts) + "\n")


def _write_annotation(out: Path, videos: list[WorldVideo]) -> None:
    sentences: list[dict[str, Any]] = []
    for video in videos:
        for caption in write_captions(video.scene):
            sentences.append({"caption": caption.text, "video_id": video.id, "sen_id": len(sentences)})
    data = {
        "info": {"description": "videolm rendered world", "version": str(_VERSION)},
        "videos": [_video_row(index, video) for index, video in enumerate(videos)],
        "sentences": sentences,
    }
    write_text(out / "MSRVTT_data.json", json.dumps(data))
    for split in ("train", "val"):
        ids = [[video.id] for video in videos if video.split == split]
        write_text(out / _LISTS[split], _csv(["video_id"], ids))
    test = [video for video in videos if video.split == "test"]
    queries = [
        [f"ret{i}", f"msr{video.id.removeprefix('video')}", video.id, query_caption(video.scene).text]
        for i, video in enumerate(test)
    ]
    write_text(out / _LISTS["test"], _csv(["key", "vid_key", "video_id", "sentence"], queries))
    pairs = [list(vars(pair).values()) for pair in plan_twins(videos)]
    write_text(out / "twins.csv", _csv(list(TwinPair.__dataclass_fields__), pairs))
    question_id = 0
    for split in _SPLITS:
        rows = []
        for video in videos:
            for question in write_questions(video.scene) if video.split == split else ():
                rows.append(
                    {
                        "answer": question.answer,
                        "category_id": len(video.scene.things),
                        "id": question_id,
                        "question": question.text,
                        "video_id": int(video.id.removeprefix("video")),
                        "candidates": question.candidates,
                        "answer_index": question.answer_index,
                        "type": question.type,
                    }
                )
                question_id += 1
        write_text(out / f"{split}_qa.json", json.dumps(rows))


def _video_row(index: int, video: WorldVideo) -> dict[str, Any]:
    scene = video.scene
    return {
        "video_id": video.id,
        "category": len(scene.things),
        "url": "",
        "start time": 0.0,
        "end time": float(scene.num_frames / scene.fps),
        "split": {"train": "train", "val": "validate", "test": "test"}[video.split],
        "id": index,
    }


def _csv(header: list[str], rows: list[list[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
