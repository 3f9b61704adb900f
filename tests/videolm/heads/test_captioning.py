"""A language model behind a connector: what generate gives is what the whole sequence says."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from transformers import GenerationConfig, GitConfig

from tests.videolm.heads.speaking import END, PAD, START, VOCAB, gpt2, head, llama, resampler, rows_of, video
from videolm.heads.captioning import IGNORED
from videolm.heads.git import GitDecoder
from videolm.heads.prefix_mask import full_prefix_mask, positions
from videolm.heads.presets import ConnectorShape, SpeakerShape, build_speaker

LMS = {"gpt2": gpt2, "llama": llama}
ENDS = {"bos_token_id": START, "eos_token_id": END}
PROMPTS = torch.tensor([[START, 7, 8, 9], [PAD, PAD, START, 11], [PAD, START, 12, 13]])


@pytest.fixture(autouse=True)
def _same_numbers_every_run() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[(lm, attention) for lm in LMS for attention in ("causal", "full")], ids="-".join)
def model(request):
    lm, attention = request.param
    return head(LMS[lm](), prefix_attention=attention)


def greedy(model, prefix, ids, mask, *, steps):
    """Token by token from the whole sequence, without a cache."""
    start = ids.shape[1]
    for _ in range(steps):
        following = model(prefix, ids, mask)[:, -1].argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, following], dim=1)
        mask = torch.cat([mask, torch.ones_like(following, dtype=torch.bool)], dim=1)
    return ids[:, start:]


def until_end(row):
    row = row.tolist()
    return row[: row.index(END)] if END in row else [token for token in row if token != PAD]


@torch.no_grad()
def test_with_a_cache_and_without_the_same_words_come(model):
    prefix = model.prefix(video(3, lengths=[4, 1, 3]))
    mask = PROMPTS != PAD
    cached = model.generate(prefix, PROMPTS, mask, max_new_tokens=8)
    uncached = greedy(model, prefix, PROMPTS, mask, steps=8)
    assert [until_end(row) for row in cached] == [until_end(row) for row in uncached]
    # different videos say different things, else this shows nothing
    assert len({tuple(row) for row in uncached.tolist()}) == 3


@pytest.mark.parametrize("num_beams", [1, 4])
@torch.no_grad()
def test_a_video_of_a_batch_says_what_it_says_alone(model, num_beams):
    videos = video(3, lengths=[4, 1, 3])
    mask = PROMPTS != PAD
    together = model.generate(model.prefix(videos), PROMPTS, mask, max_new_tokens=8, num_beams=num_beams)
    for row in range(3):
        prefix = model.prefix(rows_of(videos, slice(row, row + 1)))
        ids = PROMPTS[row : row + 1, int((~mask[row]).sum()) :]
        alone = model.generate(
            prefix, ids, torch.ones_like(ids, dtype=torch.bool), max_new_tokens=8, num_beams=num_beams
        )
        assert until_end(alone[0]) == until_end(together[row])


@torch.no_grad()
def test_beams_find_the_likeliest_text_of_all(model):
    prefix = model.prefix(video(1))
    ids, mask = PROMPTS[:1], PROMPTS[:1] != PAD
    # with as many beams as there are tokens, two steps are an exhaustive search
    found = model.generate(
        prefix, ids, mask, max_new_tokens=2, min_new_tokens=2, num_beams=50, length_penalty=0.0
    )
    first = model(prefix, ids, mask)[:, -1].log_softmax(dim=-1)
    pairs = torch.cartesian_prod(torch.arange(50), torch.arange(50))
    pairs = pairs[pairs[:, 0] != END]
    second = model(
        rows_of(prefix, [0] * 50),
        torch.cat([ids.expand(50, -1), torch.arange(50)[:, None]], dim=1),
        torch.ones(50, 5, dtype=torch.bool),
    )[:, -1].clone()
    # the end token is not to come before two are written
    second[:, END] = -torch.inf
    first[:, END] = -torch.inf
    scores = first[0].log_softmax(-1)[pairs[:, 0]] + second.log_softmax(dim=-1)[pairs[:, 0], pairs[:, 1]]
    assert found[0].tolist() == pairs[scores.argmax()].tolist()


@torch.no_grad()
def test_sampling_is_the_generators(model):
    prefix = model.prefix(video(1))
    ids, mask = PROMPTS[:1], PROMPTS[:1] != PAD
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(model.generate(prefix, ids, mask, max_new_tokens=8, do_sample=True).tolist())
    assert texts[0] == texts[1] != texts[2]


@torch.no_grad()
def test_likelihood_is_the_sum_of_the_targets_tokens_whoever_stands_beside_them(model):
    prefix = model.prefix(video(3, lengths=[4, 1, 3]))
    mask = PROMPTS != PAD
    targets = torch.randint(5, 50, (3, 4, 5))
    lengths = torch.tensor([[1, 5, 3, 0], [2, 2, 4, 1], [5, 1, 1, 3]])
    target_mask = torch.arange(5) < lengths[..., None]
    scores = model.log_likelihood(prefix, PROMPTS, mask, targets, target_mask)
    for row in range(3):
        for candidate in range(4):
            words = targets[row, candidate, : lengths[row, candidate]]
            ids = torch.cat([PROMPTS[row, mask[row]], words])[None]
            logits = model(rows_of(prefix, slice(row, row + 1)), ids, torch.ones_like(ids, dtype=torch.bool))
            said = logits[0].log_softmax(dim=-1)[len(ids[0]) - len(words) - 1 : -1]
            expected = said.gather(1, words[:, None]).sum()
            torch.testing.assert_close(scores[row, candidate], expected, atol=1e-4, rtol=1e-4)
    order = torch.tensor([2, 0, 3, 1])
    other = model.log_likelihood(prefix, PROMPTS, mask, targets[:, order], target_mask[:, order])
    torch.testing.assert_close(other, scores[:, order], atol=1e-5, rtol=1e-5)


def test_many_candidates_are_read_some_at_a_time_with_the_same_scores(model, monkeypatch):
    prefix, mask = model.prefix(video(3, lengths=[4, 1, 3])), PROMPTS != PAD
    targets = torch.randint(5, 50, (3, 7, 4))
    target_mask = torch.arange(4) < torch.randint(1, 5, (3, 7, 1))
    read = []
    model.lm.register_forward_pre_hook(lambda _, __, given: read.append(given), with_kwargs=True)
    whole = model.log_likelihood(prefix, PROMPTS, mask, targets, target_mask)
    assert [len(given["input_ids"]) for given in read[1:]] == [21]
    # of one candidate: keys and values, float32, of 13 places in two layers, and twice the logits of its words
    width = model.lm.config.hidden_size // model.lm.config.num_attention_heads
    width *= getattr(model.lm.config, "num_key_value_heads", model.lm.config.num_attention_heads)
    of_one = 2 * 2 * 13 * width * 4 + 2 * 4 * 4 * VOCAB
    read.clear()
    monkeypatch.setattr("videolm.heads.captioning._BYTES_AT_ONCE", 3 * 3 * of_one)
    parts = model.log_likelihood(prefix, PROMPTS, mask, targets, target_mask)
    assert [len(given["input_ids"]) for given in read[1:]] == [9, 9, 3]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_candidates_that_are_none_and_targets_without_tokens_need_no_model():
    model = head()
    prefix, mask = model.prefix(video(3)), PROMPTS != PAD
    for shape in ((3, 0, 4), (3, 2, 0)):
        scores = model.log_likelihood(
            prefix, PROMPTS, mask, torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
        )
        assert scores.tolist() == [[0.0] * shape[1]] * 3


@torch.no_grad()
def test_padding_left_or_right_is_not_seen(model):
    prefix = model.prefix(video(1))
    ids = torch.tensor([[START, 7, 8, 9]])
    seen = torch.ones(1, 4, dtype=torch.bool)
    plain = model(prefix, ids, seen)
    padded = torch.cat([torch.full((1, 3), 17), ids, torch.full((1, 2), 18)], dim=1)
    mask = torch.tensor([[False] * 3 + [True] * 4 + [False] * 2])
    torch.testing.assert_close(model(prefix, padded, mask)[:, 3:7], plain, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_cross_entropy_of_the_targets(model):
    prefix = model.prefix(video(3))
    mask = PROMPTS != PAD
    targets = torch.randint(5, 50, (3, 4)).masked_fill(~mask, IGNORED)
    said = model(prefix, PROMPTS, mask).double().log_softmax(dim=-1)
    rows, places = mask.nonzero(as_tuple=True)
    plain = -said[rows, places, targets[rows, places]].mean()
    assert model.loss(prefix, PROMPTS, mask, targets).item() == pytest.approx(plain.item(), rel=1e-5)
    smooth = 0.9 * plain - 0.1 * said[rows, places].mean()
    loss = model.loss(prefix, PROMPTS, mask, targets, label_smoothing=0.1)
    assert loss.item() == pytest.approx(smooth.item(), rel=1e-5)
    none = model.loss(prefix, PROMPTS, mask, torch.full_like(PROMPTS, IGNORED), label_smoothing=0.1)
    assert none.item() == 0


def test_several_texts_of_a_video_share_what_is_read_of_it(model):
    clip, ids = video(3, lengths=[4, 3, 4]), PROMPTS[:, None].repeat(1, 2, 1).flatten(0, 1)
    ids[1::2, -1] = 5
    mask, targets = ids != PAD, ids.roll(1, dims=1)
    losses, grads = [], []
    for shared in (True, False):
        model.zero_grad()
        prefix = model.prefix(clip if shared else rows_of(clip, [0, 0, 1, 1, 2, 2]))
        loss = model.loss(prefix, ids, mask, targets.masked_fill(~mask, IGNORED))
        loss.backward()
        losses.append(loss.detach())
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses)
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-5, rtol=1e-4, msg=name)
    with pytest.raises(ValueError, match="5 texts cannot be of 3 videos"):
        model(model.prefix(clip), ids[:5], mask[:5])


def test_a_full_prefix_sees_itself_and_words_see_what_is_before_them():
    exists = torch.tensor([[True, False, True, True, True]])
    seen = full_prefix_mask(exists, num_places=3, dtype=torch.float32)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 0, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [1, 0, 1, 1, 1],
    ]
    assert positions(exists).tolist() == [[0, 0, 1, 2, 3]]


@pytest.mark.parametrize(("attention", "is_same"), [("causal", True), ("full", False)])
@torch.no_grad()
def test_only_a_full_prefix_looks_forward(attention, is_same):
    model = head(connector=resampler(num_queries=0, max_frames=0), prefix_attention=attention)
    hidden = []
    model.lm.transformer.ln_f.register_forward_hook(lambda _, __, out: hidden.append(out))
    clip = video(1)
    for _ in range(2):
        model(model.prefix(clip), PROMPTS[:1], PROMPTS[:1] != PAD)
        clip.tokens[:, -1] = torch.randn(16)
    # the first place of the prefix, and the last word
    assert torch.equal(hidden[0][0, 0], hidden[1][0, 0]) == is_same
    assert not torch.allclose(hidden[0][0, -1], hidden[1][0, -1])


@torch.no_grad()
def test_the_head_computes_in_the_dtype_of_its_model(model):
    clip = video(3)
    ids, mask = PROMPTS, PROMPTS != PAD
    expected = model.log_likelihood(model.prefix(clip), ids, mask, ids[:, None], (ids >= 0)[:, None])
    model.to(torch.bfloat16)
    rounded = type(clip)(**{n: v.bfloat16() if n == "tokens" else v for n, v in vars(clip).items()})
    prefix = model.prefix(rounded)
    assert prefix.embeds.dtype == torch.bfloat16
    assert model.generate(prefix, ids, mask, max_new_tokens=4).shape == (3, 4)
    scores = model.log_likelihood(prefix, ids, mask, ids[:, None], (ids >= 0)[:, None])
    torch.testing.assert_close(scores, expected, atol=1.0, rtol=0.1)


@pytest.mark.parametrize("tune", ["full", "frozen"])
def test_what_is_tuned_learns_and_the_rest_stays(tune):
    model = head(tune=tune).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.loss(model.prefix(video(3)), PROMPTS, PROMPTS != PAD, PROMPTS).backward()
    optimizer.step()
    still = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    of_lm = {name for name in before if name.startswith("lm.")}
    assert still == (of_lm if tune == "frozen" else set())


def git_decoder():
    return GitDecoder(
        GitConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            **ENDS,
            pad_token_id=PAD,
            initializer_range=0.4,
        )
    ).eval()


@pytest.mark.skipif(find_spec("peft") is None, reason="needs the extra lora")
@pytest.mark.parametrize("attention", ["causal", "full"])
@pytest.mark.parametrize("build", [gpt2, llama, git_decoder])
@torch.no_grad()
def test_lora_starts_as_the_model_and_trains_little(build, attention):
    lm = build()
    plain = head(lm, prefix_attention=attention)
    prefix, mask = plain.prefix(video(3)), PROMPTS != PAD
    before = plain(prefix, PROMPTS, mask)
    size = sum(p.numel() for p in lm.parameters())
    model = head(lm, plain.connector, tune="lora", lora_rank=2, prefix_attention=attention)
    torch.testing.assert_close(model(prefix, PROMPTS, mask), before)
    trained = {name: p for name, p in model.lm.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)
    assert sum(p.numel() for p in trained.values()) < size / 2
    for parameter in trained.values():
        parameter.add_(0.5)
    after = model(prefix, PROMPTS, mask)
    assert not torch.allclose(after, before)
    cached = model.generate(prefix, PROMPTS, mask, max_new_tokens=5)
    uncached = greedy(model, prefix, PROMPTS, mask, steps=5)
    assert [until_end(row) for row in cached] == [until_end(row) for row in uncached]
    again = head(build(), resampler(), tune="lora", lora_rank=2, prefix_attention=attention)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(prefix, PROMPTS, mask), after)


@torch.no_grad()
def test_what_a_checkpoint_says_of_generating_is_forgotten():
    lm = gpt2()
    plain = head(copy.deepcopy(lm))
    lm.generation_config = GenerationConfig(
        do_sample=True, repetition_penalty=5.0, suppress_tokens=[7], min_new_tokens=6
    )
    model = head(lm, plain.connector)
    prefix, mask = plain.prefix(video(3)), PROMPTS != PAD
    expected = greedy(plain, prefix, PROMPTS, mask, steps=8)
    for _ in range(2):
        ids = model.generate(prefix, PROMPTS, mask, max_new_tokens=8)
        assert [until_end(row) for row in ids] == [until_end(row) for row in expected]


def test_settings_that_cannot_work_are_refused_by_name():
    model = head()
    prefix, mask = model.prefix(video(3)), PROMPTS != PAD
    for settings, message in (
        ({"cache_implementation": "static"}, "cache_implementation \\('static'\\) must be 'dynamic'"),
        (
            {"prefill_chunk_size": 3},
            r"prefill_chunk_size \(3\) is no setting here: the prefix is read in one",
        ),
        ({"eos_token_id": [4, 5]}, r"eos_token_id \(\[4, 5\]\) is no setting here: it is the head's own"),
        ({"pad_token_id": 1}, "pad_token_id"),
        ({"attention_mask": None}, "attention_mask"),
        ({"return_dict_in_generate": True}, "token ids are returned"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(prefix, PROMPTS, mask, max_new_tokens=2, **settings)


@torch.no_grad()
def test_a_full_prefix_is_read_by_several_threads_at_once():
    model = head(prefix_attention="full")
    prefixes = [model.prefix(video(3, frames=frames)) for frames in (4, 2)]
    wide = model.connector
    model.connector = resampler(num_queries=2).eval()
    prefixes += [model.prefix(video(3)), model.prefix(video(3))]
    model.connector = wide
    mask = PROMPTS != PAD

    def write(prefix):
        return model.generate(prefix, PROMPTS, mask, max_new_tokens=8).tolist()

    alone = [write(prefix) for prefix in prefixes]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, prefixes * 4)) == alone * 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids="cp")
@torch.no_grad()
def test_a_head_is_copied_with_its_full_prefix(copied):
    model = head(connector=resampler(num_queries=0, max_frames=0), prefix_attention="full")
    prefix, mask = model.prefix(video(3)), PROMPTS != PAD
    expected = model(prefix, PROMPTS, mask)
    causal = head(model.lm, model.connector)(prefix, PROMPTS, mask)
    assert not torch.allclose(causal, expected, atol=1e-3)
    torch.testing.assert_close(copied(model)(prefix, PROMPTS, mask), expected)
    # a second head around the same model does not let the prefix see itself twice
    torch.testing.assert_close(
        head(model.lm, model.connector, prefix_attention="full")(prefix, PROMPTS, mask), expected
    )


@torch.no_grad()
def test_what_does_not_fit_into_the_model_is_told_in_numbers():
    model = head(connector=resampler(num_queries=0, max_frames=0))
    # 64 places: 60 of the video, and four words
    prefix, mask = model.prefix(video(1, frames=20, tokens=3)), PROMPTS[:1] != PAD
    ids = PROMPTS[:1]
    assert model(prefix, ids, mask).shape == (1, 4, VOCAB)
    assert model.generate(prefix, ids, mask, max_new_tokens=1).shape == (1, 1)
    room = "has 64 places, but the video takes 60 of them and prompt and text up to 5;.*fewer frames"
    with pytest.raises(ValueError, match=room):
        model(prefix, torch.full((1, 5), 7), torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=room):
        model.generate(prefix, ids, mask, max_new_tokens=2)
    with pytest.raises(ValueError, match=room):
        model.log_likelihood(prefix, ids, mask, ids[:, None, :1], mask[:, None, :1])
    # padding takes no place
    short = model.prefix(video(2, frames=22, tokens=3, lengths=[20, 1]))
    assert model(short, ids.expand(2, -1), mask.expand(2, -1)).shape == (2, 4, VOCAB)
    with pytest.raises(ValueError, match=r"input_ids \(3 to 50\) must be in \[0, 50\)"):
        model(prefix, torch.tensor([[START, 50]]), mask[:, :2])
    with pytest.raises(ValueError, match=r"target_ids \(-1 to -1\) must be in \[0, 50\)"):
        model.log_likelihood(prefix, ids[:, :2], mask[:, :2], torch.tensor([[[-1]]]), mask[:, None, :1])


@torch.no_grad()
def test_git_has_places_for_its_words_alone():
    model = head(git_decoder(), resampler(num_queries=0, max_frames=0), prefix_attention="full")
    prefix = model.prefix(video(1, frames=30, tokens=3))
    words = torch.full((1, 64), 7)
    assert model(prefix, words, words > 0).shape == (1, 64, VOCAB)
    longer = torch.full((1, 65), 7)
    with pytest.raises(
        ValueError, match="has 64 places, but the video takes 0 of them and prompt and text up to 65"
    ):
        model(prefix, longer, longer > 0)


def test_prompts_are_padded_on_the_left_and_attention_knows_masks():
    model = head()
    prefix = model.prefix(video(1))
    ids, mask = torch.tensor([[START, PAD]]), torch.tensor([[True, False]])
    with pytest.raises(ValueError, match="prompts must be padded on the left"):
        model.generate(prefix, ids, mask)
    with pytest.raises(ValueError, match="prompts must be padded on the left"):
        model.log_likelihood(prefix, ids, mask, ids[:, None], mask[:, None])
    with pytest.raises(ValueError, match="targets must be padded on the right"):
        model.log_likelihood(prefix, ids, ids >= 0, ids[:, None], ~mask[:, None])
    lm = gpt2()
    lm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'sdpa' or 'eager', not 'flash_attention_2'"):
        head(lm, prefix_attention="full")


def test_eager_attention_gives_what_sdpa_gives():
    lm = gpt2()
    for attention in ("causal", "full"):
        model = head(lm, prefix_attention=attention)
        prefix, mask = model.prefix(video(3, lengths=[4, 1, 3])), PROMPTS != PAD
        lm.config._attn_implementation = "sdpa"
        expected = model(prefix, PROMPTS, mask)[mask]
        lm.config._attn_implementation = "eager"
        torch.testing.assert_close(model(prefix, PROMPTS, mask)[mask], expected, atol=1e-4, rtol=1e-4)


def test_a_shape_builds_its_head_and_a_wrong_one_is_named():
    shape = SpeakerShape(
        connector=ConnectorShape(num_queries=3, query_width=16, num_heads=2, reads_question=True),
        lm={"model_type": "gpt2", "vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2} | ENDS,
        start_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model = build_speaker(shape, token_width=16, text_width=8)
    assert model.connector.question is not None
    assert model.lm.config.n_layer == 1
    with pytest.raises(ValueError, match="must have a model_type"):
        SpeakerShape(**(vars(shape) | {"lm": {"n_embd": 16}}))
    with pytest.raises(ValueError, match=r"question_template \('what'\) must hold \{question\}"):
        SpeakerShape(**(vars(shape) | {"question_template": "what"}))
