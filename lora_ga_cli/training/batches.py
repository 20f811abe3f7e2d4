"""Reading the rows of an optimizer step as its micro-batches: one for each forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from lora_ga_cli.data.flatten import halves
from lora_ga_cli.interruption import ignored_in_worker
from lora_ga_cli.training.passes import Limits, divide

Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward and backward pass.

    Args:
        inputs: what the model takes.
        items: how many items the mean loss of the pass averages (see `count_items`); 0 for a pass that only keeps this
            process in step with others, and has no part in the loss.
        tokens: of the rows, without padding.
    """

    inputs: dict[str, Any]
    items: int
    tokens: int

    def pin_memory(self) -> MicroBatch:
        """The batch in memory that a GPU reads while the process goes on. The DataLoader calls it."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> MicroBatch:
        """The batch on a device, to which it may still be on its way."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def halves(self, count: Callable[[Mapping[str, Any]], int]) -> list[MicroBatch]:
        """Two micro-batches of half the rows; one row alone stays as it is.

        Args:
            count: the items of a batch; see `count_items`.
        """
        parts = halves(self.inputs)
        if len(parts) < 2:
            return [self]
        return [MicroBatch(part, count(part) if self.items else 0, _tokens(part)) for part in parts]

    @property
    def computed(self) -> int:
        """Tokens that a pass computes, with padding."""
        return int(self.inputs["input_ids"].numel())

    def _each(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        changed = {name: change(item) if isinstance(item, Tensor) else item for name, item in self.inputs.items()}
        return replace(self, inputs=changed)


def _tokens(batch: Mapping[str, Any]) -> int:
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


class BatchReader(Dataset[Any]):
    """Reads rows, and collates the micro-batches of a step.

    Args:
        rows: a data set whose rows have their ``length`` in tokens.
        collate: from rows to what the model takes.
        count: the items of a batch; see `count_items`.
    """

    def __init__(self, rows: Any, collate: Collate, count: Callable[[Mapping[str, Any]], int]):
        self.rows, self.collate, self.count = rows, collate, count

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, passes: Sequence[Sequence[int]]) -> list[MicroBatch]:
        """The micro-batches of a step's passes. One without rows is made of the first row, with no part in the loss."""
        flat = [row for rows in passes for row in (rows or [0])]
        read = iter(self.rows.__getitems__(flat))
        batches = []
        for rows in passes:
            own = [next(read) for _ in rows or [0]]
            inputs = self.collate(own)
            items, tokens = (self.count(inputs), sum(row["length"] for row in own)) if rows else (0, 0)
            batches.append(MicroBatch(inputs, items, tokens))
        return batches


class StepSampler(BatchSampler):
    """The passes of this process, for every step of an epoch.

    Args:
        steps: the rows of every step of the epoch that the training is in.
        count: how many steps that are.
        lengths: of all rows, in tokens.
        processes: how many train together.
        index: the number of this one.
        equal: whether all processes must have as many passes (those that share a base).
    """

    def __init__(
        self,
        steps: Callable[[], Sequence[Sequence[int]]],
        count: int,
        lengths: Sequence[int],
        limits: Limits,
        *,
        processes: int = 1,
        index: int = 0,
        equal: bool = False,
    ):
        self.steps, self.count, self.lengths, self.limits = steps, count, lengths, limits
        self.processes, self.index, self.equal = processes, index, equal

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[list[int]]]:  # type: ignore[override]
        for rows in self.steps():
            shares = divide(rows, self.lengths, self.limits, self.processes)
            wanted = max(len(share) for share in shares) if self.equal else 1
            own = shares[self.index]
            yield own + [[] for _ in range(wanted - len(own))]


def batch_loader(reader: BatchReader, sampler: BatchSampler, *, workers: int, pin: bool) -> DataLoader[Any]:
    """Loads the micro-batches of every step that the sampler gives."""
    return DataLoader(
        reader,
        batch_sampler=sampler,
        collate_fn=_unchanged,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # torch's own is that of dropout, and must not depend on the number of workers
        pin_memory=pin,
        worker_init_fn=ignored_in_worker,
    )


def _unchanged(batches: list[MicroBatch]) -> list[MicroBatch]:
    return batches
