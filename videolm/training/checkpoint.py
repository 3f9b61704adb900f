"""State of a training run on disk: what is needed to go on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from videolm.files import replace_file

_NAME = "checkpoint.pt"


def save_checkpoint(folder: str | Path, state: dict[str, Any]) -> Path:
    """Writes `checkpoint.pt` whole: under the name is the one before or this one."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _NAME
    replace_file(path, lambda temporary: torch.save(state, temporary))
    return path


def load_checkpoint(folder: str | Path) -> dict[str, Any] | None:
    """The state saved last, or None where there is none. Tensors and plain values only: no code is run."""
    path = Path(folder) / _NAME
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
