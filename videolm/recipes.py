"""Recipes: what to train, or to measure, on what and how. The only reader of YAML; all inside is frozen dataclasses.

A config file has the keys of `Recipe` (training) or of `Protocol` (evaluation). Unknown keys, wrong types and
values out of range are errors that name the key. `--set training.lr=1e-4` on a command line overrides one value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from videolm.datasets.protocol import Protocol
from videolm.encoders.presets import CLIPShape
from videolm.training.loop import Schedule
from videolm.video.samplers import Sampler
from videolm.video.transforms import Preprocess

Config = TypeVar("Config")


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

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*", self.name):
            raise ValueError(f"name ({self.name!r}) must be a plain name, it becomes a folder")
        if self.model.image_size != self.preprocessing.image_size:
            raise ValueError(
                f"model.image_size ({self.model.image_size}) must be that of preprocessing "
                f"({self.preprocessing.image_size})"
            )
        longest = max(stage.value for stage in self.training.num_frames)
        if longest > self.data.cached_frames:
            raise ValueError(
                f"data.cached_frames ({self.data.cached_frames}) must be at least the {longest} of "
                "training.num_frames"
            )


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `key.key=value` overrides; raises ValueError that names file and key."""
    return _read(path, overrides, Recipe)


def read_protocol(path: str | Path, overrides: Sequence[str] = ()) -> Protocol:
    """The protocol in a YAML file, with `key=value` overrides; raises ValueError that names file and key."""
    return _read(path, overrides, Protocol)


def _read(path: str | Path, overrides: Sequence[str], kind: type[Config]) -> Config:
    try:
        parts = [OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))]
        for part in parts:
            _refuse_interpolation(OmegaConf.to_container(part, resolve=False))
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), *parts))
    except (OmegaConfBaseException, ValueError, TypeError, YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    assert isinstance(config, kind)
    return config


def _refuse_interpolation(value: Any) -> None:
    """A config is data: `${...}` could read the environment of whoever opens a stranger's file."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            _refuse_interpolation(inner)
    elif isinstance(value, str) and "${" in value:
        raise ValueError(f"{value!r} is an interpolation; write the value itself")
