"""What tests of several folders share: types of fixtures, configurations, prepared models, the run that a command made,
and a process that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from lora_ga_cli import GradientArtifact, estimate_gradients
from lora_ga_cli.cli.app import main
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import Config
from lora_ga_cli.lora.links import Change, Total
from lora_ga_cli.methods.base import InitData, Link, PreparedModel, method_of
from tests.conftest import build_batch

MICRO_BATCHES = 7
"""How many micro-batches end between two checkpoints of a short run: a step has two, and every second step is saved."""
Loraga = Callable[..., str]
"""The fixture ``loraga``: runs a command line, and returns what it printed."""
Arguments = Callable[..., list[str]]
"""The fixture ``arguments``: the overrides of a short run of a model family."""


def configured(method: str, *overrides: str) -> Config:
    """The configuration of a method for a small causal model in float32."""
    model = ["model=causal_lm", "model.path=x", "model.dtype=float32"]
    return compose([*model, "dataset=jsonl", "dataset.train_file=x", f"method={method}", "rank=4", *overrides])


def configured_classifier(method: str, *overrides: str) -> Config:
    """The configuration of a method for a small classifier."""
    rows = ["dataset=classification", "dataset.train_file=x"]
    return compose(["model=classifier", "model.path=x", *rows, f"method={method}", "rank=4", *overrides])


def no_gradient() -> GradientArtifact:
    """For methods that need no gradient."""
    raise AssertionError("no gradient is needed")


def save_random_factors(model: nn.Module, folder: Path) -> PeftModel:
    """Draws the factors A and B of a LoRA adapter, which PEFT then saves."""
    assert isinstance(model, PeftModel)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, item in model.named_parameters():
            if "lora_" in name:
                item.normal_(std=0.1)
    model.save_pretrained(str(folder))
    return model


def write_sums(file: Path) -> None:
    """24 rows with a sum as prompt and answer."""
    rows = [{"prompt": f"{number}+1=", "answer": f"{number + 1}"} for number in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(model: PreTrainedModel, config: Config, *, steps: int = 100) -> PreparedModel:
    """A model with its method on it, in place; a gradient is estimated only where the method needs one."""
    method = method_of(config)

    def estimated() -> GradientArtifact:
        return estimate_gradients(model, [build_batch("llama")])

    data = InitData(estimated if method.needs_gradient else no_gradient, lambda: iter([build_batch("llama")]))
    return method.prepare(model, link=Link.only(steps), data=data, stored=None)


def empty(model: PreTrainedModel, config: Config) -> nn.Module:
    """The shapes of a model as it trains, without weights."""
    return method_of(config).attach_empty(model.to("meta"))


def add_links(model: nn.Module, changes: Sequence[Change]) -> None:
    """Adds the changes of trained links to a base, in place, as a run does."""
    total = Total()
    for change in changes:
        total.add(change)
    total.apply(model)


def only_run(folder: str = "runs") -> Path:
    """The only run folder inside ``folder``."""
    (run,) = [item for item in Path(folder).iterdir() if item.is_dir() and not item.name.startswith(".")]
    return run


def points(run: Path) -> list[dict[str, float]]:
    """The points of a run's metrics file."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


MEASURED = ("tokens_per_second", "memory_bytes", "time")
"""What differs between two trainings that are equal."""


def timeless_points(run: Path) -> list[dict[str, float]]:
    """The points of a run's metrics file, without what was measured."""
    return [{key: value for key, value in point.items() if key not in MEASURED} for point in points(run)]


def die() -> None:
    """Ends this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def after(calls: int, function: Callable) -> Callable:  # type: ignore[type-arg]
    """``function``, after whose n-th call the process is killed."""
    count = 0

    def killing(*arguments: object, **options: object) -> object:
        nonlocal count
        result = function(*arguments, **options)
        count += 1
        if count == calls:
            die()
        return result

    return killing


def between_two_checkpoints(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.training.trainer import LoragaTrainer

    patch.setattr(LoragaTrainer, "_pass", after(MICRO_BATCHES, LoragaTrainer._pass))


def copied_between_two_checkpoints(patch: pytest.MonkeyPatch, source: str, copy: str) -> None:
    """Copies a folder of runs where `between_two_checkpoints` would kill the process.

    The copy is what a power cut at this point leaves, without a second training that is killed there.
    """
    from lora_ga_cli.training.trainer import LoragaTrainer

    one_pass, count = LoragaTrainer._pass, 0

    def copying(*arguments: object, **options: object) -> object:
        nonlocal count
        result = one_pass(*arguments, **options)  # type: ignore[arg-type]
        count += 1
        if count == MICRO_BATCHES:
            shutil.copytree(source, copy)
        return result

    patch.setattr(LoragaTrainer, "_pass", copying)


def killed(arguments: list[str], point: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Runs the command in a child process that is killed at a point, and insists that it was."""
    child = os.fork()
    if child == 0:
        try:
            point(pytest.MonkeyPatch())
            main(["train", *arguments])
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the command ended before it came to this point"
    assert os.WTERMSIG(status) == signal.SIGKILL
