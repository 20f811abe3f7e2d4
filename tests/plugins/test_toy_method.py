"""A method is one file and a choice of its options: a user's own lives the life of those that ship."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_ga_cli.registry import CODE_VARIABLE, METHODS
from tests.helpers import Arguments, Loraga, between_two_checkpoints, killed, only_run
from tests.methods.test_every_method import loss_by

FILE = Path(__file__).with_name("toy_method.py")
CODE = ["--code", str(FILE)]
METHOD = "method=clipped_lora"
FOLDER = ["--config-dir", str(FILE.parent)]


def forget_code(patch: pytest.MonkeyPatch) -> None:
    """As in a new process: nothing but what ships is registered."""
    sys.modules.pop(f"loraga_code_{FILE.stem}", None)
    patch.setenv(CODE_VARIABLE, "")
    classes = {name: METHODS[name] for name in METHODS.names()}
    patch.setattr(METHODS, "_classes", {name: item for name, item in classes.items() if name != "clipped_lora"})


@pytest.fixture(autouse=True)
def without_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    forget_code(monkeypatch)
    yield
    sys.modules.pop(f"loraga_code_{FILE.stem}", None)


@pytest.fixture
def command(arguments: Arguments) -> Callable[..., list[str]]:
    return lambda *overrides: [*CODE, *FOLDER, *arguments("llama", METHOD, *overrides)]


def norms_of_b(adapter: Path) -> list[float]:
    tensors = load_file(adapter / "adapter_model.safetensors")
    return [float(tensor.norm()) for name, tensor in tensors.items() if ".lora_B." in name]


def test_it_is_trained_killed_resumed_exported_scored_and_merged(
    loraga: Loraga, command: Arguments, saved_bases: dict[str, Path], sums_file: Path
) -> None:
    out = loraga("train", *command("output_dir=uninterrupted"))
    assert "clipped to norm 0.05" in out
    killed(command(), between_two_checkpoints)
    assert "resuming after step 2" in loraga("train", *command())
    uninterrupted, run = only_run("uninterrupted"), only_run()
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (uninterrupted, run))
    assert set(one) == set(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    norms = norms_of_b(run)
    assert max(norms) == pytest.approx(0.05)
    assert min(norms) > 0
    loraga("train", *command("output_dir=unclipped", "method.max_norm=100"))
    assert max(norms_of_b(only_run("unclipped"))) > 0.1

    loraga("eval", *CODE, str(run), f"eval.file={sums_file}", "eval.limit=8")
    scored = json.loads((run / "eval.json").read_text())["values"]["loss"]
    base = AutoModelForCausalLM.from_pretrained(saved_bases["llama"], dtype=torch.float32)
    alone = PeftModel.from_pretrained(base, run).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved_bases["llama"])
    assert loss_by(alone, tokenizer, sums_file, 8) == pytest.approx(scored, rel=1e-4)
    assert "logits equal the adapter's" in loraga("merge", *CODE, str(run))


def test_its_options_are_checked_like_all_others(loraga: Loraga, command: Arguments) -> None:
    assert "did you mean method.max_norm?" in loraga("train", *command("method.max_nrm=1"), code=2)
    assert "method.max_norm=0" in loraga("train", *command("method.max_norm=0"), code=2)


@pytest.mark.parametrize("stage", ["eval", "merge"])
def test_a_run_of_it_without_the_code_says_what_to_give(
    loraga: Loraga, command: Arguments, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    loraga("train", *command("trainer.max_steps=1"))
    forget_code(monkeypatch)
    out = " ".join(loraga(stage, str(only_run()), code=2).split())
    assert "clipped_lora" in out
    assert "--code FILE" in out
    assert "unexpected" not in out


def test_the_command_line_without_the_code_says_what_to_give(loraga: Loraga, arguments: Arguments) -> None:
    out = " ".join(loraga("train", *FOLDER, *arguments("llama", METHOD), code=2).split())
    assert "clipped_lora" in out
    assert "--code FILE" in out
