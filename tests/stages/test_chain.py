"""A chain of two LoRA-GA links: killed anywhere it ends as if nothing had happened, and its sum is one LoRA adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from lora_ga_cli.config.compose import compose
from lora_ga_cli.files import sha256_file
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.links import read_adapter
from lora_ga_cli.stages.estimate import request, store_of
from lora_ga_cli.stages.inputs import prepare_inputs
from tests.conftest import build_batch
from tests.gradient import FULL_CAPACITY, autograd, multiplied, relative
from tests.helpers import Arguments, Loraga, add_links, after, die, killed, only_run, points, timeless_points

CHAIN = ["method=chain_lora_ga", "method.links=2"]
WEIGHTS = "adapter_model.safetensors"
MICRO_BATCHES = 8
"""Of an estimation; the training of a link has three steps of two micro-batches each."""


def while_the_second_gradient_is_estimated(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.gradient.estimators.sketch import SketchEstimator

    end = after(MICRO_BATCHES + 3, SketchEstimator.end_micro_batch)
    patch.setattr(SketchEstimator, "end_micro_batch", end)


def after_storing_the_second_initialization(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.lora.offset import LoraInit

    patch.setattr(LoraInit, "save", after(2, LoraInit.save))


def between_two_checkpoints_of_the_second_link(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.training.trainer import LoragaTrainer

    patch.setattr(LoragaTrainer, "_pass", after(11, LoragaTrainer._pass))


def before_the_first_link_is_declared_finished(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.stages import train_chain

    patch.setattr(train_chain, "written_in", after(1, train_chain.written_in))


def between_the_two_links(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.stages import train_chain

    patch.setattr(train_chain, "write_json", after(1, train_chain.write_json))


def while_the_sum_is_written(patch: pytest.MonkeyPatch) -> None:
    """Its weights are half written."""
    from lora_ga_cli.lora import links

    def half(folder: Path, tensors: dict[str, torch.Tensor], config: object) -> None:
        file = folder / WEIGHTS
        save_file(tensors, file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        die()

    patch.setattr(links, "write_adapter", half)


@dataclass(frozen=True)
class Left:
    """What must be there after a process was killed at a point.

    Args:
        initialized: the second link has its initialization.
        first_finished: the first link is never trained again.
    """

    first_finished: bool = True
    initialized: bool = True


POINTS = {
    before_the_first_link_is_declared_finished: Left(first_finished=False, initialized=False),
    between_the_two_links: Left(initialized=False),
    while_the_second_gradient_is_estimated: Left(initialized=False),
    after_storing_the_second_initialization: Left(),
    between_two_checkpoints_of_the_second_link: Left(),
    while_the_sum_is_written: Left(),
}


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Any]:
    """The result to compare with, made once."""
    return {}


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.__name__)
def test_a_killed_chain_ends_as_if_nothing_had_happened(
    loraga: Loraga, arguments: Arguments, uninterrupted: dict[str, Any], point: Callable[[pytest.MonkeyPatch], None]
) -> None:
    if not uninterrupted:
        loraga("train", *arguments("llama", *CHAIN, "output_dir=uninterrupted", "cache_dir=elsewhere"))
        uninterrupted["points"] = timeless_points(only_run("uninterrupted"))
        uninterrupted["weights"] = load_file(only_run("uninterrupted") / WEIGHTS)
    killed(arguments("llama", *CHAIN), point)
    links = only_run() / "links"
    left = POINTS[point]  # type: ignore[index]
    assert (links / "0" / "adapter" / WEIGHTS).exists()
    assert (links / "0" / "link.json").exists() == left.first_finished
    assert (links / "1" / "init.safetensors").exists() == left.initialized
    if point == between_two_checkpoints_of_the_second_link:
        planned = loraga("train", "--dry-run", *arguments("llama", *CHAIN))
        assert "resuming after step 5" in " ".join(planned.split())
    out = loraga("train", *arguments("llama", *CHAIN))
    weights = load_file(only_run() / WEIGHTS)
    assert set(weights) == set(uninterrupted["weights"])
    assert all(torch.equal(tensor, uninterrupted["weights"][name]) for name, tensor in weights.items())
    assert timeless_points(only_run()) == uninterrupted["points"]
    if point == between_two_checkpoints_of_the_second_link:
        assert "resuming after step 5" in out  # three of the first link, two of the second


def test_init_stores_the_initialization_of_the_first_link(loraga: Loraga, arguments: Arguments) -> None:
    loraga("init", *arguments("llama", *CHAIN))
    assert [file.parent.name for file in only_run().rglob("init.safetensors")] == ["0"]
    out = loraga("train", *arguments("llama", *CHAIN))
    assert out.count("initialization restored") == 1
    assert out.count("gradient  estimated") == 1  # that of the second link


def base_of(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return model


def test_the_second_gradient_is_that_of_the_base_with_the_first_link(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path]
) -> None:
    """By autograd, on a plain model whose weights are the sum."""
    command = arguments("llama", *CHAIN, f"gradient.capacity={FULL_CAPACITY}")
    out = loraga("train", *command)
    assert out.count("gradient  estimated") == 2
    first = only_run() / "links" / "0" / "adapter"
    inputs = prepare_inputs(compose(command))
    wanted = [request(inputs), request(inputs, [sha256_file(first / WEIGHTS)])]
    assert wanted[0].key != wanted[1].key
    folder = store_of(inputs).path(wanted[0].key).parent
    assert {item.name for item in folder.iterdir() if item.is_dir()} == {item.key for item in wanted}
    batch = inputs.collator(wanted[1].rows)
    before, base = autograd(base_of(saved_bases["llama"]), batch), base_of(saved_bases["llama"])
    add_links(base, [read_adapter(first)])
    found = GradientArtifact.load(store_of(inputs).path(wanted[1].key)).factors
    for name, grad in autograd(base, batch).items():
        assert relative(multiplied(found[name]), grad) < 1e-3, name
        assert relative(before[name], grad) > 1e-2, name


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_sum_is_one_adapter_for_peft_and_merges(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path], dtype: str, allowed: float
) -> None:
    loraga("train", *arguments("llama", *CHAIN, f"model.dtype={dtype}"))
    run, batch, kind = only_run(), build_batch("llama"), getattr(torch, dtype)
    assert json.loads((run / "adapter_config.json").read_text())["r"] == 2 * 2 * 4  # links, trained and initial, rank
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["adapter_rank"] == 16
    costs = [json.loads((run / "links" / link / "cost.json").read_text()) for link in ("0", "1")]
    assert manifest["trained_parameters"] == costs[1]["trained_parameters"] > 0  # one link is in memory at a time
    assert manifest["optimizer_state_bytes"] == costs[0]["optimizer_state_bytes"]
    steps = [seconds for cost in costs for seconds in cost["step_seconds"]]
    assert len(steps) == 6
    assert min(steps) < manifest["seconds_per_step"] < max(steps)
    with_links = base_of(saved_bases["llama"], kind)
    add_links(with_links, [read_adapter(run / "links" / str(number) / "adapter") for number in (0, 1)])
    loraga("merge", str(run), "--output", "plain")
    with torch.no_grad():
        expected = with_links(**batch).logits.float()
        alone = PeftModel.from_pretrained(base_of(saved_bases["llama"], kind), run).eval()(**batch).logits.float()
        merged = base_of(Path("plain"), kind)(**batch).logits.float()
        untrained = base_of(saved_bases["llama"], kind)(**batch).logits.float()
    assert relative(alone, expected) < allowed
    assert relative(merged, expected) < allowed
    assert relative(untrained, expected) > 5 * allowed


def test_a_sum_that_is_truncated_says_what_it_lost(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga("train", *arguments("llama", *CHAIN, "method.merged_rank=4"))
    manifest = json.loads((only_run() / "manifest.json").read_text())
    assert json.loads((only_run() / "adapter_config.json").read_text())["r"] == manifest["adapter_rank"] == 4
    assert 0 < manifest["truncation_error"] < 1
    assert f"truncated to rank 4: {manifest['truncation_error']:.2%} of the change is lost" in out
    loraga("eval", str(only_run()))


def test_the_schedule_of_the_run_goes_on_from_link_to_link(loraga: Loraga, arguments: Arguments) -> None:
    """Below the warm-up of the second link, which has a new optimizer."""
    rates = {}
    options = ["trainer.max_steps=16", "trainer.warmup_ratio=0.25", "trainer.save_steps=20"]
    for folder, method in {
        "without_links": ["method=lora_ga"],
        "run": [*CHAIN, "method.link_schedule=run"],
        "link": [*CHAIN, "method.link_schedule=link"],
    }.items():
        loraga("train", *arguments("llama", f"output_dir={folder}", *method, *options))
        rates[folder] = {item["step"]: item["learning_rate"] for item in points(only_run(folder)) if "loss" in item}
    plain, run, link = rates["without_links"], rates["run"], rates["link"]
    assert list(plain) == list(run) == list(link) == list(range(1, 17))
    warming = {step for step in plain if run[step] != pytest.approx(plain[step])}
    assert warming <= {9, 10}  # a quarter of the second link's eight steps
    assert all(run[step] < plain[step] for step in warming)
    assert warming
    assert [link[step] for step in range(1, 9)] == pytest.approx([link[step] for step in range(9, 17)])


def test_a_link_that_was_damaged_is_refused(loraga: Loraga, arguments: Arguments) -> None:
    killed(arguments("llama", *CHAIN), between_the_two_links)
    file = only_run() / "links" / "0" / "adapter" / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    out = loraga("train", *arguments("llama", *CHAIN), code=2)
    assert (
        f"{file.relative_to(Path.cwd()) if file.is_absolute() else file} does not have the bytes that were written"
        in out
    )


def test_what_does_not_go_with_a_chain_is_refused_at_once(loraga: Loraga, arguments: Arguments) -> None:
    assert "each link would begin with a new head" in loraga("train", *arguments("bert", *CHAIN), code=2)
    out = loraga("train", *arguments("llama", *CHAIN, "trainer.load_best=true"), code=2)
    assert "trainer.load_best" in out
    out = loraga("train", *arguments("llama", "method=chain_lora_ga", "method.links=7"), code=2)
    assert "trainer.max_steps=6 is less than method.links=7" in out
