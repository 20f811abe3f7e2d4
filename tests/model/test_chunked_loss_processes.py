"""Two processes (gloo, on the CPU) that share a model's weights have the loss and gradients of one."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from lora_ga_cli.model.chunked_loss import use_chunked_loss
from tests.model.test_chunked_loss import adapted, decoder, distance, lora_on_the_head, padded

PROCESSES = 2
PATIENCE = timedelta(seconds=60)


def sharded(model: nn.Module, *, together: bool) -> nn.Module:
    """Shards a model, its head in a group of its own, or together with its last norm as transformers does it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (PROCESSES,))
    model.requires_grad_(False)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    if together:
        fully_shard([model.model.norm, model.lm_head], mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)
    return model


def steps(model: nn.Module) -> list[tuple[float, dict[str, Tensor]]]:
    """Loss and gradients of two batches, with an evaluation after each."""
    found = []
    for rows in (4, 2):
        model.zero_grad()
        loss = model(**padded(rows)).loss
        loss.backward()
        gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
        found.append((float(loss.detach()), gradients))
        with torch.no_grad():
            assert float(model(**padded(rows)).loss) == pytest.approx(found[-1][0], rel=1e-5)
    return found


def compare(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=PROCESSES, timeout=PATIENCE)
    for together, adapt in ((False, lora_on_the_head), (True, adapted)):
        expected = steps(adapt(decoder("gemma2", tie_word_embeddings=False)).eval())
        model: Any = sharded(decoder("gemma2", tie_word_embeddings=False), together=together)
        use_chunked_loss(model, tokens=5)
        for (loss, gradients), (plain, wanted) in zip(steps(adapt(model).eval()), expected, strict=True):
            assert loss == pytest.approx(plain, rel=1e-6)
            assert gradients.keys() == wanted.keys()
            assert all(distance(gradients[name], wanted[name]) <= 1e-5 for name in wanted)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_head_is_gathered() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(compare, (port,), nprocs=PROCESSES)
