"""The one way by which tests find the real clips and annotation files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def data_path(relative: str) -> Path:
    """Path of a file of the test data; skips the test with the reason where the data is not there.

    The folder is `VIDEOLM_TEST_DATA`, by default `../shared/data` beside the checkout. With
    `VIDEOLM_REQUIRE_DATA=1` a missing file fails the test instead.
    """
    folder = Path(os.environ.get("VIDEOLM_TEST_DATA", _DEFAULT))
    path = folder / relative
    if path.exists():
        return path
    reason = f"test data {path} not found; set VIDEOLM_TEST_DATA to the folder that holds it"
    if os.environ.get("VIDEOLM_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
