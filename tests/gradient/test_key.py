"""A gradient's key: it changes with everything the gradient depends on, and with nothing else."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from lora_ga_cli.data.identity import rows_hash
from lora_ga_cli.gradient.key import gradient_key, identity_after_merges

BASE: dict[str, Any] = {
    "model": {"weights_sha256": "a", "config_sha256": "b"},
    "task": "causal_lm",
    "dtype": "float32",
    "rows": "c",
    "targets": ["layers.0.q", "layers.0.v"],
    "estimator": {"name": "exact", "samples": 64},
}
CHANGES: list[dict[str, Any]] = [
    {"model": {"weights_sha256": "A", "config_sha256": "b"}},
    {"model": {"weights_sha256": "a", "config_sha256": "B"}},
    {"model": {"weights_sha256": "a", "config_sha256": "b", "head_seed": "1"}},
    {"task": "seq2seq_lm"},
    {"dtype": "bfloat16"},
    {"rows": "C"},
    {"targets": ["layers.0.q"]},
    {"targets": ["layers.0.q", "layers.0.k"]},
    {"estimator": {"name": "sketch", "samples": 64}},
    {"estimator": {"name": "exact", "samples": 65}},
]
ROWS = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]


def test_the_same_ingredients_give_the_same_key() -> None:
    assert gradient_key(**BASE) == gradient_key(**BASE)
    assert re.fullmatch(r"[0-9a-f]{24}", gradient_key(**BASE))


def test_the_key_is_the_same_in_every_process_and_version() -> None:
    """If what is hashed changes, KEY_FORMAT and this literal must change: old artifacts are then not found any more."""
    assert gradient_key(**BASE) == "a8379f6f8f86215ac7bf14aa"


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_ingredient_changes_the_key(change: dict[str, Any]) -> None:
    assert gradient_key(**{**BASE, **change}) != gradient_key(**BASE)


def test_all_changes_give_different_keys() -> None:
    assert len({gradient_key(**{**BASE, **change}) for change in CHANGES}) == len(CHANGES)


def test_the_test_above_covers_every_ingredient() -> None:
    assert {name for change in CHANGES for name in change} == set(inspect.signature(gradient_key).parameters)


def test_the_order_of_targets_and_of_settings_does_not_matter() -> None:
    reordered = {name: dict(reversed(value.items())) for name, value in BASE.items() if isinstance(value, dict)}
    assert gradient_key(**{**BASE, **reordered, "targets": BASE["targets"][::-1]}) == gradient_key(**BASE)


def test_a_merged_adapter_changes_the_key_of_the_next_gradient() -> None:
    """Every sequence of merges gives a model of its own, and no merge leaves the base model."""
    base = BASE["model"]
    merges = ["first"], ["second"], ["first", "second"], ["second", "first"], ["first", "first"], ["firstsecond"]
    keys = [gradient_key(**BASE | {"model": identity_after_merges(base, merged)}) for merged in ([], *merges)]
    assert keys[0] == gradient_key(**BASE)
    assert len(set(keys)) == len(keys)
    assert identity_after_merges(base, []) == base
    assert identity_after_merges(base, ["first"]) == identity_after_merges(dict(base), ("first",))
    assert "merged" not in base


@pytest.mark.parametrize(
    "rows",
    [
        [{"input_ids": [1, 2, 9], "labels": [-100, 2, 3]}, ROWS[1]],
        [{"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}, ROWS[1]],
        [ROWS[0] | {"token_type_ids": [0, 0, 1]}, ROWS[1]],
        [ROWS[1], ROWS[0]],
        [ROWS[0]],
        [*ROWS, ROWS[1]],
        [{"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4]}],
        [],
    ],
    ids=["token", "label", "type ids", "order", "one less", "one twice", "joined", "none"],
)
def test_rows_that_the_model_sees_differently_have_different_hashes(rows: list[dict[str, Any]]) -> None:
    assert rows_hash(rows) != rows_hash(ROWS)


def test_columns_of_any_form_of_a_row_matter() -> None:
    """A form that a user adds may give the model other columns than the shipped forms do."""
    assert rows_hash([row | {"rejected_ids": [7]} for row in ROWS]) != rows_hash(ROWS)


def test_columns_that_the_model_does_not_see_do_not_matter() -> None:
    assert rows_hash([row | {"length": len(row["input_ids"]), "source": "x"} for row in ROWS]) == rows_hash(ROWS)
    assert rows_hash(row for row in ROWS) == rows_hash(ROWS)
