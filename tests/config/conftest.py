"""Fixtures of the configuration's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, where no file stands in an option's way."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
