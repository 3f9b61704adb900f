"""Plans as data: what a text says, what each layer then does, what it costs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from videolm.encoders.cost import count_macs, layer_costs
from videolm.encoders.presets import CLIPShape, build_video_clip, clip_vit_b16, clip_vit_b32
from videolm.encoders.reduction_plans import (
    ReductionPlan,
    Step,
    drop_repeats,
    no_reduction,
    parse_plan,
    tempme,
    tome,
    top_k,
    vid_tldr,
)

SMALL = CLIPShape(
    image_size=24, patch_size=4, vision_width=32, vision_depth=5, vision_heads=2, vision_mlp_width=48,
    text_width=16, text_depth=1, text_heads=2, text_mlp_width=20, vocab_size=30, context_length=6,
    eos_token_id=4, joint_dim=32, activation="gelu",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("", no_reduction(4)),
        ("none", no_reduction(4)),
        ("tome:r=16", ReductionPlan((Step(after=16),) * 4)),
        ("tome:r=0.25", ReductionPlan((Step(after=0.25),) * 4)),
        ("tome:r=8/4", ReductionPlan((Step(after=8), Step(after=4), Step(), Step()))),
        ("tome:r=6,inflect=-1", tome(4, r=[12, 8, 4, 0])),
        ("tempme", tempme(4)),
        ("tempme:r=16,across=0.2,within=0.05", tempme(4, r=16, across=0.2, within=0.05)),
        ("vid_tldr:r=600/200/100", vid_tldr(4, r=[600, 200, 100])),
        ("top_k:keep=0.7", top_k(4, keep=0.7)),
        ("top_k:keep=9,layers=2", top_k(4, keep=9, layers=[2])),
        ("drop_repeats", drop_repeats(4, threshold=0.1)),
        ("drop_repeats:threshold=2", drop_repeats(4, threshold=2)),
    ],
)
def test_a_text_stands_for_a_plan(text: str, plan: ReductionPlan) -> None:
    assert parse_plan(text, depth=4) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tame:r=1", r"reduce \('tame:r=1'\) must be 'none' or begin with one of tome, tempme, vid_tldr"),
        ("tome", r"tome needs r, as in 'tome:r=8'"),
        ("tome:r=4,s=2", r"'s=2' must be key=value, tome has r, inflect, once each"),
        ("tome:r=4,r=2", r"'r=2' must be key=value, tome has r, inflect, once each"),
        ("tome:16", r"'16' must be key=value"),
        ("tome:r=many", r"r \('many'\) must be a number, or several like 8/4/2"),
        ("tempme:across=0.1/0.2", r"across \('0.1/0.2'\) must be a number"),
        ("tome:r=-1", r"\): r \(-1\) must be a number of tokens from 0, or a share below 1"),
        ("tome:r=1.5", r"\): r \(1.5\) must be a number of tokens from 0, or a share below 1"),
        ("vid_tldr:r=4/-1", r"\): r \(-1\) must be a number of tokens from 0, or a share below 1"),
        ("tempme:across=1.0", r"\): across \(1.0\) must be a number of tokens from 0, or a share below 1"),
        ("tempme:r=4/2", r"r \('4/2'\) must be a number, of nine digits at most"),
        ("top_k:keep=4/5", r"keep \('4/5'\) must be a number, of nine"),
        ("top_k:keep=4,layers=3.0", r"layers \('3.0'\) must be a whole number, or several like 8/4/2"),
        ("top_k:keep=4,layers=1.5/2", r"layers \('1.5/2'\) must be a whole number, or several like 8/4/2"),
        ("tome:r=\u0661\u0666", r"r \('\u0661\u0666'\) must be a number"),
        ("tome:r=1234567890", r"r \('1234567890'\) must be a number"),
        ("tome:r=nan", r"r \('nan'\) must be a number"),
        ("tome:r=", r"r \(''\) must be a number"),
        ("drop_repeats:threshold=" + 400 * "9", r"threshold \('9+'\) must be a number"),
        ("tome:r=1/2/3/4/5", r"r has 5 values, the tower 4 layers"),
        ("tome:r=8,inflect=2", r"inflect \(2\) must be from -1 to 1"),
        ("tome:r=8/4,inflect=1", r"inflect \(1\) tilts a number of tokens, r is \[8, 4\]"),
        ("top_k:keep=0", r"keep \(0\) must be a number of patches from 1, or a share up to 1.0"),
        ("top_k:keep=0.5,layers=4", r"layers \(\[4\]\) must be in \[0, 4\)"),
        ("drop_repeats:threshold=-1", r"threshold \(-1.0\) must be at least 0"),
    ],
)
def test_a_text_that_stands_for_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_plan(text, depth=4)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"join": 0}, r"join \(0\) must be at least 1 frame"),
        ({"keep": 2, "after": 1}, r"a step takes keep \(2\) or after \(1\), not both"),
    ],
)
def test_a_step_out_of_range_is_refused(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Step(**step)


def test_tempme_needs_room_for_its_joins() -> None:
    with pytest.raises(ValueError, match="tempme needs a tower of 4 layers at least, this one has 3"):
        tempme(3)
    for depth in range(4, 30):
        joins = [step.join for step in tempme(depth).steps]
        assert [join for join in joins if join > 1] == [2, 2, 3]
        assert joins[-1] == 1


@settings(deadline=None)
@given(r=st.integers(0, 40), depth=st.integers(2, 24), inflect=st.sampled_from([-1.0, -0.5, 0.5, 1.0]))
def test_a_tilted_schedule_merges_about_as_many(r: int, depth: int, inflect: float) -> None:
    counts = [step.after for step in tome(depth, r=r, inflect=inflect).steps]
    assert counts == sorted(counts, reverse=inflect < 0)
    assert abs(sum(counts) - r * depth) <= depth


# cost


def test_tempme_costs_what_its_paper_says() -> None:
    whole = count_macs(clip_vit_b32(), num_frames=12)
    reduced = replace(clip_vit_b32(), reduce="tempme")
    assert round(whole / 1e9, 1) == 52.9
    assert round(count_macs(reduced, num_frames=12) / 1e9, 1) == 34.7
    layers = layer_costs(reduced, num_frames=12)
    assert [layer.num_frames for layer in layers] == [12] * 8 + [6, 3, 1, 1]
    assert [layer.num_tokens_after for layer in layers[7:]] == [34, 44, 56, 107, 97]
    b16 = replace(clip_vit_b16(), reduce="tempme:r=16")
    assert round(count_macs(b16, num_frames=12) / count_macs(clip_vit_b16(), num_frames=12), 2) == 0.49


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize(
    "reduce",
    ["", "tome:r=4", "tome:r=100", "tempme:r=3", "vid_tldr:r=8/4", "top_k:keep=0.5", "drop_repeats"],
)
@pytest.mark.parametrize("num_frames", [1, 5])
def test_macs_are_those_that_torch_counts(family: Any, reduce: str, num_frames: int) -> None:
    shape = replace(SMALL, family=family, reduce=reduce)
    tower = build_video_clip(shape).vision
    # The counter knows plain products, and not the CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        grid = tower(torch.randn(2, num_frames, 3, 24, 24))
        tower.pool(grid)
    macs = 2 * count_macs(shape, num_frames=num_frames)
    if family == "siglip":
        # the probe's query is the same for both clips
        macs -= shape.vision_width**2
    assert counter.get_total_flops() == 2 * macs
    assert grid.tokens.shape[2] == layer_costs(shape, num_frames=num_frames)[-1].num_tokens_after


def test_joint_frames_cost_more_and_count_once() -> None:
    shape = replace(SMALL, temporal="joint")
    assert [(layer.num_frames, layer.num_tokens) for layer in layer_costs(shape, num_frames=4)] == [
        (1, 145)
    ] * 5
    assert count_macs(shape, num_frames=4) > count_macs(SMALL, num_frames=4)


def test_no_frames_cost_an_error() -> None:
    with pytest.raises(ValueError, match=r"num_frames \(0\) must be at least 1"):
        count_macs(SMALL, num_frames=0)
