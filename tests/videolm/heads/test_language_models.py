"""Which families of language models may stand behind a prefix, and which would read it wrongly."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.videolm.heads.speaking import END, PAD, START, VOCAB, head, resampler, rows_of, video

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SMALL | {"num_key_value_heads": 2, "intermediate_size": 48}
PROMPTS = torch.tensor([[START, 7, 8, 9], [PAD, PAD, START, 11], [PAD, START, 12, 13]])
FIT = {
    "opt": SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "gpt_neox": SMALL | {"intermediate_size": 48},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "qwen2": LLAMA,
}
UNFIT = {
    "mistral": (LLAMA | {"sliding_window": 8}, r"'mistral' with sliding_window \(8\) does not see all"),
    "gemma2": (
        LLAMA | {"head_dim": 8, "sliding_window": 8},
        r"layer_types \(sliding_attention\) does not see all",
    ),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4}, "'mpt' takes no position_ids, so that padding"),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2}, "'mamba' keeps no cache of keys and values"),
    "bert": (SMALL | {"intermediate_size": 48}, r"still to come \(is_decoder is False\); set is_decoder"),
}
NOT_FULL = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": SMALL | {"alibi": True},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
}


def random_lm(kind, settings):
    torch.manual_seed(0)
    ids = {"vocab_size": VOCAB, "bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ids, **settings)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return lm


@pytest.mark.parametrize("attention", ["causal", "full"])
@pytest.mark.parametrize("kind", FIT)
@torch.no_grad()
def test_alone_in_a_batch_and_with_a_cache_the_words_are_the_same(kind, attention):
    model = head(
        random_lm(kind, FIT[kind]), resampler(num_queries=0, max_frames=0), prefix_attention=attention
    )
    prefix, mask = model.prefix(video(3, lengths=[4, 1, 3])), PROMPTS != PAD
    logits = model(prefix, PROMPTS, mask)
    for row in range(3):
        words = PROMPTS[row : row + 1, mask[row]]
        alone = model(rows_of(prefix, slice(row, row + 1)), words, words >= 0)
        torch.testing.assert_close(logits[row : row + 1, mask[row]], alone, atol=1e-4, rtol=1e-4)
    written = model.generate(prefix, PROMPTS, mask, max_new_tokens=3, min_new_tokens=3)
    targets = written[:, None]
    said = model(
        prefix,
        torch.cat([PROMPTS, written], dim=1),
        torch.cat([mask, torch.ones(3, 3, dtype=torch.bool)], dim=1),
    )[:, 3:-1]
    allowed = said.clone()
    allowed[:, :, END] = -torch.inf
    assert allowed.argmax(dim=-1).tolist() == written.tolist()
    expected = said.log_softmax(dim=-1).gather(2, written.unsqueeze(-1)).sum(dim=(1, 2))
    scores = model.log_likelihood(prefix, PROMPTS, mask, targets, targets >= 0)
    torch.testing.assert_close(scores[:, 0], expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", FIT)
@torch.no_grad()
def test_a_full_prefix_sees_forward_in_all_of_them(kind):
    lm, connector = random_lm(kind, FIT[kind]), resampler(num_queries=0, max_frames=0)
    first = []
    layers = next(m for m in lm.modules() if isinstance(m, torch.nn.ModuleList))
    layers[-1].register_forward_hook(
        lambda _, __, out: first.append((out[0] if isinstance(out, tuple) else out)[0, 0])
    )
    clip = video(1)
    other = replace(clip, tokens=clip.tokens.clone())
    other.tokens[:, -1] = torch.randn(16)
    for attention, is_same in (("causal", True), ("full", False)):
        model = head(lm, connector, prefix_attention=attention)
        first.clear()
        for seen in (clip, other):
            model(model.prefix(seen), PROMPTS[:1], PROMPTS[:1] != PAD)
        assert torch.equal(*first) == is_same


@pytest.mark.parametrize("kind", UNFIT)
def test_one_that_would_read_it_wrongly_is_refused(kind):
    settings, message = UNFIT[kind]
    with pytest.raises(ValueError, match=f"{message}.*take another one"):
        head(random_lm(kind, settings))


@pytest.mark.parametrize("kind", NOT_FULL)
def test_a_mask_that_it_does_not_take_is_refused(kind):
    lm = random_lm(kind, NOT_FULL[kind])
    with pytest.raises(ValueError, match=f"any mask, which a language model of type '{kind}' has not"):
        head(lm, prefix_attention="full")
    assert head(lm).prefix_attention == "causal"


def test_an_encoder_becomes_a_decoder_by_its_config():
    settings = UNFIT["bert"][0] | {"is_decoder": True}
    assert head(random_lm("bert", settings)).lm.config.is_decoder
