"""Killed with SIGKILL anywhere, the same command finishes with the uninterrupted run's result."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from tests.helpers import (
    Arguments,
    Loraga,
    after,
    between_two_checkpoints,
    copied_between_two_checkpoints,
    die,
    killed,
    only_run,
    timeless_points,
)


def while_estimating(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.gradient.estimators.sketch import SketchEstimator

    patch.setattr(SketchEstimator, "end_micro_batch", after(1, SketchEstimator.end_micro_batch))


def after_storing_the_initialization(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.lora.offset import LoraInit

    patch.setattr(LoraInit, "save", after(1, LoraInit.save))


def while_writing_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    """The second checkpoint's optimizer state is half written."""
    save, count = torch.save, 0

    def half(value: object, file: object, *rest: object, **options: object) -> None:
        nonlocal count
        save(value, file, *rest, **options)
        count += "optimizer" in str(file)
        if count == 2:
            os.truncate(str(file), Path(str(file)).stat().st_size // 2)
            die()

    patch.setattr(torch, "save", half)


def before_marking_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.training import checkpoint_trainer

    count = 0
    mark = checkpoint_trainer.mark_complete

    def marking(folder: Path, metrics: object = None) -> None:
        nonlocal count
        count += 1
        if count == 3:
            die()
        mark(folder, metrics)  # type: ignore[arg-type]

    patch.setattr(checkpoint_trainer, "mark_complete", marking)


def while_saving_the_result(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.training.trainer import LoragaTrainer

    patch.setattr(LoragaTrainer, "save_model", after(4, LoragaTrainer.save_model))  # three checkpoints, then the result


def before_it_is_declared_finished(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.stages import finish

    patch.setattr(finish, "loss_curves", after(1, finish.loss_curves))


POINTS = [
    while_estimating,
    after_storing_the_initialization,
    between_two_checkpoints,
    while_writing_a_checkpoint,
    before_marking_a_checkpoint,
    while_saving_the_result,
    before_it_is_declared_finished,
]


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, object]:
    """The result to compare with, made once."""
    return {}


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.__name__)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    loraga: Loraga, arguments: Arguments, uninterrupted: dict[str, object], point: Callable[[pytest.MonkeyPatch], None]
) -> None:
    if not uninterrupted:
        loraga("train", *arguments("llama", "output_dir=uninterrupted", "cache_dir=elsewhere"))
        run = only_run("uninterrupted")
        uninterrupted["points"] = timeless_points(run)
        uninterrupted["manifest"] = json.loads((run / "manifest.json").read_text())
        uninterrupted["weights"] = load_file(run / "adapter_model.safetensors")
    killed(arguments(), point)
    out = loraga("train", *arguments())
    run = only_run()
    manifest, expected_manifest = json.loads((run / "manifest.json").read_text()), uninterrupted["manifest"]
    assert manifest["validation_loss"] == pytest.approx(expected_manifest["validation_loss"], abs=1e-6)  # type: ignore[index]
    for name in ("trained_parameters", "optimizer_state_bytes"):
        assert manifest[name] == expected_manifest[name]  # type: ignore[index]
    weights = load_file(run / "adapter_model.safetensors")
    for name, tensor in uninterrupted["weights"].items():  # type: ignore[attr-defined]
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6)
    assert timeless_points(run) == uninterrupted["points"]
    if point in (while_writing_a_checkpoint, before_marking_a_checkpoint):
        assert "was cut off while it was written" in out
    if point in (between_two_checkpoints, while_writing_a_checkpoint):
        assert "resuming after step 2" in out


@pytest.mark.parametrize(("kind", "file"), [("method=full", "model"), ("method.offset=adapter", "adapter_model")])
def test_every_kind_of_run_resumes(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, kind: str, file: str
) -> None:
    """What `tests/methods/test_every_method.py` does not resume."""
    with monkeypatch.context() as patch:
        copied_between_two_checkpoints(patch, "uninterrupted", "runs")
        loraga("train", *arguments("llama", "output_dir=uninterrupted", kind))
    assert "resuming after step 2" in loraga("train", *arguments("llama", kind))
    one, other = (load_file(only_run(folder) / f"{file}.safetensors") for folder in ("uninterrupted", "runs"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6)


def test_an_optimizer_of_other_groups_is_refused(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like the one of a version that grouped LoRA+'s parameters otherwise."""
    from lora_ga_cli.training.trainer import LoragaTrainer

    command = arguments("llama", "method=lora_plus")
    killed(command, between_two_checkpoints)
    with monkeypatch.context() as patch:
        patch.setattr(LoragaTrainer, "create_optimizer", Trainer.create_optimizer)
        out = " ".join(loraga("train", *command, code=1).split())
    assert "checkpoint-2 cannot be resumed, its optimizer was another (loaded state dict has" in out
    assert "overwrite=true" in out
    assert "resuming after step 2" in loraga("train", *command)


def test_a_base_that_changed_in_between_is_noticed(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    from tests.conftest import build_model

    shutil.copytree(saved_bases["llama"], tmp_path / "base")
    command = arguments("llama", "model.path=base")
    killed(command, between_two_checkpoints)
    build_model("llama", seed=5).save_pretrained(tmp_path / "base")
    out = " ".join(loraga("train", *command, code=2).split())
    assert "the base model is not the one that" in out
