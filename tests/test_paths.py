"""What a path in an option names, and where the cache is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_ga_cli import paths
from lora_ga_cli.errors import UserError


@pytest.mark.parametrize(
    ("configured", "variable", "expected"),
    [("here", "there", "here"), (None, "there", "there"), (None, None, "/xdg/loraga"), ("~/c", None, "home/c")],
)
def test_the_cache_is_as_configured_else_the_variable_else_the_systems(
    configured: str | None, variable: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "home")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("LORAGA_CACHE", raising=False)
    if variable:
        monkeypatch.setenv("LORAGA_CACHE", variable)
    assert paths.cache_root(configured) == Path(expected)


@pytest.mark.parametrize("value", [None, "", "relative/folder"])
def test_a_cache_variable_that_is_empty_or_relative_counts_as_not_set(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("LORAGA_CACHE", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert paths.cache_root("") == paths.cache_root(None) == Path("/home/me/.cache/loraga")


def test_empty_variables_of_other_caches_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library would write into the current folder."""
    for name, value in {"HF_HOME": "", "XDG_CACHE_HOME": "", "TORCH_HOME": "/torch"}.items():
        monkeypatch.setenv(name, value)
    paths.forget_empty_variables()
    assert [name for name in ("HF_HOME", "XDG_CACHE_HOME", "TORCH_HOME") if name in os.environ] == ["TORCH_HOME"]


def test_a_cache_that_may_only_be_read_gives_way_to_the_next_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team, own = tmp_path / "team", tmp_path / "own"
    team.mkdir()
    monkeypatch.setenv("LORAGA_CACHE", str(own))
    assert (paths.cache_root(str(team)), paths.shared_cache(str(team))) == (team, None)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != team or not mode & os.W_OK)
    assert (paths.cache_root(str(team)), paths.shared_cache(str(team))) == (own, team)
    monkeypatch.setenv("LORAGA_CACHE", str(team))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert (paths.cache_root(None), paths.shared_cache(None)) == (tmp_path / "xdg" / "loraga", team)
    missing = str(tmp_path / "missing")  # it is made
    assert (paths.cache_root(missing), paths.shared_cache(missing)) == (Path(missing), None)


def test_bundled_paths_are_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.resolve_path("bundled:quickstart/train.jsonl") == paths.ASSETS / "quickstart" / "train.jsonl"
    assert paths.resolve_path("~/x") == Path("/home/me/x")
    assert paths.resolve_path("x") == Path("x")


@pytest.mark.parametrize("path", ["bundled:/etc/passwd", "bundled:../files.py", "bundled:quickstart/../../files.py"])
def test_bundled_paths_stay_in_the_package(path: str) -> None:
    with pytest.raises(UserError, match="leaves"):
        paths.resolve_path(path)


@pytest.mark.parametrize("text", ["", ".", "..", ".hidden", "a/b", "a\\b", "/a", "C:", "~", "a\0b"])
def test_a_text_that_is_not_one_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="one plain name"):
        paths.one_name(text)


def test_a_name_leaves_room_for_what_is_added_to_it() -> None:
    """Temporary and replaced folders have longer names; a character may take several bytes."""
    assert paths.one_name("x" * 200)
    for text in ("x" * 201, "é" * 101):
        with pytest.raises(ValueError, match=r"too long: 20[12] bytes, and a folder's name may have 200"):
            paths.one_name(text)
