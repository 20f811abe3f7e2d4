"""A result records the software and the machine that computed it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lora_ga_cli
from lora_ga_cli.report.provenance import provenance, version


def test_it_records_versions_machine_command_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python", "loraga", "train", "recipe=quickstart"])
    recorded = provenance()
    assert recorded["loraga"] == lora_ga_cli.__version__
    assert recorded["command"] == ["python", "loraga", "train", "recipe=quickstart"]
    assert {"torch", "transformers", "peft"} <= set(recorded["packages"])
    assert recorded["time"].endswith("+00:00")
    json.dumps(recorded)


def test_outside_a_repository_there_is_no_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["git"] is None


def test_a_package_that_is_not_installed_is_absent() -> None:
    assert version("no-such-package-at-all") == "absent"
