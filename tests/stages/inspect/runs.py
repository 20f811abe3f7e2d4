"""Short runs on the small Llama, made once for a module of tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lora_ga_cli.cli.app import main


def train(folder: Path, base: Path, name: str, *overrides: str) -> Path:
    """A finished run of three steps, with its cache in the same folder."""
    rows = folder / "sums.jsonl"
    if not rows.exists():
        sums = [{"prompt": f"{a}+{b}=", "answer": f"#### {a + b}"} for a in range(4, 10) for b in range(4, 8)]
        rows.write_text("".join(json.dumps(row) + "\n" for row in sums))
    before = Path.cwd()
    os.chdir(folder)
    try:
        code = main(
            [
                "train",
                "model=causal_lm",
                f"model.path={base}",
                "model.dtype=float32",
                "dataset=jsonl",
                f"dataset.train_file={rows}",
                "dataset.max_length=64",
                f"output_dir={folder}",
                f"cache_dir={folder / 'cache'}",
                f"name={name}",
                "rank=4",
                "gradient.samples=8",
                "trainer.max_steps=3",
                "trainer.batch_size=4",
                "trainer.learning_rate=1e-2",
                "device=cpu",
                *overrides,
            ]
        )
    finally:
        os.chdir(before)
    assert code == 0
    return folder / name
