"""Layers by block and kind, for the families of models that name them differently."""

from __future__ import annotations

import pytest

from lora_ga_cli.report.html.layers import OUTSIDE, Place, grids, place, short


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.3.mlp.up_proj", Place("model.layers", 3, "mlp.up_proj")),
        ("transformer.h.0.attn.c_attn", Place("transformer.h", 0, "attn.c_attn")),
        ("encoder.block.1.layer.0.SelfAttention.q", Place("encoder.block", 1, "layer.SelfAttention.q")),
        ("model.layers.2.mlp.experts.7.down_proj", Place("model.layers", 2, "mlp.experts.down_proj")),
        ("classifier", Place("", None, "classifier")),
        ("head.0", Place("", None, "head.0")),
    ],
)
def test_a_layer_is_of_a_kind_in_a_block(name: str, found: Place) -> None:
    assert place(name) == found


def test_kinds_have_the_shortest_names_that_tell_them_apart() -> None:
    paths = ["attn.c_attn", "attn.c_proj", "mlp.c_proj"]
    assert list(short(paths).values()) == ["c_attn", "attn.c_proj", "mlp.c_proj"]


def test_a_model_with_an_encoder_a_decoder_and_a_head_has_three_grids() -> None:
    stacks = [f"{stack}.block.{block}.layer.0.SelfAttention.q" for stack in ("encoder", "decoder") for block in (1, 0)]
    found = grids([*stacks, "lm_head"])
    assert [grid.title for grid in found] == ["encoder", "decoder", OUTSIDE]
    assert [list(grid.blocks) for grid in found] == [[0, 1], [0, 1], [None]]


def test_the_experts_of_a_block_are_in_one_cell() -> None:
    names = [f"model.layers.0.mlp.experts.{expert}.up_proj" for expert in range(3)]
    (grid,) = grids([*names, "model.layers.1.self_attn.q_proj"])
    assert grid.title == ""
    assert grid.cells == {("up_proj", 0): names, ("q_proj", 1): ["model.layers.1.self_attn.q_proj"]}
