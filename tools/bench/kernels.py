"""The operations of videolm_kernels side by side with every other way to compute the same, in one run.

    python tools/bench/kernels.py run                       # every op, shapes that suit the device
    python tools/bench/kernels.py run --op temporal_attention --tower B/16 --frames 12 --batch 64 --csv FILE
    python tools/bench/kernels.py run --frames 12 --plot OUT.png
    python tools/bench/kernels.py table                     # writes the table of kernels/README.md from the CSV

Before a way is timed, its outputs and the gradients of all its inputs are held against the truth; one that is wrong
is said and left out, as is one that cannot run here. Printed per way and direction: median, 20th and 80th
percentile, the ratio to videolm in the same round, the share of the floor that is reached (100 % = the device does
nothing but the work that cannot be avoided), and peak memory beyond the inputs, where the row of the backward pass
has that of forward and backward together: what the forward pass keeps is half of the matter. The device's own rates
are measured first: a copy for bytes, a matrix product for FLOPs.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch._functorch import config as functorch_config
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))
from kernel_problems import NO_RIVAL, PROBLEMS, TOWERS, Floor, Problem, Tensors, Way
from kernel_report import README, SETTING, draw, print_rows, read, with_table
from measuring import DTYPES, append, device_name, measure_rates, milliseconds, peak_bytes

from videolm_kernels.testing import tolerance

Direction = Literal["forward", "backward"]
RESULTS = Path(__file__).parent / "results" / "kernels.csv"
# (tower, frames, batch) worth a run on each kind of device, by op. On a GPU every setting compiles some ways anew,
# and an op should be done in ten minutes. 334 clips of B/16 are the first whose sequences, one a token index, are
# more than the 65,535 that kernels with a sequence on a grid's second axis can take.
DEFAULTS: dict[str, dict[str, list[tuple[str, int, int]]]] = {
    "cuda": {
        "temporal_attention": [
            ("B/16", 12, 64), ("B/32", 12, 64), ("B/16", 12, 1), ("B/16", 64, 8), ("B/16", 12, 334),
        ],
        "token_merging": [("B/16", 12, 64), ("B/32", 12, 64), ("L/14", 12, 64), ("B/16", 12, 1)],
        "frame_attention": [("B/16", 12, 64), ("B/32", 12, 64), ("L/14", 12, 64), ("B/16", 12, 1)],
        "token_interaction": [("-", 12, 128), ("-", 12, 1024), ("-", 64, 1024)],
    },
    "cpu": {
        "temporal_attention": [(tower, frames, 1) for tower in TOWERS for frames in (4, 12, 32)],
        "token_merging": [(tower, 12, 1) for tower in TOWERS],
        "frame_attention": [(tower, 12, 1) for tower in TOWERS],
        "token_interaction": [("-", 12, 64), ("-", 64, 64)],
    },
}  # fmt: skip
# A row that another program should have written, or that was left as it was, is off by about 1 in every dtype.
MAX_ROW_ERROR = 0.1
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    op: Annotated[list[str], typer.Option(help="Which ops.")] = list(PROBLEMS),  # noqa: B006
    tower: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(TOWERS)}; tokens and heads.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips; of token_interaction texts and videos.")] = None,
    dtype: Annotated[list[str], typer.Option(help="float32, float16, bfloat16.")] = ["bfloat16"],  # noqa: B006
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    rounds: Annotated[int | None, typer.Option(min=1, help="Each way once a round, in turn; 15 on a CPU, 5 on a GPU, "
        "where each time is a median itself.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Add the rows to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the rows into this picture (needs matplotlib).")] = None,
) -> None:  # fmt: skip
    """Time the ways to compute each op."""
    measured: list[dict[str, Any]] = []
    place = torch.device(device)
    rounds = rounds or (5 if place.type == "cuda" else 15)
    for name in dtype:
        rates = measure_rates(place, DTYPES[name])
        print(
            f"{device_name(place)}, {name}: {rates[0] / 1e9:,.0f} GB/s copied, {rates[1] / 1e9:,.0f} GFLOP/s"
        )
        for each in op:
            for shape in settings(each, place, towers=tower, frames=frames, batch=batch):
                rows = rows_of(each, shape, name, place, rates, rounds=rounds)
                print_rows(rows)
                if csv_file is not None and rows:
                    append(csv_file, rows, place)
                measured += rows
    if plot is not None and measured:
        draw(measured, plot, title=device_name(place))


@app.command()
def table(results: Annotated[Path, typer.Argument(help="CSV of `run`.")] = RESULTS) -> None:
    """Write what was measured into kernels/README.md, and say what was not."""
    text = README.read_text(encoding="utf-8")
    README.write_text(with_table(text, read(results)), encoding="utf-8")
    print(f"wrote {README}")


def settings(
    op: str, device: torch.device, *, towers: Sequence[str] | None, frames: int | None, batch: int | None
) -> list[tuple[str, int, int]]:
    """(tower, frames, batch) to run: those asked for, each missing one from the defaults."""
    chosen = [
        (name, frames or default_frames, batch or default_batch)
        for default_tower, default_frames, default_batch in DEFAULTS[device.type][op]
        # Words and frames have no tower.
        for name in (towers if towers and default_tower != "-" else [default_tower])
    ]
    return list(dict.fromkeys(chosen))


def rows_of(
    op: str,
    shape: tuple[str, int, int],
    dtype: str,
    device: torch.device,
    rates: tuple[float, float],
    *,
    rounds: int,
) -> list[dict[str, Any]]:
    """Of one setting; none, and the reason said, where it cannot be measured here."""
    setting = dict(zip(SETTING, (op, *shape, dtype), strict=True))
    gc.collect()
    try:
        torch.manual_seed(0)
        problem = PROBLEMS[op](*shape, DTYPES[dtype], device)
        return [setting | row for row in compare(problem, device, DTYPES[dtype], rates, rounds=rounds)]
    except Exception as error:  # what does not fit this device must not end the run
        print(f"\n{' '.join(map(str, setting.values()))}: skipped: {reason(error)}", flush=True)
        return []


# An unseen fall back to eager would be timed as if it were compiled; a backward pass is timed many times after one
# forward pass, which torch.compile forbids where it reuses buffers.
@dynamo_config.patch(fail_on_recompile_limit_hit=True)
@functorch_config.patch(donated_buffer=False)
def compare(
    problem: Problem, device: torch.device, dtype: torch.dtype, rates: tuple[float, float], *, rounds: int
) -> list[dict[str, Any]]:
    """A row for each way and direction that gave the right result; none of a direction that videolm has not."""
    torch._dynamo.reset()
    errors = gate(problem, dtype)
    rows: list[dict[str, Any]] = []
    floors: dict[Direction, Floor] = {"forward": problem.forward, "backward": problem.backward}
    for direction, floor in floors.items():
        ways = {name: problem.ways[name] for name in errors[direction]}
        times, peaks = measure(ways, direction, device, rounds=rounds)
        if "videolm" not in times:
            print(f"  {direction}: nothing to compare with, videolm did not run")
            continue
        for name in times:
            error, row_error = errors[direction][name]
            rows.append(
                {"direction": direction, "way": name, "backend": backend_of(name, ways[name])}
                | summary(times[name], times["videolm"], floor, rates)
                | {"peak_mib": round(peaks[name] / 2**20, 1)}
                | {"error": f"{error:.1e}", "row_error": f"{row_error:.1e}"}
            )
    return rows


def gate(problem: Problem, dtype: torch.dtype) -> dict[Direction, dict[str, tuple[float, float]]]:
    """Errors of the ways that are right, as a whole and of the worst row; what is wrong or cannot run is said."""
    exact = tuple(
        x.double() if x.device.type == "cpu" or dtype == torch.float32 else x.float()
        for x in problem.truth.inputs
    )
    truth_way = Way(exact, problem.truth.run)
    truths: dict[Direction, Tensors] = {
        "forward": tuple(x.cpu() for x in outputs(truth_way)),
        "backward": tuple(x.cpu() for x in gradients(truth_way)),
    }
    del exact, truth_way
    errors: dict[Direction, dict[str, tuple[float, float]]] = {"forward": {}, "backward": {}}
    for name, way in problem.ways.items():
        for direction, truth in truths.items():
            try:
                found = outputs(way) if direction == "forward" else gradients(way)
                if NO_RIVAL in name:
                    errors[direction][name] = (math.nan, math.nan)
                    continue
                each = [errors_of(a, b) for a, b in zip(found, truth, strict=True)]
            except Exception as error:  # whatever a rival cannot do here is a fact to print
                print(f"  {name}: cannot run {direction}: {reason(error)}")
                break
            # Not `any(... > ...)`: a NaN is above nothing.
            if not all(whole <= 4 * tolerance(dtype) and row <= MAX_ROW_ERROR for whole, row in each):
                print(f"  {name}: WRONG {direction}, off by {each} (whole, worst row); not timed")
                errors["forward"].pop(name, None)
                break
            errors[direction][name] = tuple(map(max, zip(*each, strict=True)))
    return errors


def errors_of(actual: Tensor, truth: Tensor) -> tuple[float, float]:
    """Root mean square of the error over the truth's, and the worst row's over its own or, if larger, the usual."""
    if actual.shape != truth.shape:
        raise ValueError(f"a result is {tuple(actual.shape)} where {tuple(truth.shape)} is right")
    off, size = [], []
    # A few rows at a time: in float64 a whole clip batch and its copies would fill a GPU.
    rows = (x.reshape(-1, x.shape[-1]).split(2**16) for x in (actual, truth))
    for found, right in zip(*rows, strict=True):
        right = right.to(found.device).double()
        off.append((found.double() - right).norm(dim=1))
        size.append(right.norm(dim=1))
    offs, sizes = torch.cat(off), torch.cat(size)
    usual = sizes.square().mean().sqrt()
    return float(offs.norm() / sizes.norm()), float((offs / sizes.maximum(usual)).max())


def measure(
    ways: dict[str, Way], direction: Direction, device: torch.device, *, rounds: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Milliseconds, one a round, and peak bytes of each way that lasts; one way's graph exists at a time."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, int] = {}
    for number in range(-1, rounds):
        for name in list(times):
            try:
                if number < 0:
                    peaks[name] = peak_bytes(once(ways[name], direction), device)
                else:
                    times[name].append(milliseconds(again(ways[name], direction), device))
            except Exception as error:  # most likely the memory
                print(f"  {name}: cannot time {direction}: {reason(error)}")
                del times[name]
    return times, peaks


def once(way: Way, direction: Direction) -> Callable[[], Any]:
    """The forward pass, or it and the backward pass, which frees what the forward pass kept."""
    if direction == "forward":
        return lambda: forward(way)
    upstream = upstream_of(forward(way)[0])
    return lambda: gradients(way, upstream)


def again(way: Way, direction: Direction) -> Callable[[], Any]:
    """The pass alone, as often as it is called."""
    if direction == "forward":
        return lambda: forward(way)
    leaves, output = tracked(way)
    upstream = upstream_of(output)
    return lambda: torch.autograd.grad(output, leaves, upstream, retain_graph=True)


def forward(way: Way) -> Tensors:
    with torch.no_grad():
        found = way.run(*way.inputs)
    return found if isinstance(found, tuple) else (found,)


def tracked(way: Way) -> tuple[list[Tensor], Tensor]:
    leaves = [x.detach().requires_grad_() for x in way.inputs]
    found = way.run(*leaves)
    return leaves, found[0] if isinstance(found, tuple) else found


def upstream_of(output: Tensor) -> Tensor:
    """A gradient of the output that is the same for all ways, in whatever order they have the rows."""
    values = torch.linspace(-1, 1, output.shape[-1], device=output.device, dtype=output.dtype)
    return values.expand_as(output).contiguous()


def outputs(way: Way) -> Tensors:
    first, *others = forward(way)
    return way.output(first), *others


def gradients(way: Way, upstream: Tensor | None = None) -> Tensors:
    leaves, output = tracked(way)
    if upstream is None:
        upstream = upstream_of(output)
    return tuple(way.gradients(each) for each in torch.autograd.grad(output, leaves, upstream))


class _Namespaces(TorchDispatchMode):
    """Which libraries the operations that run are from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.namespace)
        return func(*args, **(kwargs or {}))


def backend_of(name: str, way: Way) -> str:
    """What ran in a way of this project: a kernel is an operation of the library `videolm`."""
    if name != "videolm":
        return name.removeprefix("videolm ") if name.startswith("videolm ") else ""
    with _Namespaces() as mode:
        forward(way)
    return "triton" if "videolm" in mode.seen else "eager"


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def summary(
    times: Sequence[float], ours: Sequence[float], floor: Floor, rates: tuple[float, float]
) -> dict[str, Any]:
    low, _, _, high = (
        statistics.quantiles(times, n=5, method="inclusive") if len(times) > 1 else (times[0],) * 4
    )
    middle = statistics.median(times)
    floor_ms = 1000 * floor.seconds(bytes_per_second=rates[0], flops_per_second=rates[1])
    return {
        "p50_ms": round(middle, 4),
        "p20_ms": round(low, 4),
        "p80_ms": round(high, 4),
        "over_videolm": round(statistics.median(a / b for a, b in zip(times, ours, strict=True)), 3),
        "floor_ms": round(floor_ms, 4),
        "of_floor": round(floor_ms / middle, 3),
        "floor_mb": round(floor.num_bytes / 1e6, 2),
        "floor_gflop": round(floor.num_flops / 1e9, 3),
    }


if __name__ == "__main__":
    app()
