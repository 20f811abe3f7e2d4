"""``loraga convert``: an adapter of the old form computes the same in the new form, and loses less in bfloat16."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_ga_cli.lora.convert import to_difference_form
from tests.conftest import build_batch, build_model
from tests.helpers import Loraga

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
RANK = 3


def logits(adapter: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """What PEFT computes with an adapter; of its factors, ``dtype`` is the type."""
    model = PeftModel.from_pretrained(build_model("llama"), adapter).eval()
    for name, item in model.named_parameters():
        if "lora_" in name:
            item.data = item.data.to(dtype).float()
    with torch.no_grad():
        result: Tensor = model(**build_batch("llama")).logits
    return result


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Saves an adapter in the old form ``[B, -B0] [A; A0]``, after a training that changed the factors a little."""

    def build(*, change: float = 1e-3, rank: int = RANK, **options: object) -> Path:
        torch.manual_seed(0)
        config = LoraConfig(
            r=2 * rank,
            lora_alpha=24,
            target_modules=["q_proj", "down_proj"],
            alpha_pattern={"down_proj": 12},
            modules_to_save=["lm_head"],
            **options,  # type: ignore[arg-type]
        )
        get_peft_model(build_model("llama"), config).save_pretrained(tmp_path / "old")
        tensors = load_file(tmp_path / "old" / WEIGHTS)
        for key, factor in tensors.items():
            if "lora_A" in key:
                a0 = torch.randn(rank, factor.shape[1])
                tensors[key] = torch.cat([a0 + change * torch.randn_like(a0), a0])
            elif "lora_B" in key:
                b0 = torch.randn(factor.shape[0], rank)
                tensors[key] = torch.cat([b0 + change * torch.randn_like(b0), -b0], dim=1)
        save_file(tensors, tmp_path / "old" / WEIGHTS, metadata={"format": "pt", "note": "mine"})
        return tmp_path / "old"

    return build


def relative(actual: Tensor, expected: Tensor, base: Tensor) -> float:
    """The difference of two models' logits, divided by what the adapter changes."""
    return float((actual - expected).norm() / (expected - base).norm())


@pytest.mark.parametrize("use_dora", [False, True])
def test_peft_computes_the_same_before_and_after(loraga: Loraga, save: Callable[..., Path], use_dora: bool) -> None:
    old = save(use_dora=use_dora)
    loraga("convert", str(old), "--output", "new")
    expected, actual = logits(old), logits(Path("new"))
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


def test_the_change_survives_bfloat16(loraga: Loraga, save: Callable[..., Path]) -> None:
    old = save(change=1e-2)
    printed = loraga("convert", str(old), "--output", "new")
    with torch.no_grad():
        base = build_model("llama").eval()(**build_batch("llama")).logits
    expected = logits(old)
    before, after = (relative(logits(folder, torch.bfloat16), expected, base) for folder in (old, Path("new")))
    assert before > 0.1
    assert after < 0.01
    printed_errors = re.search(r"error of the change in bfloat16: (\S+) % before, (\S+) % after", printed)
    assert printed_errors is not None
    assert 10 < float(printed_errors[1]) < 100
    assert float(printed_errors[2]) < 0.5


def test_the_error_is_that_of_the_products(save: Callable[..., Path]) -> None:
    old = save()
    conversion = to_difference_form(load_file(old / WEIGHTS), LoraConfig.from_pretrained(str(old)))
    squares = torch.zeros(3, dtype=torch.float64)
    for name in {key.split(".lora_")[0] for key in conversion.tensors if ".lora_" in key}:
        scaling = (12 if "down_proj" in name else 24) / (2 * RANK)
        key_a, key_b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        stored = [(tensors[key_a], tensors[key_b]) for tensors in (load_file(old / WEIGHTS), conversion.tensors)]
        exact = stored[0][1].double() @ stored[0][0].double()
        rounded = [b.bfloat16().double() @ a.bfloat16().double() for a, b in stored]
        squares += scaling**2 * torch.stack(
            [exact.square().sum(), *((item - exact).square().sum() for item in rounded)]
        )
    before, after = (squares[1:] / squares[0]).sqrt().tolist()
    assert conversion.error_before == pytest.approx(before, rel=1e-3)
    assert conversion.error_after == pytest.approx(after, rel=1e-3)


def test_configuration_metadata_and_other_tensors_stay_as_they_are(loraga: Loraga, save: Callable[..., Path]) -> None:
    old = save()
    loraga("convert", str(old), "--output", "new")
    assert Path("new", CONFIG).read_bytes() == (old / CONFIG).read_bytes()
    before, after = load_file(old / WEIGHTS), load_file(Path("new", WEIGHTS))
    assert list(before) == list(after)
    assert any("lm_head" in key for key in before)
    for key, tensor in before.items():
        assert after[key].shape == tensor.shape
        assert ".lora_" in key or torch.equal(after[key], tensor)
    with safe_open(Path("new", WEIGHTS), framework="pt") as stored:
        assert stored.metadata() == {"format": "pt", "note": "mine"}
    assert sorted(file.name for file in Path("new").iterdir()) == [CONFIG, WEIGHTS]


def test_an_adapter_in_bfloat16_is_refused_because_the_loss_cannot_be_undone(
    loraga: Loraga, save: Callable[..., Path]
) -> None:
    old = save()
    save_file({key: tensor.bfloat16() for key, tensor in load_file(old / WEIGHTS).items()}, old / WEIGHTS)
    assert "in bfloat16 already" in loraga("convert", str(old), "--output", "new", code=2)


def test_converting_twice_is_refused(loraga: Loraga, save: Callable[..., Path]) -> None:
    loraga("convert", str(save()), "--output", "new")
    printed = loraga("convert", "new", "--output", "newer", code=2)
    assert "would not reduce the error" in printed
    assert "nothing was written" in printed
    assert not Path("newer").exists()


def test_an_adapter_whose_halves_have_nothing_in_common_is_refused(loraga: Loraga, save: Callable[..., Path]) -> None:
    assert "do not nearly cancel" in loraga("convert", str(save(change=1.0)), "--output", "new", code=2)
    assert not Path("new").exists()


def test_an_adapter_that_changes_nothing_is_refused(loraga: Loraga, save: Callable[..., Path]) -> None:
    assert "would not reduce the error" in loraga("convert", str(save(change=0.0)), "--output", "new", code=2)


def rewrite_config(folder: Path, **options: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "ADALORA"}, "of the kind ADALORA"),
        ({"use_bdlora": {"nblocks": 2}}, "does not support LoRA adapters with use_bdlora"),
        ({"target_parameters": ["experts.weight"]}, "does not support LoRA adapters with target_parameters"),
    ],
)
def test_other_kinds_of_adapters_are_refused(
    loraga: Loraga, save: Callable[..., Path], options: dict[str, object], message: str
) -> None:
    old = save()
    rewrite_config(old, **options)
    assert message in loraga("convert", str(old), "--output", "new", code=2)
    assert not Path("new").exists()


def test_odd_ranks_and_unknown_tensors_are_refused(loraga: Loraga, save: Callable[..., Path]) -> None:
    old = save()
    tensors = load_file(old / WEIGHTS)
    key = next(key for key in tensors if "lora_A" in key)
    save_file(tensors | {key: tensors[key][1:].contiguous()}, old / WEIGHTS)
    assert "its rank 5 is odd" in loraga("convert", str(old), "--output", "new", code=2)
    save_file(tensors | {"base_model.model.embed.lora_embedding_A": torch.zeros(2, 3)}, old / WEIGHTS)
    assert "the tensor base_model.model.embed.lora_embedding_A" in loraga(
        "convert", str(old), "--output", "new", code=2
    )
    save_file({"lm_head.weight": torch.zeros(2, 3)}, old / WEIGHTS)
    assert "nothing to convert" in loraga("convert", str(old), "--output", "new", code=2)


def test_folders_without_an_adapter_and_outputs_that_are_taken_are_refused(
    loraga: Loraga, save: Callable[..., Path]
) -> None:
    old = save()
    Path("empty").mkdir()
    assert f"it has no {CONFIG}" in loraga("convert", "empty", "--output", "new", code=2)
    assert "is not empty" in loraga("convert", str(old), "--output", str(old), code=2)
    (old / WEIGHTS).unlink()
    assert f"has no {WEIGHTS}" in loraga("convert", str(old), "--output", "new", code=2)


@pytest.mark.parametrize("command", ["merge", "eval"])
def test_a_run_of_an_earlier_version_names_this_command(loraga: Loraga, command: str) -> None:
    run = Path("runs/old")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("an_option_of_the_past: 1\n")
    (run / "manifest.json").write_text(json.dumps({"finished": "2025-01-01", "settings": {}}))
    assert f"loraga convert {run} --output DIR" in loraga(command, str(run), code=2)
