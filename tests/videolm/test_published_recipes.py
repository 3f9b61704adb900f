"""The configs of published systems: each is a recipe, and makes its head at full size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from videolm.heads.presets import build_speaker
from videolm.recipes import SpeakerRecipe, read_recipe

CONFIGS = Path(__file__).parents[2] / "configs" / "captioning"
# Width of the tower's tokens and of its joint space.
TOWERS = {
    "openai/clip-vit-base-patch32": (768, 512),
    "openai/clip-vit-base-patch16": (768, 512),
    "openai/clip-vit-large-patch14": (1024, 768),
    "openai/clip-vit-large-patch14-336": (1024, 768),
    "Salesforce/blip2-opt-2.7b": (1408, 1408),
}
# Without the hub: what their config.json says.
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2"},
    "EleutherAI/gpt-j-6b": {"model_type": "gptj"},
    "lmsys/vicuna-7b-v1.5": {"model_type": "llama"},
    "facebook/opt-2.7b": {
        "model_type": "opt", "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
        "ffn_dim": 10240, "word_embed_proj_dim": 2560,
    },
}  # fmt: skip
# Millions of parameters of what stands before the language model.
CONNECTORS = {
    "git": 0.60,
    "clipcap": 31.47,
    "limber": 4.20,
    "llava_projector": 20.98,
    "blip2_qformer": 107.14,
    "evlgen": 88.11,
}


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_published_system_is_a_recipe_and_makes_its_head(name: str) -> None:
    recipe = read_recipe(CONFIGS / f"{name}.yaml")
    assert isinstance(recipe, SpeakerRecipe)
    assert recipe.name == name
    shape = recipe.head
    if "name" in shape.lm:
        shape = replace(shape, lm=LANGUAGE_MODELS[shape.lm["name"]])
    token_width, text_width = TOWERS[recipe.model]
    with torch.device("meta"):
        head = build_speaker(shape, token_width=token_width, text_width=text_width)
    millions = sum(parameter.numel() for parameter in head.connector.parameters()) / 1e6
    assert millions == pytest.approx(CONNECTORS[name], abs=0.01)
    assert any(parameter.requires_grad for parameter in head.lm.parameters()) == (shape.tune == "full")
    vocab_size = head.lm.get_input_embeddings().num_embeddings
    assert max(shape.start_token_id, shape.eos_token_id, shape.pad_token_id) < vocab_size
