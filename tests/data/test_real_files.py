"""Real public files, where they lie beside the repository."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import load_data
from lora_ga_cli.data.local import read_files

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not at {SHARED}"),
]

COLA = ["source", "label", "mark", "sentence"]
MRPC = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]


@pytest.mark.parametrize(
    ("file", "names", "columns", "count"),
    [
        ("glue/cola/train.tsv.gz", COLA, COLA, 8551),
        ("glue/cola/dev.tsv.gz", COLA, COLA, 1043),
        ("glue/mrpc/dev.tsv.gz", None, MRPC, 408),
        ("glue/sst2/train.tsv.gz", None, ["sentence", "label"], 67349),
        ("glue/sst2/dev.tsv.gz", None, ["sentence", "label"], 872),
        ("gsm8k/train.jsonl.gz", None, ["question", "answer"], 7473),
        ("gsm8k/test.jsonl.gz", None, ["question", "answer"], 1319),
    ],
)
def test_every_row_is_read(file: str, names: list[str] | None, columns: list[str], count: int) -> None:
    source = read_files([str(SHARED / file)], column_names=names, on_bad_row="error")
    assert (len(source), source.columns) == (count, columns)


def test_literal_quotes_swallow_no_row() -> None:
    """MRPC has single quotation marks in its texts: read as quoting, they join rows."""
    path = SHARED / "glue/mrpc/train.tsv.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8-sig").strip("\n").split("\n")
    source = read_files([str(path)], column_names=None, on_bad_row="error")
    assert len(source) == len(lines) - 1
    assert sum(row["#1 String"].count('"') % 2 for row in source.take(range(len(source)), MRPC)) > 0
    assert source.where(len(source) - 1) == f"{path}:{len(lines)}"


def test_cola_as_a_classifier_reads_it(paired: Any) -> None:
    config = DatasetConfig(
        train_file=str(SHARED / "glue/cola/train.tsv.gz"),
        validation_file=str(SHARED / "glue/cola/dev.tsv.gz"),
        column_names=COLA,
        text="{sentence}",
        label="label",
        label_names=["unacceptable", "acceptable"],
        max_length=512,
    )
    data = load_data(config, task="sequence_classification", tokenizer=paired, seed=0)
    assert data.train is not None
    assert data.validation is not None
    assert (len(data.train.rows), len(data.validation.rows)) == (8551, 1043)
    # the published share of acceptable sentences
    assert sum(data.train.rows["labels"]) / 8551 == pytest.approx(0.704, abs=0.001)


def test_gsm8k_as_a_causal_model_reads_it(tokenizer: Any) -> None:
    config = DatasetConfig(
        train_file=str(SHARED / "gsm8k/train.jsonl.gz"),
        prompt="Q: {question}\nA: ",
        answer="{answer}",
        max_length=4096,
        max_rows=200,
        shuffle=False,
    )
    train = load_data(config, task="causal_lm", tokenizer=tokenizer, seed=0).train
    assert train is not None
    row = train.rows[0]
    assert row["reference"].endswith("#### 72")
    assert tokenizer.decode(row["input_ids"][row["prompt_length"] :]) == row["reference"] + "</s>"
