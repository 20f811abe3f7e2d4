"""The measures of a layer against the base's weight, and of several layers together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lora_ga_cli.inspection.changes import decompose
from lora_ga_cli.inspection.layer import against_weight, measured, totals
from lora_ga_cli.lora.layers import ADAPTER, lora_layers
from lora_ga_cli.lora.links import LowRank
from tests.inspection.test_changes import drawn


def test_intruders_of_dora_are_those_of_the_weight_that_peft_merges() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 40, bias=False))
    weight = base[0].weight.detach().clone()
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["0"], use_dora=True, init_lora_weights=False))
    (layer,) = lora_layers(model).values()
    a, b = layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach()
    magnitude = 3 * torch.rand(40)
    layer.lora_magnitude_vector[ADAPTER].weight.data.copy_(magnitude)
    found = against_weight(decompose(LowRank(layer.scaling[ADAPTER] * b, a)), weight.double(), magnitude)
    merged = model.merge_and_unload()[0].weight.detach().double().numpy()
    of_merged, of_weight = (np.linalg.svd(item, full_matrices=False)[0] for item in (merged, weight.double().numpy()))
    expected = int((np.abs(of_merged[:, :10].T @ of_weight).max(1) < 0.5).sum())
    assert found["intruders"] == {"count": expected, "of": 10, "threshold": 0.5}
    assert expected > 0


def test_totals_of_layers_of_other_ranks() -> None:
    changes = [
        decompose(drawn(0, rank=2)),
        decompose(drawn(1, rank=5)),
        decompose(LowRank(torch.zeros(4, 1), torch.zeros(1, 4))),
    ]
    found = totals({str(number): measured(change, None, None) for number, change in enumerate(changes)})
    norm = np.linalg.norm([change.norm for change in changes])
    assert found["norm"] == pytest.approx(norm)
    assert set(found["cut"]) == {"1", "2", "4", "5"}
    assert found["cut"]["2"] == pytest.approx(float(changes[1].singular[2:].norm()) / norm)
    assert (found["cut"]["5"], found["within_start"], found["intruders"]) == (0.0, None, None)
