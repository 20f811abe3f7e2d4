"""Runs in tables and pictures: a name says which run is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.training.run_names import names_told_apart


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/mine", "old/../runs/other", "../elsewhere/mine"], ["runs/mine", "other", "elsewhere/mine"]),
        (["a/x/run", "b/x/run", "b/y/run"], ["a/x/run", "b/x/run", "y/run"]),
        (["a/run", "b/a/run"], ["here/a/run", "b/a/run"]),
        (["run", "run"], ["run", "run"]),
        ([], []),
    ],
)
def test_folders_of_one_name_are_told_apart_by_the_folders_around_them(
    folders: list[str], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert names_told_apart([Path(folder) for folder in folders]) == names
