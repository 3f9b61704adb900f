"""Whole image towers, with and without token merging and a temporal slot, in turn in one run.

    python tools/bench/towers.py                                       # B/16, 12 frames, ToMe at several r
    python tools/bench/towers.py --tower B/32 --frames 12 --variant tempme --csv tools/bench/results/towers.csv
    python tools/bench/towers.py --variant divided --variant divided,eager --variant divided,eager,compile --train

A variant is words with commas between them: a temporal slot (divided, soft_attentive, message, shift, joint), a
reduction (tome:r=16, tempme, ...; with commas of its own last), eager (no kernels) and compile (torch.compile).
Printed: frames a second, the time over that of the plain tower in the same round, MACs, and the share of the MACs
saved that arrives as time (100 %: half the MACs take half the time). With --train a step is forward and backward,
and peak memory stands beside it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from measuring import DTYPES, append, device_name, peak_bytes

from videolm.encoders.blocks import MLP
from videolm.encoders.cost import count_macs
from videolm.encoders.presets import CLIPShape, build_video_clip, clip_vit_b16, clip_vit_b32, clip_vit_l14

SHAPES = {"B/32": clip_vit_b32, "B/16": clip_vit_b16, "L/14": clip_vit_l14}
TEMPORAL = ("divided", "soft_attentive", "message", "shift", "joint")
PLAIN = "plain"


@dataclass(frozen=True)
class Variant:
    name: str
    shape: CLIPShape
    is_eager: bool = False
    is_compiled: bool = False


def main(
    tower: Annotated[list[str], typer.Option(help=f"One of {', '.join(SHAPES)}.")] = ["B/16"],  # noqa: B006
    variant: Annotated[list[str], typer.Option(help="Beside the plain tower.")] = [  # noqa: B006
        "tome:r=4", "tome:r=8", "tome:r=16",
    ],
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 12,
    batch: Annotated[list[int], typer.Option(help="Clips.")] = [1],  # noqa: B006
    dtype: Annotated[list[str], typer.Option(help="float32, float16, bfloat16.")] = ["float32", "bfloat16"],  # noqa: B006
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Each variant once a round, in turn.")] = 10,
    train: Annotated[bool, typer.Option(help="Forward and backward instead of forward alone.")] = False,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Add the rows to this file.")] = None,
) -> None:  # fmt: skip
    """Time whole towers."""
    place = torch.device(device)
    print(f"{device_name(place)}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in tower:
        shape = SHAPES[name]()
        variants = [Variant(PLAIN, shape), *(parse_variant(words, shape) for words in variant)]
        for precision in dtype:
            for num_clips in batch:
                setting = {
                    "tower": name,
                    "frames": frames,
                    "batch": num_clips,
                    "dtype": precision,
                    "train": train,
                }
                clips = torch.randn(num_clips, frames, 3, shape.image_size, shape.image_size, device=place)
                rows = [
                    setting | row for row in compare(variants, clips.to(DTYPES[precision]), train, rounds)
                ]
                print_rows(rows)
                if csv_file is not None:
                    append(csv_file, rows, place)


def parse_variant(words: str, shape: CLIPShape) -> Variant:
    """The shape that a variant's words ask for; what is no other word begins the reduction."""
    rest, is_eager, is_compiled = words, False, False
    while rest:
        word, _, following = rest.partition(",")
        if word in TEMPORAL:
            shape = replace(shape, temporal=word)
        elif word == "eager":
            is_eager = True
        elif word == "compile":
            is_compiled = True
        elif word != PLAIN:
            shape = replace(shape, reduce=rest)
            break
        rest = following
    return Variant(words, shape, is_eager, is_compiled)


def compare(variants: list[Variant], clips: Tensor, train: bool, rounds: int) -> list[dict[str, Any]]:
    num_frames, num_clips = clips.shape[1], clips.shape[0]
    calls = {variant.name: step(variant, clips, train=train) for variant in variants}
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(timed(call, clips.device))
    rows = []
    for variant in variants:
        ratios = [own / plain for own, plain in zip(seconds[variant.name], seconds[PLAIN], strict=True)]
        ratio = statistics.median(ratios)
        macs = count_macs(variant.shape, num_frames=num_frames)
        low, _, _, high = (
            statistics.quantiles(ratios, n=5, method="inclusive") if rounds > 1 else (ratio,) * 4
        )
        rows.append(
            {
                "variant": variant.name,
                "frames_per_second": round(
                    num_clips * num_frames / statistics.median(seconds[variant.name]), 2
                ),
                "time": round(ratio, 3),
                "time_p20": round(low, 3),
                "time_p80": round(high, 3),
                "gmacs": round(macs / 1e9, 1),
                "share_of_saving": share_of_saving(variant, variants, seconds, num_frames),
                "peak_mib": round(peak_bytes(calls[variant.name], clips.device) / 2**20),
            }
        )
    return rows


def share_of_saving(
    variant: Variant, variants: list[Variant], seconds: dict[str, list[float]], num_frames: int
) -> float | str:
    """Time saved over MACs saved, against the same tower in the same way without the reduction; "" without one."""
    whole = replace(variant.shape, reduce="")
    for other in variants:
        same_way = (other.is_eager, other.is_compiled) == (variant.is_eager, variant.is_compiled)
        if variant.shape.reduce and same_way and other.shape == whole:
            pairs = zip(seconds[variant.name], seconds[other.name], strict=True)
            ratio = statistics.median(own / full for own, full in pairs)
            macs = [count_macs(shape, num_frames=num_frames) for shape in (variant.shape, whole)]
            return round((1 - ratio) / (1 - macs[0] / macs[1]), 3)
    return ""


def step(variant: Variant, clips: Tensor, *, train: bool) -> Callable[[], Any]:
    torch.manual_seed(0)
    tower = build_video_clip(variant.shape).vision
    if not train:
        for module in tower.modules():
            if isinstance(module, MLP):
                module.fold_quick_gelu()
    tower = tower.to(clips.device, clips.dtype).train(train)
    for module in tower.modules():
        if hasattr(module, "backend") and variant.is_eager:
            module.backend = "eager"

    def embed(frames: Tensor) -> Tensor:
        return tower.pool(tower(frames))

    run = torch.compile(embed, dynamic=False) if variant.is_compiled else embed
    if train:
        return lambda: backward(run(clips), tower)

    def forward() -> Tensor:
        with torch.inference_mode():
            return run(clips)

    return forward


def backward(embeddings: Tensor, tower: nn.Module) -> None:
    embeddings.float().square().mean().backward()
    tower.zero_grad(set_to_none=True)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def print_rows(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    what = "forward + backward" if first["train"] else "forward"
    print(f"\n{first['tower']}  T={first['frames']}  B={first['batch']}  {first['dtype']}, {what}")
    columns = ("frames_per_second", "time", "time_p20", "time_p80", "gmacs", "share_of_saving", "peak_mib")
    print(f"{'':24}" + "".join(f"{column:>18}" for column in columns))
    for row in rows:
        share = f"{row['share_of_saving']:.0%}" if row["share_of_saving"] != "" else ""
        cells = [share if column == "share_of_saving" else row[column] for column in columns]
        print(f"{row['variant']:24}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    typer.run(main)
