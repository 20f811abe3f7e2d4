"""A benchmark in a file of the user's is scored like those of the package."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.registry import CODE_VARIABLE, TASKS
from tests.conftest import byte_tokenizer
from tests.evaluation.models import alphabet, going_on
from tests.helpers import Loraga

TOY = Path(__file__).with_name("toy_task.py")


@pytest.fixture(autouse=True)
def with_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names the file as ``--code`` does; after a test the benchmark is forgotten."""
    TASKS.names()
    monkeypatch.setattr(TASKS, "_classes", dict(TASKS._classes))
    monkeypatch.setenv(CODE_VARIABLE, os.fspath(TOY))
    yield
    sys.modules.pop(f"loraga_code_{TOY.stem}", None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that goes on with the alphabet."""
    alphabet().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def result(folder: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (file,) = Path("runs", folder, "eval").glob("toy-*.json")
    lines = file.with_suffix(".jsonl").read_text().splitlines()
    return json.loads(file.read_text()), [json.loads(line) for line in lines]


def test_it_is_generated_scored_and_stored(loraga: Loraga, model: Path) -> None:
    out = loraga("eval", str(model), "eval.task=toy", "eval.letters=axy", "eval.max_new_tokens=2", "device=cpu")
    assert "right 1.0000, wrong 0.0000, truncated 0.6667 (3 problems)" in out
    content, lines = result("eval-model")
    assert content["values"] == {"right": 1.0, "wrong": 0.0, "truncated": 2 / 3}
    assert (content["lower_is_better"], content["shares"]) == (["truncated", "wrong"], ["right", "truncated", "wrong"])
    assert content["options"]["letters"] == "axy"
    assert [(line["id"], line["texts"], line["correct"]) for line in lines] == [
        ("a", ["bc"], True),
        ("x", ["yz"], True),
        ("y", ["z"], True),
    ]
    assert "reused" in loraga(
        "eval", str(model), "eval.task=toy", "eval.letters=axy", "eval.max_new_tokens=2", "device=cpu"
    )


def test_two_models_are_compared_by_its_values(loraga: Loraga, model: Path, tmp_path: Path) -> None:
    going_on(byte_tokenizer(), {"a": "b"}, "</s>").save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    out = loraga("eval", str(model), str(tmp_path / "other"), "eval.task=toy", "eval.letters=ab", "device=cpu")
    rows = {line.split()[0]: line.split()[-3:-1] for line in out.splitlines() if "%" in line}
    assert rows == {"model": ["100.0%", "0.0%"], "other": ["50.0%", "50.0%"]}


def test_its_options_are_checked_like_all_others(loraga: Loraga, model: Path) -> None:
    assert "did you mean eval.letters?" in loraga("eval", str(model), "eval.task=toy", "eval.leters=ab", code=2)
    assert "eval.letters=A" in loraga("eval", str(model), "eval.task=toy", "eval.letters=A", code=2)
    assert "eval.samples=2 with eval.temperature=0" in loraga(
        "eval", str(model), "eval.task=toy", "eval.samples=2", code=2
    )
