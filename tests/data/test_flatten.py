"""Rows one after another, without padding."""

from __future__ import annotations

import pytest
import torch

from lora_ga_cli.data.flatten import count_rows, flatten_tokens, is_flattened, split_flattened

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [5, -100, 7]},
    {"input_ids": [8], "labels": [8]},
    {"input_ids": [9, 10, 11, 12], "labels": [-100, -100, 11, 12]},
]


def test_rows_follow_one_another_with_positions_of_their_own() -> None:
    batch = flatten_tokens(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10, 11, 12]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 2, 3]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 4, 8]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == 4
    assert "attention_mask" not in batch, "with a mask, transformers would let rows see each other"


def test_no_token_predicts_the_first_one_of_the_next_row() -> None:
    assert flatten_tokens(ROWS)["labels"].tolist() == [[-100, -100, 7, -100, -100, -100, 11, 12]]


@pytest.mark.parametrize("first", [1, 2])
def test_a_batch_is_split_between_rows(first: int) -> None:
    parts = split_flattened(flatten_tokens(ROWS), first)
    for part, rows in zip(parts, (ROWS[:first], ROWS[first:]), strict=True):
        expected = flatten_tokens(rows)
        assert set(part) == set(expected)
        assert all(torch.equal(torch.as_tensor(part[name]), torch.as_tensor(expected[name])) for name in expected)


def test_batches_know_how_many_rows_they_have() -> None:
    assert is_flattened(flatten_tokens(ROWS))
    assert count_rows(flatten_tokens(ROWS)) == 3
    padded = {"labels": torch.zeros(2, 5)}
    assert not is_flattened(padded)
    assert count_rows(padded) == 2
