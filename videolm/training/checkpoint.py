"""State of a training run on disk: what is needed to go on as if nothing had happened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

_NAME = "checkpoint.pt"


def save_checkpoint(folder: str | Path, state: dict[str, Any]) -> Path:
    """Writes `checkpoint.pt` whole: to a temporary name, synced, then renamed over the one before."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / _NAME, folder / f".{_NAME}.part"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def load_checkpoint(folder: str | Path) -> dict[str, Any] | None:
    """The state saved last, or None where there is none. Tensors and plain values only: no code is run."""
    path = Path(folder) / _NAME
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
