"""The sketch: the leading part of every target's gradient in one pass, without forming the gradient.

For ``y = W x`` with gradient d at the output, ``G = Σ dᵀ x`` over tokens: a product with G needs two thin products with
what backpropagation has at hand. So each micro-batch's own gradient can be condensed by a randomized range finder with
a power iteration (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithm 4.4) at no extra pass, and the
micro-batches' factors are merged one after the other. On real gradients this errs ten times less than linear sketches
of the same size, whose test matrices know nothing of the gradient (Tropp, Yurtsever, Udell, Cevher 2017 and 2019,
arXiv 1609.00048 and 1902.08651; ``scripts/compare_sketches.py`` compares them).

Further passes over the same rows project on the range found: pass 2 computes ``Gᵀ U`` exactly, pass 3 ``G V``, and so
on, each half a power iteration.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from lora_ga_cli import distributed
from lora_ga_cli.gradient.capture import checkpoint_kinds, tapped
from lora_ga_cli.gradient.estimator import refuse_bad, refuse_empty, refuse_silent
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.gradient.lowrank import eigenvectors
from lora_ga_cli.gradient.sketch_batch import PROBES, Call, Stack, columns_of, condense, merge_batches, project
from lora_ga_cli.model.targets import Target

QUEUE_BYTES = 6 * 2**27
"""Inputs and gradients of layers that wait to be condensed together, where activations are checkpointed."""
STACKING = 1.2
"""What waits, and its copies in stacks of equal shape while it is condensed, over what waits."""
QUEUE_SHARE = 0.06
"""The same as a share of an accelerator's memory, where all activations are kept anyway: longer queues are faster."""


class SketchEstimator:
    """Condenses the gradient of every target while backpropagation passes; see the module.

    Memory per target: ``1.25 · capacity · (d_out + d_in)`` numbers in float32, about twice (the sum and the micro-batch
    at hand; `sketch_bytes` counts). The base's weights are not touched and need no gradients, so they may be quantized
    or sharded.

    With several processes each sees rows of its own, all run the same number of micro-batches, and the micro-batches of
    one round are merged in the order of ranks everywhere: the factors are the same in every process.

    Args:
        passes: over the same rows.
        seed: of the random test vectors.
    """

    name = "sketch"

    def __init__(self, passes: int = 1, seed: int = 0):
        self.passes = passes
        self.seed = seed
        self._stacks: list[Stack] = []
        self._place: dict[str, tuple[Stack, int]] = {}
        self._wide: set[str] = set()
        self._queue: list[Call] = []
        self._held = self._latest = 0
        self._queue_limit = QUEUE_BYTES
        self._bad: list[Tensor] = []
        self._pass = 1
        self._weight = 1.0

    @contextlib.contextmanager
    def watch(self, model: nn.Module, targets: Mapping[str, Target], capacity: int) -> Iterator[None]:
        members: dict[tuple[tuple[int, int], torch.device], list[str]] = defaultdict(list)
        for name, target in targets.items():
            # a wide gradient is sketched as its transpose, beside the tall ones of that shape
            members[(max(target.shape), min(target.shape)), target.weight.device].append(name)
        self._wide = {name for name, target in targets.items() if target.shape[0] < target.shape[1]}
        self._stacks = [Stack(names, *key, capacity, self.seed) for key, names in members.items()]
        places = {name: (stack, position) for stack in self._stacks for position, name in enumerate(stack.names)}
        self._place = {name: places[name] for name in targets}
        self._queue_limit = queue_bytes(self._stacks[0].device, checkpointed=bool(checkpoint_kinds(model)))
        try:
            with tapped(model, targets, self._receive):
                yield
        finally:
            self._queue, self._bad, self._held = [], [], 0

    @torch.no_grad()
    def begin_pass(self, number: int) -> None:
        self._pass = number
        if number > 1:
            for stack in self._stacks:
                stack.turn()

    def begin(self, index: int, weight: float) -> None:
        self._weight = weight

    def _receive(self, name: str, x: Tensor, d: Tensor) -> None:
        if not x.numel():
            return  # an expert that no token was routed to
        kind = torch.promote_types(x.dtype, d.dtype)
        if x.dtype != d.dtype or kind == torch.float64:  # sums are in float32
            kind = torch.float32 if kind == torch.float64 else kind
            x, d = x.to(kind), d.to(kind)
        self._held += d.nbytes + (0 if x.data_ptr() == self._latest else x.nbytes)  # neighbours may share an input
        self._latest = x.data_ptr()
        x, d = x.reshape(-1, x.shape[-1]), d.reshape(-1, d.shape[-1])
        self._queue.append(Call(*self._place[name], d, x) if name in self._wide else Call(*self._place[name], x, d))
        if self._held > self._queue_limit:
            self._flush()

    def _flush(self) -> None:
        queue, self._queue, self._held = self._queue, [], 0
        work = condense if self._pass == 1 else project
        work(queue, self._weight)

    @torch.no_grad()
    def end(self) -> None:
        self._flush()

    @torch.no_grad()
    def share(self) -> None:
        if self._pass == 1:
            merge_batches(self._stacks)
        device = self._stacks[0].device
        self._bad.append(torch.cat([stack.not_finite().to(device, torch.float32) for stack in self._stacks]))

    @torch.no_grad()
    def end_pass(self) -> None:
        # looked at only now: it waits for the device
        bad, self._bad = distributed.sum_tensor(torch.stack(self._bad)).tolist(), []
        names = [name for stack in self._stacks for name in stack.names]
        for index, flags in enumerate(bad, start=1):
            refuse_bad([name for name, flag in zip(names, flags, strict=True) if flag], index)
        for stack in self._stacks:
            stack.add_up()

    @torch.no_grad()
    def factors(self, total: float) -> Iterator[tuple[str, Factors]]:
        refuse_silent(
            [name for stack in self._stacks for name in stack.silent()],
            "the loss does not depend on it, or the model uses its weight without calling it (then gradient=exact)",
        )
        refuse_empty([name for stack in self._stacks for name in stack.empty()])
        found: dict[str, Factors] = {}
        for stack, eigen in zip(self._stacks, eigenvectors([stack.moving for stack in self._stacks]), strict=True):
            found.update(stack.factors(eigen, total))
        yield from ((name, found[name].transposed() if name in self._wide else found[name]) for name in self._place)


def sketch_bytes(
    shapes: Iterable[tuple[int, int]], capacity: int, tokens: int, element_size: int, *, limit: int
) -> tuple[int, int]:
    """Memory that a sketch takes: what it holds, and what waits to be condensed while it is, in bytes.

    Args:
        shapes: (d_out, d_in) of the targets.
        tokens: of a micro-batch.
        element_size: of an activation, in bytes.
        limit: `queue_bytes`.

    Returns:
        Both, in this order.
    """
    held = calls = 0
    for d_out, d_in in shapes:
        k = columns_of(capacity, (d_out, d_in))
        sums, batch = 4 * k * (d_out + d_in), element_size * k * max(d_out, d_in) + 4 * k * min(d_out, d_in)
        held += sums + batch + 4 * PROBES * (d_out + d_in)
        calls += tokens * (d_out + d_in) * element_size
    return held, round(STACKING * min(limit, calls))


def queue_bytes(device: torch.device, *, checkpointed: bool) -> int:
    """How much may wait to be condensed together on a device."""
    if checkpointed or device.type != "cuda" or not torch.cuda.is_available():
        return QUEUE_BYTES
    return max(QUEUE_BYTES, int(QUEUE_SHARE * torch.cuda.get_device_properties(device).total_memory))
