"""Recipes: what to train, or to measure, on what and how. The only reader of YAML; all inside is frozen dataclasses.

A config file has the keys of `Recipe` or `SpeakerRecipe` (training), or of a benchmark's protocol (evaluation).
Unknown keys, wrong types and values out of range are errors that name the key. `--set training.lr=1e-4` on a command
line overrides one value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from videolm.datasets.protocol import (
    CaptionProtocol,
    QuestionProtocol,
    RetrievalProtocol,
    protocol_class,
)
from videolm.encoders.presets import CLIPShape
from videolm.heads.presets import SpeakerShape
from videolm.training.batches import Stage
from videolm.training.naming import Naming
from videolm.training.retrieval import Schedule
from videolm.training.speaking import SpeakerSchedule
from videolm.video.samplers import Sampler
from videolm.video.transforms import Preprocess

Config = TypeVar("Config")
Task = Literal["captioning", "videoqa"]


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
    """A whole training run of a dual encoder."""

    name: str
    data: WorldData
    model: CLIPShape
    sampler: Sampler
    training: Schedule
    preprocessing: Preprocess = field(default_factory=Preprocess)
    naming: list[Naming] = field(default_factory=list)
    """What the image tower learns before, one after the other."""
    licence: str = "Apache-2.0"

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_naming(self.naming, self.model, self.data)
        if self.model.image_size != self.preprocessing.image_size:
            raise ValueError(
                f"model.image_size ({self.model.image_size}) must be that of preprocessing "
                f"({self.preprocessing.image_size})"
            )
        _check_frames(self.training.num_frames, self.data)


@dataclass(frozen=True)
class Towers:
    """A dual encoder that is not trained yet."""

    model: CLIPShape
    sampler: Sampler
    preprocessing: Preprocess = field(default_factory=Preprocess)
    naming: list[Naming] = field(default_factory=list)
    """What the image tower learns before, one after the other."""
    licence: str = "Apache-2.0"


@dataclass(frozen=True)
class SpeakerRecipe:
    """A training run of a speaker on the towers of a model."""

    name: str
    task: Task
    data: WorldData
    head: SpeakerShape
    training: SpeakerSchedule
    model: str | None = None
    """Whose towers: "mini", a folder, or the id of a model on the hub."""
    towers: Towers | None = None
    """Or these, from scratch."""
    head_from: Task | None = None
    """The head begins with the weights of this one of the model's."""
    split: Literal["train", "full-train"] = "train"
    """Videos to learn from: "full-train" in MSR-VTT's own folder, where "train", which is for retrieval, holds two
    thirds of "full-test"."""
    test_split: str = "test"
    """What the finished model is measured on."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_frames(self.training.num_frames, self.data)
        if (self.model is None) == (self.towers is None):
            raise ValueError(
                "give model, whose towers are taken, or towers, which begin from scratch, and not both"
            )
        if self.towers is not None:
            _check_naming(self.towers.naming, self.towers.model, self.data)
        if self.towers is not None and not (self.training.trains_towers and self.training.contrastive_weight):
            raise ValueError(
                "towers that begin from scratch need training.trains_towers, and a training.contrastive_weight "
                "above 0, from which alone the text tower learns"
            )
        if self.head_from is not None and self.model is None:
            raise ValueError(f"head_from ({self.head_from}) is a head of model, which is missing")
        if self.training.contrastive_weight and self.task != "captioning":
            raise ValueError(
                "training.contrastive_weight needs captions, which compare with videos; leave it 0 for "
                f"task {self.task}"
            )
        if self.training.questions_per_video and self.task != "captioning":
            raise ValueError(
                f"training.questions_per_video are asked beside captions; leave it 0 for task {self.task}"
            )


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe | SpeakerRecipe:
    """The recipe in a YAML file, with `key.key=value` overrides; raises ValueError that names file and key.

    A file with the key `head` trains a speaker, another a dual encoder.
    """
    if _has_head(path):
        return _read(path, overrides, SpeakerRecipe)
    try:
        return _read(path, overrides, Recipe)
    except ValueError as error:
        raise ValueError(
            f"{error} (a recipe of a dual encoder; one of a speaker has the key head)"
        ) from error


def read_protocol(
    path: str | Path, overrides: Sequence[str] = ()
) -> RetrievalProtocol | CaptionProtocol | QuestionProtocol:
    """The protocol in a YAML file, with `key=value` overrides; raises ValueError that names file and key."""
    return _read(path, overrides, _protocol_class(path, overrides))


def _protocol_class(
    path: str | Path, overrides: Sequence[str]
) -> type[RetrievalProtocol | CaptionProtocol | QuestionProtocol]:
    """By the benchmark that the file or an override names; retrieval where neither does."""
    written = _open(path)
    try:
        values = OmegaConf.to_container(OmegaConf.merge(written, OmegaConf.from_dotlist(list(overrides))))
        if not isinstance(values, dict):
            raise ValueError("a protocol must have keys, as `benchmark: msrvtt`")
        return protocol_class(values.get("benchmark", RetrievalProtocol.benchmark))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_frames(stages: Sequence[Stage], data: WorldData) -> None:
    longest = max(stage.value for stage in stages)
    if longest > data.cached_frames:
        raise ValueError(
            f"data.cached_frames ({data.cached_frames}) must be at least the {longest} of num_frames"
        )


def _check_naming(naming: Sequence[Naming], model: CLIPShape, data: WorldData) -> None:
    if model.stem == "linear" and any(stage.part == "stem" for stage in naming):
        raise ValueError(
            "naming of part 'stem' needs one; set stem to 'conv' or 'conv_time', or part to 'tower'"
        )
    _check_frames([Stage(0.0, stage.num_frames) for stage in naming] or [Stage(0.0, 1)], data)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ValueError(f"name ({name!r}) must be a plain name, it becomes a folder")


def _has_head(path: str | Path) -> bool:
    return "head" in _open(path)


def _open(path: str | Path) -> Any:
    try:
        return OmegaConf.load(path)
    except FileNotFoundError:
        raise
    # OmegaConf raises OSError where the file holds a single value
    except (OmegaConfBaseException, OSError, ValueError, TypeError, YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: str | Path, overrides: Sequence[str], kind: type[Config]) -> Config:
    written = _open(path)
    try:
        parts = [written, OmegaConf.from_dotlist(list(overrides))]
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
