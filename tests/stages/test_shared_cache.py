"""A cache that may only be read, such as a team's: what is there is used, and what is new is stored in one's own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ga_cli.gradient.artifact import FACTORS_FILE
from lora_ga_cli.gradient.store import ArtifactStore
from tests.helpers import Arguments, Loraga


@pytest.fixture
def team(loraga: Loraga, arguments: Arguments, tmp_path: Path) -> Iterator[Path]:
    """A cache with a gradient and rows, in a mount that is read-only, since root may write everywhere else."""
    loraga("estimate-grad", *arguments("llama", f"cache_dir={tmp_path}/written"))
    (tmp_path / "team").mkdir()
    bind = f"mount --bind {tmp_path}/written {tmp_path}/team && mount -o remount,bind,ro {tmp_path}/team"
    if subprocess.run(["sh", "-c", bind], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a folder read-only here")
    yield tmp_path / "team"
    subprocess.run(["umount", "-l", str(tmp_path / "team")], check=True)


def keys(cache: Path) -> list[str]:
    return sorted(entry.key for entry in ArtifactStore(cache).entries())


def flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_what_is_there_is_read_and_what_is_new_is_written_elsewhere(
    team: Path, loraga: Loraga, arguments: Arguments, tmp_path: Path
) -> None:
    command = arguments("llama", f"cache_dir={team}")
    (key,) = keys(team)
    printed = loraga("init", *command)
    assert f"cache  {team} may only be read: what is not there is stored in {tmp_path}/cache" in printed
    assert "tokenized before" in printed
    assert f"reused {key}" in printed
    assert keys(tmp_path / "cache") == []

    assert f"inspect-{key}/coverage.png" in loraga("estimate-grad", *command)
    assert not (tmp_path / "cache" / "figures").exists()
    assert f"estimate-grad  cached: {key}" in loraga("train", *command, "--dry-run")

    printed = loraga("estimate-grad", *command, "seed=2")
    assert "estimated" in printed
    assert len(keys(tmp_path / "cache")) == 1
    assert keys(team) == [key]
    assert "reused" in loraga("estimate-grad", *command, "seed=2")


def test_damage_in_it_is_named_and_computed_again_elsewhere(
    team: Path, loraga: Loraga, arguments: Arguments, tmp_path: Path
) -> None:
    (key,) = keys(team)
    flip_last_bit(tmp_path / "written" / "gradients" / key / FACTORS_FILE)
    printed = loraga("estimate-grad", *arguments("llama", f"cache_dir={team}"))
    assert "a stored gradient in a cache that may only be read is damaged" in printed
    assert f"estimated {key}" in printed
    assert keys(tmp_path / "cache") == [key]
    printed = loraga("estimate-grad", *arguments("llama", f"cache_dir={team}"))
    assert f"reused {key}" in printed
    assert "damaged" not in printed


def test_the_cache_commands_show_both_and_remove_nothing_from_it(
    team: Path, loraga: Loraga, arguments: Arguments, tmp_path: Path
) -> None:
    loraga("estimate-grad", *arguments("llama", f"cache_dir={team}", "seed=2"))
    (theirs,), (own,) = keys(team), keys(tmp_path / "cache")
    found = json.loads(loraga("cache", "list", "--cache-dir", str(team), "--json").splitlines()[0])
    assert {item["key"]: Path(item["path"]).parents[1] for item in found["gradients"]} == {
        theirs: team,
        own: tmp_path / "cache",
    }
    printed = loraga("cache", "verify", "--cache-dir", str(team))
    assert f"{theirs}: ok" in printed
    assert f"{own}: ok" in printed
    printed = loraga("cache", "prune", "--all", "--cache-dir", str(team), code=2)
    assert f"{team} may only be read, and nothing can be removed there" in printed
    assert f"(what is stored in yours: --cache-dir {tmp_path}/cache)" in printed
    assert (keys(team), keys(tmp_path / "cache")) == ([theirs], [own])


def test_where_no_other_may_be_written_it_is_refused(
    team: Path, loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAGA_CACHE", str(team))
    monkeypatch.setenv("XDG_CACHE_HOME", str(team))
    printed = loraga("estimate-grad", *arguments("llama"), code=2)
    assert f"cache_dir: {team}: read-only file system" in printed
