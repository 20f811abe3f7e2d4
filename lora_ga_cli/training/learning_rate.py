"""The learning rate of a run: the one measured for its method, by the width of the model, where none is given; and how
it rises at the beginning of a run or of a link."""

from __future__ import annotations

import math
from collections.abc import Callable

from transformers import PreTrainedConfig

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import Fault, InvalidInput

MEASURED_WIDTH = 512
"""The hidden size of the base model with which ``method.learning_rate`` was measured."""


def learning_rate(config: Config, model_config: PreTrainedConfig) -> float:
    """``trainer.learning_rate``; if it is null, ``method.learning_rate · 512 / hidden_size``.

    The rate that suits Adam falls about as the width of the model rises (maximal update parametrization,
    arXiv 2203.03466). It was checked on bases of hidden sizes 192 and 512 only: see docs/benchmarks.md.

    Raises:
        InvalidInput: the model's configuration states no hidden size.
    """
    given, suited = config.trainer.learning_rate, config.method.learning_rate
    if given is not None:
        return given
    assert suited is not None, "see check_learning_rate"
    return float(f"{suited * MEASURED_WIDTH / width(model_config):.2g}")


def check_learning_rate(config: Config) -> None:
    """Refuses a training without a learning rate.

    Raises:
        InvalidInput: none is given, and none was measured for the method.
    """
    if config.trainer.learning_rate is None and config.method.learning_rate is None:
        message = f"no learning rate is known that suits method {config.method.name}"
        raise InvalidInput([Fault("configuration", message, "give one, such as trainer.learning_rate=1e-4")])


def describe(config: Config, model_config: PreTrainedConfig) -> str:
    """Where a learning rate that was not given comes from, for a line on the screen."""
    rate, suited = learning_rate(config, model_config), config.method.learning_rate
    return (
        f"learning rate {rate:g}: {suited:g} suits {config.method.name} at hidden size {MEASURED_WIDTH}, and this "
        f"model has {width(model_config)} (trainer.learning_rate sets another)"
    )


def warmup_steps(config: Config, steps: int) -> int:
    """How many of ``steps`` optimizer steps the learning rate rises in: ``trainer.warmup_ratio`` of them, rounded up.

    The last step is never one of them: it has the full rate. (The first step of a warm-up has rate 0, so that a single
    step that is one would learn nothing.)
    """
    return min(_asked_warmup(config, steps), steps - 1)


def describe_warmup(config: Config, steps: int, rows: int) -> str:
    """What a user should know of the warm-up, for a line on the screen; empty if there is nothing.

    That it is shorter than was asked for, or that it takes half of a training of few steps, or more.

    Args:
        steps: of the training, or of each link.
        rows: all training rows.
    """
    size = f"({rows} training rows, trainer.batch_size={config.trainer.batch_size})"
    asked = _asked_warmup(config, steps)
    if 2 * asked < steps or asked == 0:
        return ""
    if asked < steps:
        return (
            f"the learning rate rises from 0 in {asked} of {steps} steps {size}: more trainer.epochs or a smaller "
            "trainer.batch_size make more steps, and trainer.warmup_ratio=0 leaves it out"
        )
    warm_up = f"a warm-up of {steps - 1} steps" if steps > 1 else "no warm-up"
    return (
        f"{warm_up}: trainer.warmup_ratio={config.trainer.warmup_ratio:g} would leave none of {steps} steps at the "
        f"full learning rate {size}"
    )


def _asked_warmup(config: Config, steps: int) -> int:
    options = config.trainer
    return 0 if options.lr_scheduler == "constant" else math.ceil(options.warmup_ratio * steps)


def width(model_config: PreTrainedConfig) -> int:
    """The hidden size of a model.

    Raises:
        InvalidInput: its configuration states none.
    """
    size = getattr(model_config.get_text_config(), "hidden_size", None)
    if not isinstance(size, int):
        message = f"{type(model_config).__name__} states no hidden size, by which a learning rate could be chosen"
        raise InvalidInput([Fault("configuration", message, "give one, such as trainer.learning_rate=1e-4")])
    return size


def rising_share(warmup: int | None, default: int) -> Callable[[int], float]:
    """The share of the run's learning rate that a link has at each of its steps.

    Args:
        warmup: steps below the full rate, which begin with ``1 / (warmup + 1)``, so that no step is without effect; or
            None.
        default: where that is None: steps of a warm-up that begins with rate 0, as the run's own does.
    """
    if warmup is not None:
        return lambda step: min(1.0, (step + 1) / (warmup + 1))
    return lambda step: min(1.0, step / default) if default else 1.0
