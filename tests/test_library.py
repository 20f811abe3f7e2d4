"""The library as its page in the documentation shows it: the code of that page, run."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.conftest import build_batch, build_model

PAGE = Path(__file__).resolve().parent.parent / "docs" / "library.md"


def test_the_example_trains_and_exports(tmp_path: Path) -> None:
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "estimate_gradients" in block
    ]
    assert len([line for line in code.splitlines() if line.strip()]) <= 11
    batch = build_batch("llama", rows=16)
    rows = [{name: value[index] for name, value in batch.items()} for index in range(16)]
    names = {
        "model": build_model("llama"),
        "batches": [batch],
        "rows": rows,
        "collate": lambda items: {name: torch.stack([item[name] for item in items]) for name in items[0]},
    }
    exec(compile(code, "library.md", "exec"), names)  # what a reader would type
    assert {
        tensor.shape[0] for name, tensor in load_file("adapter/adapter_model.safetensors").items() if "lora_A" in name
    } == {16}
    trained = names["peft_model"].eval().cpu()  # type: ignore[attr-defined]
    alone = PeftModel.from_pretrained(build_model("llama"), "adapter").eval()
    with torch.no_grad():
        expected, found = trained(**batch).logits, alone(**batch).logits
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_a_run_from_python(tmp_path: Path) -> None:
    """The stages are functions of a configuration."""
    from lora_ga_cli.config.compose import compose
    from lora_ga_cli.stages.train import train

    build_model("llama").save_pretrained("base")
    from tests.conftest import byte_tokenizer

    byte_tokenizer().save_pretrained("base")
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 40)
    config = compose(
        [
            "model=causal_lm",
            "model.path=./base",
            "model.dtype=float32",
            "dataset=jsonl",
            "dataset.train_file=rows.jsonl",
            "dataset.max_length=64",
            "rank=2",
            "trainer.max_steps=2",
            "gradient.samples=4",
            "device=cpu",
        ]
    )
    assert (train(config).path / "adapter_model.safetensors").exists()
