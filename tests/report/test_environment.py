"""`loraga env`: what a bug report needs, and nothing that is secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lora_ga_cli import __version__
from lora_ga_cli.report.environment import variables
from tests.helpers import Loraga


def test_it_names_versions_machine_and_cache(loraga: Loraga, tmp_path: Path) -> None:
    out = loraga("env")
    for text in (__version__, torch.__version__, str(tmp_path / "cache"), "cores"):
        assert text in out


def test_it_is_plain_data_too(loraga: Loraga) -> None:
    found = json.loads(loraga("env", "--json").splitlines()[0])
    assert found["packages"]["torch"] == torch.__version__
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert found["cpu"]["memory"] > 2**20


def test_secrets_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    shown = variables(
        {
            "HF_TOKEN": "hf_abc",
            "LORAGA_JUDGE_API_KEY": "sk-abc",
            "HF_ENDPOINT": "https://me:word@mirror.example/hub",
            "HF_HOME": "/home/someone/models",
            "AWS_SECRET_ACCESS_KEY": "abc",
            "OMP_NUM_THREADS": "2",
            "EDITOR": "vi",
        }
    )
    assert shown == {
        "HF_ENDPOINT": "https://mirror.example/hub",
        "HF_HOME": "~/models",
        "HF_TOKEN": "(set, not shown)",
        "LORAGA_JUDGE_API_KEY": "(set, not shown)",
        "OMP_NUM_THREADS": "2",
    }
