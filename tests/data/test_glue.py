"""The data sets of GLUE in ``conf/dataset``. Rows like the hub's, one of each class, stand in for the hub's."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from lora_ga_cli.config.compose import compose
from lora_ga_cli.data import load_data

NAMES = {
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qnli": ["entailment", "not_entailment"],
    "mnli": ["entailment", "neutral", "contradiction"],
}
"""The classes in the order of the hub's numbers (its ClassLabel features)."""
COLUMNS = {
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "mrpc": ["sentence1", "sentence2"],
    "qnli": ["question", "sentence"],
    "mnli": ["premise", "hypothesis"],
}
PROMPTS = {
    "cola": "classify the grammaticality of the text: SENTENCE\nresult: ",
    "sst2": "classify the sentiment of the text: SENTENCE\nresult: ",
    "mrpc": "classify the semantic similarity of the text: SENTENCE1\nSENTENCE2\nresult: ",
    "qnli": "classify the semantic similarity of the question and the sentence: QUESTION\nSENTENCE\nresult: ",
    "mnli": "classify the semantic similarity of the text: PREMISE\nHYPOTHESIS\nresult: ",
}
WORDS = NAMES | {"mrpc": ["different", "equivalent"]}
"""The words that are learned. Those of MRPC differ from the hub's names of its classes."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Makes `datasets.load_dataset` return a row of each class; collects what it was asked for."""
    made: list[tuple[str, str, str]] = []

    def load_dataset(path: str, *, name: str, revision: str | None, split: str) -> datasets.Dataset:
        made.append((path, name, split))
        count = len(NAMES[name])
        features = {column: datasets.Value("string") for column in COLUMNS[name]}
        features |= {"label": datasets.ClassLabel(names=NAMES[name]), "idx": datasets.Value("int32")}
        columns: dict[str, list[Any]] = {column: [column.upper()] * count for column in COLUMNS[name]}
        columns |= {"label": list(range(count)), "idx": list(range(count))}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return made


@pytest.mark.parametrize("name", list(NAMES))
def test_text_to_text_answers_are_the_words_of_the_hubs_classes(calls: list[Any], name: str, ended: Any) -> None:
    config = compose(["model=t5_base", f"dataset=glue_{name}", "dataset.shuffle=false", "eval=glue_text"])
    data = load_data(config.dataset, task=config.model.task, tokenizer=ended, seed=0)
    assert config.dataset.label_names == WORDS[name]
    held_out = "validation_matched" if name == "mnli" else "validation"
    assert calls == [("nyu-mll/glue", name, "train"), ("nyu-mll/glue", name, held_out)]
    for split in (data.train, data.validation):
        assert split is not None
        assert list(split.rows["reference"]) == WORDS[name]
        assert set(split.rows["prompt"]) == {PROMPTS[name]}
    assert len({word[0] for word in WORDS[name]}) == len(WORDS[name])


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc"])
def test_encoders_read_text_and_class(calls: list[Any], name: str, paired: Any) -> None:
    config = compose(["model=minilm", f"dataset={name}", "dataset.shuffle=false", "eval=glue"])
    data = load_data(config.dataset, task=config.model.task, tokenizer=paired, seed=0)
    assert data.label_names == NAMES[name]
    assert calls[1] == ("nyu-mll/glue", name, "validation")
    assert data.train is not None
    assert list(data.train.rows["labels"]) == [0, 1]
    texts = "</s>".join(column.upper() for column in COLUMNS[name])
    assert paired.decode(data.train.rows[0]["input_ids"]) == f"<s>{texts}</s>"
