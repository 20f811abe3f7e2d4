"""What the tests of the configuration share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from lora_ga_cli.config.launch import launch
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import InvalidInput

BASE = "defaults:\n  - override /model: tiny\n  - override /dataset: quickstart\n"
"""The first three lines of a recipe that is complete with them."""


def lay_out(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Writes files by their path inside ``folder``, byte for byte."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)


def refused(*arguments: str) -> list[str]:
    """The faults of a command line that must be refused before any configuration comes out of it."""
    composed: list[Config] = []
    with pytest.raises(InvalidInput) as caught:
        launch(arguments, lambda config, _: composed.append(config))
    assert composed == []
    return [str(fault) for fault in caught.value.faults]


def jobs(*arguments: str) -> list[tuple[str, Config]]:
    """Title and configuration of every job of a command line."""
    composed: list[tuple[str, Config]] = []
    launch(arguments, lambda config, title: composed.append((title, config)))
    return composed


TABLE = """
title: Mine
rows: {LoRA: [method=lora], LoRA-GA: [method=lora_ga]}
full:
  overrides: [recipe=quickstart]
  seeds: [1, 2]
  columns: {loss: {measure: loss, value: validation_loss, format: number}}
"""
"""A table of one's own: two methods, two seeds, one column."""
