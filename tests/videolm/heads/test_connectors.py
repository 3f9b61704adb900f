"""ClipCap's and EVLGen's connectors, and a language model by name."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.videolm.heads.speaking import END, PAD, START, gpt2
from videolm.heads.connectors import MergingConnector, MLPMapper, TransformerMapper
from videolm.heads.presets import ConnectorShape, SpeakerShape, build_connector, build_speaker, with_config
from videolm.types import TextTokens, VideoTokens

WIDTH, DIM, OUT, TOKENS = 12, 6, 16, 9
KINDS: dict[str, dict[str, Any]] = {
    "git": {"max_frames": 6},
    "qformer": {"num_queries": 3, "query_width": 8, "num_heads": 2, "layer_norm_eps": 1e-6},
    "clipcap_mlp": {"num_queries": 4},
    "clipcap_transformer": {"num_queries": 4, "num_heads": 2},
    "merging": {"query_width": 8, "num_heads": 2, "merged": 2},
}


def video(lengths: list[int], *, sizes: Tensor | None = None, seed: int = 0) -> VideoTokens:
    """Clips of frames with 9 tokens each."""
    generator = torch.Generator().manual_seed(seed)
    batch, frames = len(lengths), max(lengths)
    exists = torch.arange(frames) < torch.tensor(lengths)[:, None]
    return VideoTokens(
        tokens=torch.randn(batch, frames * TOKENS, WIDTH, generator=generator),
        mask=exists.repeat_interleave(TOKENS, dim=1),
        sizes=torch.ones(batch, frames * TOKENS) if sizes is None else sizes,
        pts_seconds=torch.arange(frames).repeat_interleave(TOKENS).expand(batch, -1).float(),
        embedding=torch.randn(batch, DIM, generator=generator),
    )


def connector(kind: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    shape = ConnectorShape(kind=kind, **KINDS[kind] | settings)
    return build_connector(shape, token_width=WIDTH, text_width=DIM, out_width=OUT).eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_clip_in_a_batch_has_the_prefix_that_it_has_alone(kind: str) -> None:
    together = video([3, 1])
    prefix = connector(kind)(together)
    short = replace(
        together,
        **{name: getattr(together, name)[1:, :TOKENS] for name in ("tokens", "mask", "sizes", "pts_seconds")},
        embedding=together.embedding[1:],
    )
    alone = connector(kind)(short)
    torch.testing.assert_close(prefix.embeds[1:][prefix.mask[1:]], alone.embeds[alone.mask])
    assert alone.mask.all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_from_the_prefix(kind: str) -> None:
    made = connector(kind)
    made(video([3, 2])).embeds.square().sum().backward()
    still = [name for name, value in made.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_is_refused(kind: str) -> None:
    words = TextTokens(torch.zeros(1, 2, DIM), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, DIM))
    with pytest.raises(ValueError, match="question is given, but this connector reads the video only"):
        connector(kind)(video([1]), words)


@torch.no_grad()
def test_clipcaps_mappers_read_the_embedding_alone() -> None:
    for made in (connector("clipcap_mlp"), connector("clipcap_transformer")):
        assert isinstance(made, MLPMapper | TransformerMapper)
        first, other = video([2], seed=0), video([2], seed=1)
        prefix = made(first)
        assert prefix.embeds.shape == (1, 4, OUT)
        torch.testing.assert_close(made(replace(other, embedding=first.embedding)).embeds, prefix.embeds)
        assert (made(other).embeds - prefix.embeds).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("per_frame", "num_left"), [(False, 5), (True, 15)], ids=["mean of frames", "per frame"]
)
@torch.no_grad()
def test_merging_layers_leave_as_many_tokens_as_told(per_frame: bool, num_left: int) -> None:
    made = connector("merging", per_frame=per_frame)
    assert isinstance(made, MergingConnector)
    assert made(video([3])).embeds.shape == (1, num_left, OUT)


@torch.no_grad()
def test_without_merging_the_class_token_comes_first_whatever_the_others_order() -> None:
    made = connector("merging", merged=0, per_frame=True)
    clip = video([1])
    order = torch.tensor([0, 3, 1, 2, 8, 4, 5, 6, 7])
    swapped = made(replace(clip, tokens=clip.tokens[:, order])).embeds
    torch.testing.assert_close(swapped, made(clip).embeds[:, order])


@torch.no_grad()
def test_merged_frames_have_no_mean() -> None:
    sizes = torch.ones(1, 3 * TOKENS)
    sizes[0, 4] = 2
    merged = video([3], sizes=sizes)
    with pytest.raises(ValueError, match="merged in the tower already"):
        connector("merging")(merged)
    plain = video([3])
    per_frame = connector("merging", per_frame=True)
    assert (per_frame(merged).embeds - per_frame(plain).embeds).abs().max() > 1e-4


@torch.no_grad()
def test_a_frame_that_stands_twice_counts_twice_and_is_not_merged() -> None:
    made = connector("merging")
    clip = video([3])
    twice = replace(clip, sizes=clip.sizes.clone())
    twice.sizes[:, TOKENS : 2 * TOKENS] = 2
    order = torch.tensor([0, 1, 1, 2])
    rows = (order[:, None] * TOKENS + torch.arange(TOKENS)).flatten()
    apart = replace(
        clip,
        tokens=clip.tokens[:, rows],
        mask=clip.mask[:, rows],
        sizes=clip.sizes[:, rows],
        pts_seconds=torch.arange(4.0).repeat_interleave(TOKENS)[None],
    )
    torch.testing.assert_close(made(twice).embeds, made(apart).embeds)
    assert (made(clip).embeds - made(apart).embeds).abs().max() > 1e-4


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_frame_that_lost_tokens_is_not_merged_with_what_was_there(per_frame: bool) -> None:
    clip = video([2, 2])
    clip.mask[1, -2:] = False
    with pytest.raises(ValueError, match="frames have unequal numbers of tokens, but this connector merges"):
        connector("merging", per_frame=per_frame)(clip)


def test_a_video_reads_alike_beside_one_of_other_tokens_by_queries() -> None:
    clip = video([2, 2])
    clip.mask[1, -2:] = False
    made = connector("qformer")
    together = made(clip)
    changed = replace(clip, tokens=clip.tokens.clone())
    changed.tokens[1, -2:] = 100.0
    torch.testing.assert_close(made(changed).embeds, together.embeds)


UNREAD = {
    "git": {"num_queries": 4},
    "qformer": {"max_frames": 8},
    "clipcap_mlp": {"depth": 8},
    "clipcap_transformer": {"mlp_width": 8},
    "merging": {"num_queries": 4},
    "resampler": {"cross_every": 3},
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_a_kind_does_not_read_is_refused(kind: Any) -> None:
    ((name, value),) = UNREAD[kind].items()
    with pytest.raises(
        ValueError, match=rf"{name} \({value}\) is nothing that a connector of kind '{kind}' reads"
    ):
        ConnectorShape(kind=kind, **KINDS.get(kind, {}) | UNREAD[kind])


OUT_OF_RANGE: dict[str, tuple[dict[str, Any], str]] = {
    "queries": ({"num_queries": -2}, r"num_queries \(-2\) must be at least 0"),
    "qformer without": ({"kind": "qformer"}, r"num_queries \(0\) must be at least 1"),
    "clipcap without": ({"kind": "clipcap_mlp"}, r"num_queries \(0\) must be at least 1"),
    "depth": ({"depth": 0}, r"depth \(0\) must be at least 1"),
    "cross": (
        {"kind": "qformer", "num_queries": 2, "cross_every": 0},
        r"cross_every \(0\) must be at least 1",
    ),
    "merged": ({"kind": "merging", "merged": -1}, r"merged \(-1\) must be at least 0"),
    "frames": ({"max_frames": -1}, r"max_frames \(-1\) must be at least 0"),
    "eps": ({"kind": "git", "layer_norm_eps": 0.0}, r"layer_norm_eps \(0.0\) must be above 0"),
    "heads": (
        {"kind": "merging", "num_heads": 3},
        r"query_width \(256\) must be a multiple of num_heads \(3\)",
    ),
}


@pytest.mark.parametrize("case", OUT_OF_RANGE)
def test_a_connector_out_of_range_is_refused(case: str) -> None:
    settings, message = OUT_OF_RANGE[case]
    with pytest.raises(ValueError, match=message):
        ConnectorShape(**settings)


def test_clipcaps_heads_divide_the_language_models_width() -> None:
    with pytest.raises(
        ValueError, match=r"num_heads \(3\) must divide the width of the language model \(16\)"
    ):
        connector("clipcap_transformer", num_heads=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, r"num_beams \(0\) must be at least 1"),
        ({"max_new_tokens": 0}, r"max_new_tokens \(0\) must be at least 1"),
        ({"min_new_tokens": 31}, r"min_new_tokens \(31\) must be at most max_new_tokens \(30\)"),
        ({"lora_rank": -1}, r"lora_rank \(-1\) must be at least 1"),
        ({"eos_token_id": -5}, r"eos_token_id \(-5\) must be at least 0"),
    ],
    ids=["beams", "tokens", "least tokens", "rank", "id"],
)
def test_a_speaker_out_of_range_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        replace(named_shape(tmp_path), **settings)


def test_ids_are_of_the_language_models_vocabulary(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path)
    shape = replace(named_shape(tmp_path), start_token_id=50)
    with pytest.raises(ValueError, match=r"start_token_id \(50\) must be in \[0, 50\)"):
        build_speaker(shape, token_width=WIDTH, text_width=DIM)


def named_shape(folder: Path) -> SpeakerShape:
    return SpeakerShape(
        connector=ConnectorShape(kind="clipcap_mlp", num_queries=4),
        lm={"name": str(folder)},
        start_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
    )


def test_a_language_model_by_name_starts_from_its_weights(tmp_path: Path) -> None:
    theirs = gpt2()
    theirs.generation_config.repetition_penalty = 5.0
    theirs.save_pretrained(tmp_path)
    shape = named_shape(tmp_path)
    head = build_speaker(shape, token_width=WIDTH, text_width=DIM)
    torch.testing.assert_close(dict(head.lm.state_dict()), dict(theirs.state_dict()))
    # What a card keeps: the model's config, by which the head is made again without the name.
    kept = with_config(shape)
    assert "name" not in kept.lm
    again = build_speaker(kept, token_width=WIDTH, text_width=DIM)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in head.state_dict().items()
    }
    assert with_config(kept) == kept
    # What came with the weights for generating is in neither.
    again.load_state_dict(head.state_dict())
    ids = torch.tensor([[START, 7, 8]])
    written = [
        made.eval().generate(made.prefix(video([2])), ids, ids > 0, max_new_tokens=8)
        for made in (head, again)
    ]
    assert torch.equal(*written)
    assert head.lm.generation_config.repetition_penalty is None
    assert SpeakerShape(**asdict(kept) | {"connector": kept.connector}) == kept


def test_a_name_beside_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lm \(\['n_layer', 'name'\]\) must have a model_type"):
        replace(named_shape(tmp_path), lm={"name": "gpt2", "n_layer": 2})
