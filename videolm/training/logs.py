"""What a training run writes while it runs: a line of JSON for every entry, and tensorboard on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from videolm.files import write_text


class Log:
    """Appends to `log.jsonl` in a folder; with `tensorboard`, to event files beside it as well.

    `first_step` is where the run goes on: what an earlier one wrote of later steps is taken out.
    """

    def __init__(self, folder: str | Path, *, first_step: int = 0, tensorboard: bool = False) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        if path.exists():
            _cut(path, first_step)
        self._file = path.open("a", encoding="utf-8")
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

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


def _cut(path: Path, last_step: int) -> None:
    # a kill may have cut the last line short
    whole = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in whole if json.loads(line)["step"] <= last_step]
    write_text(path, "".join(f"{line}\n" for line in kept))
