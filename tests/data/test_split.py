from __future__ import annotations

import datasets

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import Split
from lora_ga_cli.data.examples.chat import Chat


def split(lengths: list[int], skipped: dict[str, int] | None = None, truncated: int = 0) -> Split:
    form = Chat(DatasetConfig(train_file="d.jsonl", messages="m"), tokenizer=None)
    return Split("train", datasets.Dataset.from_dict({"length": lengths}), skipped or {}, truncated, form)


def test_the_summary_is_one_line_that_hides_nothing() -> None:
    assert split([12] * 2000 + [58] + [210] * 1000).summary() == "train: 3,001 rows, 12 to 210 tokens (median 12)"
    assert split([5], {"longer than 512 tokens": 3, "malformed": 1}, 2).summary() == (
        "train: 1 row, 5 to 5 tokens (median 5); 3 skipped: longer than 512 tokens; 1 skipped: malformed; 2 truncated"
    )
