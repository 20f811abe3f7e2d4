"""The command that is printed when a signal stopped one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.cli.stopping import Given, command


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        (["train", "rank=4", "seed=1", "rank=8"], "loraga train seed=1 rank=8"),
        (["train", "+dataset.name=a", "dataset.name=b"], "loraga train dataset.name=b"),
        (["train", "method=lora", "method=pissa", "overwrite=true"], "loraga train method=pissa"),
        (["train", "-m", "--config-dir", "a", "rank=4", "rank=4,8"], "loraga train -m --config-dir a rank=4,8"),
        (["eval", "runs/a", "runs/a", "eval=loss"], "loraga eval runs/a runs/a eval=loss"),
    ],
)
def test_of_several_values_of_an_option_the_last_one_is_printed(
    given: list[str], printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Given, "arguments", given)
    assert command(goes_on=True) == printed


def test_folders_are_no_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folders = ["runs/rank=4", "runs/rank=8"]
    for folder in folders:
        Path(folder).mkdir(parents=True)
    monkeypatch.setattr(Given, "arguments", ["eval", *folders])
    assert command(goes_on=True) == "loraga eval runs/rank=4 runs/rank=8"
