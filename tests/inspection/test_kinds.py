"""Kinds and blocks of layers, from their names."""

from __future__ import annotations

from lora_ga_cli.inspection.kinds import block_of, by_kind, kind_of, one_by_one


def test_layers_are_grouped_by_what_follows_the_number_of_the_block() -> None:
    names = ["model.layers.0.mlp.up_proj", "model.layers.11.mlp.up_proj", "model.layers.0.self_attn.q_proj", "head"]
    assert by_kind(names) == {"mlp.up_proj": names[:2], "self_attn.q_proj": names[2:3], "head": names[3:]}
    assert [block_of(name) for name in names] == [0, 11, 0, None]


def test_kinds_that_differ_before_the_number_keep_their_complete_names() -> None:
    names = ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q"]
    assert list(by_kind(names)) == [kind_of(name) for name in names]
    assert kind_of(names[0]) == "encoder.block.*.layer.*.SelfAttention.q"


def test_layers_one_by_one_have_names_without_what_all_begin_with() -> None:
    names = ["model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"]
    assert one_by_one(names) == {"mlp.up_proj": names[:1], "self_attn.q_proj": names[1:]}
    assert one_by_one(names[:1]) == {names[0]: names[:1]}
    assert one_by_one(["a", "a.b"]) == {"a": ["a"], "a.b": ["a.b"]}
