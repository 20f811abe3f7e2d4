"""The learning rate of a run that gives none: the method's, by the width of the model."""

from __future__ import annotations

import pytest
from transformers import GPT2Config, LlamaConfig, PretrainedConfig, T5Config

from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.training.learning_rate import check_learning_rate, describe_warmup, learning_rate, warmup_steps
from tests.helpers import configured


@pytest.mark.parametrize(
    ("model_config", "expected"),
    [
        (LlamaConfig(hidden_size=512), 2.7e-3),
        (LlamaConfig(hidden_size=4096), 3.4e-4),
        (GPT2Config(n_embd=256), 5.4e-3),
        (T5Config(d_model=1024), 1.4e-3),
    ],
)
def test_the_methods_rate_falls_with_the_width(model_config: PretrainedConfig, expected: float) -> None:
    assert learning_rate(configured("rslora"), model_config) == pytest.approx(expected, rel=0.03)


def test_a_rate_that_is_given_is_taken() -> None:
    assert learning_rate(configured("rslora", "trainer.learning_rate=0.5"), LlamaConfig(hidden_size=64)) == 0.5


def test_a_run_without_a_rate_is_refused_where_none_is_known() -> None:
    with pytest.raises(InvalidInput, match="no learning rate is known that suits method bitfit"):
        check_learning_rate(configured("bitfit"))
    check_learning_rate(configured("bitfit", "trainer.learning_rate=1e-3"))
    with pytest.raises(InvalidInput, match="states no hidden size"):
        learning_rate(configured("rslora"), PretrainedConfig())


@pytest.mark.parametrize(
    ("ratio", "steps", "expected"),
    [(0.03, 100, 3), (0.03, 101, 4), (0.03, 2, 1), (0, 5, 0), (0.03, 1, 0), (0.9, 1, 0), (0.9, 3, 2)],
)
def test_a_warm_up_is_a_share_of_the_steps_and_leaves_the_last_one(ratio: float, steps: int, expected: int) -> None:
    assert warmup_steps(configured("lora", f"trainer.warmup_ratio={ratio}"), steps) == expected


def test_a_constant_rate_has_no_warm_up() -> None:
    assert warmup_steps(configured("lora", "trainer.warmup_ratio=0.5", "trainer.lr_scheduler=constant"), 10) == 0


@pytest.mark.parametrize(
    ("ratio", "steps", "said"),
    [
        (0.03, 1, "no warm-up"),
        (0.03, 2, "the learning rate rises from 0 in 1 of 2 steps"),
        (0.03, 3, ""),
        (0.5, 10, "rises from 0 in 5 of 10 steps"),
        (0, 2, ""),
    ],
)
def test_a_warm_up_that_takes_much_of_a_training_is_said(ratio: float, steps: int, said: str) -> None:
    text = describe_warmup(configured("lora", f"trainer.warmup_ratio={ratio}"), steps, 60)
    assert said in text
    assert bool(said) == bool(text)
