"""GSM8K, as it was published, on the bundled base."""

from __future__ import annotations

import json

import pytest

from tests.conftest import SHARED_DATA
from tests.helpers import Loraga, only_run, points

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not (SHARED_DATA / "gsm8k").is_dir(), reason=f"GSM8K is not in {SHARED_DATA}"),
]


@pytest.mark.slow
def test_the_bundled_base_learns_from_it(loraga: Loraga) -> None:
    """1,000-character solutions, gzipped files, real punctuation: the loss on held-out problems falls."""
    files = [
        f"dataset.{name}_file={SHARED_DATA}/gsm8k/{split}.jsonl.gz"
        for name, split in (("train", "train"), ("validation", "test"))
    ]
    out = loraga(
        "eval",
        "recipe=quickstart",
        *files,
        "dataset.max_length=1100",
        "dataset.max_validation_rows=16",
        "gradient.samples=16",
        "gradient.micro_batch_size=4",
        "trainer.batch_size=8",
        "trainer.micro_batch_size=4",
        "trainer.max_steps=12",
        "trainer.eval_steps=4",
        "trainer.save_steps=12",
        "trainer.learning_rate=2e-3",
        "eval=loss",
        "device=cpu",
    )
    assert "train: 7,473 rows" in out
    losses = [point["eval_loss"] for point in points(only_run()) if "eval_loss" in point]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    assert json.loads((only_run() / "eval.json").read_text())["values"]["loss"] == pytest.approx(losses[-1], rel=1e-4)
