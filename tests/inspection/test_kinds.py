"""Names of layers as kinds and blocks."""

from __future__ import annotations

from lora_ga_cli.inspection.kinds import block_name, block_of, by_kind, one_by_one


def test_a_kind_has_a_short_name_unless_another_one_has_it_too() -> None:
    llama = [f"model.layers.{block}.{kind}" for block in (0, 11) for kind in ("mlp.up_proj", "experts.up.3")]
    assert by_kind(llama) == {"mlp.up_proj": llama[::2], "experts.up.*": llama[1::2]}
    t5 = ["encoder.block.0.layer.0.q", "decoder.block.0.layer.0.q", "pooler.dense"]
    assert list(by_kind(t5)) == ["encoder.block.*.layer.*.q", "decoder.block.*.layer.*.q", "pooler.dense"]


def test_a_block_is_the_first_number() -> None:
    names = ["model.layers.13.mlp.up_proj", "encoder.block.1.layer.0.SelfAttention.q", "pooler.dense", "h.0"]
    assert [block_name(name) for name in names] == ["model.layers.13", "encoder.block.1", "", "h.0"]
    assert [block_of(name) for name in names] == [13, 1, None, 0]


def test_layers_one_by_one_have_names_without_what_all_begin_with() -> None:
    names = ["model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"]
    assert one_by_one(names) == {"mlp.up_proj": names[:1], "self_attn.q_proj": names[1:]}
    assert one_by_one(names[:1]) == {names[0]: names[:1]}
    assert one_by_one(["a", "a.b"]) == {"a": ["a"], "a.b": ["a.b"]}
