"""``--json``: the result is one JSON object on standard output, and all else is on standard error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.cli.app import main
from tests.helpers import Arguments

Answer = Callable[..., dict[str, Any]]
LISTS = {
    ("recipes", "list"): "recipes",
    ("recipes", "options", "trainer"): "options",
    ("recipes", "optimizers"): "optimizers",
    ("recipes", "--methods"): "methods",
    ("recipes", "show", "quickstart"): "text",
    ("reproduce",): "tables",
    ("cache", "list"): "gradients",
}


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Runs a command line with ``--json``, insists on its exit code, and returns what it put on standard output."""

    def run(*command: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        found = main([*command, "--json"])
        printed = capsys.readouterr()
        assert found == code, printed.err
        assert printed.out.count("\n") == 1
        result = json.loads(printed.out)
        assert isinstance(result, dict)
        return result

    return run


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_lists_are_objects(answer: Answer, command: tuple[str, ...]) -> None:
    found = answer(*command)
    assert LISTS[command] in found
    assert found[LISTS[command]] or command[0] == "cache"


def test_every_step_of_a_run_tells_its_result(answer: Answer, arguments: Arguments) -> None:
    estimated = answer("estimate-grad", *arguments())
    assert estimated["layers"]["model.layers.0.self_attn.q_proj"]["shape"] == [48, 48]
    assert answer("cache", "list")["gradients"][0]["key"] == estimated["key"]
    assert answer("cache", "verify")["intact"]
    assert answer("init", *arguments("llama", "name=r"))["run"].endswith("runs/r")
    plan = answer("train", *arguments("llama", "name=r"), "--dry-run")
    assert plan["stages"]["init"] == "stored in the run"
    assert plan["forecast"]["training"]["peak_memory"] > 0
    assert answer("train", *arguments("llama", "name=r"), "--preview")["rows"][0]["text"]
    trained = answer("train", *arguments("llama", "name=r"))
    manifest = json.loads(Path("runs/r/manifest.json").read_text())
    assert {name: trained[name] for name in ("training_loss", "adapter_rank", "steps")} == {
        "training_loss": manifest["training_loss"],
        "adapter_rank": 8,
        "steps": 6,
    }
    answered = answer("eval", "runs/r", "runs/nosuch", code=1)
    (left_out,) = answered["left_out"]
    assert left_out["folder"] == "runs/nosuch"
    assert "no such run folder" in left_out["reason"]
    (scored,) = answered["results"]
    assert (scored["name"], scored["rows"]) == ("r", 6)
    used = {name: manifest[name] for name in ("learning_rate", "steps")} | {"rank": 4, "seed": 42}
    assert {name: scored[name] for name in used} == used
    assert not [key for key in scored if " " in key]
    assert scored["values"]["loss"] == pytest.approx(trained["validation_loss"], rel=1e-4)
    (merged,) = answer("merge", "runs/r")["merged"]
    assert merged["folder"].endswith("runs/r/merged")
    assert merged["bytes"] > Path("runs/r/merged/model.safetensors").stat().st_size
    assert answer("cache", "prune", "--all")["removed"]


def test_the_jobs_of_a_sweep_are_in_one_object(answer: Answer, arguments: Arguments) -> None:
    jobs = answer("train", *arguments("llama", "method=lora", "trainer.max_steps=1"), "rank=1,2", "-m")["jobs"]
    assert [(job["job"], job["adapter_rank"]) for job in jobs] == [("1: rank=1", 1), ("2: rank=2", 2)]
    out = answer("train", *arguments(), "hydra/launcher=joblib", "rank=1,2", "-m", code=2)
    assert "makes them in others" in out["error"]["message"]


def test_a_sweep_keeps_the_results_of_the_jobs_that_finished(
    answer: Answer, arguments: Arguments, sums_file: Path
) -> None:
    files = f"dataset.train_file={sums_file},missing.jsonl"
    found = answer("train", *arguments("llama", "method=lora", "trainer.max_steps=1"), files, "-m", code=1)
    done, failed = found["jobs"]
    assert done["training_loss"] > 0
    assert failed["error"]["faults"][0]["where"] == "missing.jsonl"
    assert found["error"]["kind"] == "SweepError"


def test_an_error_is_an_object_with_its_faults(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    error = answer("train", "recipe=quickstart", "rnk=3", "model.dtype=x", code=2)["error"]
    assert (error["kind"], error["exit_code"]) == ("InvalidInput", 2)
    assert [fault["where"] for fault in error["faults"]] == ["command line", "command line"]
    assert answer("eval", "missing", code=2)["error"]["message"].startswith("missing: no such run folder")


def test_without_it_nothing_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list", "--json"]) == 0
    capsys.readouterr()
    assert main(["recipes", "list"]) == 0
    printed = capsys.readouterr()
    assert "quickstart" in printed.out
    assert "{" not in printed.out
    assert printed.err == ""
