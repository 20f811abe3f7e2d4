"""Which layers are adapted, and what is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from lora_ga_cli.errors import TargetError
from lora_ga_cli.model.targets import (
    check_rank,
    classifier_heads,
    find_targets,
    fingerprint,
    new_modules,
    shortest_names,
    small_layers,
)
from tests.conftest import build_model


def test_all_linear_leaves_output_and_classifier_heads_out() -> None:
    assert len(find_targets(build_model("llama"))) == 2 * 7
    assert len(find_targets(build_model("gpt2"))) == 2 * 4
    assert len(find_targets(build_model("t5"))) == 2 * 6 + 2 * 10
    assert len(find_targets(build_model("bert"))) == 2 * 6 + 1  # and the pooler
    assert not any(
        "head" in name or "classifier" in name
        for f in ("llama", "gpt2", "t5", "bert")
        for name in find_targets(build_model(f))
    )


def test_shapes_are_d_out_by_d_in_whatever_the_layout() -> None:
    llama, gpt2 = find_targets(build_model("llama")), find_targets(build_model("gpt2"))
    assert llama["model.layers.0.self_attn.k_proj"].shape == (24, 48)
    assert gpt2["transformer.h.0.mlp.c_fc"].shape == (80, 48)
    assert gpt2["transformer.h.0.mlp.c_fc"].weight.shape == (48, 80)


def test_endings_full_names_and_patterns() -> None:
    model = build_model("llama")
    assert len(find_targets(model, ["q_proj", "v_proj"])) == 4
    assert list(find_targets(model, ["model.layers.1.mlp.up_proj"])) == ["model.layers.1.mlp.up_proj"]
    assert len(find_targets(model, r".*layers\.0\..*_proj")) == 7
    assert list(find_targets(model, ["v_proj", "q_proj"])) == list(find_targets(model, ["q_proj", "v_proj"]))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["q_proj", "v_prj"], r"'v_prj' matches no module \(did you mean v_proj\?\)"),
        (["embed_tokens"], "embed_tokens, a Embedding; only linear layers"),
        ([], "an empty list"),
        ("q_proj", "matches no full name"),
        ("q_(proj", "no regular expression"),
        (["lm_head"], r"lm_head: its weight is shared with model\.embed_tokens\.weight"),
    ],
)
def test_what_cannot_be_adapted_is_named(wanted: str | list[str], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        find_targets(build_model("llama"), wanted)


def test_shared_modules_and_shared_storage_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1] = model[0]
    with pytest.raises(TargetError, match=r"0: its weight is shared with 1\.weight"):
        find_targets(model)
    views = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    views[1].weight.data = views[0].weight.data
    with pytest.raises(TargetError, match="shared"):
        find_targets(views)


def test_a_quantized_weight_has_the_shape_of_its_layer() -> None:
    """In memory, 4-bit weights lie two to a byte in one long column."""
    model = nn.Sequential(nn.Linear(10, 6), nn.Linear(6, 4))
    model[0].weight = nn.Parameter(torch.zeros(30, 1, dtype=torch.uint8), requires_grad=False)
    packed, plain = find_targets(model).values()
    assert packed.quantized
    assert packed.shape == (6, 10)
    assert not plain.quantized
    assert plain.shape == (4, 6)


def test_the_head_of_a_classifier_is_what_it_has_beside_its_base() -> None:
    sizes = {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4}
    distilbert = DistilBertForSequenceClassification(DistilBertConfig(**sizes))
    assert classifier_heads(distilbert) == ["pre_classifier", "classifier"]
    assert new_modules(distilbert) == ["classifier", "pre_classifier"]
    assert not any("classifier" in name for name in find_targets(distilbert))
    assert classifier_heads(build_model("bert")) == ["classifier"]
    assert classifier_heads(build_model("llama")) == []


def test_a_few_layers_among_all_may_be_too_small() -> None:
    """Layers that the user named, and a rank that is too large for half of the weights, are errors."""
    shapes, ranks = {"gate": (1, 64), "wide": (64, 64)}, {"gate": 4, "wide": 4}
    assert small_layers(shapes, ranks, vectors=2, named=False) == {"gate"}
    with pytest.raises(TargetError, match=r"gate \(d_out 1, d_in 64\) has 1"):
        small_layers(shapes, ranks, vectors=2, named=True)
    with pytest.raises(TargetError, match=r"rank=40 needs 80 singular vectors, and wide .*: choose rank=32 or less"):
        small_layers(shapes, {"gate": 40, "wide": 40}, vectors=2, named=False)
    assert small_layers(shapes, {"gate": 1, "wide": 32}, vectors=1, named=True) == set()


def test_a_rank_that_is_too_large_names_layer_and_largest_rank() -> None:
    shapes = {"wide": (100, 300), "narrow": (100, 20)}
    check_rank(shapes, 10, 20)
    with pytest.raises(
        TargetError,
        match=r"rank=11 needs 22 singular vectors, and narrow \(d_out 100, d_in 20\) has 20: choose rank=10",
    ):
        check_rank(shapes, 11, 22)


def test_shortest_names_select_the_same_layers() -> None:
    model = build_model("llama")
    assert shortest_names(model, find_targets(model, ["q_proj", "v_proj"])) == ["q_proj", "v_proj"]
    only_one = find_targets(model, ["model.layers.1.mlp.up_proj"])
    assert shortest_names(model, only_one) == ["model.layers.1.mlp.up_proj"]


def test_the_fingerprint_sees_every_bit() -> None:
    model = build_model("llama").to(torch.bfloat16)
    before = fingerprint(find_targets(model))
    assert fingerprint(find_targets(build_model("llama").to(torch.bfloat16))) == before
    with torch.no_grad():
        weight = model.model.layers[1].mlp.down_proj.weight
        weight[-1, -1] = torch.nextafter(weight[-1, -1], torch.tensor(9.0, dtype=torch.bfloat16))
    assert fingerprint(find_targets(model)) != before
