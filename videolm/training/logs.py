"""What a training run writes while it runs: a line of JSON for every entry, and tensorboard on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Log:
    """Appends to `log.jsonl` in a folder; with `tensorboard`, to event files beside it as well."""

    def __init__(self, folder: str | Path, *, tensorboard: bool = False) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))

    def __call__(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()
