"""tools/bench/kernels.py: what it compares is right, what is wrong is not timed, what it prints was measured."""

from __future__ import annotations

import csv
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from videolm_kernels.testing import tolerance

BENCH = Path(__file__).parents[2] / "tools" / "bench"
CPU = torch.device("cpu")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location("bench_kernels", BENCH / "kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    import kernel_problems

    monkeypatch.setitem(kernel_problems.TOWERS, "tiny", (7, 2))
    monkeypatch.setattr(kernel_problems, "compiled", lambda function: function)
    return module


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "op", ["temporal_attention", "token_merging", "frame_attention", "token_interaction"]
)
def test_every_way_gives_the_same_result_and_gradient(
    tool: ModuleType, op: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = tool.PROBLEMS[op]("tiny", 3, 2, tool.DTYPES[dtype], CPU)
    rows = tool.compare(problem, CPU, tool.DTYPES[dtype], (1e9, 1e9), rounds=1)
    assert capsys.readouterr().out == ""
    assert {(row["direction"], row["way"]) for row in rows} == {
        (direction, way) for direction in ("forward", "backward") for way in problem.ways
    }


@pytest.fixture
def problem(tool: ModuleType) -> Any:
    """Frame attention, because it has a second output."""
    return tool.PROBLEMS["frame_attention"]("tiny", 3, 2, torch.float32, CPU)


def compared(tool: ModuleType, problem: Any, **others: Any) -> set[tuple[str, str]]:
    """(direction, way) of the rows, for videolm and others that are made from it."""
    ways = {"videolm": problem.ways["videolm"], **others}
    rows = tool.compare(replace(problem, ways=ways), CPU, torch.float32, (1e9, 1e9), rounds=2)
    return {(row["direction"], row["way"]) for row in rows}


BOTH = {("forward", "videolm"), ("backward", "videolm")}


def one_wrong_row(x: Tensor) -> Tensor:
    x = x.clone()
    x[1, 2] = x[1, 2].flip(-1)
    return x


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda out, key, qkv: (out.flip(1), key), id="output"),
        pytest.param(lambda out, key, qkv: (out, key.flip(1)), id="second output"),
        pytest.param(lambda out, key, qkv: (out * torch.nan, key), id="NaN"),
        pytest.param(lambda out, key, qkv: (out.detach() + 0 * qkv.sum(), key), id="gradient"),
        pytest.param(lambda out, key, qkv: (out + torch.nan * (qkv - qkv.detach()).sum(), key), id="NaN gradient"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_not_timed(
    tool: ModuleType, problem: Any, spoil: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    right = problem.ways["videolm"]
    wrong = replace(right, run=lambda qkv: spoil(*right.run(qkv), qkv))
    assert compared(tool, problem, spoilt=wrong) == BOTH
    assert "spoilt: WRONG" in capsys.readouterr().out


def test_a_wrong_gradient_of_the_second_input_is_seen(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = tool.PROBLEMS["token_merging"]("tiny", 3, 2, torch.float32, CPU)
    right = problem.ways["videolm"]
    wrong = replace(right, run=lambda x, y: right.run(x, y.detach() + 0 * y))
    assert compared(tool, problem, stopped=wrong) == BOTH
    assert "stopped: WRONG backward" in capsys.readouterr().out


def test_one_wrong_row_of_many_is_seen(tool: ModuleType) -> None:
    truth = torch.randn(400, 500, 8, generator=torch.Generator().manual_seed(0))
    whole, row = tool.errors_of(one_wrong_row(truth), truth)
    assert whole < 4 * tolerance(torch.bfloat16)
    assert row > 5 * tool.MAX_ROW_ERROR


def test_what_cannot_run_is_said_and_what_dies_in_backward_keeps_its_forward_row(
    tool: ModuleType, problem: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise NotImplementedError

    right = problem.ways["videolm"]
    ways = {
        "impossible": replace(right, run=lambda qkv: qkv @ torch.ones(3, 3)),
        "forward only": replace(right, run=lambda qkv: right.run(Forward.apply(qkv))),
    }
    assert compared(tool, problem, **ways) == BOTH | {("forward", "forward only")}
    out = capsys.readouterr().out
    assert "impossible: cannot run forward: RuntimeError" in out
    assert "forward only: cannot run backward: NotImplementedError" in out


def test_a_way_that_fails_while_it_is_timed_loses_that_row_alone(
    tool: ModuleType, problem: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = problem.ways["videolm"]
    greedy = replace(right)
    again = tool.again

    def out_of_memory(way: Any, direction: str) -> Any:
        if way is greedy and direction == "backward":
            raise torch.OutOfMemoryError("no room")
        return again(way, direction)

    monkeypatch.setattr(tool, "again", out_of_memory)
    assert compared(tool, problem, greedy=greedy) == BOTH | {("forward", "greedy")}
    assert "greedy: cannot time backward: OutOfMemoryError: no room" in capsys.readouterr().out


def test_without_videolm_there_is_nothing_to_compare_with(
    tool: ModuleType, problem: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = replace(problem.ways["videolm"], run=lambda qkv: (torch.zeros(1), torch.zeros(1)))
    ways = problem.ways | {"videolm": wrong}
    assert not tool.compare(replace(problem, ways=ways), CPU, torch.float32, (1e9, 1e9), rounds=1)
    assert "videolm did not run" in capsys.readouterr().out


def test_a_setting_that_does_not_fit_is_skipped(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setitem(tool.PROBLEMS, "token_merging", too_large)
    tool.run(
        op=["token_merging", "token_interaction"],
        frames=2,
        batch=2,
        dtype=["float32"],
        device="cpu",
        rounds=1,
    )
    out = capsys.readouterr().out
    assert "token_merging B/32 2 2 float32: skipped: OutOfMemoryError: no room" in out
    assert "token_interaction  -  T=2  B=2" in out


def test_a_way_that_falls_back_to_eager_is_not_timed_and_problems_do_not_share_the_limit(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def compared_compiled(num_frames: int) -> set[tuple[str, str]]:
        problem = tool.PROBLEMS["frame_attention"]("tiny", num_frames, 2, torch.float32, CPU)
        right = problem.ways["materialised bias"]
        way = replace(right, run=torch.compile(right.run, backend="eager", dynamic=False))
        return compared(tool, problem, compile=way)

    with torch._dynamo.config.patch(recompile_limit=2):  # one graph with and one without gradient
        for num_frames in (3, 4):
            assert compared_compiled(num_frames) == BOTH | {("forward", "compile"), ("backward", "compile")}
    with torch._dynamo.config.patch(recompile_limit=1):
        assert compared_compiled(5) == BOTH | {("forward", "compile")}
    assert "compile: cannot run backward: FailOnRecompileLimitHit" in capsys.readouterr().out


def test_the_row_says_which_implementation_ran(tool: ModuleType) -> None:
    from videolm_kernels import temporal_attention

    qkv = torch.randn(1, 2, 1, 3, 1, 16)
    for backend in ("eager", "reference", "triton"):
        way = tool.Way((qkv,), lambda x, backend=backend: temporal_attention(x, backend=backend))
        assert tool.backend_of("videolm", way) == ("triton" if backend == "triton" else "eager")
        assert tool.backend_of(f"videolm {backend}", way) == backend
        assert tool.backend_of("flex", way) == ""


def test_the_memory_of_a_backward_row_has_what_the_forward_pass_keeps(tool: ModuleType) -> None:
    x = torch.randn(2**18)
    way = tool.Way((x,), lambda x: x.exp().exp())  # keeps both, and makes a gradient from them
    forward, backward = (tool.peak_bytes(tool.once(way, d), CPU) for d in ("forward", "backward"))
    assert forward == 2 * x.nbytes
    assert backward >= 3 * x.nbytes


@pytest.mark.parametrize("num_frames", [3, 12, 64])
def test_the_best_partner_of_a_token_is_the_same_in_every_dtype(tool: ModuleType, num_frames: int) -> None:
    import kernel_problems

    torch.manual_seed(0)
    words, frames = kernel_problems.clear_tokens(
        24, 32, num_frames, width=512, dtype=torch.bfloat16, device=CPU
    )
    exact = torch.einsum("ald,vtd->avlt", words.double(), frames.double())
    for products in (exact, exact.mT):
        first, second = products.topk(2, dim=-1).values.unbind(-1)
        # A value in bfloat16 is off by up to 2^-9 of itself.
        assert bool((first - second > 2**-6 * first).all())
    # Texts and videos differ, so that one in the place of another is seen.
    assert float(exact.amax(-1).std(dim=(0, 1)).min()) > 0.1


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_over_a_clip_sees_the_frames_of_a_token_in_both_orders(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rivals

    from videolm_kernels import frame_attention, temporal_attention

    monkeypatch.setattr(rivals, "compiled", lambda function: function)
    torch.manual_seed(0)
    qkv = torch.randn(2, 3, 7, 3, 2, 16)
    truth = temporal_attention(qkv, backend="reference")
    apart, beside = (rivals.flex_over_clip(*order, device=CPU) for order in rivals.token_orders(3, 7))
    assert tool.errors_of(apart(qkv), truth)[1] < 1e-5
    assert tool.errors_of(beside(qkv.transpose(1, 2)).transpose(1, 2), truth)[1] < 1e-5
    log2_sizes = torch.rand(6, 7)
    found = rivals.flex_with_sizes(log2_sizes)(qkv.flatten(0, 1))
    right = frame_attention(qkv.flatten(0, 1), log2_sizes, with_mean_key=True, backend="reference")
    assert all(tool.errors_of(a, b)[1] < 1e-5 for a, b in zip(found, right, strict=True))


def test_what_is_asked_for_replaces_the_defaults(tool: ModuleType) -> None:
    gpu = torch.device("cuda")
    ask = partial(tool.settings, "frame_attention")
    assert ask(gpu, towers=None, frames=None, batch=None) == tool.DEFAULTS["cuda"]["frame_attention"]
    assert ask(gpu, towers=["L/14"], frames=8, batch=None) == [("L/14", 8, 64), ("L/14", 8, 1)]
    assert tool.settings("token_interaction", CPU, towers=["L/14"], frames=12, batch=9) == [("-", 12, 9)]


def test_rows_say_where_they_come_from_and_the_table_holds_their_numbers(
    tool: ModuleType, tmp_path: Path
) -> None:
    results = tmp_path / "kernels.csv"
    for op in ("temporal_attention", "frame_attention"):
        tool.run(op=[op], tower=["tiny"], frames=3, batch=1, dtype=["float32"], device="cpu", rounds=2,
                 csv_file=results, plot=tmp_path / "plot.png")  # fmt: skip
    rows = tool.read(results)
    assert all(row["device"] and row["torch"] and row["date"] for row in rows)
    assert (tmp_path / "plot.png").stat().st_size > 1000
    import kernel_report

    text = tool.with_table(f"before\n{kernel_report.BEGIN}\nold\n{kernel_report.END}\nafter\n", rows)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "not measured" in text
    (own,) = [
        row for row in rows
        if (row["op"], row["way"], row["direction"]) == ("frame_attention", "videolm", "backward")
    ]  # fmt: skip
    (line,) = re.findall(r"\| frame_attention \| tiny, T=3, B=1 \| float32 \| backward .*", text)
    assert f"| {float(own['p50_ms']):.3g} |" in line


def test_ways_that_do_less_are_never_the_best_other_way(tool: ModuleType) -> None:
    import kernel_report

    row = {"way": "videolm", "op": "frame_attention", "tower": "B/16", "frames": "1", "batch": "1", "dtype": "x",
           "direction": "forward", "backend": "triton", "p50_ms": "2", "of_floor": "0.5",
           "over_videolm": "1"}  # fmt: skip
    cheap = row | {"way": f"sdpa, no bias {tool.NO_RIVAL}", "over_videolm": "0.5"}
    fair = row | {"way": "bias as mask", "over_videolm": "3"}
    line = kernel_report.measured_line({each["way"]: each for each in (row, cheap, fair)})
    assert line.endswith("| bias as mask | 3.00 |")


def test_the_table_of_the_readme_is_the_one_that_the_results_give(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(tool.TOWERS, "tiny")
    text = tool.README.read_text(encoding="utf-8")
    assert tool.with_table(text, tool.read(tool.RESULTS)) == text


def test_the_floor_is_what_has_to_be_moved(tool: ModuleType) -> None:
    problem = tool.PROBLEMS["temporal_attention"]("B/16", 12, 64, torch.bfloat16, torch.device("meta"))
    unit = 64 * 12 * 197 * 768 * 2
    assert (problem.forward.num_bytes, problem.backward.num_bytes) == (4 * unit, 7 * unit)
    # Bound by memory.
    assert round(1e6 * problem.forward.seconds(bytes_per_second=4.3e12, flops_per_second=790e12)) == 216
    assert round(1e6 * problem.backward.seconds(bytes_per_second=4.3e12, flops_per_second=790e12)) == 378
    problem = tool.PROBLEMS["frame_attention"]("B/16", 12, 64, torch.bfloat16, torch.device("meta"))
    assert (problem.forward.num_bytes, problem.backward.num_bytes) == (4 * unit + unit // 12, 7 * unit)


def test_results_are_complete_rows(tool: ModuleType) -> None:
    with tool.RESULTS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert None not in row.values()
            assert float(row["p50_ms"]) > 0
