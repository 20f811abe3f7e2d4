"""A result says with what it was computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lora_ga_cli
from lora_ga_cli.report.provenance import provenance, version


def test_it_names_versions_machine_command_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python", "loraga", "train", "recipe=quickstart"])
    found = provenance()
    assert found["loraga"] == lora_ga_cli.__version__
    assert found["command"] == ["python", "loraga", "train", "recipe=quickstart"]
    assert {"torch", "transformers", "peft"} <= set(found["packages"])
    assert found["time"].endswith("+00:00")
    json.dumps(found)


def test_outside_a_repository_there_is_no_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["git"] is None


def test_a_package_that_is_not_there_is_absent() -> None:
    assert version("no-such-package-at-all") == "absent"
