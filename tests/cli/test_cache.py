"""``loraga cache``: listing, verifying and removing stored gradients and tokenized rows."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_ga_cli.cli.app import main
from lora_ga_cli.data.local import read_files
from lora_ga_cli.data.source_store import SourceStore
from lora_ga_cli.data.store import ROWS_FILE, RowStore
from lora_ga_cli.gradient.artifact import FACTORS_FILE, MANIFEST_FILE, GradientArtifact
from lora_ga_cli.gradient.factors import truncated_svd
from lora_ga_cli.gradient.store import ArtifactStore

DAY = 86400
KEYS = ("aaa111", "aaa222", "bbb333")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """Three gradients, the first new, the others 10 and 20 days old."""
    monkeypatch.setenv("LORAGA_CACHE", str(tmp_path / "cache"))
    store = ArtifactStore(tmp_path / "cache")
    factors = truncated_svd(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), 4)
    for number, key in enumerate(KEYS):
        artifact = GradientArtifact({"layer": factors}, 4, {"model": "tiny", "rows": 64}, key)
        artifact.save(store.path(key))
        moment = time.time() - number * 10 * DAY
        os.utime(store.path(key), (moment, moment))
    return store


def keys(store: ArtifactStore) -> list[str]:
    return sorted(entry.key for entry in store.entries())


def damage(store: ArtifactStore, key: str) -> None:
    content = bytearray((store.path(key) / FACTORS_FILE).read_bytes())
    content[-1] ^= 1
    (store.path(key) / FACTORS_FILE).write_bytes(content)


def test_an_empty_cache_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list", "--cache-dir", str(tmp_path / "none")]) == 0
    assert "no stored gradients in" in capsys.readouterr().out


def test_gradients_are_listed_newest_first(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    rows = [line for line in lines if line[0] in KEYS]
    assert [row[0] for row in rows] == list(KEYS)
    assert rows[1][1:5] == ["tiny", "64", "1", "2"]
    assert rows[1][-2:] == ["10.0", "d"]


def test_another_cache_folder_can_be_given(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORAGA_CACHE", str(tmp_path / "other"))
    assert main(["cache", "list", "--cache-dir", str(tmp_path / "cache")]) == 0
    assert KEYS[0] in capsys.readouterr().out


def test_verify_passes_when_all_are_complete(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "verify"]) == 0
    assert capsys.readouterr().out.count(": ok") == 3


def test_verify_names_the_damaged_and_exits_with_1(store: ArtifactStore, capsys: pytest.CaptureFixture[str]) -> None:
    damage(store, "aaa222")
    (store.path("bbb333") / MANIFEST_FILE).unlink()
    assert main(["cache", "verify"]) == 1
    printed = capsys.readouterr()
    assert "aaa111: ok" in printed.out
    assert "aaa222" in printed.err
    assert "bbb333" in printed.err
    assert keys(store) == list(KEYS)


def test_verify_says_what_to_do_with_damage_that_may_only_be_read(
    store: ArtifactStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, own = store.folder.parent, tmp_path / "own"
    monkeypatch.setattr("lora_ga_cli.paths.shared_cache", lambda given: theirs)
    monkeypatch.setattr("lora_ga_cli.paths.cache_root", lambda given: own)
    damage(store, keys(store)[0])
    assert main(["cache", "verify"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"1 damaged in {theirs}, which may only be read: its owner has to remove them" in printed
    assert f"they are made again in {own} when needed" in printed
    assert "prune" not in printed
    shutil.copytree(theirs, own)
    assert main(["cache", "verify"]) == 1
    assert f"1 damaged: loraga cache prune --damaged --cache-dir {own} removes them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ([], ["aaa111", "aaa222", "bbb333"]),
        (["aaa111"], ["aaa222", "bbb333"]),
        (["aaa"], ["bbb333"]),
        (["aaa2", "bbb"], ["aaa111"]),
        (["--older-than", "15"], ["aaa111", "aaa222"]),
        (["--older-than", "5"], ["aaa111"]),
        (["--damaged"], ["aaa111", "bbb333"]),
        (["--damaged", "--older-than", "15"], ["aaa111"]),
        (["--all"], []),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_prune_removes_what_is_asked_for_and_nothing_else(
    arguments: list[str], left: list[str], store: ArtifactStore
) -> None:
    damage(store, "aaa222")
    assert main(["cache", "prune", *arguments]) == 0
    assert keys(store) == left


def test_prune_refuses_a_key_that_is_not_there_and_removes_nothing(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "prune", "aaa111", "zzz"]) == 2
    assert "no stored gradient zzz" in capsys.readouterr().err
    assert keys(store) == list(KEYS)


def test_prune_removes_what_was_set_aside_or_left_by_an_interrupted_write(store: ArtifactStore) -> None:
    long_ago = time.time() - 30 * DAY
    for name in ("aaa111.damaged", ".ccc444.x1y2.tmp"):
        (store.folder / name).mkdir()
        os.utime(store.folder / name, (long_ago, long_ago))
    assert main(["cache", "prune"]) == 0
    assert store.leftovers() == []
    assert keys(store) == list(KEYS)


def test_prune_leaves_a_gradient_that_another_process_is_estimating_anew(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    with FileLock(store.folder / ".aaa111.lock"):
        assert main(["cache", "prune", "--all"]) == 0
    assert keys(store) == ["aaa111"]
    assert "aaa111: in use" in capsys.readouterr().err


def test_prune_leaves_what_another_process_is_writing(store: ArtifactStore) -> None:
    from filelock import FileLock

    (store.folder / ".ccc444.x1y2.tmp").mkdir()
    with FileLock(store.folder / ".ccc444.lock"):
        assert main(["cache", "prune"]) == 0
    assert (store.folder / ".ccc444.x1y2.tmp").is_dir()


def test_every_command_reads_the_rows_that_another_has_tokenized(
    arguments: Callable[..., list[str]], loraga: Callable[..., str]
) -> None:
    command = arguments("llama", "dataset.validation_fraction=0.1")
    assert "tokenized before" not in loraga("train", *command, "--preview")
    for words in (["train", *command, "--preview"], ["train", *command, "--dry-run"], ["estimate-grad", *command]):
        printed = loraga(*words)
        splits = [line for line in printed.splitlines() if line.split()[:1] == ["data"] and "tokens" in line]
        assert len(splits) == (1 if words[0] == "estimate-grad" else 2)
        assert printed.count("tokenized before") == len(splits)


def test_tokenized_rows_are_listed_verified_and_removed(
    arguments: Callable[..., list[str]], loraga: Callable[..., str], tmp_path: Path
) -> None:
    loraga("estimate-grad", *arguments("llama"))
    rows = RowStore(tmp_path / "cache")
    (entry,) = rows.entries()
    printed = loraga("cache", "list")
    assert entry.key in printed
    assert "1 tokenized split" in printed
    assert f"{entry.key}: ok" in loraga("cache", "verify")
    file = rows.path(entry.key) / ROWS_FILE
    file.write_bytes(file.read_bytes()[:-9] + b"damaged!!")
    assert f"{entry.key}:" in loraga("cache", "verify", code=1)
    loraga("cache", "prune", "--damaged")
    assert list(rows.entries()) == []
    loraga("train", *arguments("llama"), "--preview")
    loraga("cache", "prune", "--all", "--only", "rows")
    assert list(rows.entries()) == []
    assert len(list(ArtifactStore(tmp_path / "cache").entries())) == 1


def test_rows_of_large_files_are_listed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loraga: Callable[..., str]
) -> None:
    monkeypatch.setenv("LORAGA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lora_ga_cli.data.local.SMALL", 0)
    file = tmp_path / "d.csv"
    file.write_text("q,a\nx,y\n")
    sources = SourceStore(tmp_path / "cache")
    read_files([str(file)], column_names=None, on_bad_row="error", store=sources)
    (entry,) = sources.entries()
    printed = loraga("cache", "list")
    assert entry.key in printed
    assert "1 large file or stream, as it was read" in printed
    assert f"{entry.key}: ok" in loraga("cache", "verify")
    loraga("cache", "prune", "--all", "--only", "rows")
    assert list(sources.entries())
    loraga("cache", "prune", entry.key[:6], "--only", "sources")
    assert not list(sources.entries())
