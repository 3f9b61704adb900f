"""The options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How a result is printed."""

    table = "table"
    json = "json"


class ShardFormat(StrEnum):
    """How `encode` writes the vectors."""

    parquet = "parquet"
    npz = "npz"


class Split(StrEnum):
    """A part of a rendered world."""

    all = "all"
    train = "train"
    val = "val"
    test = "test"


class Decoder(StrEnum):
    """The back end that reads video files."""

    auto = "auto"
    pyav = "pyav"
    decord = "decord"
    torchcodec = "torchcodec"


class DtypeName(StrEnum):
    """What a model computes in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Segments(StrEnum):
    """How a video is cut."""

    auto = "auto"


class SamplerKind(StrEnum):
    """Which moments of a video are looked at."""

    segment_middle = "segment_middle"
    linspace_endpoints = "linspace_endpoints"
    one_fps_then_uniform = "one_fps_then_uniform"
    keyframes = "keyframes"


Source = Annotated[Path, typer.Argument(help="Folder of videos, one video, or a .txt with a path a line.")]
Model = Annotated[str, typer.Option(help="'mini', a model's folder, or the hub id of a CLIP.")]
NumFrames = Annotated[
    int | None, typer.Option(min=1, help="Frames a video; without it as the model was trained.")
]
SamplerOption = Annotated[
    SamplerKind | None,
    typer.Option("--sampler", help="Moments to look at; without it as the model was trained."),
]
DtypeOption = Annotated[
    DtypeName,
    typer.Option("--dtype", help="What the model computes in; auto: as OUT was made, else the faster one."),
]
ReduceOption = Annotated[
    str | None,
    typer.Option(
        "--reduce",
        metavar="PLAN",
        help="Fewer tokens in the vision tower, as in tome:r=16; none: all. Without it as OUT was made, or the model.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Videos that go through the model at once.")]
Workers = Annotated[
    int,
    typer.Option(min=0, help="Processes that decode; 0: this one, which a bad file can then hang or crash."),
]
NumBeams = Annotated[
    int | None, typer.Option(min=1, help="Beams of the search; without it as the head was trained for.")
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of the text at most; without it as the head was trained for."),
]
Budget = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of a clip that the head reads at most; the tower merges the rest."),
]
Stream = Annotated[
    bool, typer.Option("--stream", help="Print the words of one video as they come, without beams.")
]
DecoderName = Annotated[Decoder, typer.Option("--decoder", help="What reads the files.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds that one file may take, at most a week.")]
FrameCache = Annotated[
    Path | None,
    typer.Option(help="Folder that keeps decoded frames for the next model with the same preprocessing."),
]
MaxFailures = Annotated[
    int | None, typer.Option(min=0, help="Stop when more videos fail; 20 new ones in a row stop it always.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try again, last, what failed in an earlier run.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start again from nothing; jobs' parts go too.")]
AllowUntrained = Annotated[bool, typer.Option("--allow-untrained", help="Take a model with random weights.")]
AllowFailures = Annotated[
    bool, typer.Option("--allow-failures", help="Exit with 0 although some videos failed.")
]
OutputFormat = Annotated[Format, typer.Option("--format", help="For people or for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but errors and failures.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")]
