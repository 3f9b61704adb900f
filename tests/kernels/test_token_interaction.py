"""Token interaction in plain torch: loops over pairs, the formulas of published heads, memory, errors."""

from dataclasses import replace
from inspect import unwrap
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.interaction_problems import (
    SETTINGS,
    Shape,
    random_problem,
    scores_and_gradients,
    scores_by_loop,
)
from videolm_kernels import token_interaction
from videolm_kernels.backend import Backend
from videolm_kernels.testing import relative_error, tolerance
from videolm_kernels.token_interaction import eager, op

BACKENDS: tuple[Backend, ...] = ("reference", "eager")
SHAPES: tuple[Shape, ...] = ((1, 1, 1, 1, 1), (2, 3, 4, 1, 5), (3, 1, 2, 6, 4), (5, 4, 3, 7, 8))
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=generator), dim=-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_a_loop_over_pairs_of_existing_tokens(
    shape: Shape, options: dict[str, Any], backend: Backend
) -> None:
    problem = random_problem(shape)
    scores = scores_and_gradients(problem, **options, backend=backend)[0]
    torch.testing.assert_close(scores, scores_by_loop(problem, **options), **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_gradient_is_right(
    options: dict[str, Any], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "BLOCK_BYTES", 150)
    problem = random_problem((3, 3, 4, 2, 3))
    tensors = [problem.words, problem.frames]
    if options["total_scale"] is None:
        tensors += [problem.word_weights] if options["sides"] != "frames" else []
        tensors += [problem.frame_weights] if options["sides"] != "words" else []

    def scores(words: Tensor, frames: Tensor, *weights: Tensor) -> Tensor:
        names = {
            "both": ("word_weights", "frame_weights"),
            "words": ("word_weights",),
            "frames": ("frame_weights",),
        }
        given_weights = dict(zip(names[options["sides"]], weights, strict=True)) if weights else {}
        return token_interaction(
            words,
            frames,
            word_mask=problem.word_mask,
            frame_mask=problem.frame_mask,
            **given_weights,
            **options,
            backend=backend,
        )

    assert torch.autograd.gradcheck(scores, [tensor.requires_grad_() for tensor in tensors], fast_mode=True)


@pytest.mark.parametrize("block_bytes", [1, 300, 2000, 2**20])
@pytest.mark.parametrize("options", SETTINGS[::3], ids=str)
def test_blocks_of_any_size_give_the_whole(
    options: dict[str, Any], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem((7, 3, 5, 4, 6))
    truth = scores_and_gradients(problem, **options, backend="reference")
    monkeypatch.setattr(eager, "BLOCK_BYTES", block_bytes)
    for ours, theirs in zip(scores_and_gradients(problem, **options, backend="eager"), truth, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_what_a_token_holds_that_does_not_exist_is_never_seen(
    options: dict[str, Any], backend: Backend
) -> None:
    problem = random_problem((3, 4, 4, 3, 5))
    hidden = replace(
        problem,
        words=problem.words.masked_fill(~problem.word_mask[:, :, None], torch.nan),
        frames=problem.frames.masked_fill(~problem.frame_mask[:, :, None], torch.nan),
        word_weights=problem.word_weights.masked_fill(~problem.word_mask, torch.nan),
        frame_weights=problem.frame_weights.masked_fill(~problem.frame_mask, torch.nan),
    )
    ours = scores_and_gradients(hidden, **options, backend=backend)
    for one, other in zip(ours, scores_and_gradients(problem, **options, backend=backend), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    scores, of_words, of_frames, *_ = ours
    assert not scores[-1].any()
    assert not scores[:, -1].any()
    assert not of_words[~problem.word_mask].any()
    assert not of_frames[~problem.frame_mask].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", SETTINGS[::3], ids=str)
def test_nan_in_a_token_makes_the_scores_of_its_video_nan_and_no_others(
    options: dict[str, Any], backend: Backend
) -> None:
    problem = random_problem((3, 4, 4, 3, 5), empty=False)
    problem.frames[1, 0, 2] = torch.nan
    scores = token_interaction(problem.words, problem.frames, **options, backend=backend)
    assert scores[:, 1].isnan().all()
    assert scores[:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_two_equal_tokens_the_first_takes_the_gradient(backend: Backend) -> None:
    words, frames = unit(2, 3, 4, seed=0).requires_grad_(), unit(2, 2, 4, seed=1)
    frames = torch.stack([frames, frames], dim=2).flatten(1, 2).requires_grad_()  # 0 0 1 1
    scores = token_interaction(words, frames, sides="words", backend=backend)
    (of_frames,) = torch.autograd.grad(scores.sum(), frames)
    assert of_frames[:, [0, 2]].any()
    assert not of_frames[:, [1, 3]].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_error_stays_within_the_tolerance_of_the_dtype(dtype: torch.dtype, backend: Backend) -> None:
    problem = random_problem((6, 5, 7, 8, 16)).to(dtype, torch.device("cpu"))
    # Of a maximum only the scores: products that 16 bits cannot tell apart may send a gradient to either token.
    for pool_scale in (None, 1.0):
        ours = scores_and_gradients(problem, pool_scale=pool_scale, backend=backend)
        truth = scores_and_gradients(problem.double(), pool_scale=pool_scale, backend="reference")
        assert ours[0].dtype == torch.float32
        assert ours[1].dtype == ours[2].dtype == dtype
        compared = 1 if pool_scale is None and dtype != torch.float32 else len(ours)
        for value, true_value in zip(ours[:compared], truth[:compared], strict=True):
            assert relative_error(value, true_value) <= tolerance(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend: Backend) -> None:
    problem = random_problem((6, 5, 7, 8, 16)).to(torch.float32, torch.device("cpu"))
    masks = {"word_mask": problem.word_mask, "frame_mask": problem.frame_mask}
    plain = token_interaction(problem.words, problem.frames, **masks, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = token_interaction(problem.words, problem.frames, **masks, backend=backend)
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dtype", "reason"), [(torch.float32, "no tensor cores"), (torch.float16, "")], ids=str
)
def test_where_the_kernel_is_no_gain_the_choice_says_why(
    dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    choose = op.choose_backend
    monkeypatch.setattr(
        op, "choose_backend", lambda name, **about: asked.update(about) or choose(name, **about)
    )
    token_interaction(torch.zeros(1, 2, 4, dtype=dtype), torch.zeros(1, 3, 4, dtype=dtype))
    assert asked["cannot"] == ""
    assert reason in asked["slower"] if reason else asked["slower"] == ""


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.num_bytes = max(self.num_bytes, tensor.numel() * tensor.element_size())
        return out


# One text in a block with some of the videos, and some of the texts with all the videos.
@pytest.mark.parametrize("block_bytes", [2**15, 2**17], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", SETTINGS[::3], ids=str)
def test_the_products_of_all_pairs_never_exist_at_once(
    options: dict[str, Any], dtype: torch.dtype, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "BLOCK_BYTES", block_bytes)
    problem = random_problem((20, 32, 24, 16, 128)).to(dtype, torch.device("cpu"))
    all_products = 20 * 32 * 24 * 16 * 4
    tokens = [4 * problem.words.numel(), 4 * problem.frames.numel()]
    kept = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        scores_and_gradients(problem, **options, backend="eager")
    assert largest.num_bytes <= max(2 * block_bytes, *tokens) < all_products / 2
    # The tokens in float32 once, and something of each token with each item on the other side.
    assert sum(kept.values()) < sum(tokens) + all_products / 2


def test_padding_does_not_matter() -> None:
    problem = random_problem((3, 4, 4, 3, 5))
    padded = replace(
        problem,
        words=F.pad(problem.words, (0, 0, 0, 3), value=9.0),
        word_mask=F.pad(problem.word_mask, (0, 3)),
        word_weights=F.pad(problem.word_weights, (0, 3), value=9.0),
        frames=F.pad(problem.frames, (0, 0, 0, 2), value=9.0),
        frame_mask=F.pad(problem.frame_mask, (0, 2)),
        frame_weights=F.pad(problem.frame_weights, (0, 2), value=9.0),
    )
    for options in SETTINGS:
        torch.testing.assert_close(
            scores_and_gradients(padded, **options)[0], scores_and_gradients(problem, **options)[0], **EXACT
        )


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 5), options=st.sampled_from(SETTINGS), seed=st.integers(0, 2**16)
)
def test_words_and_frames_exchanged_give_the_transposed_scores(
    shape: Shape, options: dict[str, Any], seed: int
) -> None:
    problem = random_problem(shape, seed=seed)
    other_side = {"both": "both", "words": "frames", "frames": "words"}[options["sides"]]
    scores, *gradients = scores_and_gradients(problem, **options)
    exchanged, *others = scores_and_gradients(problem.exchanged(), **(options | {"sides": other_side}))
    torch.testing.assert_close(exchanged.T, scores, **EXACT)
    order = (1, 0) if len(gradients) == 2 else (1, 0, 3, 2) if len(gradients) == 4 else (1, 0, 2)
    for ours, theirs in zip(gradients, [others[i] for i in order], strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), sizes=st.tuples(*[st.integers(1, 6)] * 4))
def test_ti_and_wti_of_unit_vectors_are_cosines(seed: int, sizes: tuple[int, int, int, int]) -> None:
    texts, num_words, videos, num_frames = sizes
    words, frames = unit(texts, num_words, 3, seed=seed), unit(videos, num_frames, 3, seed=seed + 1)
    weights = {
        "word_weights": words.sum(-1).softmax(dim=-1),
        "frame_weights": frames.sum(-1).softmax(dim=-1),
    }
    for scores in (token_interaction(words, frames), token_interaction(words, frames, **weights)):
        assert scores.abs().max() <= 1 + 1e-12
    own = token_interaction(words, words, **dict.fromkeys(weights, weights["word_weights"]))
    torch.testing.assert_close(own.diagonal(), torch.ones(texts, dtype=torch.float64), **EXACT)


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(5)), options=st.sampled_from(SETTINGS), seed=st.integers(0, 2**16))
def test_the_order_of_tokens_does_not_matter(order: list[int], options: dict[str, Any], seed: int) -> None:
    problem = random_problem((2, 5, 3, 4, 3), seed=seed)
    shuffled = replace(
        problem,
        words=problem.words[:, order],
        word_mask=problem.word_mask[:, order],
        word_weights=problem.word_weights[:, order],
    )
    torch.testing.assert_close(
        scores_and_gradients(shuffled, **options)[0], scores_and_gradients(problem, **options)[0], **EXACT
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_published_heads_are_settings(backend: Backend) -> None:
    words, frames = unit(3, 4, 6, seed=0), unit(5, 2, 6, seed=1)
    products = torch.einsum("atd,bvd->abtv", words, frames)
    text_weight, video_weight = words.sum(-1).softmax(dim=-1), frames.sum(-1).softmax(dim=-1)

    def score(**options: Any) -> Tensor:
        return token_interaction(words, frames, **options, backend=backend)

    # TI and WTI: DRL (arXiv 2203.07111).
    best_frame, best_word = products.amax(3), products.amax(2)
    torch.testing.assert_close(score(), (best_frame.mean(2) + best_word.mean(2)) / 2)
    wti = torch.einsum("abt,at->ab", best_frame, text_weight)
    wti = (wti + torch.einsum("abv,bv->ab", best_word, video_weight)) / 2
    torch.testing.assert_close(score(word_weights=text_weight, frame_weights=video_weight), wti)

    # FILIP (arXiv 2111.07783): one similarity for each direction of the loss.
    torch.testing.assert_close(score(sides="words"), best_frame.mean(2))
    torch.testing.assert_close(score(sides="frames"), best_word.mean(2))

    # The head of Mug-STAN (arXiv 2311.15075).
    t2v = (products * (100 * products).softmax(dim=3)).sum(3)
    v2t = (products * (100 * products).softmax(dim=2)).sum(2)
    mug = ((t2v * (100 * t2v).softmax(dim=2)).sum(2) + (v2t * (100 * v2t).softmax(dim=2)).sum(2)) / 2
    torch.testing.assert_close(score(pool_scale=100.0, total_scale=100.0), mug)

    # Frames pooled for a sentence: X-Pool (arXiv 2203.15086) without its projections and norms.
    sentence = words[:, 0]
    attention = (100 * torch.einsum("ad,bvd->abv", sentence, frames)).softmax(dim=2)
    pooled = torch.einsum("abv,bvd->abd", attention, frames)
    torch.testing.assert_close(
        token_interaction(sentence[:, None], frames, pool_scale=100.0, sides="words", backend=backend),
        torch.einsum("ad,abd->ab", sentence, pooled),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_texts_or_no_videos_give_an_empty_result(backend: Backend) -> None:
    words, frames = torch.zeros(0, 3, 4).requires_grad_(), torch.zeros(2, 3, 4)
    scores = token_interaction(words, frames, backend=backend)
    assert scores.shape == (0, 2)
    assert torch.autograd.grad(scores.sum(), words)[0].shape == words.shape
    assert token_interaction(frames, words, backend=backend).shape == (2, 0)


def test_more_tokens_than_a_tile_holds_on_both_sides_are_left_to_eager() -> None:
    tokens = torch.zeros(1, 129, 4)
    assert token_interaction(tokens, tokens).shape == (1, 1)
    with pytest.raises(
        RuntimeError, match="fit a tile of 128 tokens, and there are 129 words and 129 frames"
    ):
        token_interaction(tokens, tokens, backend="triton")
    with pytest.raises(RuntimeError, match="computes in float32, and the tokens are float64"):
        token_interaction(tokens[:, :2].double(), tokens.double(), backend="triton")


WORDS, FRAMES = torch.zeros(2, 3, 4), torch.zeros(5, 6, 4)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"words": torch.zeros(2, 4)}, ValueError, r"words must be \(items, tokens, dim\).* got \(2, 4\)"),
        ({"frames": torch.zeros(5, 0, 4)}, ValueError, r"frames must be .*, got \(5, 0, 4\)"),
        ({"words": WORDS.int()}, TypeError, r"words must be float64.* got torch.int32"),
        ({"frames": torch.zeros(5, 6, 8)}, ValueError, "words have 4 columns but frames 8"),
        ({"frames": FRAMES.half()}, TypeError, r"words are torch.float32 but frames torch.float16"),
        ({"frames": FRAMES.to("meta")}, ValueError, "frames is on meta but the words are on cpu"),
        ({"word_mask": torch.ones(2, 4).bool()}, ValueError, r"word_mask must be \(2, 3\).* got \(2, 4\)"),
        ({"frame_mask": torch.ones(5, 6)}, TypeError, r"frame_mask must be bool .* got torch.float32"),
        ({"word_weights": torch.ones(2, 4)}, ValueError, r"word_weights must be \(2, 3\).* got \(2, 4\)"),
        (
            {"frame_weights": torch.ones(5, 6).int()},
            TypeError,
            "frame_weights must be float64.* got torch.int32",
        ),
        (
            {"frame_weights": torch.ones(5, 6), "sides": "words"},
            ValueError,
            "frame_weights would have no effect with sides='words'",
        ),
        (
            {"word_weights": torch.ones(2, 3), "total_scale": 1.0},
            ValueError,
            "word_weights would have no effect with total_scale=1.0",
        ),
        ({"pool_scale": 0.0}, ValueError, r"pool_scale \(0.0\) must be positive and finite"),
        ({"total_scale": torch.inf}, ValueError, r"total_scale \(inf\) must be positive and finite"),
        ({"sides": "texts"}, ValueError, r"sides \('texts'\) must be one of 'both', 'words', 'frames'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_input_is_refused(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"words": WORDS, "frames": FRAMES} | changed
    # `unwrap`: the shape types, where they are switched on, would refuse these first.
    with pytest.raises(error, match=message):
        unwrap(token_interaction)(**arguments)
