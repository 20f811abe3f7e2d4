"""Several sources of training rows with weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import Data, load_data
from lora_ga_cli.data.store import RowStore
from lora_ga_cli.errors import DataError

Write = Callable[..., str]


@pytest.fixture
def files(jsonl: Write) -> tuple[str, str]:
    """100 rows ``a0`` to ``a99`` and 50 rows ``b0`` to ``b49``."""
    return tuple(
        jsonl(f"{name}.jsonl", [{"q": f"{name}{number}", "a": "x"} for number in range(count)])
        for name, count in (("a", 100), ("b", 50))
    )  # type: ignore[return-value]


def config(files: tuple[str, str], weights: tuple[float, float], **options: Any) -> DatasetConfig:
    mix = [{"train_file": file, "weight": weight} for file, weight in zip(files, weights, strict=True)]
    return DatasetConfig(**{"mix": mix, "prompt": "{q}", "answer": "{a}", **options})


def load(tokenizer: Any, settings: DatasetConfig, **options: Any) -> Data:
    return load_data(settings, **{"task": "causal_lm", "tokenizer": tokenizer, "seed": 7, **options})


def prompts(data: Data, split: str = "train") -> list[str]:
    return list(getattr(data, split).rows["prompt"])


def faults_of(tokenizer: Any, settings: DatasetConfig, folder: Path) -> list[str]:
    with pytest.raises(DataError) as error:
        load(tokenizer, settings)
    return [str(fault).replace(f"{folder}/", "") for fault in error.value.faults]


def test_weights_of_one_change_nothing(tokenizer: Any, files: tuple[str, str]) -> None:
    listed = DatasetConfig(train_file=list(files), prompt="{q}", answer="{a}")
    assert prompts(load(tokenizer, config(files, (1, 1)))) == prompts(load(tokenizer, listed))


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_weight_says_how_often_each_row_is_seen(tokenizer: Any, files: tuple[str, str], shuffle: bool) -> None:
    counts = Counter(prompts(load(tokenizer, config(files, (0.5, 2.5), shuffle=shuffle))))
    first, second = ({row: n for row, n in counts.items() if row[0] == name} for name in "ab")
    assert (len(first), set(first.values())) == (50, {1})
    assert (len(second), Counter(second.values())) == (50, Counter({2: 25, 3: 25}))


def test_half_of_the_rows_is_drawn_by_the_seed(tokenizer: Any, files: tuple[str, str]) -> None:
    one, again, other = (load(tokenizer, config(files, (0.5, 1)), seed=seed) for seed in (7, 7, 8))
    assert prompts(one) == prompts(again)
    drawn = [{row for row in prompts(data) if row[0] == "a"} for data in (one, other)]
    assert drawn[0] != drawn[1]
    assert drawn[0] != {f"a{number}" for number in range(50)}


def test_copies_are_spread_over_the_epoch(tokenizer: Any, files: tuple[str, str]) -> None:
    rows = prompts(load(tokenizer, config(files, (1, 4))))
    assert len(rows) == 300
    assert 35 < sum(row[0] == "b" for row in rows[:75]) < 65
    few = prompts(load(tokenizer, config(files, (1, 4), max_rows=75)))
    assert few == rows[:75]


def test_a_row_that_is_held_out_is_never_a_training_row(tokenizer: Any, files: tuple[str, str]) -> None:
    data = load(tokenizer, config(files, (3, 0.5), validation_fraction=0.2))
    held_out = prompts(data, "validation")
    assert len(held_out) == len(set(held_out)) == 30
    assert not set(held_out) & set(prompts(data))
    plain = load(tokenizer, config(files, (1, 1), validation_fraction=0.2))
    assert prompts(plain, "validation") == held_out


def test_the_rows_of_each_source_are_told(tokenizer: Any, files: tuple[str, str], tmp_path: Path, jsonl: Write) -> None:
    store = RowStore(tmp_path / "cache")
    for reused in (False, True):
        train = load(tokenizer, config(files, (0.5, 2)), store=store).train
        assert train is not None
        assert train.reused == reused
        assert list(train.notes) == [
            f"50 rows are of {files[0]} (weight 0.5, 100 rows)",
            f"100 rows are of {files[1]} (weight 2, 50 rows)",
        ]


def test_weights_are_part_of_the_rows_key(tokenizer: Any, files: tuple[str, str], tmp_path: Path) -> None:
    store = RowStore(tmp_path / "cache")
    made = [load(tokenizer, config(files, weights), store=store).train for weights in ((1, 2), (2, 1), (1, 2))]
    assert [train.reused for train in made if train is not None] == [False, False, True]


def test_files_and_hub_sets_mix(tokenizer: Any, files: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_list([{"q": f"h{number}", "a": "x"} for number in range(10)])
    asked = []

    def load_dataset(path: str, **options: Any) -> datasets.Dataset:
        asked.append((path, options["split"], options["name"]))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    mix = [{"path": "org/name", "subset": "main", "weight": 2}, {"train_file": files[1]}]
    data = load(tokenizer, DatasetConfig(mix=mix, prompt="{q}", answer="{a}"))  # type: ignore[arg-type]
    assert asked == [("org/name", "train", "main")]
    assert Counter(row[0] for row in prompts(data)) == {"h": 20, "b": 50}


def test_faults_name_the_file_and_the_row_once(tokenizer: Any, jsonl: Write, tmp_path: Path) -> None:
    good = jsonl("good.jsonl", [{"q": "x", "a": "y"}] * 30)
    bad = jsonl("bad.jsonl", [{"q": "x", "a": "y"}, {"q": None, "a": "y"}, {"q": "x", "a": None}])
    assert faults_of(tokenizer, config((good, bad), (1, 3)), tmp_path) == [
        "bad.jsonl:2: column 'q' is null",
        "bad.jsonl:3: column 'a' is null (fix them, or dataset.on_bad_row=skip leaves such rows out and counts them)",
    ]


def test_every_source_has_the_columns(tokenizer: Any, jsonl: Write, tmp_path: Path) -> None:
    one, two = jsonl("one.jsonl", [{"q": "x", "a": "y"}]), jsonl("two.jsonl", [{"q": "x", "answer": "y"}])
    assert faults_of(tokenizer, config((one, two), (1, 1)), tmp_path) == [
        "dataset.answer: two.jsonl has no column 'a' (columns: q, answer)"
    ]


def test_files_that_are_missing_or_broken_are_reported_together(tokenizer: Any, write: Write, tmp_path: Path) -> None:
    assert faults_of(tokenizer, config((str(tmp_path / "x.jsonl"), str(tmp_path / "y.txt")), (1, 1)), tmp_path) == [
        "x.jsonl: no such file",
        "y.txt: no reader for the extension '.txt' (known: .jsonl, .json, .csv, .tsv, .parquet, the text formats also "
        ".gz and .zst)",
    ]
    broken = config((write("x.jsonl", ""), write("y.json", "3")), (1, 1))
    assert [fault.split(":")[0] for fault in faults_of(tokenizer, broken, tmp_path)] == ["x.jsonl", "y.json"]


def test_classes_are_counted_in_all_sources(paired: Any, jsonl: Write) -> None:
    one, two = jsonl("one.jsonl", [{"q": "x", "y": 0}]), jsonl("two.jsonl", [{"q": "x", "y": 1}])
    settings = DatasetConfig(mix=[{"train_file": one}, {"train_file": two}], text="{q}", label="y")  # type: ignore[list-item]
    assert load(paired, settings, task="sequence_classification").label_names == ["0", "1"]


def test_sources_that_number_their_classes_differently_are_refused(
    paired: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(path: str, **options: Any) -> datasets.Dataset:
        names = ["neg", "pos"] if path == "org/one" else ["pos", "neg"]
        features = datasets.Features({"q": datasets.Value("string"), "y": datasets.ClassLabel(names=names)})
        return datasets.Dataset.from_dict({"q": ["a", "b"], "y": [0, 1]}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    def classes(*paths: str, **options: Any) -> DatasetConfig:
        mix = [{"path": path} for path in paths]
        return DatasetConfig(**{"mix": mix, "text": "{q}", "label": "y", **options})

    for options in ({}, {"label_names": ["neg", "pos"]}):
        with pytest.raises(DataError) as error:
            load(paired, classes("org/one", "org/two", **options), task="sequence_classification")
        assert str(error.value.faults[0]) == (
            "dataset.label: org/two (train) has the classes pos, neg, and org/one (train) neg, pos (the sources of a "
            "data set have the same classes in the same order)"
        )
    same = load(paired, classes("org/one", "org/one"), task="sequence_classification")
    assert same.label_names == ["neg", "pos"]


def test_a_row_that_is_given_several_times_is_counted_once(tokenizer: Any, jsonl: Write) -> None:
    good = jsonl("good.jsonl", [{"q": "x", "a": "y"}])
    other = jsonl("other.jsonl", [{"q": "x", "a": None}, {"q": "x", "a": "y" * 40}, {"q": "out", "a": "y"}])
    options = {"on_bad_row": "skip", "on_long_row": "truncate", "max_length": 16, "keep": {"q": "x"}}
    train = load(tokenizer, config((good, other), (1, 3), **options)).train
    assert train is not None
    assert train.skipped == {"malformed": 1, "dataset.keep or dataset.extract does not match": 1}
    assert (train.truncated, len(train.rows)) == (1, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": []}, "at least 1 item"),
        ({"mix": [{"weight": 2}]}, r"wants path or train_file, exactly one \(given: none\)"),
        ({"mix": [{"path": "a/b", "train_file": "c"}]}, r"exactly one \(given: path and train_file\)"),
        ({"mix": [{"train_file": "c", "subset": "d"}]}, "gives subset, which goes with path"),
        ({"mix": [{"train_file": "c", "weight": 0}]}, "greater than 0"),
        ({"mix": [{"train_file": "c"}], "train_file": "d"}, r"exactly one, .* \(given: train_file and mix\)"),
        ({"mix": [{"path": "a/b"}], "validation_split": "v"}, "validation_split goes with dataset.path"),
        (
            {"mix": [{"path": "a/b"}, {"path": "c/d"}], "shuffle": False, "max_rows": 3},
            "max_rows with dataset.shuffle=false would not take from every source",
        ),
        (
            {"mix": [{"path": "a/b"}, {"path": "c/d"}], "shuffle": False, "validation_fraction": 0.1},
            "validation_fraction with dataset.shuffle=false would not take from every source",
        ),
        ({"mix": [{"path": "a/b"}], "streaming": True, "max_rows": 3}, "dataset.streaming goes with dataset.path"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetConfig(**{"prompt": "{q}", "answer": "{a}", **options})


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("{train_file: a, wieght: 2}", "dataset.mix[0] has no option wieght (did you mean weight?)"),
        ("{train_file: a},{path: b, weight: -1}", "dataset.mix[1].weight=-1 should be greater than 0"),
        ("{train_file: a, subset: b}", "dataset.mix[0]={train_file: a,subset: b} gives subset, which goes with path"),
        ("a.jsonl", "dataset.mix[0]=a.jsonl should be a mapping, {name: value}"),
    ],
)
def test_a_fault_of_a_source_names_it(mix: str, message: str, loraga: Callable[..., str]) -> None:
    printed = loraga("train", "model=tiny", "dataset=jsonl", f"dataset.mix=[{mix}]", code=2)
    assert printed.startswith(f"error  command line: {message}")


def test_a_recipe_may_not_mix_files_of_other_folders(tmp_path: Path, loraga: Callable[..., str]) -> None:
    recipe = "defaults:\n- override /model: tiny\n- override /dataset: jsonl\ndataset:\n  mix:\n  - train_file: ../x\n"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(recipe)
    printed = loraga("train", "recipe=mine", "--config-dir", str(tmp_path), code=2)
    assert "dataset.mix=../x leaves the working folder" in printed
