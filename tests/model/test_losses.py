"""Losses are averaged over items, not over batches."""

from __future__ import annotations

import pytest
import torch

from lora_ga_cli.errors import EqualityError
from lora_ga_cli.model.losses import count_items, summed_loss
from lora_ga_cli.model.probe import TOLERANCE, check_equal, probe_logits, relative_difference
from tests.conftest import FAMILIES, build_batch, build_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_over_items_does_not_depend_on_batches(family: str) -> None:
    model, batch = build_model(family).train(), build_batch(family)
    parts = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(4)]
    summed, items = summed_loss(model, [batch])
    split, same = summed_loss(model, parts)
    assert items == same == count_items(model, batch)
    assert split == pytest.approx(summed, rel=1e-5)
    assert float(model.eval()(**batch).loss.detach()) == pytest.approx(summed / items, rel=1e-5)


def test_items_are_what_the_loss_averages() -> None:
    batch = build_batch("llama", rows=2, tokens=6)  # labels on the last 3; the second row padded by 3
    assert count_items(build_model("llama"), batch) == 3
    batch["labels"][:, 0] = 5  # a first label is never predicted
    assert count_items(build_model("llama"), batch) == 3
    assert count_items(build_model("t5"), batch) == 5


def test_padding_does_not_enter_a_comparison() -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    logits = probe_logits(model, batch)
    batch["input_ids"][-1, -1] = 77
    assert torch.equal(probe_logits(model, batch), logits)
    assert logits.shape[0] == int(batch["attention_mask"].sum())


def test_a_difference_beyond_rounding_stops() -> None:
    expected = torch.randn(10, 5)
    assert check_equal(expected, expected.clone(), torch.float32, "x") == 0
    assert relative_difference(1.01 * expected, expected) == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(EqualityError, match=r"this and that: logits differ by 1\.0e-02"):
        check_equal(1.01 * expected, expected, torch.float32, "this and that")
    with pytest.raises(EqualityError):
        check_equal(expected * float("nan"), expected, torch.float32, "x")
    assert TOLERANCE[torch.float32] < TOLERANCE[torch.float16] < TOLERANCE[torch.bfloat16]
