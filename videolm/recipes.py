"""Recipes: what to train, on what and how. The only reader of YAML; everything inside is a frozen dataclass.

A config file has the keys of `Recipe`. Unknown keys, wrong types and values out of range are errors that name
the key. `--set training.lr=1e-4` on a command line overrides one value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videolm.encoders.presets import CLIPShape
from videolm.training.loop import Schedule
from videolm.video.samplers import Sampler
from videolm.video.transforms import Preprocess


@dataclass(frozen=True)
class WorldData:
    """A rendered world: made if the folder is empty, frames decoded once and cached."""

    folder: str
    num_videos: int
    seed: int = 0
    cached_frames: int = 16
    """Frames of each video that training draws from."""


@dataclass(frozen=True)
class Recipe:
    """A whole training run."""

    name: str
    data: WorldData
    model: CLIPShape
    sampler: Sampler
    training: Schedule
    preprocessing: Preprocess = field(default_factory=Preprocess)
    licence: str = "Apache-2.0"


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `key.key=value` overrides; raises ValueError that names file and key."""
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(Recipe), OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))
        )
        assert isinstance(merged, DictConfig)
        recipe = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    assert isinstance(recipe, Recipe)
    return recipe
