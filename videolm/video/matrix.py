"""What each installed back end makes of each kind of file: right, refused, or wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from videolm.video.numbered import Kind, kinds, read_number
from videolm.video.readers import Decoder, VideoError, VideoReader, available_decoders, open_video


@dataclass(frozen=True)
class Verdict:
    """On one file read by one back end. Right: every frame is the one that is shown then."""

    kind: str
    decoder: str
    outcome: Literal["right", "refused", "wrong"]
    reason: str = ""
    """Why it was refused, or which frames came instead."""
    should_be_read: bool = True
    """False where refusing is the only right answer."""


def installed() -> list[Decoder]:
    """ "auto" and the back ends that can be used here."""
    usable = [name for name, version in available_decoders().items() if not version.startswith("cannot")]
    return ["auto", *usable]


def decoder_matrix(folder: Path, *, decoders: Sequence[Decoder] | None = None) -> Iterator[Verdict]:
    """Write a file of each kind into the folder, and read it with each back end (all installed ones by default).

    An encoder that this build of PyAV has not raises what PyAV raises.
    """
    decoders = installed() if decoders is None else decoders
    for kind in kinds():
        kind.make(folder / kind.file)
        for decoder in decoders:
            yield judge(folder / kind.file, kind, decoder=decoder)


def judge(path: Path, kind: Kind, *, decoder: Decoder) -> Verdict:
    """Ask for a few frames far apart, then for every one, each in the middle of its time.

    A back end that jumps to a frame goes another way than one that decodes all.
    """
    every = range(len(kind.numbers))
    try:
        with open_video(path, decoder=decoder) as reader:
            wrong = _wrong(reader, kind, every[3::7] or every) or _wrong(reader, kind, every)
    except VideoError as error:
        return Verdict(kind.name, decoder, "refused", error.reason, kind.readable)
    return Verdict(kind.name, decoder, "wrong" if wrong else "right", wrong, kind.readable)


def _wrong(reader: VideoReader, kind: Kind, asked: Sequence[int]) -> str:
    """What is wrong with these frames of the file; empty where nothing is."""
    info = reader.info
    if info.num_frames != len(kind.numbers):
        return f"{info.num_frames} frames instead of {len(kind.numbers)}"
    ends = [*kind.seconds[1:], info.duration_seconds]
    clip = reader.frames_at([info.start_seconds + (kind.seconds[k] + ends[k]) / 2 for k in asked])
    found = [read_number(frame) for frame in clip.frames]
    true = [kind.numbers[k] for k in asked]
    others = [k for k in range(len(asked)) if found[k] != true[k]]
    if others:
        first = others[0]
        return f"{len(others)} of {len(asked)} frames, the first is {found[first]} instead of {true[first]}"
    off = max(
        abs(pts - info.start_seconds - kind.seconds[k])
        for pts, k in zip(clip.pts_seconds.tolist(), asked, strict=True)
    )
    # matroska and flash store milliseconds
    return f"times are off by {off:.4f} s" if off > 1.01e-3 else ""
