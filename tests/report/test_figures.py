"""Pictures are valid PNG files of a readable size, whatever was logged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.report.figures import coverage, loss_curves

pytestmark = pytest.mark.figures

TRAIN = [{"step": step, "loss": 3 / step} for step in (1, 5, 10)]
VALIDATION = [{"step": step, "eval_loss": 2 / step} for step in (5, 10)]


def color_count(file: Path) -> int:
    """How many different colors a picture has; also checks that it is a complete PNG of a readable size."""
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        picture.load()
        assert 600 <= picture.width <= 2000
        assert 400 <= picture.height <= 1500
        return len(picture.convert("RGB").getcolors(maxcolors=1 << 20) or [])


@pytest.mark.parametrize(
    "points",
    [TRAIN, VALIDATION, TRAIN + VALIDATION, TRAIN[:1], []],
    ids=["only training", "only validation", "both", "one point", "nothing"],
)
def test_a_run_is_drawn_whatever_it_logged(tmp_path: Path, points: list[dict[str, float]]) -> None:
    loss_curves({"lora_ga": points}, tmp_path / "deep" / "loss.png", title="a run")
    assert color_count(tmp_path / "deep" / "loss.png") > 2
    assert [item.name for item in (tmp_path / "deep").iterdir()] == ["loss.png"]


def test_more_runs_than_colors_are_drawn(tmp_path: Path) -> None:
    loss_curves({f"run {index}": TRAIN for index in range(9)}, tmp_path / "loss.png", title="many")
    color_count(tmp_path / "loss.png")


@pytest.mark.parametrize("label", ["größe", "100 %", "a_b^c", "$x$", "_hidden"])
def test_labels_and_titles_are_plain_text(tmp_path: Path, label: str) -> None:
    loss_curves({label: TRAIN}, tmp_path / "loss.png", title=label)
    color_count(tmp_path / "loss.png")


@pytest.mark.parametrize("label", ["cost $5", "a $x_{ b$ c"])
def test_a_dollar_sign_in_a_name_is_not_read_as_a_formula(tmp_path: Path, label: str) -> None:
    loss_curves({label: TRAIN}, tmp_path / "loss.png", title=label)
    color_count(tmp_path / "loss.png")


def test_a_curve_is_visible(tmp_path: Path) -> None:
    loss_curves({"x": []}, tmp_path / "empty.png", title="t")
    loss_curves({"x": TRAIN + VALIDATION}, tmp_path / "full.png", title="t")
    assert color_count(tmp_path / "full.png") > color_count(tmp_path / "empty.png")


def test_coverage_draws_every_rank(tmp_path: Path) -> None:
    factors = {
        name: Factors(torch.eye(9)[:, :8], torch.linspace(2, 1, 8) * size, torch.eye(8), norm=6.0 * size)
        for name, size in (("a", 1.0), ("b", 0.5))
    }
    coverage(GradientArtifact(factors, 8), tmp_path / "coverage.png", title="a $model$, 8 rows")
    assert color_count(tmp_path / "coverage.png") > 20
