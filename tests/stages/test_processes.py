"""Two processes under torchrun (gloo, on the CPU) train what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.stages.test_train import Arguments, Loraga, only_run


def test_two_processes_train_what_one_trains(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments("llama", "output_dir=one"))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=29417",
        "-m",
        "lora_ga_cli",
    ]
    command += ["train", *arguments("llama", "output_dir=two", "cache_dir=elsewhere")]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("train  finished in") == 1  # one of them talks
    one, two = only_run("one"), only_run("two")
    losses = [json.loads((run / "manifest.json").read_text())["validation_loss"] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    weights = load_file(two / "adapter_model.safetensors")
    for name, tensor in load_file(one / "adapter_model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-4)
