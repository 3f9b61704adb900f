"""What tools/bench/kernels.py measured, as lines, as the table of kernels/README.md and as a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from kernel_problems import NO_RIVAL, PROBLEMS, TOWERS, Floor

README = Path(__file__).parents[2] / "kernels" / "README.md"
# Rates measured on an H200, for the floors of what no GPU has run yet.
H200_RATES = (4.3e12, 790e12)
BEGIN, END = "<!-- measured: tools/bench/kernels.py table -->", "<!-- end -->"
SETTING = ("op", "tower", "frames", "batch", "dtype")


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    first = rows[0]
    title = f"{first['op']}  {first['tower']}  T={first['frames']}  B={first['batch']}  {first['dtype']}"
    columns = ("p50_ms", "p20_ms", "p80_ms", "over_videolm", "of_floor", "peak_mib", "error")
    print(f"\n{title}\n{'':46}" + "".join(f"{column:>13}" for column in columns))
    for row in rows:
        share = f"{row['of_floor']:.0%}"
        cells = [share if column == "of_floor" else row[column] for column in columns]
        way = f"videolm ({row['backend']})" if row["way"] == "videolm" else row["way"]
        print(f"{row['direction']:9}{way:37}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def with_table(text: str, rows: Sequence[dict[str, str]]) -> str:
    """`text` with the part between the two marks made anew from the rows of the CSV."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{README} has no {BEGIN} ... {END}")
    on_gpu = [row for row in rows if not row["threads"]]
    parts = [measured_table([row for row in rows if row["threads"]])]
    parts.append(measured_table(on_gpu) if on_gpu else floors_table())
    return f"{before}{BEGIN}\n" + "\n".join(part for part in parts if part) + f"{END}{after}"


def measured_table(rows: Sequence[dict[str, str]]) -> str:
    lines = []
    for device in dict.fromkeys(row["device"] for row in rows):
        here = [row for row in rows if row["device"] == device]
        last = here[-1]
        lines += [
            f"**{device}**, torch {last['torch']}, {last['date']}:",
            "",
            "| op | shape | dtype | direction | runs | ms | of the floor | the best other way | its time / ours |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        settings = dict.fromkeys(tuple(row[key] for key in (*SETTING, "direction")) for row in here)
        for setting in settings:
            ways = {
                row["way"]: row
                for row in here
                if tuple(row[key] for key in (*SETTING, "direction")) == setting
            }
            if "videolm" in ways:
                lines.append(measured_line(ways))
        lines.append("")
    return "\n".join(lines)


def measured_line(ways: dict[str, dict[str, str]]) -> str:
    own = ways["videolm"]
    rivals = [row for name, row in ways.items() if not name.startswith("videolm") and NO_RIVAL not in name]
    best = min(rivals, key=lambda row: float(row["over_videolm"]), default=None)
    shape = f"{own['tower']}, T={own['frames']}, B={own['batch']}".removeprefix("-, ")
    other = f"{best['way']} | {float(best['over_videolm']):.2f}" if best else "none ran | "
    return (
        f"| {own['op']} | {shape} | {own['dtype']} | {own['direction']} | {own['backend']} "
        f"| {float(own['p50_ms']):.3g} | {float(own['of_floor']):.0%} | {other} |"
    )


def floors_table() -> str:
    """What a GPU should take at least, in place of what it takes: nothing of this is measured."""
    lines = [
        f"**H200: not measured.** Floors in bfloat16, counted at {H200_RATES[0] / 1e12:.1f} TB/s and "
        f"{H200_RATES[1] / 1e12:.0f} TFLOP/s:",
        "",
        "| op | shape | forward, floor | forward | backward, floor | backward |",
        "|---|---|---|---|---|---|",
    ]
    for op, make in PROBLEMS.items():
        towers = ("-",) if op == "token_interaction" else tuple(TOWERS)
        frames, batch = (12, 1024) if op == "token_interaction" else (12, 64)
        for tower in towers:
            problem = make(tower, frames, batch, torch.bfloat16, torch.device("meta"))
            cells = [
                f"{floor_us(floor):,.0f} µs | not measured" for floor in (problem.forward, problem.backward)
            ]
            shape = f"{tower}, T={frames}, B={batch}".removeprefix("-, ")
            lines.append(f"| {op} | {shape} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def floor_us(floor: Floor) -> float:
    seconds = floor.seconds(bytes_per_second=H200_RATES[0], flops_per_second=H200_RATES[1])
    # Two digits: a count at an assumed rate is worth no more.
    return round(1e6 * seconds, 1 - math.floor(math.log10(1e6 * seconds)))


def draw(rows: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """A panel for each problem and direction: the time of every way over that of videolm."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    settings = list(dict.fromkeys(tuple(row[key] for key in (*SETTING, "direction")) for row in rows))
    num_columns = min(3, len(settings))
    num_rows = -(-len(settings) // num_columns)
    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        figsize=(6.5 * num_columns, 3.2 * num_rows),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(settings) :]:
        axis.remove()
    for axis, setting in zip(axes.flat, settings, strict=False):
        here = [row for row in rows if tuple(row[key] for key in (*SETTING, "direction")) == setting][::-1]
        colours = ["tab:blue" if row["way"].startswith("videolm") else "tab:gray" for row in here]
        bars = axis.barh([row["way"] for row in here], [row["over_videolm"] for row in here], color=colours)
        axis.bar_label(bars, [f"{row['p50_ms']:.3g} ms" for row in here], padding=3, fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title("{} {} T={} B={} {}, {}".format(*setting), fontsize=9)
        axis.set_xlabel("time / time of videolm", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.2)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")
