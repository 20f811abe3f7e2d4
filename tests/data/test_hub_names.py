"""Which data sets of the hub a configuration reads: these names are published, and no path is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data.hub_names import hub_names


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"path": "org/name"}, ["org/name"]),
        ({"path": "glue"}, ["glue"]),
        ({"path": "json", "data_files": "hf://datasets/org/name@main/a.json"}, ["org/name"]),
        ({"path": "json", "data_files": {"train": "a.json"}}, []),
        ({"train_file": ["hf://datasets/org/name/a.jsonl", "b.jsonl"]}, ["org/name"]),
        ({"train_file": "a.jsonl", "validation_file": "hf://datasets/org/held_out/a.jsonl"}, ["org/held_out"]),
        ({"mix": [{"path": "org/b"}, {"path": "org/a"}, {"train_file": "x.jsonl"}]}, ["org/a", "org/b"]),
    ],
)
def test_every_source_on_the_hub_is_named(options: dict[str, Any], names: list[str]) -> None:
    assert hub_names(DatasetConfig.model_validate({**options, "text": "{t}"})) == names


def test_a_folder_of_this_machine_is_not_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "rows").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for path in ("mine/rows", str(tmp_path / "mine")):
        assert hub_names(DatasetConfig(path=path, text="{t}")) == []
