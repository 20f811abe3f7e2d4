"""Streaming from a folder of Parquet files, which stands for a data set on the hub: the library is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import Data, load_data
from lora_ga_cli.data.load import rows_to_fetch
from lora_ga_cli.data.source_store import SourceStore
from lora_ga_cli.data.store import RowStore
from lora_ga_cli.errors import DataError, InvalidInput

FILES, ROWS = 4, 50


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four files of 50 rows, numbered from 0, in the order of their names; and a validation split."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # it sleeps after shuffling a stream
    features = datasets.Features({"q": datasets.Value("string"), "a": datasets.ClassLabel(names=["no", "yes"])})
    for split, count in (("train", FILES), ("test", 1)):
        for number in range(count):
            rows = {"q": [str(number * ROWS + row) for row in range(ROWS)], "a": [row % 2 for row in range(ROWS)]}
            made = datasets.Dataset.from_dict(rows, features=features)
            made.to_parquet(str(tmp_path / "set" / f"{split}-{number}.parquet"))  # type: ignore[no-untyped-call]
    return tmp_path / "set"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files from which rows were read."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    names: list[str] = []
    generate = Parquet._generate_tables

    def noted(self: Any, files: Any, *others: Any, **more: Any) -> Iterator[Any]:
        for key, table in generate(self, files, *others, **more):
            names.extend(Path(str(file)).name for file in files)
            yield key, table

    monkeypatch.setattr(Parquet, "_generate_tables", noted)
    return names


def config(folder: Path, **options: Any) -> DatasetConfig:
    return DatasetConfig(**{"path": str(folder), "streaming": True, "prompt": "{q}", "answer": "{a}", **options})


def load(tokenizer: Any, settings: DatasetConfig, **options: Any) -> Data:
    return load_data(settings, **{"task": "causal_lm", "tokenizer": tokenizer, "seed": 7, **options})


def numbers(data: Data, split: str = "train") -> list[int]:
    return [int(text) for text in getattr(data, split).rows["prompt"]]


def test_only_the_first_rows_are_fetched_and_then_shuffled(tokenizer: Any, folder: Path) -> None:
    rows = numbers(load(tokenizer, config(folder, max_rows=60)))
    assert sorted(rows) == list(range(60))
    assert rows != sorted(rows)
    assert numbers(load(tokenizer, config(folder, max_rows=60, shuffle=False))) == list(range(60))


def test_rows_held_out_are_fetched_too(tokenizer: Any, folder: Path) -> None:
    data = load(tokenizer, config(folder, max_rows=60, validation_fraction=0.25))
    assert len(numbers(data)) == 60
    assert len(numbers(data, "validation")) == 20
    assert sorted(numbers(data) + numbers(data, "validation")) == list(range(80))


@pytest.mark.parametrize("count", [1, 2, 7, 100, 999])
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.05, 0.5, 0.99])
def test_as_few_rows_as_leave_enough_after_holding_out(count: int, fraction: float) -> None:
    def left(rows: int) -> int:
        return rows - (min(max(1, round(fraction * rows)), rows - 1) if fraction else 0)

    rows = rows_to_fetch(count, fraction)
    assert left(rows) >= count
    assert left(rows - 1) < count or rows == 2 or rows == count


def test_a_buffer_draws_from_all_files(tokenizer: Any, folder: Path) -> None:
    drawn = [numbers(load(tokenizer, config(folder, max_rows=20, shuffle_buffer=50), seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) != set(range(20))
    assert len(set(drawn[0])) == 20


def test_fewer_rows_than_asked_for_are_all_there_are(tokenizer: Any, folder: Path) -> None:
    assert len(numbers(load(tokenizer, config(folder, max_rows=10**6)))) == FILES * ROWS


def test_a_validation_split_is_streamed(tokenizer: Any, folder: Path) -> None:
    data = load(tokenizer, config(folder, max_rows=5, validation_split="test", max_validation_rows=3))
    assert numbers(data, "validation") == [0, 1, 2]


def test_class_names_come_with_the_stream(paired: Any, folder: Path, tmp_path: Path) -> None:
    settings = DatasetConfig(path=str(folder), streaming=True, max_rows=10, text="{q}", label="a")
    for _ in range(2):
        data = load(paired, settings, task="sequence_classification", store=RowStore(tmp_path / "cache"))
        assert data.label_names == ["no", "yes"]


def test_rows_are_fetched_once(tokenizer: Any, folder: Path, tmp_path: Path, opened: list[str]) -> None:
    store = RowStore(tmp_path / "cache")
    first = load(tokenizer, config(folder, max_rows=60), store=store)
    assert set(opened) == {"train-0.parquet", "train-1.parquet"}
    opened.clear()
    again = load(tokenizer, config(folder, max_rows=60, prompt="{q}?", shuffle=False), store=store)
    assert opened == []
    assert sorted(numbers(first)) == [int(text[:-1]) for text in again.train.rows["prompt"]]  # type: ignore[union-attr]
    assert load(tokenizer, config(folder, max_rows=60), store=store).train.reused  # type: ignore[union-attr]
    (entry,) = SourceStore(tmp_path / "cache").entries()
    assert (entry.rows, entry.source) == (60, f"{folder} (train)")


def test_other_files_make_other_rows(tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    store = RowStore(tmp_path / "cache")
    load(tokenizer, config(folder, max_rows=60), store=store)
    (folder / "train-0.parquet").rename(folder / "train-9.parquet")
    assert numbers(load(tokenizer, config(folder, max_rows=60, shuffle=False), store=store))[0] == ROWS


def test_a_bad_row_is_found_by_its_number(tokenizer: Any, folder: Path) -> None:
    made = datasets.Dataset.from_list([{"q": "x", "a": 1}, {"q": None, "a": 1}])
    made.to_parquet(str(folder / "bad.parquet"))  # type: ignore[no-untyped-call]
    settings = config(folder, data_files="bad.parquet", max_rows=5)
    with pytest.raises(DataError, match=r"\(train\):row 2: column 'q' is null"):
        load(tokenizer, settings)


def test_an_unknown_split_is_named(tokenizer: Any, folder: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.train_split: .* has no split 'tran' \(did you mean train\?\)"):
        load(tokenizer, config(folder, max_rows=5, train_split="tran"))


def test_values_that_a_stream_cannot_keep_are_told(tokenizer: Any, folder: Path) -> None:
    datasets.Dataset.from_list([{"q": "x", "a": "y", "image": b"\x00"}]).to_parquet(  # type: ignore[no-untyped-call]
        str(folder / "bytes.parquet")
    )
    train = load(tokenizer, config(folder, data_files="bytes.parquet", max_rows=5)).train
    assert train is not None
    assert list(train.notes) == [f"{folder} (train) holds values of type bytes, which a stream reads as null"]


def test_files_of_a_set_can_be_chosen_without_streaming_too(tokenizer: Any, folder: Path) -> None:
    settings = config(folder, streaming=False, data_files="train-2.parquet", shuffle=False)
    assert numbers(load(tokenizer, settings)) == list(range(2 * ROWS, 3 * ROWS))
    by_split = config(folder, streaming=False, data_files={"some": ["train-1.parquet"]}, train_split="some")
    assert sorted(numbers(load(tokenizer, by_split))) == list(range(ROWS, 2 * ROWS))


HUB = ["model=tiny", "dataset=jsonl", "dataset.train_file=null", "dataset.path=org/name", "dataset.streaming=true"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "wants dataset.max_rows or trainer.max_steps"),
        (["trainer.max_steps=5", "dataset.packing=true"], "dataset.packing wants dataset.max_rows"),
        (
            ["dataset.max_rows=5", "dataset.validation_split=test", "dataset.validation_fraction=0"],
            "wants dataset.max_validation_rows",
        ),
        (["dataset.streaming=false", "dataset.shuffle_buffer=5"], "shuffle_buffer does nothing without"),
        (["dataset.path=null", "dataset.train_file=x", "dataset.max_rows=5"], "dataset.streaming goes with"),
        (
            ["dataset.path=null", "dataset.train_file=x", "dataset.streaming=false", "dataset.data_files=x"],
            "dataset.data_files goes with",
        ),
    ],
)
def test_how_many_rows_to_fetch_has_to_be_known(options: list[str], message: str) -> None:
    given = {option.split("=")[0]: option for option in [*HUB, *options]}
    with pytest.raises(InvalidInput, match=message):
        compose(list(given.values()))


def test_steps_say_how_many_rows_are_fetched(folder: Path, loraga: Callable[..., str]) -> None:
    options = [*HUB[:3], f"dataset.path={folder}", "dataset.streaming=true", "dataset.validation_fraction=0"]
    steps = ["trainer.max_steps=3", "trainer.batch_size=4", "dataset.prompt='{q}'", "dataset.answer='{a}'"]
    printed = loraga("train", *options, *steps, "--preview")
    assert "train: 12 rows" in printed
