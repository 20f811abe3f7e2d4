"""``trainer.extra``: what of transformers' TrainingArguments passes through, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from lora_ga_cli.config.extra import FIXED, OPTIONS, WITHOUT_EFFECT, extra_problems
from lora_ga_cli.methods.base import Link
from lora_ga_cli.training.arguments import training_arguments
from tests.helpers import Arguments, Loraga, configured, only_run, points


def arguments_of(config: Any) -> TrainingArguments:
    return training_arguments(
        config, Path("x"), torch.device("cpu"), name="x", learning_rate=1e-3, validate=False, link=Link.only(10)
    )


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"neftune_noise_alpa": 5}, "have no such field (did you mean neftune_noise_alpha?)"),
        ({"neftune_noise_alpha": "loud"}, "neftune_noise_alpha='loud' should be float | null"),
        ({"neftune_noise_alpha": True}, "neftune_noise_alpha=True should be float | null"),
        ({"lr_scheduler_kwargs": 3}, "lr_scheduler_kwargs=3 should be"),
        ({"num_train_epochs": 3}, "num_train_epochs is an option here: trainer.epochs"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor would do nothing"),
        ({"save_only_model": True}, "save_only_model cannot be changed"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(extra: dict[str, Any], problem: str) -> None:
    (said,) = extra_problems(extra)
    assert said.startswith("trainer.extra.")
    assert problem in said


def test_all_faults_come_together_and_before_anything_is_loaded(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga("train", *arguments("llama", "trainer.extra={seed: 3, nonsense: 1}"), code=2)
    assert out.count("command line: trainer.extra.") == 2  # and not the file of the empty default
    assert "trainer.extra.seed is an option here: seed" in out
    assert "trainer.extra.nonsense: transformers' TrainingArguments have no such field" in out


def test_no_field_that_loraga_sets_can_be_given(arguments: Arguments) -> None:
    """What it sets is read from the arguments that it makes, which differ from transformers' own."""
    made, plain = (arguments_of(configured("lora")), TrainingArguments(output_dir="y"))
    refused = {*OPTIONS, *WITHOUT_EFFECT, *FIXED}
    fields = [field.name for field in dataclasses.fields(TrainingArguments)]
    changed = {name for name in fields if getattr(made, name) != getattr(plain, name)}
    assert changed - refused <= {"project"}  # where a service keeps the run: the user may choose another
    assert refused <= set(fields)


def test_everything_else_is_passed_on() -> None:
    extra = "{neftune_noise_alpha: 5.0, lr_scheduler_kwargs: {num_cycles: 2}}"
    made = arguments_of(configured("lora", f"trainer.extra={extra}"))
    assert made.neftune_noise_alpha == 5.0
    assert made.lr_scheduler_kwargs == {"num_cycles": 2}


def test_transformers_own_checks_come_first(loraga: Loraga, arguments: Arguments) -> None:
    assert "trainer.extra" in loraga("train", *arguments("llama", "trainer.extra={log_level: loud}"), code=2)
    assert not Path("runs").exists()


def test_a_run_uses_them_and_is_resumed_only_with_them(loraga: Loraga, arguments: Arguments) -> None:
    """Two complete cycles of the cosine end in the middle where one ends at the end."""
    extra = "trainer.extra={lr_scheduler_kwargs: {num_cycles: 1.0}}"
    run = ["method=lora", "trainer.warmup_ratio=0", "name=r"]
    out = loraga("train", *arguments("llama", *run, extra))
    assert "trainer.extra is passed to transformers, and is untested here: lr_scheduler_kwargs=" in out
    rates = [point["learning_rate"] for point in points(only_run()) if "loss" in point]
    assert rates[3] == pytest.approx(0, abs=1e-12)
    assert rates[5] == pytest.approx(7.5e-3)
    assert "trainer.extra" in loraga("train", *arguments("llama", *run), code=2)
