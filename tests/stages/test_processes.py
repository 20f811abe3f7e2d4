"""Two processes under torchrun (gloo, on the CPU) estimate and train what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_ga_cli.gradient.artifact import GradientArtifact
from tests.helpers import Arguments, Loraga, only_run


def together(*command: str, port: int, code: int = 0) -> str:
    """Runs a command line in two processes; returns what they printed."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [*launch, "-m", "lora_ga_cli", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def only_artifact(cache: str) -> GradientArtifact:
    (folder,) = (item for item in (Path(cache) / "gradients").iterdir() if item.is_dir())
    return GradientArtifact.load(folder)


def assert_same_run(one: Path, two: Path, allowed: float) -> None:
    losses = [json.loads((run / "manifest.json").read_text())["validation_loss"] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    weights = load_file(two / "adapter_model.safetensors")
    for name, tensor in load_file(one / "adapter_model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=allowed)


def test_two_processes_train_what_one_trains(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments("llama", "output_dir=one"))
    printed = together("train", *arguments("llama", "output_dir=two", "cache_dir=elsewhere"), port=29417)
    assert printed.count("train  finished in") == 1  # one of them talks
    assert_same_run(only_run("one"), only_run("two"), 1e-4)


@pytest.mark.parametrize("estimator", ["sketch", "exact"])
def test_two_processes_share_the_rows_of_an_estimation(loraga: Loraga, arguments: Arguments, estimator: str) -> None:
    options = [f"gradient={estimator}", "gradient.samples=18", "gradient.capacity=16"]
    loraga("estimate-grad", *arguments("gpt2", "cache_dir=one", *options))
    printed = together("estimate-grad", *arguments("gpt2", "cache_dir=two", *options), port=29418)
    assert printed.count("gradient  estimated") == 1
    one, two = only_artifact("one"), only_artifact("two")
    assert (one.key, one.info["items"], one.info["rows"]) == (two.key, two.info["items"], two.info["rows"])
    for name, factors in one.factors.items():
        found = two.factors[name]
        torch.testing.assert_close(found.singular, factors.singular, rtol=1e-5, atol=1e-5 * float(factors.singular[0]))
        torch.testing.assert_close(found.left.float(), factors.left.float(), rtol=0, atol=1e-3)


def test_a_sharded_base_trains_what_an_unsharded_one_does(loraga: Loraga, arguments: Arguments) -> None:
    """And is resumed, and its adapter is as plain as any other."""
    loraga("train", *arguments("llama", "output_dir=one", "method.offset=adapter", "name=run"))
    sharded = arguments("llama", "output_dir=two", "cache_dir=elsewhere", "model.shard=true", "name=run")
    together("train", *sharded, port=29419)
    assert_same_run(only_run("one"), only_run("two"), 1e-4)
    (only_run("two") / "adapter_model.safetensors").unlink()
    manifest = json.loads((only_run("two") / "manifest.json").read_text())
    del manifest["finished"]
    (only_run("two") / "manifest.json").write_text(json.dumps(manifest))
    assert "train  finished in" in together("train", *sharded, port=29420)
    assert_same_run(only_run("one"), only_run("two"), 1e-4)
    assert "loss" in loraga("eval", "two/run")  # in one process, where nothing is in shards


@pytest.mark.parametrize("command", ["train", "init", "estimate-grad"])
def test_shards_need_several_processes(loraga: Loraga, arguments: Arguments, command: str) -> None:
    assert "torchrun" in loraga(command, *arguments("llama", "model.shard=true"), code=2)
