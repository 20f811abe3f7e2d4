"""`--dry-run`: it looks for what the run would look for, and forecasts what the run will build."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel

from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import GradientConfig
from lora_ga_cli.lora.layers import trained_parameters
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.forecast import Memory, Pace
from lora_ga_cli.model.targets import find_targets, new_modules
from lora_ga_cli.stages import costs
from lora_ga_cli.stages.costs import training_forecast
from lora_ga_cli.stages.estimate import rows_at_a_time
from lora_ga_cli.stages.inputs import prepare_inputs
from tests.conftest import byte_tokenizer
from tests.helpers import Arguments, Loraga, empty, prepare


def test_a_cached_gradient_counts_if_the_run_would_take_it(loraga: Loraga, arguments: Arguments) -> None:
    loraga("estimate-grad", *arguments("llama", "gradient.capacity=8"))
    assert "cached: " in loraga("train", "--dry-run", *arguments("llama", "gradient.capacity=8"))
    assert "to do: 16 rows, 14 layers" in loraga("train", "--dry-run", *arguments("llama", "gradient.capacity=12"))


def test_the_learning_rate_is_the_one_that_the_run_would_use(loraga: Loraga, arguments: Arguments) -> None:
    options = arguments("llama", "method=lora", "trainer.learning_rate=null")
    config = compose(options)
    width = prepare_inputs(config).model_config.hidden_size
    assert config.method.learning_rate is not None
    assert f"learning rate {config.method.learning_rate * 512 / width:.2g}, " in loraga("train", "--dry-run", *options)
    assert "learning rate" not in loraga("init", "--dry-run", *options)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.metrics=[loss,exact_match]"], "to do: loss, exact_match"),
        (["eval.task=gsm8k"], "to do: gsm8k"),
        (["eval.task=lm_eval", "eval.tasks=[arc_easy]"], "to do: lm_eval, arc_easy"),
    ],
)
def test_what_will_be_scored_is_listed(
    loraga: Loraga, arguments: Arguments, overrides: list[str], message: str
) -> None:
    assert message in loraga("eval", "--dry-run", *arguments("llama", *overrides))


def test_what_is_scored_already_is_named(loraga: Loraga, arguments: Arguments) -> None:
    """A result of another task does not count."""
    loraga("eval", *arguments("llama", "method=lora"))
    (run,) = (folder for folder in Path("runs").iterdir() if folder.is_dir())

    def planned(*options: str) -> str:
        return loraga("eval", "--dry-run", *arguments("llama", "method=lora", *options)).replace("\n", "")

    assert f"done: {run / 'eval.json'}" in planned()
    assert "to do: gsm8k" in planned("eval.task=gsm8k")
    (run / "eval").mkdir()
    (run / "eval" / "gsm8k-0123abcd.json").write_text("{}")
    assert "gsm8k-0123abcd.json" in planned("eval.task=gsm8k")
    assert "to do: mt_bench" in planned("eval.task=mt_bench")


def test_rows_at_a_time_are_at_most_an_eighth_of_all() -> None:
    assert rows_at_a_time(GradientConfig(micro_batch_size=32), 64) == 8
    assert rows_at_a_time(GradientConfig(micro_batch_size=4), 64) == 4
    assert rows_at_a_time(GradientConfig(), 3) == 1


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose classifier has two new modules."""
    folder = tmp_path_factory.mktemp("distilbert")
    torch.manual_seed(0)
    sizes = {"dim": 48, "hidden_dim": 80, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 256}
    DistilBertModel(DistilBertConfig(vocab_size=3 + 256, **sizes)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "adalora", "full", "prefix_embedding"])
def test_a_new_head_is_forecast_as_it_is_built(distilbert: Path, arguments: Arguments, method: str) -> None:
    config = compose(arguments("bert", f"model.path={distilbert}", f"method={method}"))
    inputs = prepare_inputs(config)
    shapes, model = inputs.empty_model(), inputs.load_model()
    assert new_modules(shapes) == new_modules(model) == ["classifier", "pre_classifier"]
    assert list(find_targets(shapes)) == list(find_targets(model))
    assert trained_parameters(empty(shapes, config)) == prepare(model, config).parameters


def test_adaloras_importance_is_as_large_as_its_allocator_keeps(arguments: Arguments) -> None:
    config = compose(arguments("llama", "method=adalora"))
    inputs = prepare_inputs(config)
    model = prepare(inputs.load_model(), config).model
    model(**inputs.probe_batch()).loss.backward()
    allocator = model.base_model.rankallocator
    allocator.update_ipt(model.base_model.model)
    kept = [*allocator.ipt.values(), *allocator.exp_avg_ipt.values(), *allocator.exp_avg_unc.values()]
    assert method_of(config).extra_state_bytes(model) == sum(tensor.nbytes for tensor in kept)


def test_a_chain_is_forecast_by_its_largest_link(arguments: Arguments) -> None:
    pace = Pace(1e12, 1e-6)

    def forecast(ranks: str) -> tuple[Memory, int]:
        options = ["method=cola", "method.links=3", f"method.link_ranks={ranks}"]
        memory, _, model = training_forecast(prepare_inputs(compose(arguments("llama", *options))), pace)
        return memory, trained_parameters(model)

    assert forecast("[1,4,2]") == forecast("[4]")
    assert forecast("[1,4,2]") != forecast("[1]")


@pytest.mark.parametrize("flatten", ["true", "false"])
def test_the_tokens_that_fit_fill_the_memory_that_is_free(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, flatten: str
) -> None:
    options = ["method=lora", "trainer.micro_batch_size=null", "trainer.max_tokens=auto", f"trainer.flatten={flatten}"]
    inputs = prepare_inputs(compose(arguments("llama", *options)))
    training = costs.empty_training(inputs)
    step_tokens = sum(sorted(inputs.order.lengths)[-8:])

    def limit(free: int) -> int | None:
        monkeypatch.setattr(costs, "_free_bytes", lambda *_: free)
        return costs.pass_limits(inputs, flatten=flatten == "true").tokens

    room = training.memory(1, 60)
    tokens = limit(round(room.total / costs.USED_SHARE))
    assert tokens is not None
    assert training.memory(1, tokens).total <= room.total * 1.05
    assert limit(0) == max(inputs.order.lengths)
    assert limit(2**40) <= step_tokens  # type: ignore[operator]


def test_the_file_that_is_trained_on_is_no_validation_file(
    loraga: Loraga, arguments: Arguments, sums_file: Path
) -> None:
    validation = ["dataset.validation_fraction=0", f"dataset.validation_file={sums_file}"]
    out = " ".join(loraga("train", *arguments("llama", *validation), "--dry-run").split())
    assert "is trained on: the validation loss says nothing about other rows" in out
    assert "memory counts the tensors on the device" in out


def test_a_dry_run_refuses_the_folder_that_the_run_would_refuse(loraga: Loraga, arguments: Arguments) -> None:
    options = arguments("llama", "method=lora", "name=mine", "trainer.max_steps=2")
    loraga("train", *options)
    out = loraga("train", "--dry-run", *options)
    assert "stored in the run" in out
    assert "finished: runs/mine" in out
    other = [*options, "rank=3"]
    refused = loraga("train", *other, code=2)
    assert "holds a run with other settings" in refused
    assert loraga("train", "--dry-run", *other, code=2) == refused
    assert "to do, once the folder runs/mine is renamed" in loraga("train", "--dry-run", *other, "overwrite=true")
    assert "to do: 16 rows" in loraga("estimate-grad", "--dry-run", *other, "method=lora_ga")
