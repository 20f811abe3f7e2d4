"""What `loraga estimate-grad` draws, keeps and says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import GradientConfig
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.stages import estimate
from lora_ga_cli.stages.inputs import prepare_inputs
from tests.helpers import Arguments, Loraga


@pytest.mark.parametrize("seed", [0, 42])
def test_rows_of_fewer_samples_are_the_first_of_more(arguments: Arguments, seed: int) -> None:
    """Also where `random.sample` would change its algorithm, which depends on how many it draws."""
    inputs = prepare_inputs(compose(arguments("llama", f"seed={seed}")))
    drawn = {}
    for samples in (1, 5, 21, 100, 1000):
        gradient = inputs.config.gradient.model_copy(update={"samples": samples})
        asked = replace(inputs, config=inputs.config.model_copy(update={"gradient": gradient}))
        drawn[samples] = estimate.sample(asked)
    assert [len(rows) for rows in drawn.values()] == [1, 5, 21, 100, len(inputs.train.rows)]
    assert all(drawn[1000][: len(rows)] == rows for rows in drawn.values())
    assert drawn[1000] != list(inputs.train.rows)
    assert sorted(row["prompt"] for row in drawn[1000]) == sorted(inputs.train.rows["prompt"])


def coarse(passes: int) -> GradientArtifact:
    """Exact up to two directions, and all missed after."""
    vectors = torch.eye(8)
    missed = torch.tensor([0.0, 0.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0])
    factors = Factors(vectors, torch.ones(8), vectors, 3.0, missed)
    return GradientArtifact({"layer": factors}, 8, {"passes": passes, "estimator": "sketch"})


@pytest.mark.parametrize(("passes", "advised"), [(1, "gradient.passes=2 or gradient.capacity=16"), (8, "gradient.cap")])
def test_a_coarse_estimate_is_told_by_the_largest_rank(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch, passes: int, advised: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(estimate, "warn", said.append)
    estimate._warn_of_error(coarse(passes), compose(arguments("llama", "rank=1")))
    assert not said
    estimate._warn_of_error(coarse(passes), compose(arguments("llama", "rank=1", "rank_pattern={q_proj: 2}")))
    assert "the first step of rank 2 may" in said[0]
    assert f"): {advised}" in said[0]


def test_the_limit_of_passes_is_the_configurations() -> None:
    GradientConfig(passes=estimate.MAX_PASSES)
    with pytest.raises(ValueError, match="passes"):
        GradientConfig(passes=estimate.MAX_PASSES + 1)


class TestTheFigure:
    def test_is_here_and_not_in_the_cache(
        self, loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LORAGA_CACHE", str(Path.cwd() / "cache"))
        loraga("estimate-grad", *arguments("llama"))
        (drawn,) = Path().rglob("*.png")
        (stored,) = [item for item in Path("cache/gradients").iterdir() if not item.name.startswith(".")]
        assert drawn == Path(f"inspect-{stored.name}/coverage.png")
        printed = loraga("estimate-grad", *arguments("llama"), "--figures", "here")
        assert "here/coverage.png" in printed
        assert Path("here/coverage.png").read_bytes() == drawn.read_bytes()

    def test_of_an_earlier_version_beside_a_gradient_does_no_harm(
        self, loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LORAGA_CACHE", str(Path.cwd() / "cache"))
        loraga("estimate-grad", *arguments("llama"))
        (stored,) = [item for item in Path("cache/gradients").iterdir() if not item.name.startswith(".")]
        (stored / "coverage.png").write_bytes(b"old")
        assert "reused" in loraga("estimate-grad", *arguments("llama"))
        assert f"{stored.name}: ok" in loraga("cache", "verify")

    @pytest.mark.parametrize("command", ["estimate-grad", "inspect"])
    def test_a_place_that_cannot_be_is_refused_before(self, command: str, loraga: Loraga, arguments: Arguments) -> None:
        Path("file").touch()
        assert "--figures file: a file" in loraga(command, *arguments("llama"), "--figures", "file", code=2)
        words = [*arguments("llama", "seed=1,2"), "-m", "--figures", "here"]
        assert "--figures is one folder" in loraga(command, *words, code=2)
        assert not Path("here").exists()
