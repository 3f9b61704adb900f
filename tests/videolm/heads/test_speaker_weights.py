"""A config.json from outside: whatever it says, the error names the file."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.videolm.heads.git_models import random_blip2, random_git
from videolm.heads.speaker_weights import read_speaker

GIT: dict[str, tuple[dict[str, Any], str]] = {
    "depth": (
        {"num_hidden_layers": 10**9},
        r"config\.json: the config asks for num_hidden_layers \(1000000000\)",
    ),
    "times": (
        {"num_image_with_embedding": 10**9},
        r"config\.json: the config .* but there are only 87 tensors",
    ),
    "no times": ({"num_image_with_embedding": -1}, r"config\.json: max_frames \(-1\) must be at least 0"),
    "heads": ({"num_attention_heads": 5}, r"config\.json: The hidden size \(32\) is not a multiple"),
    "no heads": ({"num_attention_heads": 0}, r"config\.json: ZeroDivisionError"),
    "activation": ({"hidden_act": "nonsense"}, r"config\.json: KeyError: 'nonsense'"),
    "width": ({"hidden_size": -32}, r"config\.json: RuntimeError: .*negative dimension"),
    "type": ({"hidden_size": "32"}, r"config\.json: .*'hidden_size'"),
    "id": ({"pad_token_id": 999}, r"config\.json: pad_token_id \(999\) must be in \[0, 30\)"),
    "negative id": ({"eos_token_id": -1}, r"config\.json: eos_token_id \(-1\) must be at least 0"),
    "vocabulary": ({"vocab_size": 31}, r"model\.safetensors: .*but the config asks for \(31, 32\)"),
}


@pytest.mark.parametrize("case", GIT)
def test_what_makes_no_git_is_named_with_its_file(case: str, tmp_path: Path) -> None:
    settings, message = GIT[case]
    random_git().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        read_speaker(tmp_path / "model.safetensors")


BLIP2: dict[str, tuple[str, dict[str, Any], str]] = {
    "depth": ("text_config", {"num_hidden_layers": 10**9}, "asks for text_layers.*but there are only"),
    "queries' depth": ("qformer_config", {"num_hidden_layers": 10**9}, "qformer_layers .*but there are only"),
    "cross": ("qformer_config", {"cross_attention_frequency": 0}, r"cross_every \(0\) must be at least 1"),
}


@pytest.mark.parametrize("case", BLIP2)
def test_what_makes_no_blip2_is_named_with_its_file(case: str, tmp_path: Path) -> None:
    part, settings, message = BLIP2[case]
    random_blip2().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {part: config[part] | settings}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        read_speaker(tmp_path / "model.safetensors")
