"""torch.compile takes a whole tower, whatever is in its slots, and once more for batches of every size."""

import os
import subprocess
import sys

import pytest

# In a process of its own: the shape checks that the tests switch on are no code that torch.compile can follow.
PROGRAM = """
from dataclasses import replace
import torch
from torch._dynamo.utils import counters
from tests.tiny import TINY
from videolm.encoders.presets import build_video_clip

SLOTS = [
    ("divided", "tome:r=1"),
    ("shift", "vid_tldr:r=1/2"),
    ("none", "tempme:r=1"),
    ("none", "top_k:keep=0.5"),
    ("message", ""),
    ("soft_attentive", ""),
    ("joint", ""),
]
for temporal, plan in SLOTS:
    torch.manual_seed(0)
    depth = 4 if "tempme" in plan else 2
    shape = replace(TINY, image_size=32, vision_depth=depth, temporal=temporal, reduce=plan)
    tower = build_video_clip(shape).vision.eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(tower, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 4):
        clips = torch.randn(batch, 4, 3, 32, 32)
        with torch.inference_mode():
            eager, ours = tower(clips), compiled(clips)
        torch.testing.assert_close(ours.tokens, eager.tokens)
        assert eager.tokens.std() > 0
    num_graphs = counters["stats"]["unique_graphs"]
    assert num_graphs == 2, f"{num_graphs} graphs with {temporal} and {plan or 'no plan'}"
"""


@pytest.mark.timeout(300)
def test_a_tower_compiles_without_a_break() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
