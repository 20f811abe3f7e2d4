"""Runs on a mixture of experts: what trains, what is said of the rest, and that the result is the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import byte_tokenizer
from tests.helpers import Arguments, Loraga, copied_between_two_checkpoints, only_run
from tests.mixtures import EXPERTS, MIXTURES, build_mixture

WITHOUT_GATE = "target_modules=[o_proj]"


@pytest.fixture(scope="module")
def saved_mixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixtures")
    for family in MIXTURES:
        build_mixture(family).save_pretrained(folder / family)
        byte_tokenizer().save_pretrained(folder / family)
    return {family: folder / family for family in MIXTURES}


@pytest.fixture
def short(arguments: Arguments, saved_mixtures: dict[str, Path]) -> Arguments:
    def build(family: str, *overrides: str) -> list[str]:
        base = [f"model.path={saved_mixtures[family]}", "model.attention=eager"]
        return arguments("llama", *base, "trainer.max_steps=4", *overrides)

    return build


def in_peft_alone(base: Path, run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the base, and of the base with the run's adapter as PEFT loads it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.arange(3, 35).view(2, 16)
    with torch.no_grad():
        return model(input_ids=ids).logits, PeftModel.from_pretrained(model, str(run)).eval()(input_ids=ids).logits


@pytest.mark.parametrize(
    ("family", "method"),
    [("mixtral", "lora"), ("gpt_oss", "lora"), *((family, "lora_ga") for family in MIXTURES), ("mixtral", "pissa")],
)
def test_all_linear_trains_the_experts_too(
    loraga: Loraga, short: Arguments, saved_mixtures: dict[str, Path], family: str, method: str
) -> None:
    """Loaded in PEFT alone, the adapter computes what the merged model computes, and changes every expert's weights."""
    out = loraga("train", *short(family, f"method={method}", "trainer.max_steps=2"))
    assert f"{2 * EXPERTS} layers of experts" in out
    assert "warning" not in out
    assert "merge it to serve it" in out
    run = only_run()
    described = json.loads((run / "adapter_config.json").read_text())
    assert {"experts.down_proj", "experts.gate_up_proj"} <= set(described["target_parameters"])
    before, adapted = in_peft_alone(saved_mixtures[family], run)
    assert float((adapted - before).abs().max()) > 1e-3
    loraga("merge", str(run))
    merged = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            merged(input_ids=torch.arange(3, 35).view(2, 16)).logits, adapted, atol=1e-5, rtol=1e-4
        )
    old, new = (AutoModelForCausalLM.from_pretrained(folder) for folder in (saved_mixtures[family], run / "merged"))
    for name, weight in old.named_parameters():
        if weight.dim() == 3:
            changed = (weight - new.get_parameter(name)).flatten(1).any(1)
            assert changed.all(), name


def test_a_resumed_run_ends_as_the_one_that_was_not_stopped(
    loraga: Loraga, short: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = short("mixtral", "method=lora_ga", "name=run", "trainer.max_steps=6")
    with monkeypatch.context() as patch:
        copied_between_two_checkpoints(patch, "runs", "stopped")
        loraga("train", *options)
    out = loraga("train", *options, "output_dir=stopped")
    assert "resuming after step 2" in out
    one, other = (load_file(Path(folder) / "run" / "adapter_model.safetensors") for folder in ("runs", "stopped"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["method=dora"], "PEFT has no DoRA for parameters"),
        (["method=lora", "adapter_dropout=0.1"], "no dropout"),
        (["method=lora_pro"], "steps one A and one B"),
        (["method=cola"], "method cola trains linear layers alone"),
        (["method=full_linear"], "method full_linear trains linear layers alone"),
        (["method=lora_allocated"], "method.rank_allocation=energy"),
    ],
)
def test_experts_that_a_method_leaves_as_they_are_are_named_with_their_share(
    loraga: Loraga, short: Arguments, options: list[str], why: str
) -> None:
    out = loraga("init", *short("mixtral", *options))
    model = build_mixture("mixtral")
    experts = sum(item.numel() for item in model.parameters() if item.dim() == 3)
    share = experts / sum(item.numel() for item in model.parameters())
    assert f"experts stay as they are: experts.down_proj, experts.gate_up_proj, {share:.1%} of the model's" in out
    assert why in out
    assert "warning" in out


@pytest.mark.parametrize("options", [["target_parameters=[]"], [WITHOUT_GATE]])
def test_experts_that_are_left_out_on_purpose_are_a_line_and_no_warning(
    loraga: Loraga, short: Arguments, options: list[str]
) -> None:
    out = loraga("init", *short("mixtral", "method=lora", *options))
    assert "experts stay as they are" in out
    assert "warning" not in out


def test_a_dry_run_says_it_too_and_forecasts(loraga: Loraga, short: Arguments) -> None:
    out = loraga("train", "--dry-run", *short("mixtral", "method=dora"))
    assert "experts stay as they are" in out
    out = loraga("train", "--dry-run", *short("mixtral", "method=lora_ga"))
    trained = int(out.split("parameters train")[0].split(" of ")[-2].split()[-1].replace(",", ""))
    init = loraga("init", *short("mixtral", "method=lora_ga"))
    assert f"{trained:,} of" in init


@pytest.mark.parametrize(
    "option", ["method=dora", "adapter_dropout=0.1", "model.shard=true", "method=cola", "trainer.compile=true"]
)
def test_experts_that_are_asked_for_and_cannot_be_adapted_are_refused(
    loraga: Loraga, short: Arguments, option: str
) -> None:
    out = loraga("train", *short("mixtral", "target_parameters=[experts.down_proj]", option), code=2)
    assert "target_parameters=[] leaves experts out" in out


def test_a_method_without_adapters_on_weights_refuses_them(loraga: Loraga, short: Arguments) -> None:
    out = loraga("train", *short("mixtral", "method=prefix_layer", "target_parameters=[experts.down_proj]"), code=2)
    assert "target_parameters does nothing with method prefix_layer" in out


def test_a_name_that_matches_no_parameter_is_refused(loraga: Loraga, short: Arguments) -> None:
    out = loraga("train", *short("mixtral", "target_parameters=[experts.down]"), code=2)
    assert "did you mean experts.down_proj" in out


def test_ranks_of_experts_and_layers_may_differ(
    loraga: Loraga, short: Arguments, saved_mixtures: dict[str, Path], recwarn: pytest.WarningsRecorder
) -> None:
    out = loraga("train", *short("mixtral", "rank_pattern={experts.down_proj: 2, q_proj: 3}", "trainer.max_steps=2"))
    assert "rank 2 (model.layers.0.mlp.experts.down_proj) to 4" in out
    assert not [item for item in recwarn if "did not match any targeted module" in str(item.message)]
    before, adapted = in_peft_alone(saved_mixtures["mixtral"], only_run())
    assert float((adapted - before).abs().max()) > 1e-3


def test_linear_layers_that_peft_adapts_as_parameters_are_left_out_where_a_method_needs_more(
    loraga: Loraga, short: Arguments
) -> None:
    out = loraga("init", *short("deepseek", "method=dora"))
    assert "PEFT has no DoRA for parameters (method.use_dora=false): " in out
    assert "gate_proj" in out
    out = loraga("init", *short("deepseek", "method=dora", "target_modules=[gate_proj]"), code=2)
    assert "PEFT adapts gate_proj as parameters" in out
