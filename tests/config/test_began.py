"""Where the relative paths of a stored configuration lead, seen from another folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.config.began import located


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, and a folder that is a data set."""
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "set").mkdir()
    return tmp_path


def of_set(folder: Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = located({"dataset": options}, folder)["dataset"]
    return found


@pytest.mark.parametrize("path", ["org/name", "set", "glue"])
def test_files_of_a_data_set_lie_in_it(folder: Path, path: str) -> None:
    if path == "glue":
        assert of_set(folder, path=path, data_files="b.jsonl")["data_files"] == "b.jsonl"
        return
    for files in ("a.jsonl", ["a.jsonl"], {"train": ["a.jsonl"]}):
        assert of_set(folder, path=path, data_files=files)["data_files"] == files


def test_files_in_a_format_lie_in_the_folder(folder: Path) -> None:
    there = str(folder / "a.jsonl")
    hub = "hf://datasets/org/name/a.jsonl"
    assert of_set(folder, path="json", data_files="a.jsonl")["data_files"] == there
    assert of_set(folder, path="json", data_files="*.jsonl")["data_files"] == str(folder / "*.jsonl")
    assert of_set(folder, path="json", data_files={"train": ["a.jsonl", hub], "test": "a.jsonl"})["data_files"] == {
        "train": [there, hub],
        "test": there,
    }


def test_every_source_of_a_mixture(folder: Path) -> None:
    mix = [
        {"train_file": ["a.jsonl"], "weight": 2.0},
        {"path": "set", "data_files": "a.jsonl"},
        {"path": "org/name"},
        {"path": "json", "data_files": {"train": "a.jsonl"}},
    ]
    assert of_set(folder, mix=mix)["mix"] == [
        {"train_file": [str(folder / "a.jsonl")], "weight": 2.0},
        {"path": str(folder / "set"), "data_files": "a.jsonl"},
        {"path": "org/name"},
        {"path": "json", "data_files": {"train": str(folder / "a.jsonl")}},
    ]
