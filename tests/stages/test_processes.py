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
from tests import commands_in_turn
from tests.helpers import Arguments, Loraga, only_run


def together(*commands: list[str], port: int) -> list[str]:
    """Runs command lines in two processes, one after the other; returns what each printed."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [*launch, str(Path(commands_in_turn.__file__)), json.dumps(commands)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.split(commands_in_turn.MARK)[1:]


def only_artifact(cache: str) -> GradientArtifact:
    (folder,) = (item for item in (Path(cache) / "gradients").iterdir() if item.is_dir())
    return GradientArtifact.load(folder)


def assert_same_run(one: Path, two: Path, allowed: float) -> None:
    losses = [json.loads((run / "manifest.json").read_text())["validation_loss"] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    weights = load_file(two / "adapter_model.safetensors")
    for name, tensor in load_file(one / "adapter_model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=allowed)


def assert_same_gradient(one: GradientArtifact, two: GradientArtifact) -> None:
    assert (one.key, one.info["items"], one.info["rows"]) == (two.key, two.info["items"], two.info["rows"])
    for name, factors in one.factors.items():
        found = two.factors[name]
        torch.testing.assert_close(found.singular, factors.singular, rtol=1e-5, atol=1e-5 * float(factors.singular[0]))
        torch.testing.assert_close(found.left.float(), factors.left.float(), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_two_processes_do_what_one_does(loraga: Loraga, arguments: Arguments) -> None:
    """They estimate, train, train on a base that they share, and resume that; its adapter is as plain as any other.

    In one test, because starting two processes takes longer than all that they do.
    """
    plain = arguments("llama", "name=run", "cache_dir=elsewhere")
    sharded = [*plain, "output_dir=sharded", "method.offset=adapter", "model.shard=true", "trainer.flatten=true"]
    estimations = {
        name: arguments("gpt2", f"gradient={name}", "gradient.samples=18", "gradient.capacity=16")
        for name in ("sketch", "exact")
    }
    trained, *estimated, _ = together(
        ["train", *plain, "output_dir=two"],
        *(["estimate-grad", *options, f"cache_dir=two_{name}"] for name, options in estimations.items()),
        ["train", *sharded],
        port=29417,
    )
    assert trained.count("train  finished in") == 1  # one of them talks
    loraga("train", *arguments("llama", "name=run", "output_dir=one"))
    assert_same_run(only_run("one"), only_run("two"), 1e-4)

    for printed, (name, options) in zip(estimated, estimations.items(), strict=True):
        assert printed.count("gradient  estimated") == 1
        loraga("estimate-grad", *options, f"cache_dir=one_{name}")
        assert_same_gradient(only_artifact(f"one_{name}"), only_artifact(f"two_{name}"))

    loraga("train", *arguments("llama", "name=run", "output_dir=unsharded", "method.offset=adapter"))
    assert_same_run(only_run("unsharded"), only_run("sharded"), 1e-4)
    (only_run("sharded") / "adapter_model.safetensors").unlink()
    manifest = json.loads((only_run("sharded") / "manifest.json").read_text())
    del manifest["finished"]
    (only_run("sharded") / "manifest.json").write_text(json.dumps(manifest))
    assert "train  finished in" in together(["train", *sharded], port=29420)[0]
    assert_same_run(only_run("unsharded"), only_run("sharded"), 1e-4)
    assert "loss" in loraga("eval", "sharded/run")  # in one process, where nothing is in shards


@pytest.mark.parametrize("command", ["train", "init", "estimate-grad"])
def test_shards_need_several_processes(loraga: Loraga, arguments: Arguments, command: str) -> None:
    assert "torchrun" in loraga(command, *arguments("llama", "model.shard=true"), code=2)
