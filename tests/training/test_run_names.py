"""Runs in tables and pictures: a name says which run is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.training.run_names import names_told_apart


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    folders = [Path("runs/mine"), Path("old/../runs/other"), elsewhere / "mine"]
    assert names_told_apart(folders) == ["runs/mine", "other", str(elsewhere / "mine")]
