"""The aggregator slot against torch's own layers in float64, and clips of several lengths."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import TINY
from videolm.encoders.aggregators import SequenceLSTM, SequenceTransformer
from videolm.encoders.presets import build_video_clip
from videolm.encoders.video_clip import VideoCLIP

KINDS = ["mean", "transformer", "lstm"]


def tiny(aggregator: str, **changes: Any) -> VideoCLIP:
    torch.manual_seed(0)
    shape = replace(
        TINY,
        temporal="none",
        aggregator=aggregator,
        aggregator_heads=2,
        aggregator_depth=2,
        aggregator_frames=6,
    )
    return build_video_clip(replace(shape, **changes)).eval()


def random_frames(batch: int, num_frames: int) -> torch.Tensor:
    return torch.randn(batch, num_frames, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_transformer_equals_torchs_layers_with_a_mask() -> None:
    torch.manual_seed(0)
    ours = SequenceTransformer(width=24, depth=1, num_heads=3, max_frames=5).double()
    block = ours.blocks[0]
    theirs = torch.nn.MultiheadAttention(24, 3, batch_first=True, dtype=torch.float64)
    theirs.in_proj_weight.copy_(block.attention.qkv.weight)
    theirs.in_proj_bias.copy_(block.attention.qkv.bias)
    theirs.out_proj.load_state_dict(block.attention.out.state_dict())
    frames = torch.randn(3, 5, 24, dtype=torch.float64)
    exists = torch.arange(5) < torch.tensor([5, 1, 3])[:, None]
    # CLIP4Clip's mask: a large negative number for each key that does not exist.
    mask = (~exists).double()[:, None].expand(-1, 5, -1).repeat_interleave(3, dim=0) * -1e6
    x = frames + ours.position
    normed = F.layer_norm(x, (24,), eps=1e-12)
    x = x + theirs(normed, normed, normed, attn_mask=mask)[0]
    hidden = block.mlp.up(F.layer_norm(x, (24,), eps=1e-12))
    x = x + block.mlp.down(hidden * torch.sigmoid(1.702 * hidden))
    torch.testing.assert_close(ours(frames, exists)[exists], (frames + x)[exists], rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_lstm_equals_its_equations() -> None:
    torch.manual_seed(0)
    ours = SequenceLSTM(width=6).double()
    weights = {name.removeprefix("lstm."): tensor for name, tensor in ours.state_dict().items()}
    frames = torch.randn(2, 4, 6, dtype=torch.float64)
    hidden = cell = torch.zeros(2, 6, dtype=torch.float64)
    for t in range(4):
        gates = frames[:, t] @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
        gates = gates + hidden @ weights["weight_hh_l0"].T + weights["bias_hh_l0"]
        enter, forget, new, leave = gates.chunk(4, dim=1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        heard = ours(frames, torch.ones(2, 4, dtype=torch.bool))[:, t]
        torch.testing.assert_close(heard, frames[:, t] + hidden, rtol=0, atol=1e-12)


def test_the_mean_has_no_parameters_and_the_others_do() -> None:
    names = [{name for name, _ in tiny(kind).named_parameters()} for kind in KINDS]
    assert not any(name.startswith("aggregator.") for name in names[0])
    for added in names[1:]:
        assert added > names[0]
        assert all(name.startswith("aggregator.") for name in added - names[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_padded_clip_equals_the_shorter_clip_alone(kind: str) -> None:
    model, frames, lengths = tiny(kind), random_frames(3, 6), [6, 1, 3]
    for b, length in enumerate(lengths):
        frames[b, length:] = 50.0
    together = model.encode_video(frames, lengths=torch.tensor(lengths)).embedding
    for b, length in enumerate(lengths):
        alone = model.encode_video(frames[b : b + 1, :length]).embedding
        torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_only_an_aggregator_hears_the_order_of_frames(kind: str) -> None:
    model, frames = tiny(kind), random_frames(2, 5)
    if kind == "transformer":
        model.aggregator.position.normal_()
    change = (model.encode_video(frames.flip(1)).embedding - model.encode_video(frames).embedding).abs().max()
    assert bool(change > 1e-3) == (kind != "mean")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_of_the_video(kind: str) -> None:
    model = tiny(kind)
    model.encode_video(random_frames(2, 4), lengths=torch.tensor([4, 2])).embedding[:, 0].sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.startswith("text.") or name == "logit_scale" for name in silent)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_bfloat16_stays_near_float32(kind: str) -> None:
    model, frames, lengths = tiny(kind), random_frames(2, 4), torch.tensor([4, 2])
    exact = model.encode_video(frames, lengths=lengths).embedding
    rough = model.to(torch.bfloat16).encode_video(frames, lengths=lengths).embedding
    assert float((rough * exact).sum(dim=1).min()) > 0.999


def test_a_clip_with_more_frames_than_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="7 frames, but this aggregator has positions for 6 at most"):
        tiny("transformer").encode_video(random_frames(1, 7))
