"""An estimator of the gradient in a user's file is found by name, and its gradient is stored under a key of its own."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.registry import CODE_VARIABLE, ESTIMATORS
from tests.helpers import Arguments, Loraga, only_run

FILE = Path(__file__).with_name("toy_estimator.py")


@pytest.fixture(autouse=True)
def forget_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After a test the estimator is not registered any more."""
    ESTIMATORS.names()
    monkeypatch.setattr(ESTIMATORS, "_classes", dict(ESTIMATORS._classes))
    monkeypatch.setenv(CODE_VARIABLE, "")
    yield
    sys.modules.pop(f"loraga_code_{FILE.stem}", None)


def test_its_gradient_is_estimated_and_trained_from(loraga: Loraga, arguments: Arguments) -> None:
    command = arguments("llama", "gradient.estimator=sign", "--code", str(FILE))
    loraga("estimate-grad", *command)
    (folder,) = [item.parent for item in Path("cache/gradients").glob("*/*.json")]
    artifact = GradientArtifact.load(folder)
    assert artifact.info["estimator"] == "sign"
    for name, (d_out, d_in) in artifact.shapes.items():
        # every entry is 1 or -1, so the norm is known
        assert artifact.factors[name].norm == pytest.approx(math.sqrt(d_out * d_in), rel=1e-5)
    assert "reused" in loraga("train", *command)
    assert json.loads((only_run() / "manifest.json").read_text())["finished"]


def test_a_name_that_no_file_registers_is_refused(loraga: Loraga, arguments: Arguments) -> None:
    assert "gradient.estimator=sign is not one of sketch, exact" in loraga(
        "estimate-grad", *arguments("llama", "gradient.estimator=sign"), code=2
    )
