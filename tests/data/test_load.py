"""Loading a data set: splits, limits, long and bad rows, and everything that is wrong reported at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import Data, load_data, load_file_split
from lora_ga_cli.errors import DataError

Write = Callable[..., str]


def config(**options: Any) -> DatasetConfig:
    return DatasetConfig(**{"prompt": "{q}", "answer": "{a}", **options})


def load(tokenizer: Any, settings: DatasetConfig, **options: Any) -> Data:
    return load_data(settings, **{"task": "causal_lm", "tokenizer": tokenizer, "seed": 7, **options})


def faults_of(tokenizer: Any, settings: DatasetConfig, **options: Any) -> list[str]:
    """The faults as a person reads them, with the folder of the training file left out."""
    with pytest.raises(DataError) as error:
        load(tokenizer, settings, **options)
    files = settings.train_file
    folder = f"{Path(files).parent}/" if isinstance(files, str) else ""
    return [str(fault).replace(folder, "") if folder else str(fault) for fault in error.value.faults]


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"q": str(number), "a": "x"} for number in range(count)]


def prompts(data: Data, split: str = "train") -> list[str]:
    return list(getattr(data, split).rows["prompt"])


class TestOrder:
    @pytest.fixture
    def hundred(self, jsonl: Write) -> str:
        return jsonl("d.jsonl", numbered(100))

    def test_the_seed_decides_the_order(self, tokenizer: Any, hundred: str) -> None:
        one = prompts(load(tokenizer, config(train_file=hundred)))
        assert sorted(one, key=int) == [str(number) for number in range(100)]
        assert one != sorted(one, key=int)
        assert prompts(load(tokenizer, config(train_file=hundred))) == one
        assert prompts(load(tokenizer, config(train_file=hundred), seed=8)) != one

    def test_max_rows_is_the_beginning_of_the_shuffled_order(self, tokenizer: Any, hundred: str) -> None:
        in_full = prompts(load(tokenizer, config(train_file=hundred)))
        assert prompts(load(tokenizer, config(train_file=hundred, max_rows=5))) == in_full[:5]
        assert prompts(load(tokenizer, config(train_file=hundred, max_rows=5, shuffle=False))) == [
            "0",
            "1",
            "2",
            "3",
            "4",
        ]

    def test_held_out_rows_are_no_training_rows_and_do_not_move_them(self, tokenizer: Any, hundred: str) -> None:
        in_full = prompts(load(tokenizer, config(train_file=hundred)))
        data = load(tokenizer, config(train_file=hundred, validation_fraction=0.1))
        assert prompts(data) == in_full[:90]
        assert prompts(data, "validation") == in_full[90:]
        few = load(tokenizer, config(train_file=hundred, validation_fraction=0.1, max_rows=20, max_validation_rows=3))
        assert prompts(few) == in_full[:20]
        assert prompts(few, "validation") == in_full[90:93]

    def test_at_least_one_row_is_held_out_and_one_left(self, tokenizer: Any, jsonl: Write) -> None:
        path = jsonl("two.jsonl", numbered(2))
        for fraction in (0.01, 0.99):
            data = load(tokenizer, config(train_file=path, validation_fraction=fraction))
            assert (len(prompts(data)), len(prompts(data, "validation"))) == (1, 1)
        faults = faults_of(tokenizer, config(train_file=jsonl("one.jsonl", numbered(1)), validation_fraction=0.5))
        assert faults == [
            "dataset.validation_fraction: one.jsonl has one row, of which none can be held out "
            "(dataset.validation_fraction=0)"
        ]

    def test_a_validation_file_keeps_its_order(self, tokenizer: Any, hundred: str, jsonl: Write) -> None:
        held_out = jsonl("v.jsonl", numbered(30))
        data = load(tokenizer, config(train_file=hundred, validation_file=held_out, max_validation_rows=2))
        assert prompts(data, "validation") == ["0", "1"]

    def test_only_the_splits_that_are_asked_for(self, tokenizer: Any, hundred: str) -> None:
        settings = config(train_file=hundred, validation_fraction=0.1)
        in_full = load(tokenizer, settings)
        only = load(tokenizer, settings, splits=("train",))
        assert only.validation is None
        assert prompts(only) == prompts(in_full)
        only = load(tokenizer, settings, splits=("validation",))
        assert only.train is None
        assert prompts(only, "validation") == prompts(in_full, "validation")
        assert load(tokenizer, config(train_file=hundred)).validation is None


class TestLongRows:
    """``max_length`` is 8: ``<s>``, six characters, ``</s>``."""

    @pytest.fixture
    def mixed(self, jsonl: Write) -> str:
        lengths = [1, 7, 2, 9, 3]
        return jsonl("d.jsonl", [{"q": "q" * (length // 2), "a": "a" * (length - length // 2)} for length in lengths])

    def settings(self, path: str, **options: Any) -> DatasetConfig:
        return config(train_file=path, max_length=8, shuffle=False, **options)

    def test_are_listed_with_their_tokens_and_the_cure(self, tokenizer: Any, mixed: str) -> None:
        long = "more than dataset.max_length=8"
        faults = faults_of(tokenizer, self.settings(mixed))
        assert faults == [
            f"d.jsonl:2: 9 tokens, {long}",
            f"d.jsonl:4: 11 tokens, {long} "
            "(dataset.max_length=11 takes all of them, or dataset.on_long_row=skip or truncate)",
        ]
        faults = faults_of(tokenizer, self.settings(mixed), max_positions=10)
        assert faults[-1] == f"d.jsonl:4: 11 tokens, {long} (dataset.on_long_row=skip or truncate)"

    def test_or_skipped(self, tokenizer: Any, mixed: str) -> None:
        train = load(tokenizer, self.settings(mixed, on_long_row="skip")).train
        assert train is not None
        assert (train.rows["length"][:], train.skipped, train.truncated) == ([3, 4, 5], {"longer than 8 tokens": 2}, 0)

    def test_or_truncated_to_their_beginning(self, tokenizer: Any, mixed: str) -> None:
        train = load(tokenizer, self.settings(mixed, on_long_row="truncate")).train
        assert train is not None
        assert (train.rows["length"][:], train.skipped, train.truncated) == ([3, 8, 4, 8, 5], {}, 2)
        assert tokenizer.decode(train.rows[1]["input_ids"]) == "<s>qqqaaaa"

    def test_a_skipped_row_does_not_count_for_max_rows(self, tokenizer: Any, mixed: str) -> None:
        train = load(tokenizer, self.settings(mixed, on_long_row="skip", max_rows=2)).train
        assert train is not None
        assert (train.rows["length"][:], train.skipped) == ([3, 4], {"longer than 8 tokens": 1})

    def test_only_rows_that_are_drawn_are_looked_at(self, tokenizer: Any, mixed: str) -> None:
        assert load(tokenizer, self.settings(mixed, max_rows=1)).train is not None
        assert len(faults_of(tokenizer, self.settings(mixed, max_rows=2))) == 1

    def test_a_row_whose_answer_is_truncated_away_is_bad(self, tokenizer: Any, jsonl: Write) -> None:
        path = jsonl("d.jsonl", [{"q": "q" * 9, "a": "a"}, {"q": "q", "a": "a"}])
        (fault,) = faults_of(tokenizer, self.settings(path, on_long_row="truncate"))
        assert fault.startswith("d.jsonl:1: no token left to learn from in the first 8 of 12 (fix them, or")
        train = load(tokenizer, self.settings(path, on_long_row="truncate", on_bad_row="skip")).train
        assert train is not None
        assert (len(train.rows), train.skipped, train.truncated) == (1, {"no token left to learn from": 1}, 0)

    def test_more_than_the_model_takes_is_refused_before_reading(self, tokenizer: Any, write: Write) -> None:
        faults = faults_of(tokenizer, config(train_file=write("d.jsonl", "{"), max_length=1024), max_positions=512)
        assert faults == [
            "dataset.max_length: 1024 tokens are more than the model's 512 positions (dataset.max_length=512)"
        ]


class TestBadRows:
    @pytest.fixture
    def mixed(self, write: Write) -> str:
        lines = ['{"q": "x", "a": "y"}', '{"q": "x", "a": null}', "oops", '{"q": "x"}', '{"q": "x", "a": 3}']
        return write("d.jsonl", "\n".join(lines))

    def test_unreadable_ones_come_first_and_with_all_others(self, tokenizer: Any, mixed: str) -> None:
        unreadable, null, missing = faults_of(tokenizer, config(train_file=mixed))
        assert unreadable.startswith("d.jsonl:3: not JSON")
        assert null.startswith("d.jsonl:2: column 'a' is null")
        assert missing.startswith("d.jsonl:4: column 'a' is missing in this row")

    def test_a_column_that_is_nowhere_is_named_with_unreadable_ones(self, tokenizer: Any, mixed: str) -> None:
        unreadable, column = faults_of(tokenizer, config(train_file=mixed, answer="{b}"))
        assert unreadable.startswith("d.jsonl:3: not JSON")
        assert column.startswith("dataset.answer: d.jsonl has no column 'b'")

    def test_all_are_listed_with_one_fix(self, tokenizer: Any, write: Write) -> None:
        path = write("d.jsonl", '{"q": "x", "a": null}\n\n{"q": "x"}\n{"q": "x", "a": ["y"]}')
        assert faults_of(tokenizer, config(train_file=path, shuffle=False)) == [
            "d.jsonl:1: column 'a' is null",
            "d.jsonl:3: column 'a' is missing in this row",
            "d.jsonl:4: column 'a' holds a list, not a text or a number (fix them, or dataset.on_bad_row=skip leaves "
            "such rows out and counts them)",
        ]

    def test_the_first_ten_are_those_of_the_file_in_its_order(self, tokenizer: Any, jsonl: Write) -> None:
        """Rows are read in the order for training; a person looks for them in the file."""
        rows = [{"q": "x", "a": None} for _ in range(300)] + [{"q": "x" * 2000, "a": "x"} for _ in range(20)]
        faults = faults_of(tokenizer, config(train_file=jsonl("d.jsonl", rows)))
        places = [fault.split(":")[1] for fault in faults]
        more = [" and 290 more of the same kind (fix them, or dataset.on_bad_row=skip leaves such rows out and counts "]
        assert places[:10] == [str(number) for number in range(1, 11)]
        assert faults[10].startswith(f"d.jsonl:{more[0]}")
        assert places[11:21] == [str(number) for number in range(301, 311)]
        assert faults[21].startswith("d.jsonl: and 10 more of the same kind (dataset.max_length=")

    def test_or_skipped_and_counted_whenever_they_are_found(self, tokenizer: Any, mixed: str) -> None:
        train = load(tokenizer, config(train_file=mixed, on_bad_row="skip")).train
        assert train is not None
        assert (sorted(train.rows["reference"]), train.skipped) == (["3", "y"], {"malformed": 3})
        assert any("skipped: malformed (first: " in note for note in train.notes)

    def test_nothing_left_is_an_error(self, tokenizer: Any, write: Write) -> None:
        path = write("d.jsonl", '{"q": "x", "a": null}\n{"q": "xxxxxxxxxxx", "a": "y"}')
        faults = faults_of(tokenizer, config(train_file=path, max_length=8, on_bad_row="skip", on_long_row="skip"))
        assert faults == ["d.jsonl: no row is left for train (1 skipped: malformed; 1 skipped: longer than 8 tokens)"]


class TestColumns:
    def test_a_missing_column_is_named_with_the_nearest(self, tokenizer: Any, jsonl: Write) -> None:
        path = jsonl("d.jsonl", [{"question": "x", "answers": "y"}])
        faults = faults_of(tokenizer, config(train_file=path, prompt="{qestion} {zzz}", answer="{answers}"))
        assert faults == [
            "dataset.prompt: d.jsonl has no column 'qestion' (did you mean question? columns: question, answers)",
            "dataset.prompt: d.jsonl has no column 'zzz' (columns: question, answers)",
        ]

    def test_in_each_file_of_rows(self, tokenizer: Any, jsonl: Write) -> None:
        settings = config(train_file=jsonl("t.jsonl", [{"q": "x"}]), validation_file=jsonl("v.jsonl", [{"a": "x"}]))
        assert faults_of(tokenizer, settings) == [
            "dataset.answer: t.jsonl has no column 'a' (columns: q)",
            "dataset.prompt: v.jsonl has no column 'q' (columns: a)",
        ]

    def test_columns_are_renamed(self, tokenizer: Any, write: Write) -> None:
        path = write("d.tsv", "#1 a\t#2.b\nx\ty\n")
        assert prompts(load(tokenizer, config(train_file=path, columns={"q": "#2.b", "a": "#1 a"}))) == ["y"]

    def test_two_columns_may_swap_names(self, tokenizer: Any, jsonl: Write) -> None:
        path = jsonl("d.jsonl", [{"q": "x", "a": "y"}])
        assert prompts(load(tokenizer, config(train_file=path, columns={"q": "a", "a": "q"}))) == ["y"]

    def test_a_rename_of_nothing_or_onto_something_is_a_fault(self, tokenizer: Any, jsonl: Write) -> None:
        path = jsonl("d.jsonl", [{"q": "x", "answer": "y", "a": "z"}])
        assert faults_of(tokenizer, config(train_file=path, columns={"b": "anser", "a": "answer"})) == [
            "dataset.columns.b: d.jsonl has no column 'anser' (did you mean answer? columns: q, answer, a)",
            "dataset.columns.a: d.jsonl has a column 'a' already (choose another new name)",
        ]

    def test_the_wrong_way_round_is_answered_with_the_right_one(self, tokenizer: Any, jsonl: Write) -> None:
        path = jsonl("d.jsonl", [{"question": "x", "a": "y"}])
        assert faults_of(tokenizer, config(train_file=path, columns={"question": "q"}))[0] == (
            "dataset.columns.question: d.jsonl has no column 'q' to be called 'question', but a column 'question' "
            "(the new name comes first, {new: old}: dataset.columns={q: question})"
        )


class TestLabels:
    def settings(self, path: str, **options: Any) -> DatasetConfig:
        return DatasetConfig(train_file=path, text="{q}", label="y", **options)

    @pytest.fixture
    def table(self, write: Write) -> str:
        return write("d.csv", "q,y\na,0\nb,2\nc,1\n")

    def load(self, tokenizer: Any, settings: DatasetConfig, **options: Any) -> Data:
        return load(tokenizer, settings, task="sequence_classification", **options)

    def test_are_counted_in_all_training_rows(self, paired: Any, table: str) -> None:
        data = self.load(paired, self.settings(table, max_rows=1))
        assert data.label_names == ["0", "1", "2"]
        assert self.load(paired, self.settings(table), splits=("validation",)).label_names == ["0", "1", "2"]

    def test_are_named_by_the_configuration(self, paired: Any, table: str) -> None:
        data = self.load(paired, self.settings(table, label_names=["low", "mid", "high"], shuffle=False))
        assert data.label_names == ["low", "mid", "high"]
        assert data.train is not None
        assert data.train.rows["labels"][:] == [0, 2, 1]

    def test_or_found_as_names_in_sorted_order(self, paired: Any, write: Write) -> None:
        settings = self.settings(write("d.csv", "q,y\na,pos\nb,neg\nc,pos\n"), shuffle=False)
        data = self.load(paired, settings)
        assert data.train is not None
        assert data.train.rows["labels"][:] == [1, 0, 1]
        assert data.notes == ["2 classes: 0 neg, 1 pos (found in column y; dataset.label_names orders)"]
        again = self.load(paired, data.config, splits=("validation",))
        assert (data.config.label_names, again.label_names) == (["neg", "pos"], ["neg", "pos"])

    def test_or_numbered_by_the_model(self, paired: Any, table: str) -> None:
        assert self.load(paired, self.settings(table), num_labels=5).label_names == ["0", "1", "2", "3", "4"]
        names = self.settings(table, label_names=["a", "b", "c"])
        assert faults_of(paired, names, task="sequence_classification", num_labels=2) == [
            "dataset.label_names: 3 names, and model.num_labels=2 (leave model.num_labels out)"
        ]

    def test_a_class_that_training_does_not_have_is_a_bad_row(self, paired: Any, table: str, write: Write) -> None:
        settings = self.settings(table, validation_file=write("v.csv", "q,y\na,1\nb,3\n"))
        (fault,) = faults_of(paired, settings, task="sequence_classification")
        assert fault.startswith("v.csv:3: column 'y' holds '3', which is no class (known: 0, 1, 2)")

    def test_a_generation_task_has_none(self, tokenizer: Any, jsonl: Write) -> None:
        assert load(tokenizer, config(train_file=jsonl("d.jsonl", numbered(2)))).label_names is None

    def test_a_generation_task_writes_their_names(self, tokenizer: Any, table: str) -> None:
        """They are words there; the data set has no classes that a model would be built for."""
        named = {"label": "y", "label_names": ["low", "mid", "high"], "shuffle": False}
        data = load(tokenizer, DatasetConfig(train_file=table, prompt="{q}:", answer="{y}", **named))
        assert data.label_names is None
        assert data.train is not None
        assert list(data.train.rows["reference"]) == ["low", "high", "mid"]

    def test_a_generation_task_wants_names_for_numbers(self, tokenizer: Any, table: str) -> None:
        assert faults_of(tokenizer, config(train_file=table, answer="{y}", label="y")) == [
            "dataset.label_names: column 'y' of d.csv holds numbers, for which templates insert names "
            "(name every class, in the order of their numbers)"
        ]
        twice = config(train_file=table, answer="{y}", label="y", label_names=["a", "a", "b"])
        assert faults_of(tokenizer, twice) == ["dataset.label_names: 'a' stands there twice"]
        few = config(train_file=table, answer="{y}", label="y", label_names=["low", "mid"])
        (fault,) = faults_of(tokenizer, few)
        assert fault.startswith("d.csv:3: column 'y' holds '2', which is no class (known: low, mid)")


def test_all_that_is_wrong_before_reading_is_reported_at_once(tokenizer: Any, jsonl: Write, tmp_path: Path) -> None:
    jsonl("train.jsonl", numbered(1))
    settings = config(
        train_file=str(tmp_path / "trian.jsonl"), validation_file=[], prompt="{q!r}", answer="{", max_length=64
    )
    faults = faults_of(tokenizer, settings, max_positions=32)
    assert [fault.split(":")[0] for fault in faults] == [
        "dataset.prompt",
        "dataset.answer",
        "dataset.max_length",
        "dataset.validation_file",
        "trian.jsonl",
    ]


def test_bad_rows_of_both_splits_are_reported_at_once(tokenizer: Any, jsonl: Write) -> None:
    settings = config(
        train_file=jsonl("t.jsonl", [{"q": 1, "a": None}]), validation_file=jsonl("v.jsonl", [{"q": None, "a": 1}])
    )
    assert [fault.split(" ")[0] for fault in faults_of(tokenizer, settings)] == ["t.jsonl:1:", "v.jsonl:1:"]


def test_more_rows_than_a_batch_keep_order_and_places(tokenizer: Any, jsonl: Write) -> None:
    rows = numbered(2500)
    train = load(tokenizer, config(train_file=jsonl("d.jsonl", rows), shuffle=False)).train
    assert train is not None
    assert list(train.rows["prompt"]) == [row["q"] for row in rows]
    rows[2400]["a"] = None
    (fault,) = faults_of(tokenizer, config(train_file=jsonl("d.jsonl", rows)))
    assert fault.startswith("d.jsonl:2401: column 'a' is null")


def test_a_file_to_score_is_read_as_the_data_set_is(tokenizer: Any, jsonl: Write) -> None:
    settings = config(train_file="gone.jsonl", columns={"a": "b"})
    path = jsonl("e.jsonl", [{"q": str(number), "b": "y"} for number in range(5)])
    split = load_file_split(settings, path, task="causal_lm", tokenizer=tokenizer, max_rows=3)
    assert (split.name, list(split.rows["prompt"])) == ("file", ["0", "1", "2"])
    with pytest.raises(DataError, match="no such file"):
        load_file_split(settings, path + ".gz", task="causal_lm", tokenizer=tokenizer)
    with pytest.raises(DataError, match="file: an empty list"):
        load_file_split(settings, [], task="causal_lm", tokenizer=tokenizer)


def test_a_file_to_score_takes_the_runs_classes(paired: Any, write: Write) -> None:
    settings = DatasetConfig(train_file="gone.csv", text="{q}", label="y")
    path = write("e.csv", "q,y\na,yes\n")
    split = load_file_split(settings, path, task="sequence_classification", tokenizer=paired, label_names=["no", "yes"])
    assert split.rows["labels"][:] == [1]


def test_a_null_cell_is_reported_and_never_searched_as_a_text(tokenizer: Any, jsonl: Write) -> None:
    rows = [{"q": "1", "a": "x"}, {"q": "2", "a": None}]
    path = jsonl("d.jsonl", rows)
    (fault,) = faults_of(tokenizer, config(train_file=path, extract={"a": "(.+)"}))
    assert fault.startswith("d.jsonl:2: column 'a' is null")
    data = load(tokenizer, config(train_file=path, keep={"a": "."}))
    assert prompts(data) == ["1"]
