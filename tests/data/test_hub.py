"""Hub data sets; the hub itself is replaced, its library is real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import pytest

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import load_data
from lora_ga_cli.errors import DataError

Hub = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Puts splits (or an exception) behind `datasets.load_dataset`; returns the list of calls it gets."""

    def put(answer: dict[str, datasets.Dataset] | Exception) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def load_dataset(path: str, **options: Any) -> datasets.Dataset:
            calls.append({"path": path, **options, "quiet": datasets.utils.are_progress_bars_disabled()})
            if isinstance(answer, Exception):
                raise answer
            if options["split"] not in answer:
                raise ValueError(f'Unknown split "{options["split"]}". Should be one of {list(answer)}.')
            return answer[options["split"]]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return put


def config(**options: Any) -> DatasetConfig:
    return DatasetConfig(**{"path": "org/name", "prompt": "{q}", "answer": "{a}", **options})


def load(settings: DatasetConfig, tokenizer: Any, **options: Any) -> Any:
    return load_data(settings, **{"task": "causal_lm", "tokenizer": tokenizer, "seed": 1, **options})


def faults_of(settings: DatasetConfig, tokenizer: Any, **options: Any) -> list[str]:
    with pytest.raises(DataError) as error:
        load(settings, tokenizer, **options)
    return [str(fault) for fault in error.value.faults]


def rows(count: int) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"q": str(number), "a": "x", "other": [1]} for number in range(count)])


def test_splits_are_read_with_subset_and_revision_and_without_bars(hub: Hub, tokenizer: Any) -> None:
    calls = hub({"train": rows(5), "test": rows(3)})
    data = load(config(subset="main", revision="abc", validation_split="test"), tokenizer)
    assert (len(data.train.rows), list(data.validation.rows["prompt"])) == (5, ["0", "1", "2"])
    expected = {"path": "org/name", "name": "main", "revision": "abc", "quiet": True}
    assert calls == [{**expected, "split": "train"}, {**expected, "split": "test"}]
    assert not datasets.utils.are_progress_bars_disabled()


def test_only_the_split_that_is_wanted_is_read(hub: Hub, tokenizer: Any) -> None:
    calls = hub({"train": rows(5), "test": rows(3)})
    load(config(validation_split="test"), tokenizer, splits=("validation",))
    assert [call["split"] for call in calls] == ["test"]
    calls.clear()
    load(config(validation_fraction=0.2), tokenizer, splits=("validation",))
    assert [call["split"] for call in calls] == ["train"]


def test_rows_are_found_by_number(hub: Hub, tokenizer: Any) -> None:
    hub({"train": datasets.Dataset.from_list([{"q": "x", "a": "y"}, {"q": "x", "a": None}])})
    (fault,) = faults_of(config(), tokenizer)
    assert fault.startswith("org/name (train):row 2: column 'a' is null (fix them, or dataset.on_bad_row=skip")


def test_the_data_sets_own_class_names_are_taken_and_its_unlabelled_rows_are_bad(hub: Hub, paired: Any) -> None:
    features = datasets.Features({"q": datasets.Value("string"), "y": datasets.ClassLabel(names=["neg", "pos"])})
    hub({"train": datasets.Dataset.from_dict({"q": ["a", "b", "c"], "y": [1, 0, -1]}, features=features)})
    settings = DatasetConfig(path="org/name", text="{q}", label="class", columns={"class": "y"}, on_bad_row="skip")
    data = load(settings, paired, task="sequence_classification")
    assert data.label_names == ["neg", "pos"]
    assert sorted(data.train.rows["labels"]) == [0, 1]
    assert data.train.skipped == {"malformed": 1}


def test_unknown_splits_are_named_both_with_the_nearest(hub: Hub, tokenizer: Any) -> None:
    hub({"train": rows(1), "validation": rows(1)})
    assert faults_of(config(train_split="tran", validation_split="dev"), tokenizer) == [
        "dataset.train_split: org/name has no split 'tran' (did you mean train?)",
        "dataset.validation_split: org/name has no split 'dev' (known: train, validation)",
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ValueError("BuilderConfig 'man' not found. Available: ['main', 'socratic']"),
            "dataset.subset: org/name has no subset 'man' (did you mean main?)",
        ),
        (
            ValueError(
                "Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']\nExample "
                "of usage:\n\t`load_dataset('gsm8k', 'main')`"
            ),
            "dataset.subset: org/name wants a subset (known: main, socratic)",
        ),
        (
            ConnectionError("Couldn't reach 'org/name' on the Hub (LocalEntryNotFoundError)"),
            "dataset.path: cannot reach the hub for org/name, and it is not in the cache (without a network, a data "
            "set must be in the cache already, or be a local file: dataset.train_file)",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Revision 'abc' doesn't exist for dataset 'org/name' on the Hub."),
            "dataset.revision: org/name has no revision 'abc'",
        ),
        (
            datasets.exceptions.DatasetNotFoundError(
                "Dataset 'org/name' doesn't exist on the Hub or cannot be accessed."
            ),
            "dataset.path: no data set 'org/name' on the hub (spell it org/name; a private one wants `hf auth login`)",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found name.py"),
            "dataset.path: org/name is a program (a loading script), which is not run (on the hub, look for a copy of "
            "it in Parquet, or a revision refs/convert/parquet)",
        ),
        (OSError("disk\nfull"), "dataset.path: org/name cannot be loaded: OSError: disk"),
        (KeyError(), "dataset.path: org/name cannot be loaded: KeyError: KeyError"),
    ],
)
def test_the_librarys_errors_become_a_line_with_the_next_step(
    hub: Hub, tokenizer: Any, error: Exception, message: str
) -> None:
    hub(error)
    assert faults_of(config(subset="man", revision="abc"), tokenizer) == [message]


def test_an_empty_split(hub: Hub, tokenizer: Any) -> None:
    hub({"train": rows(1).select([])})
    what = "dataset.train_split: split 'train' of org/name holds no rows"
    assert faults_of(config(), tokenizer) == [f"{what} (name another split, or another dataset.subset)"]


def test_column_names_are_for_local_files(hub: Hub, tokenizer: Any) -> None:
    hub({"train": rows(1)})
    assert faults_of(config(column_names=["q", "a"]), tokenizer) == [
        "dataset.column_names: names the columns of local files, and the hub's have theirs "
        "(dataset.columns={new: old} renames)"
    ]
