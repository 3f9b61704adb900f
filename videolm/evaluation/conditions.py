"""Under which conditions a model is measured, on benchmarks of all kinds: checked first, and written down."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videolm.datasets.protocol import Protocol
from videolm.pipeline import VideoLM
from videolm.video.readers import AUTO_ORDER, available_decoders


@dataclass(frozen=True)
class Run:
    """What an evaluation is told beside its protocol; see `evaluate`."""

    folder: Path
    videos: Path
    batch_size: int
    limit: int | None
    allow_missing: bool
    show_progress_bar: bool | None


def check_model(model: VideoLM, protocol: Protocol) -> None:
    """ValueError for a model that does not compute as the protocol says."""
    reduce = "" if protocol.reduce == "none" else protocol.reduce
    if reduce not in (None, model.shape.reduce):
        raise ValueError(
            f"reduce ({protocol.reduce!r}) of the protocol is not that of {model.info.name}, which has "
            f"{model.shape.reduce or 'none'!r}: load it with reduce={protocol.reduce!r}"
        )
    if protocol.dtype not in ("auto", str(model.dtype).removeprefix("torch.")):
        raise ValueError(
            f"dtype ({protocol.dtype!r}) of the protocol is not that of {model.info.name}, which computes in "
            f"{model.dtype}: load it with dtype=torch.{protocol.dtype}"
        )


def written_conditions(model: VideoLM, protocol: Protocol, run: Run) -> dict[str, Any]:
    """The protocol, with what of it the model decided."""
    decided = {"limit": run.limit, "dtype": str(model.dtype), "reduce": model.shape.reduce or "none"}
    return asdict(protocol) | decided


def decoder_notes(protocol: Protocol) -> list[str]:
    """What "auto" stands for: what comes out of a model does not carry the back end that read its file."""
    if protocol.decoder != "auto":
        return []
    versions = available_decoders()
    usable = [
        f"{name} {versions[name]}" for name in AUTO_ORDER if not versions[name].startswith("cannot be used")
    ]
    return [
        f"files are read by the first of {', '.join(usable)} whose frames come back at the times that the file "
        "says; which one read which file is not recorded"
    ]


def describe_benchmark(title: str, folder: Path, split: str) -> str:
    """What was measured on, in words."""
    return f"{'a rendered world' if is_world(folder) else title}, {split} ({folder})"


def is_world(folder: Path) -> bool:
    """Whether the folder holds a rendered world and not a benchmark whose files it has the form of."""
    return (folder / "world.json").exists()
