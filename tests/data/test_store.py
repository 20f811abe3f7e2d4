"""Tokenized rows in the store: what is read again, what is made anew, and what is never stored."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import Data, load_data, load_file_split
from lora_ga_cli.data.arrow import Spool
from lora_ga_cli.data.examples.prompt_answer import PromptAnswer
from lora_ga_cli.data.identity import rows_hash, tokenizer_identity
from lora_ga_cli.data.row_formats.alpaca import AlpacaRows
from lora_ga_cli.data.store import MANIFEST_FILE, ROWS_FILE, RowStore
from lora_ga_cli.errors import DataError

ROWS = [{"q": f"question {number}?", "a": f"answer {number}", "label": number % 3} for number in range(40)]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, notes: list[str]) -> RowStore:
    return RowStore(tmp_path / "cache", notes.append)


@pytest.fixture
def file(jsonl: Callable[..., str]) -> str:
    return jsonl("rows.jsonl", ROWS)


def config(file: str, **options: Any) -> DatasetConfig:
    given: dict[str, Any] = {
        "train_file": file,
        "prompt": "{q}",
        "answer": "{a}",
        "validation_fraction": 0.2,
        "max_length": 64,
    }
    return DatasetConfig(**(given | options))


def classes(file: str, **options: Any) -> DatasetConfig:
    given: dict[str, Any] = {"train_file": file, "text": "{q}", "label": "label", "max_length": 64}
    return DatasetConfig(**(given | options))


def load(config: DatasetConfig, tokenizer: Any, store: RowStore | None, **options: Any) -> Data:
    task = "sequence_classification" if config.label is not None else "causal_lm"
    given: dict[str, Any] = {"task": task, "tokenizer": tokenizer, "seed": 0, "store": store}
    return load_data(config, **(given | options))


def keys(store: RowStore) -> set[str]:
    return {entry.key for entry in store.entries()}


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("rows were read or tokenized")

    monkeypatch.setattr(PromptAnswer, "tokenize", fail)
    monkeypatch.setattr("lora_ga_cli.data.load.read_files", fail)


def test_rows_are_tokenized_once(file: str, tokenizer: Any, store: RowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, first = load(config(file), tokenizer, None), load(config(file), tokenizer, store)
    forbid_reading(monkeypatch)
    again = load(config(file), tokenizer, store)
    for name in ("train", "validation"):
        expected, made, found = getattr(plain, name), getattr(first, name), getattr(again, name)
        assert not made.reused
        assert found.reused
        assert found.rows.to_list() == made.rows.to_list() == expected.rows.to_list()
        assert found.rows.features == expected.rows.features
        assert found.rows.cache_files, "the rows are not memory-mapped"
        assert found.sha256 == rows_hash(expected.rows)
        assert found.summary() == f"{expected.summary()}; tokenized before"


def test_one_split_is_found_without_the_other(
    file: str, tokenizer: Any, store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(config(file), tokenizer, store)
    forbid_reading(monkeypatch)
    for name in ("train", "validation"):
        assert getattr(load(config(file), tokenizer, store, splits=(name,)), name).reused


def test_the_place_of_a_file_does_not_matter(file: str, tokenizer: Any, store: RowStore, tmp_path: Path) -> None:
    load(config(file), tokenizer, store)
    copy = tmp_path / "elsewhere.jsonl"
    copy.write_bytes(Path(file).read_bytes())
    train = load(config(str(copy)), tokenizer, store, max_positions=4096).train
    assert train is not None
    assert train.reused


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "{q} "},
        {"answer": " {a}"},
        {"max_length": 63},
        {"max_rows": 5},
        {"shuffle": False},
        {"validation_fraction": 0.3},
        {"keep": {"q": "question"}},
        {"extract": {"a": "answer (.*)"}},
        {"on_long_row": "skip"},
        {"on_bad_row": "skip"},
        {"columns": {"r": "label"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_an_option_that_changes_rows_makes_new_ones(
    changed: dict[str, Any], file: str, tokenizer: Any, store: RowStore
) -> None:
    load(config(file), tokenizer, store)
    train = load(config(file, **changed), tokenizer, store).train
    plain = load(config(file, **changed), tokenizer, None).train
    assert train is not None
    assert plain is not None
    assert not train.reused
    assert train.rows.to_list() == plain.rows.to_list()


def test_the_limit_of_one_split_does_not_change_the_other(file: str, tokenizer: Any, store: RowStore) -> None:
    load(config(file), tokenizer, store)
    data = load(config(file, max_rows=5), tokenizer, store)
    assert data.train is not None
    assert data.validation is not None
    assert (data.train.reused, data.validation.reused) == (False, True)


def test_one_byte_of_the_data_makes_new_rows(file: str, tokenizer: Any, store: RowStore) -> None:
    first = load(config(file), tokenizer, store).train
    content = bytearray(Path(file).read_bytes())
    content[content.index(b"question 0") + len(b"question ")] = ord("9")
    Path(file).write_bytes(content)
    train = load(config(file), tokenizer, store).train
    assert first is not None
    assert train is not None
    assert not train.reused
    assert sum(before != after for before, after in zip(first.rows, train.rows, strict=True)) == 1


def test_another_seed_makes_other_rows_of_the_training_order_only(
    file: str, tokenizer: Any, store: RowStore, jsonl: Callable[..., str]
) -> None:
    options = config(file, validation_fraction=0.0, validation_file=jsonl("held.jsonl", ROWS[:7]))
    load(options, tokenizer, store)
    data = load(options, tokenizer, store, seed=1)
    assert data.train is not None
    assert data.validation is not None
    assert (data.train.reused, data.validation.reused) == (False, True)
    unshuffled = options.model_copy(update={"shuffle": False})
    assert not load(unshuffled, tokenizer, store).train.reused  # type: ignore[union-attr]
    assert load(unshuffled, tokenizer, store, seed=1).train.reused  # type: ignore[union-attr]


def test_what_a_tokenizer_computes_is_part_of_the_key(
    file: str, store: RowStore, make_tokenizer: Callable[..., Any]
) -> None:
    makes: list[dict[str, Any]] = [{}, {"template": "$A </s>"}, {"merges": [("q", "u")]}, {"chat": "x"}, {"pad": True}]
    for make in makes:
        train = load(config(file), make_tokenizer(**make), store).train
        assert train is not None
        assert not train.reused
    train = load(config(file), make_tokenizer(), store).train
    assert train is not None
    assert train.reused


def test_a_call_of_the_tokenizer_does_not_change_its_identity(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(pad=True)
    before = tokenizer_identity(tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert tokenizer_identity(tokenizer) == before is not None


def test_code_of_others_is_not_stored(file: str, make_tokenizer: Callable[..., Any], store: RowStore) -> None:
    """What it computes may depend on files that nobody names."""

    class Own(type(make_tokenizer())):  # type: ignore[misc]
        pass

    tokenizer = make_tokenizer()
    tokenizer.__class__ = Own
    assert tokenizer_identity(tokenizer) is None
    load(config(file), tokenizer, store)
    assert keys(store) == set()


def test_rows_of_a_format_of_others_are_not_stored(
    file: str, tokenizer: Any, store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(AlpacaRows):
        pass

    monkeypatch.setattr("lora_ga_cli.data.load.format_of_rows", lambda _: Own)
    load(config(file), tokenizer, store)
    assert keys(store) == set()


def test_rows_of_a_form_of_others_are_not_stored(
    file: str, tokenizer: Any, store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(PromptAnswer):
        pass

    monkeypatch.setattr("lora_ga_cli.data.load.row_form", lambda *_: Own)
    load(config(file), tokenizer, store)
    assert keys(store) == set()


def test_classes_are_counted_once(
    file: str, paired: Any, store: RowStore, jsonl: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = jsonl("held.jsonl", ROWS[:2])
    load(classes(file, validation_file=held), paired, store)
    forbid_reading(monkeypatch)
    for splits in (("train", "validation"), ("validation",)):
        data = load(classes(file, validation_file=held), paired, store, splits=splits)
        assert data.label_names == ["0", "1", "2"]
        assert data.validation is not None
        assert data.validation.form.label_names == ["0", "1", "2"]


def test_the_training_rows_that_name_the_classes_are_part_of_the_validation_rows_key(
    file: str, paired: Any, store: RowStore, jsonl: Callable[..., str]
) -> None:
    held = jsonl("held.jsonl", ROWS[:2])
    load(classes(file, validation_file=held), paired, store)
    more = jsonl("more.jsonl", [*ROWS, {"q": "new", "label": 3}])
    data = load(classes(more, validation_file=held), paired, store)
    assert data.label_names == ["0", "1", "2", "3"]
    assert data.validation is not None
    assert not data.validation.reused


def test_what_was_skipped_is_told_again(tokenizer: Any, store: RowStore, jsonl: Callable[..., str]) -> None:
    long = {"q": "x" * 100, "a": "y"}
    file = jsonl("rows.jsonl", [*ROWS, long, {"q": None, "a": "y"}])
    options = config(file, on_long_row="truncate", on_bad_row="skip", answer="{a}" * 4)
    first, again = (load(options, tokenizer, store, splits=("train",)).train for _ in range(2))
    assert first is not None
    assert again is not None
    assert again.reused
    assert again.skipped == first.skipped
    assert again.truncated == first.truncated
    assert again.summary() == f"{first.summary()}; tokenized before"


def test_rows_with_errors_are_never_stored(tokenizer: Any, store: RowStore, jsonl: Callable[..., str]) -> None:
    file = jsonl("rows.jsonl", [*ROWS, {"q": "x" * 100, "a": "y"}])
    reported = []
    for _ in range(2):
        with pytest.raises(DataError) as error:
            load(config(file, validation_fraction=0.0), tokenizer, store)
        reported.append([fault.where for fault in error.value.faults])
    assert reported[0] == reported[1] == [f"{file}:41"]
    assert keys(store) == set()


@pytest.mark.parametrize("name", [ROWS_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("how", ["changed", "shortened", "missing"])
def test_damaged_rows_are_made_again_with_a_warning(
    name: str, how: str, file: str, tokenizer: Any, store: RowStore, notes: list[str]
) -> None:
    expected = load(config(file), tokenizer, store, splits=("train",)).train
    (key,) = keys(store)
    damaged = store.path(key) / name
    content = bytearray(damaged.read_bytes())
    if how == "changed":
        place = content.index(b"file_sha256") + 16 if name == MANIFEST_FILE else len(content) // 2
        content[place] = content[place] ^ 1
    damaged.unlink()
    if how != "missing":
        damaged.write_bytes(content if how == "changed" else content[: len(content) // 2])
    assert [bool(entry.damage) for entry in store.verify()] == [True]
    made = load(config(file), tokenizer, store, splits=("train",)).train
    assert expected is not None
    assert made is not None
    assert len(notes) == 1
    assert "damaged" in notes[0]
    assert not made.reused
    assert made.rows.to_list() == expected.rows.to_list()
    assert [entry.damage for entry in store.verify()] == [""]
    assert load(config(file), tokenizer, store, splits=("train",)).train.reused  # type: ignore[union-attr]
    assert store.leftovers() == []


def test_a_file_that_changes_while_it_is_read_is_not_stored(
    file: str, tokenizer: Any, store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize = PromptAnswer.tokenize

    def changing(self: PromptAnswer, parts: Any) -> Any:
        with Path(file).open("a") as opened:
            opened.write(json.dumps(ROWS[0]) + "\n")
        return tokenize(self, parts)

    monkeypatch.setattr(PromptAnswer, "tokenize", changing)
    assert load(config(file), tokenizer, store).train is not None
    assert keys(store) == set()


def test_a_cache_that_cannot_be_written_stops_nothing(
    file: str, tokenizer: Any, tmp_path: Path, notes: list[str]
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    data = load(config(file), tokenizer, RowStore(tmp_path / "cache", notes.append), splits=("train",))
    assert data.train is not None
    assert len(data.train.rows) == 32
    assert len(notes) == 1
    assert "cannot be stored" in notes[0]


def test_another_process_waits_and_tokenizes_nothing(
    file: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for processes here: the lock of a file holds for both."""
    tokenize, waiting, calls = PromptAnswer.tokenize, threading.Event(), []

    def slowly(self: PromptAnswer, parts: Any) -> Any:
        calls.append(len(parts))
        assert waiting.wait(30), "the other one did not wait"
        return tokenize(self, parts)

    monkeypatch.setattr(PromptAnswer, "tokenize", slowly)
    made: list[Data] = []

    def run() -> None:
        store = RowStore(tmp_path / "cache", lambda _: waiting.set())
        made.append(load(config(file), tokenizer, store, splits=("train",)))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [32]
    assert sorted(data.train.reused for data in made if data.train is not None) == [False, True]


def test_rows_of_a_file_for_evaluation_are_stored_too(file: str, tokenizer: Any, store: RowStore) -> None:
    options: dict[str, Any] = {"task": "causal_lm", "tokenizer": tokenizer, "store": store, "max_rows": 7}
    first, again = (load_file_split(config(file), file, **options) for _ in range(2))
    assert (first.reused, again.reused) == (False, True)
    assert again.rows.to_list() == first.rows.to_list()
    assert len(again.rows) == 7


def test_a_part_of_a_split_has_an_identity_of_its_own(file: str, tokenizer: Any, store: RowStore) -> None:
    load(config(file), tokenizer, store)
    train = load(config(file), tokenizer, store).train
    assert train is not None
    part = dataclasses.replace(train, rows=train.rows.select(range(3)))
    assert part.sha256 == rows_hash([train.rows[number] for number in range(3)]) != train.sha256


def test_many_rows_are_collected_in_a_file_and_come_out_the_same(
    file: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(config(file), tokenizer, None)
    monkeypatch.setattr("lora_ga_cli.data.build.BATCH", 3)
    monkeypatch.setattr("lora_ga_cli.data.build.Spool", lambda folder: Spool(folder, 0))
    unwritable = tmp_path / "file"
    unwritable.touch()
    for folder in (tmp_path / "cache", unwritable):
        made = load(config(file), tokenizer, RowStore(folder, lambda _: None))
        for name in ("train", "validation"):
            one, other = getattr(made, name), getattr(expected, name)
            assert one.rows.to_list() == other.rows.to_list()
            assert one.rows.features == other.rows.features
            assert one.summary() == other.summary()
    assert RowStore(tmp_path / "cache").leftovers() == []
