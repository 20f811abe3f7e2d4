"""Damaged files of a run are noticed before they are used, named, and made again where that is possible."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from lora_ga_cli.json_files import read_json
from tests.helpers import Arguments, Loraga, only_run

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
EVALUATION = ("eval=loss", "device=cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture
def command(home: Path, arguments: Arguments, sums_file: Path) -> list[str]:
    """Trains a run in two steps, always on the same file."""
    if not (home / "sums.jsonl").exists():
        shutil.copy(sums_file, home / "sums.jsonl")
    return ["train", *arguments("llama", "method=lora", "trainer.max_steps=2", f"dataset.train_file={home}/sums.jsonl")]


@pytest.fixture
def run(home: Path, loraga: Loraga, command: list[str]) -> Path:
    """A fresh copy of the finished run, which is trained once."""
    if not (home / "runs").exists():
        loraga(*command)
        shutil.copytree("runs", home / "runs")
    else:
        shutil.copytree(home / "runs", "runs")
    return only_run()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)


def test_a_damaged_adapter_is_refused_and_the_train_command_makes_it_again(
    run: Path, loraga: Loraga, command: list[str]
) -> None:
    before = (run / "adapter_model.safetensors").read_bytes()
    flip(run / "adapter_model.safetensors")
    for using in (["eval", str(run), *EVALUATION], ["merge", str(run), "--output", "merged"]):
        out = " ".join(loraga(*using, code=2).split())
        assert f"error {run}/adapter_model.safetensors does not have the bytes that were written" in out
        assert "run its train command again" in out
    assert not Path("merged").exists()
    out = " ".join(loraga(*command).split())
    assert "the result is made again" in out
    assert "resuming after step 2" in out
    assert (run / "adapter_model.safetensors").read_bytes() == before


def test_a_stored_score_of_an_adapter_that_is_damaged_by_now_is_not_believed(run: Path, loraga: Loraga) -> None:
    loraga("eval", str(run), *EVALUATION)
    assert "reused" in loraga("eval", str(run), *EVALUATION)
    flip(run / "adapter_model.safetensors")
    out = " ".join(loraga("eval", str(run), *EVALUATION, code=2).split())
    assert f"error {run}/adapter_model.safetensors does not have the bytes that were written" in out
    assert "reused" not in out


def test_training_says_that_it_begins_again_where_the_only_checkpoint_is_damaged(
    run: Path, loraga: Loraga, command: list[str]
) -> None:
    before = (run / "adapter_model.safetensors").read_bytes()
    flip(run / "adapter_model.safetensors")
    (checkpoint,) = (run / "checkpoints").iterdir()
    flip(checkpoint / "optimizer.pt")
    out = " ".join(loraga(*command).split())
    assert "checkpoint-2 is damaged (optimizer.pt does not have the bytes that were written)" in out
    assert "no earlier checkpoint is left: training begins again at step 1" in out
    assert (run / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("content", ["", "[1]", '{"values": {"loss": "low"}}'])
def test_a_damaged_result_is_named_and_evaluated_again(run: Path, loraga: Loraga, content: str) -> None:
    loraga("eval", str(run), *EVALUATION)
    before = read_json(run / "eval.json")
    (run / "eval.json").write_text(content)
    out = " ".join(loraga("eval", str(run), *EVALUATION).split())
    assert f"{run}/eval.json is damaged" in out
    assert "it is evaluated again" in out
    assert read_json(run / "eval.json")["values"] == before["values"]


def test_of_several_runs_a_damaged_one_is_left_out(run: Path, loraga: Loraga) -> None:
    for name in ("other", "broken", "gone.old"):
        shutil.copytree(run, f"runs/{name}")
    flip(Path("runs/broken/manifest.json"))
    Path("runs/comparison.png").touch()
    out = " ".join(loraga("eval", *map(str, sorted(Path("runs").glob("[!.]*"))), *EVALUATION, code=1).split())
    assert "left out: runs/broken/manifest.json is damaged" in out
    assert out.count("left out") == 1
    assert "gone.old" not in out


def test_an_adapter_among_runs_does_not_stop_them(run: Path, loraga: Loraga) -> None:
    """It needs rows that the runs have of their own. Where nothing can be scored, the reason is said of each."""
    Path("runs/stray").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / name, f"runs/stray/{name}")
    out = " ".join(loraga("eval", str(run), "runs/stray", *EVALUATION, code=1).split())
    assert "left out: runs/stray: an adapter, which needs dataset=… or recipe=…, or a benchmark" in out
    assert (run / "eval.json").is_file()
    out = loraga("eval", "runs/stray", "runs/none", *EVALUATION, code=2)
    assert "runs/stray: an adapter, which needs" in out
    assert "runs/none: no such run folder" in out
    assert "no data set to score on" in loraga("eval", "runs/stray", *EVALUATION, code=2)


@pytest.mark.parametrize("name", ["manifest.json", "config.yaml", "adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(run: Path, loraga: Loraga, name: str) -> None:
    (run / name).unlink()
    assert f"{run}/{name} is missing" in " ".join(loraga("eval", str(run), *EVALUATION, code=2).split())


def test_a_run_without_digests_is_scored_with_a_line_that_says_so(run: Path, loraga: Loraga) -> None:
    """As versions before them wrote it."""
    manifest = json.loads((run / "manifest.json").read_text())
    new = ("content_sha256", "files", "result_files", "metrics")
    (run / "manifest.json").write_text(json.dumps({name: it for name, it in manifest.items() if name not in new}))
    out = " ".join(loraga("eval", str(run), *EVALUATION).split())
    assert f"{run} was made before runs kept digests of their files" in out


@pytest.mark.figures
def test_an_inspection_in_a_folder_that_may_only_be_read_prints_its_tables(
    run: Path, loraga: Loraga, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", f"{path}.tmp")

    (run / "inspection.json").unlink(missing_ok=True)
    monkeypatch.setattr("lora_ga_cli.files._temporary", refused)
    out = " ".join(loraga("inspect", str(run)).split())
    assert "q_proj" in out
    assert f"what was found is not kept: {run}/inspection.json: permission denied" in out
    assert f"no figure was drawn: {run}/inspect/adapter.png: permission denied (--figures FOLDER" in out
    assert "--figures: " in loraga("inspect", str(run), "--figures", "given", code=2)


def test_metrics_that_lost_lines_say_so(run: Path, loraga: Loraga) -> None:
    from lora_ga_cli.training.run_files import points_of
    from lora_ga_cli.training.run_folder import RunFolder

    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("lora_ga_cli.training.run_files.warn", said.append)
        assert len(points_of(RunFolder(run))) == len(lines) - 1
    assert said == [f"{run}/metrics.jsonl lost 1 of its {len(lines)} lines; curves show what is left"]


def test_a_few_random_bits_and_cuts_of_every_kind_of_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small version of ``python scripts/soak.py corrupt``: a flip for each command, and some cuts."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    corrupt = importlib.import_module("soaks.corrupt")
    options = argparse.Namespace(flips=14, cuts=6, seed=20, only="", verbose=False)
    figures = list(corrupt.run(options))
    assert [figure.name for figure in figures if not figure.reached] == []
    assert len(figures) == 14
