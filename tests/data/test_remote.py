"""Single files on the hub (``hf://``); the hub itself is replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import load_data
from lora_ga_cli.data.local import files_faults, listed
from lora_ga_cli.data.store import RowStore
from lora_ga_cli.errors import DataError

FILE = "hf://datasets/org/name/data/a.jsonl"
Calls = list[dict[str, Any]]
Hub = Callable[[dict[str, str] | Exception], Calls]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Puts files, by their path in the data set, or an exception behind the hub's library; returns the calls."""

    def put(answer: dict[str, str] | Exception) -> Calls:
        calls: Calls = []

        def download(repo: str, path: str, **options: Any) -> str:
            calls.append({"repo": repo, "path": path, **options})
            if isinstance(answer, Exception):
                raise answer
            (tmp_path / "hub").mkdir(exist_ok=True)
            file = tmp_path / "hub" / path.replace("/", "-")
            file.write_text(answer[path])
            return str(file)

        class Files:
            def glob(self, pattern: str) -> list[str]:
                if isinstance(answer, Exception):
                    raise answer
                calls.append({"pattern": pattern})
                return [f"datasets/org/name/{path}" for path in reversed(answer)]

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr(huggingface_hub, "HfFileSystem", Files)
        return calls

    return put


def config(file: str, **options: Any) -> DatasetConfig:
    return DatasetConfig(**{"train_file": file, "prompt": "{q}", "answer": "{a}", **options})


def load(tokenizer: Any, file: str, store: RowStore | None = None) -> Any:
    return load_data(config(file), task="causal_lm", tokenizer=tokenizer, seed=0, store=store).train


def fault_of(tokenizer: Any, file: str) -> str:
    with pytest.raises(DataError) as error:
        load(tokenizer, file)
    (fault,) = error.value.faults
    return str(fault)


def test_a_file_is_fetched_and_read_as_a_local_one(hub: Hub, tokenizer: Any) -> None:
    calls = hub({"data/a.jsonl": '{"q": "x", "a": "y"}\n'})
    assert list(load(tokenizer, FILE).rows["prompt"]) == ["x"]
    assert calls[0] == {"repo": "org/name", "path": "data/a.jsonl", "repo_type": "dataset", "revision": None}


def test_a_revision_stands_after_the_name(hub: Hub, tokenizer: Any) -> None:
    calls = hub({"a.jsonl": '{"q": "x", "a": "y"}\n'})
    load(tokenizer, "hf://datasets/org/name@refs%2Fconvert%2Fparquet/a.jsonl")
    assert calls[0]["revision"] == "refs/convert/parquet"
    assert calls[0]["repo"] == "org/name"


def test_rows_are_known_by_their_content(hub: Hub, tokenizer: Any, tmp_path: Path) -> None:
    store = RowStore(tmp_path / "cache")
    reused = []
    for answer in ("y", "y", "z"):
        hub({"data/a.jsonl": f'{{"q": "x", "a": "{answer}"}}\n'})
        reused.append(load(tokenizer, FILE, store).reused)
    assert reused == [False, True, False]


def test_bad_rows_are_placed_in_the_file_as_it_was_named(hub: Hub, tokenizer: Any) -> None:
    hub({"data/a.jsonl": '{"q": "x", "a": null}\n'})
    assert fault_of(tokenizer, FILE).startswith(f"{FILE}:1: column 'a' is null")


def test_a_pattern_stands_for_all_files_that_match(hub: Hub) -> None:
    calls = hub({"data/a.jsonl": "", "data/b.jsonl": ""})
    pattern = "hf://datasets/org/name/data/*.jsonl"
    assert listed(pattern) == [FILE, FILE.replace("a.jsonl", "b.jsonl")]
    assert calls == [{"pattern": pattern}]


def test_names_are_checked_before_anything_is_fetched(hub: Hub) -> None:
    calls = hub({})
    names = ["hf://org/name/a.jsonl", "hf://datasets/org/a.jsonl", "hf://datasets/org/name/a.txt", FILE]
    assert [fault.where for fault in files_faults(names, None)] == names[:3]
    assert files_faults(names[:1], None)[0].hint == "spell it hf://datasets/ORG/NAME/PATH"
    assert calls == []


def made(kind: type[Exception]) -> Exception:
    """An error of the library, whose constructors want a response."""
    error = kind.__new__(kind)
    error.args = ("404 Client Error\nmore",)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (made(RepositoryNotFoundError), "no data set 'org/name' on the hub (a private one wants `hf auth login`)"),
        (made(GatedRepoError), "org/name is gated (accept its terms on the hub's page, then `hf auth login`)"),
        (made(RevisionNotFoundError), "org/name has no revision None"),
        (made(EntryNotFoundError), "org/name has no such file"),
        (
            made(LocalEntryNotFoundError),
            "cannot be fetched from the hub, and is not in its cache (without a network, give a file on this machine)",
        ),
        (RuntimeError("\nodd\nmore"), "cannot be fetched from the hub: RuntimeError: odd"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_librarys_errors_become_a_line_with_the_next_step(
    hub: Hub, tokenizer: Any, error: Exception, message: str
) -> None:
    hub(error)
    assert fault_of(tokenizer, FILE) == f"{FILE}: {message}"
    with pytest.raises(DataError):
        listed("hf://datasets/org/name/*.jsonl")
