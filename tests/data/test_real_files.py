"""Real public files, where they lie beside the repository."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import load_data
from lora_ga_cli.data.local import read_files

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not at {SHARED}"),
]

JUDGE = "classify the grammaticality of the text: "
COMPARE = "classify the semantic similarity of the text: "
COLA = ["source", "label", "mark", "sentence"]
MRPC = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
MRPC_ROWS = {"train": 3667, "dev": 408}
"""Rows of the files beside the repository, in which one training row of GLUE's MRPC (3,668 and 408 rows) is missing."""


@pytest.mark.parametrize(
    ("file", "names", "columns", "count"),
    [
        ("glue/cola/train.tsv.gz", COLA, COLA, 8551),
        ("glue/cola/dev.tsv.gz", COLA, COLA, 1043),
        ("glue/mrpc/train.tsv.gz", None, MRPC, MRPC_ROWS["train"]),
        ("glue/mrpc/dev.tsv.gz", None, MRPC, MRPC_ROWS["dev"]),
        ("glue/sst2/train.tsv.gz", None, ["sentence", "label"], 67349),
        ("glue/sst2/dev.tsv.gz", None, ["sentence", "label"], 872),
        ("gsm8k/train.jsonl.gz", None, ["question", "answer"], 7473),
        ("gsm8k/test.jsonl.gz", None, ["question", "answer"], 1319),
    ],
)
def test_every_row_is_read(file: str, names: list[str] | None, columns: list[str], count: int) -> None:
    source = read_files([str(SHARED / file)], column_names=names, on_bad_row="error")
    assert (len(source), source.columns) == (count, columns)


def test_unpaired_quotation_marks_join_no_rows() -> None:
    """MRPC's texts have unpaired quotation marks: a reader that took them for quoting would join rows."""
    path = SHARED / "glue/mrpc/train.tsv.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8-sig").strip("\n").split("\n")
    source = read_files([str(path)], column_names=None, on_bad_row="error")
    assert len(source) == len(lines) - 1
    assert sum(row["#1 String"].count('"') % 2 for row in source.take(range(len(source)), MRPC)) > 0
    assert source.where(len(source) - 1) == f"{path}:{len(lines)}"


def test_cola_for_a_classifier(paired: Any) -> None:
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


def test_cola_as_text_to_text(ended: Any) -> None:
    config = compose(
        [
            "model=t5_base",
            "dataset=glue_cola",
            "dataset.path=null",
            "dataset.validation_split=null",
            f"dataset.train_file={SHARED / 'glue/cola/train.tsv.gz'}",
            f"dataset.validation_file={SHARED / 'glue/cola/dev.tsv.gz'}",
            f"dataset.column_names=[{','.join(COLA)}]",
            "dataset.max_length=300",
            "dataset.shuffle=false",
        ]
    ).dataset
    data = load_data(config, task="seq2seq_lm", tokenizer=ended, seed=0)
    assert data.train is not None
    assert data.validation is not None
    row = data.validation.rows[0]
    assert row["prompt"] == f"{JUDGE}The sailors rode the breeze clear of the rocks.\nresult: "
    assert (row["reference"], ended.decode(row["labels"])) == ("acceptable", "acceptable</s>")
    for split, lines in ((data.train, 8551), (data.validation, 1043)):
        # the published labels, as the file's second field has them
        file = SHARED / "glue/cola" / ("train.tsv.gz" if split is data.train else "dev.tsv.gz")
        fields = [line.split("\t") for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
        assert len(fields) == lines
        assert [("acceptable" if one[1] == "1" else "unacceptable") for one in fields] == [*split.rows["reference"]]
        assert [f"{JUDGE}{one[3]}\nresult: " for one in fields] == [*split.rows["prompt"]]


@pytest.mark.parametrize(("part", "equivalent"), [("train", 2473), ("dev", 279)])
def test_mrpc_as_text_to_text_and_as_pairs(ended: Any, paired: Any, part: str, equivalent: int) -> None:
    """The file has a byte-order mark before the header, and quotation marks that are text."""
    file = SHARED / f"glue/mrpc/{part}.tsv.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8-sig").strip("\n").split("\n")[1:]
    fields = [line.rstrip("\r").split("\t") for line in lines]
    columns = "{label: Quality, sentence1: '#1 String', sentence2: '#2 String'}"
    common = [
        "dataset.path=null",
        "dataset.validation_split=null",
        f"dataset.train_file={file}",
        "dataset.shuffle=false",
    ]
    common += [f"dataset.columns={columns}", "dataset.max_length=1024"]

    text = compose(["model=t5_base", "dataset=glue_mrpc", *common]).dataset
    rows = load_data(text, task="seq2seq_lm", tokenizer=ended, seed=0).train.rows  # type: ignore[union-attr]
    assert [f"{COMPARE}{one[3]}\n{one[4]}\nresult: " for one in fields] == [*rows["prompt"]]
    assert len(rows) == MRPC_ROWS[part]
    words = [*rows["reference"]]
    assert words == ["equivalent" if one[0] == "1" else "different" for one in fields]
    assert words.count("equivalent") == equivalent

    pairs = compose(["model=minilm", "dataset=mrpc", *common]).dataset
    data = load_data(pairs, task="sequence_classification", tokenizer=paired, seed=0)
    assert data.train is not None
    assert sum(data.train.rows["labels"]) == equivalent
    first = data.train.rows[0]
    assert paired.decode(first["input_ids"]) == f"<s>{fields[0][3]}</s>{fields[0][4]}</s>"


def test_gsm8k_for_a_causal_model(tokenizer: Any) -> None:
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
