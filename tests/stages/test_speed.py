"""What makes a step faster or smaller does not change what it computes, and what changes it is asked for by name."""

from __future__ import annotations

import json
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from lora_ga_cli.training.trainer import LoragaTrainer
from tests.helpers import Arguments, Loraga, copied_between_two_checkpoints, only_run, points

STEADY = ["method=lora", "trainer.learning_rate=1e-3", "trainer.max_grad_norm=0", "trainer.micro_batch_size=null"]


def losses(folder: str) -> list[float]:
    return [point.get("loss", point.get("eval_loss")) for point in points(only_run(folder))]


def record_rows(patch: pytest.MonkeyPatch) -> list[list[int]]:
    """The number of rows and of passes of every step that is trained from here."""
    from lora_ga_cli.training.batches import BatchReader

    read, seen = BatchReader.__getitems__, list[list[int]]()

    def reading(self: BatchReader, passes: Any) -> Any:
        seen.append([len(rows) for rows in passes])
        return read(self, passes)

    patch.setattr(BatchReader, "__getitems__", reading)
    return seen


@pytest.mark.parametrize("flatten", ["true", "false"])
@pytest.mark.parametrize("limit", ["trainer.max_tokens=100", "trainer.max_tokens=1", "trainer.micro_batch_size=3"])
def test_a_step_is_the_same_however_its_rows_are_divided(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, limit: str, flatten: str
) -> None:
    loraga("train", *arguments("llama", *STEADY, "trainer.speed=plain", "output_dir=one_pass"))
    with monkeypatch.context() as patch:
        passes = record_rows(patch)
        loraga("train", *arguments("llama", *STEADY, limit, f"trainer.flatten={flatten}", "output_dir=divided"))
    assert losses("divided") == pytest.approx(losses("one_pass"), rel=1e-5)
    one, other = (load_file(only_run(folder) / "adapter_model.safetensors") for folder in ("one_pass", "divided"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)
    assert max(map(len, passes)) > 1


def test_options_of_speed_do_not_make_another_run(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments("llama", *STEADY))
    changed = ["trainer.speed=plain", "trainer.max_tokens=50", "trainer.gradient_checkpointing=true"]
    assert "finished already" in loraga("train", *arguments("llama", *STEADY, *changed))


@pytest.mark.parametrize("option", ["dataset.packing=true", "trainer.group_by_length=true"])
def test_packs_and_grouped_steps_are_other_runs(loraga: Loraga, arguments: Arguments, option: str) -> None:
    loraga("train", *arguments("llama", *STEADY))
    assert "finished already" not in loraga("train", *arguments("llama", *STEADY, option))


def test_packing_counts_packs(loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = ["trainer.max_steps=null", "trainer.epochs=1", "dataset.packing=true", "trainer.batch_size=2"]
    epoch += ["dataset.validation_fraction=0", "trainer.save_steps=100", "trainer.eval_steps=null"]
    with monkeypatch.context() as patch:
        passes = record_rows(patch)
        loraga("train", *arguments("llama", *STEADY, *epoch))
    manifest = json.loads((only_run() / "manifest.json").read_text())
    rows = manifest["data"]["train"]["rows"]
    assert sum(map(sum, passes)) == rows
    assert manifest["steps"] == len(passes) < rows / 2


@pytest.mark.parametrize(
    "options",
    [
        ["dataset.packing=true", "trainer.batch_size=2", "trainer.max_tokens=64"],
        ["trainer.group_by_length=true", "trainer.max_tokens=60"],
        ["trainer.flatten=true", "trainer.chunked_loss=true", "trainer.max_tokens=60"],
    ],
)
def test_a_run_resumes_to_the_bit(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    options = ["trainer.micro_batch_size=null", *options]
    with monkeypatch.context() as patch:
        copied_between_two_checkpoints(patch, "uninterrupted", "runs")
        loraga("train", *arguments("llama", "output_dir=uninterrupted", *options))
    assert "resuming after step" in loraga("train", *arguments("llama", *options))
    one, other = (load_file(only_run(folder) / "adapter_model.safetensors") for folder in ("uninterrupted", "runs"))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


ELSEWHERE = {"masking_utils.py", "batches.py"}


class Waits(TorchDispatchMode):
    """Counts how often values are read from a tensor, for which a process waits for its device.

    Those of transformers' masks do not count: kernels for rows of variable length need no mask. Neither do those of
    batches that are still on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __enter__(self) -> Waits:
        super().__enter__()
        self._tolist = torch.Tensor.tolist  # which reads all values at once, without an operator

        def counted(tensor: torch.Tensor) -> object:
            self.count += 1
            return self._tolist(tensor)

        torch.Tensor.tolist = counted
        return self

    def __exit__(self, *error: Any) -> None:
        torch.Tensor.tolist = self._tolist
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if reads and not any(Path(frame.filename).name in ELSEWHERE for frame in traceback.extract_stack()):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["lora", "lora_ga"])
def test_a_step_waits_for_the_device_once(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    step, counts = LoragaTrainer.training_step, Counter[int]()

    def counting(*given: Any, **options: Any) -> Any:
        with Waits() as waits:
            result = step(*given, **options)
        counts[waits.count] += 1
        return result

    monkeypatch.setattr(LoragaTrainer, "training_step", counting)
    loraga("train", *arguments("llama", f"method={method}", "trainer.micro_batch_size=2"))
    assert set(counts) == {1}


def test_what_was_chosen_is_printed(loraga: Loraga, arguments: Arguments) -> None:
    chosen = ["trainer.flatten=true", "trainer.chunked_loss=true"]
    assert "speed  flattened rows (a block mask), loss in chunks" in loraga(
        "train", *arguments("llama", *STEADY, *chosen)
    )
    assert "speed  loss in chunks" in loraga("train", *arguments("llama", *STEADY, "output_dir=automatic"))
    assert "speed  " not in loraga("train", *arguments("llama", *STEADY, "trainer.speed=plain", "output_dir=plain"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["trainer.kernels=liger", "device=cpu"], "trainer.kernels=liger does not work here"),
        (["trainer.tf32=true", "device=cpu"], "trainer.tf32=true does not work here"),
        (["trainer.flatten=true", "method=prefix_embedding"], "puts trained vectors before every row"),
        (["trainer.adapter_dtype=bfloat16", "method=full"], "the model has no LoRA layers"),
        (["trainer.adapter_dtype=bfloat16", "trainer.precision=bf16"], "autocast decides the type of products"),
    ],
)
def test_what_is_asked_for_and_cannot_work_is_refused(
    loraga: Loraga, arguments: Arguments, options: list[str], reason: str
) -> None:
    assert reason in " ".join(loraga("train", *arguments("llama", *options), code=2).split())


@pytest.mark.parametrize("option", ["trainer.kernels=liger", "trainer.tf32=true"])
def test_a_dry_run_refuses_what_the_run_would_refuse(loraga: Loraga, arguments: Arguments, option: str) -> None:
    assert "does not work here" in loraga("train", "--dry-run", *arguments("llama", option), code=2)


def test_rows_of_other_tasks_are_padded(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga("train", *arguments("t5", "method=lora", "trainer.flatten=true"), code=2)
    assert "rows of model.task=seq2seq_lm are padded" in out


@pytest.mark.parametrize("flatten", ["true", "false"])
def test_passes_are_halved_when_memory_runs_out_and_the_run_is_the_same(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, flatten: str
) -> None:
    options = [*STEADY, f"trainer.flatten={flatten}"]
    loraga("train", *arguments("llama", *options, "output_dir=enough"))
    one_pass = LoragaTrainer._pass

    def small(self: LoragaTrainer, model: Any, batch: Any, items: Any) -> Any:
        if batch.computed > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return one_pass(self, model, batch, items)

    with monkeypatch.context() as patch:
        patch.setattr(LoragaTrainer, "_pass", small)
        out = " ".join(loraga("train", *arguments("llama", *options, "output_dir=little")).split())
    assert out.count("memory is full: passes have at most") == 2, "104 tokens, 52, 26: and no more in later steps"
    assert losses("little") == pytest.approx(losses("enough"), rel=1e-5)
    assert json.loads((only_run("little") / "manifest.json").read_text())["steps"] == 6


def test_a_row_that_does_not_fit_is_an_error(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(LoragaTrainer, "_pass", never)
    assert "trainer.gradient_checkpointing=true" in loraga("train", *arguments("llama", *STEADY), code=1)


def test_the_tokens_that_fit_are_kept_when_a_run_is_resumed(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_ga_cli.stages import costs

    options = [*STEADY, "trainer.max_tokens=auto", "trainer.flatten=true", "trainer.batch_size=2"]
    with monkeypatch.context() as patch:
        patch.setattr(costs, "_free_bytes", lambda *_: 0)  # one row at a time, and little memory
        copied_between_two_checkpoints(patch, "uninterrupted", "runs")
        loraga("train", *arguments("llama", "output_dir=uninterrupted", *options))
    assert "resuming after step" in loraga("train", *arguments("llama", *options))
    tokens = [
        json.loads((only_run(folder) / "manifest.json").read_text())["pass_tokens"]
        for folder in ("runs", "uninterrupted")
    ]
    assert tokens[0] == tokens[1] < 20
    one, other = (load_file(only_run(folder) / "adapter_model.safetensors") for folder in ("uninterrupted", "runs"))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_a_first_token_that_a_trained_prefix_predicts_counts(loraga: Loraga, arguments: Arguments) -> None:
    """It has a label where the prompt is empty and the tokenizer puts nothing before a text."""
    prompt = ["dataset.prompt=''", "dataset.answer='{prompt}'"]
    loraga("train", *arguments("llama", *STEADY, "method=prefix_embedding", *prompt))
    chunked = losses("runs")
    loraga(
        "train",
        *arguments("llama", *STEADY, "method=prefix_embedding", *prompt, "trainer.speed=plain", "output_dir=whole"),
    )
    assert losses("whole") == pytest.approx(chunked, rel=1e-5)
