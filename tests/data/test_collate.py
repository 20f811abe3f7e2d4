from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lora_ga_cli.data import collate_tokens, generation_batch
from lora_ga_cli.data.collate import collate_classes
from lora_ga_cli.errors import DataError

CAUSAL = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "prompt_length": 1, "length": 3, "prompt": "a"},
    {"input_ids": [8, 9], "labels": [-100, 9], "prompt_length": 1, "length": 2, "prompt": "b"},
]
END, PAD = 1, 2
"""Numbers of ``</s>`` and ``<pad>`` in the test's tokenizers."""


def lists(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    assert all(tensor.dtype == torch.long for tensor in batch.values())
    return {name: tensor.tolist() for name, tensor in batch.items()}


def test_causal_rows_are_padded_on_the_right_and_other_columns_left_out(
    make_tokenizer: Callable[..., Any],
) -> None:
    assert lists(collate_tokens(make_tokenizer(pad=True), CAUSAL)) == {
        "input_ids": [[5, 6, 7], [8, 9, PAD]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, 6, 7], [-100, 9, -100]],
    }


def test_a_tokenizer_without_padding_token_pads_with_its_end_and_stays_as_it_is(tokenizer: Any) -> None:
    assert collate_tokens(tokenizer, CAUSAL)["input_ids"].tolist() == [[5, 6, 7], [8, 9, END]]
    assert tokenizer.pad_token is None


def test_a_tokenizer_with_neither_is_an_error(make_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="neither a padding nor an end-of-text token"):
        collate_tokens(make_tokenizer(eos=False), CAUSAL)


def test_encoder_decoder_sides_have_their_own_length(ended: Any) -> None:
    rows = [{"input_ids": [5, 1], "labels": [6, 7, 1]}, {"input_ids": [5, 6, 7, 1], "labels": [1]}]
    assert lists(collate_tokens(ended, rows)) == {
        "input_ids": [[5, 1, PAD, PAD], [5, 6, 7, 1]],
        "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 1]],
        "labels": [[6, 7, 1], [1, -100, -100]],
    }


def test_a_classifiers_labels_are_one_number_a_row(paired: Any) -> None:
    rows = [
        {"input_ids": [0, 5, 1, 6, 1], "token_type_ids": [0, 0, 0, 1, 1], "labels": 1},
        {"input_ids": [0, 5, 1], "token_type_ids": [0, 0, 0], "labels": 0},
    ]
    assert lists(collate_classes(paired, rows)) == {
        "input_ids": [[0, 5, 1, 6, 1], [0, 5, 1, PAD, PAD]],
        "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]],
        "labels": [1, 0],
    }


def test_generation_starts_from_the_prompts_own_tokens_side_by_side(tokenizer: Any) -> None:
    rows = [{**CAUSAL[0], "prompt_length": 2}, CAUSAL[1]]
    assert lists(generation_batch(tokenizer, rows)) == {
        "input_ids": [[5, 6], [END, 8]],
        "attention_mask": [[1, 1], [0, 1]],
    }


def test_an_encoder_decoder_generates_from_its_input(ended: Any) -> None:
    rows = [{"input_ids": [5, 1], "labels": [6, 1]}, {"input_ids": [5, 6, 1], "labels": [1]}]
    assert lists(generation_batch(ended, rows)) == {
        "input_ids": [[5, 1, PAD], [5, 6, 1]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
    }


def test_nothing_generates_from_no_token(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"dataset\.prompt: a prompt without any token"):
        generation_batch(tokenizer, [{**CAUSAL[0], "prompt_length": 0}])


def test_the_form_of_a_split_collates_for_a_data_loader(tokenizer: Any, jsonl: Callable[..., str]) -> None:
    """Rows of a loaded split go in as they are."""
    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data import load_data

    path = jsonl("d.jsonl", [{"q": "ab", "a": "c"}, {"q": "d", "a": "e"}])
    config = DatasetConfig(train_file=path, prompt="{q}", answer="{a}", shuffle=False)
    split = load_data(config, task="causal_lm", tokenizer=tokenizer, seed=0).train
    assert split is not None
    (batch,) = torch.utils.data.DataLoader(split.rows, batch_size=2, collate_fn=split.form.collate)
    assert batch["input_ids"].shape == (2, 5)
    assert tokenizer.batch_decode(batch["input_ids"]) == ["<s>abc</s>", "<s>de</s></s>"]
    prompts = generation_batch(tokenizer, list(split.rows))["input_ids"]
    assert tokenizer.batch_decode(prompts) == ["<s>ab", "</s><s>d"]
