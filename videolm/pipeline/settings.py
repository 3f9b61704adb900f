"""The settings that made a vector: of today, and of indexes that are older than some of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from videolm.encoders.presets import CLIPShape
from videolm.search.run import written_setting
from videolm.video.transforms import Preprocess

_KINDS = {"shape": CLIPShape, "preprocessing": Preprocess}


def with_new_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an index; what could not be chosen yet when it was made has the default of today."""
    try:
        return {**settings, **{key: asdict(kind(**settings[key])) for key, kind in _KINDS.items()}}
    # Of another version, or damaged: it will differ as it is.
    except (KeyError, TypeError, ValueError):
        return dict(settings)


def as_written(settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """`settings`, but in the words of the run that is in `out` where those mean the same.

    Its shards carry a hash of the words: a run of before some setting could be chosen is gone on with as it began.
    """
    then = {key: written_setting(out, key) for key in _KINDS}
    now = json.loads(json.dumps({key: settings[key] for key in _KINDS}))
    same = json.loads(json.dumps(with_new_defaults(then))) == now
    return {**settings, **(then if same else {})}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has another value in two sets of settings: its name, with both values."""
    found = []
    for key, here in now.items():
        there = then.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            # Also what only the other one has.
            found += differences(there, dict.fromkeys(there) | dict(here))
        elif there != here:
            found.append(f"{key} ({there!r} there, {here!r} here)")
    return found
