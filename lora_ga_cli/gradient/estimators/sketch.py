"""The sketch: the leading part of every target's gradient in one pass, without forming the gradient.

For ``y = W x`` with gradient d at the output, ``G = Σ dᵀ x`` over tokens. So a product with G takes two thin products
with what backpropagation has at hand, and the gradient of each micro-batch can be condensed without an extra pass, by a
randomized range finder with a power iteration (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithm 4.4). The
factors of the micro-batches are merged one after the other. On real gradients the error is ten times smaller than that
of linear sketches of the same size, whose test matrices do not depend on the gradient (Tropp, Yurtsever, Udell, Cevher
2017 and 2019, arXiv 1609.00048 and 1902.08651; ``scripts/compare_sketches.py`` compares them).

Further passes over the same rows project on the range found before: pass 2 computes ``Gᵀ U`` exactly, pass 3 ``G V``,
and so on. Each is half a power iteration.

The weights of experts, one parameter (E, d_out, d_in), are no linear layers whose inputs could be read: backpropagation
forms their gradient, which is condensed as soon as it is there and freed. So one parameter's gradient exists at a time.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from lora_ga_cli import distributed
from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.capture import capture_gradients, checkpoint_kinds
from lora_ga_cli.gradient.estimator import (
    EstimatorOptions,
    refuse_nonfinite_gradients,
    refuse_unreached_layers,
    refuse_zero_gradients,
)
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.gradient.lowrank import eigenvectors
from lora_ga_cli.gradient.sketch_batch import (
    PROBES,
    Gradients,
    LayerCall,
    SketchBatch,
    columns_of,
    condense,
    condense_gradients,
    merge_micro_batches,
    project,
)
from lora_ga_cli.model.targets import Target
from lora_ga_cli.registry import ESTIMATORS

QUEUE_BYTES = 6 * 2**27
"""Limit of the inputs and gradients of layers that wait to be condensed together, where activations are
checkpointed."""
STACKING = 1.2
"""Memory of what waits and of the copies stacked while it is condensed, relative to what waits."""
QUEUE_SHARE = 0.06
"""The same limit as a share of an accelerator's memory, where all activations are kept anyway: longer queues are
faster."""


@ESTIMATORS.register("sketch")
class SketchEstimator:
    """Condenses the gradient of every target during backpropagation; the module describes the algorithm.

    Memory per target: ``1.25 · capacity · (d_out + d_in)`` numbers in float32, about twice (the sum and the current
    micro-batch; `sketch_bytes` counts). The weights of linear layers are not touched and need no gradients, so they
    may be quantized or sharded; those of experts may not.

    With several processes each one sees its own rows, all run the same number of micro-batches, and each merges the
    micro-batches of one round in the order of ranks. So the factors are the same in every process.

    Args:
        passes: over the same rows.
        seed: for the random test vectors.
    """

    name = "sketch"

    def __init__(self, passes: int = 1, seed: int = 0):
        self.passes = passes
        self.seed = seed
        self._batches: list[SketchBatch] = []
        self._position: dict[str, tuple[SketchBatch, int]] = {}  # a layer's batch and its index there
        self._wide: set[str] = set()
        self._experts: list[set[str]] = []  # the layers of every parameter of experts
        self._queue: list[LayerCall] = []
        self._queue_bytes = self._last_input = 0
        self._queue_limit = QUEUE_BYTES
        self._nonfinite: list[Tensor] = []
        self._pass = 1
        self._weight = 1.0

    @classmethod
    def from_options(cls, options: EstimatorOptions) -> Self:
        return cls(passes=options.passes)

    @contextlib.contextmanager
    def watch(self, model: nn.Module, targets: Mapping[str, Target], capacity: int) -> Iterator[None]:
        members: dict[tuple[tuple[int, int], torch.device, bool], list[str]] = defaultdict(list)
        layers = [layer for target in targets.values() for layer in target.layers]
        for layer in layers:
            # a wide gradient is sketched as its transpose, together with the tall ones of that shape
            shape = max(layer.shape), min(layer.shape)
            members[shape, layer.weight.device, layer.is_module].append(layer.name)
        self._wide = {layer.name for layer in layers if layer.shape[0] < layer.shape[1]}
        self._batches = [
            SketchBatch(names, shape, device, capacity, self.seed) for (shape, device, _), names in members.items()
        ]
        positions = {name: (batch, index) for batch in self._batches for index, name in enumerate(batch.names)}
        self._position = {layer.name: positions[layer.name] for layer in layers}
        self._experts = [{layer.name for layer in target.layers} for target in targets.values() if target.experts]
        modules = {name: target for name, target in targets.items() if target.is_module}
        self._queue_limit = queue_bytes(self._batches[0].device, checkpointed=bool(checkpoint_kinds(model)))
        hooks = contextlib.ExitStack()
        try:
            for target in targets.values():
                if not target.is_module:
                    if target.sharded:
                        raise GradientError(f"{target.name} is sharded, so its gradient cannot be condensed")
                    target.weight.requires_grad_(True)
                    hooks.callback(target.weight.register_post_accumulate_grad_hook(self._grad_hook(target)).remove)
            with capture_gradients(model, modules, self._enqueue):
                yield
        finally:
            hooks.close()
            self._queue, self._nonfinite, self._queue_bytes = [], [], 0

    @torch.no_grad()
    def begin_pass(self, number: int) -> None:
        self._pass = number
        if number > 1:
            for batch in self._batches:
                batch.fix_one_side()

    def begin_micro_batch(self, index: int, weight: float) -> None:
        self._weight = weight

    def _enqueue(self, name: str, x: Tensor, grad_output: Tensor) -> None:
        """Keeps one call of a layer until the queue is long enough to be condensed.

        Args:
            x: (…, d_in), the layer's input.
            grad_output: (…, d_out), the gradient at its output.
        """
        if not x.numel():
            return  # an expert that no token was routed to
        dtype = torch.promote_types(x.dtype, grad_output.dtype)
        if x.dtype != grad_output.dtype or dtype == torch.float64:  # sums are in float32
            dtype = torch.float32 if dtype == torch.float64 else dtype
            x, grad_output = x.to(dtype), grad_output.to(dtype)
        # neighbouring layers may share an input
        self._queue_bytes += grad_output.nbytes + (0 if x.data_ptr() == self._last_input else x.nbytes)
        self._last_input = x.data_ptr()
        x, grad_output = x.reshape(-1, x.shape[-1]), grad_output.reshape(-1, grad_output.shape[-1])
        if name in self._wide:
            x, grad_output = grad_output, x  # which is the transpose of the gradient
        self._queue.append(LayerCall(*self._position[name], x, grad_output))
        if self._queue_bytes > self._queue_limit:
            self._empty_queue()

    def _grad_hook(self, target: Target) -> Callable[[Tensor], None]:
        """A hook that condenses the gradient of a parameter as soon as backpropagation has formed it."""
        layers = target.layers
        batch = self._position[layers[0].name][0]

        @torch.no_grad()
        def hook(weight: Tensor) -> None:
            grad, weight.grad = weight.grad, None
            if grad is None:
                return
            gradients = target.oriented(grad).reshape(len(layers), *target.shape)
            # the gradient of an expert that no token was routed to is zero
            reached = gradients.flatten(1).any(1).nonzero().flatten().tolist()
            if not reached:
                return
            chosen = gradients if len(reached) == len(layers) else gradients[reached]
            chosen = chosen.mT if layers[0].name in self._wide else chosen
            indices = tuple(self._position[layers[number].name][1] for number in reached)
            stack = Gradients(batch, indices, chosen.float())
            if self._pass == 1:
                condense_gradients(stack, self._weight)
            else:
                batch.add_projection(stack, self._weight)

        return hook

    def _empty_queue(self) -> None:
        queue, self._queue, self._queue_bytes = self._queue, [], 0
        process = condense if self._pass == 1 else project
        process(queue, self._weight)

    @torch.no_grad()
    def end_micro_batch(self) -> None:
        self._empty_queue()

    @torch.no_grad()
    def combine_processes(self) -> None:
        if self._pass == 1:
            merge_micro_batches(self._batches)
        device = self._batches[0].device
        flags = [batch.nonfinite_layers().to(device, torch.float32) for batch in self._batches]
        self._nonfinite.append(torch.cat(flags))

    @torch.no_grad()
    def end_pass(self) -> None:
        # read only now, because reading waits for the device
        micro_batches, self._nonfinite = distributed.sum_tensor(torch.stack(self._nonfinite)).tolist(), []
        names = [name for batch in self._batches for name in batch.names]
        for index, flags in enumerate(micro_batches, start=1):
            refuse_nonfinite_gradients([name for name, flag in zip(names, flags, strict=True) if flag], index)
        for batch in self._batches:
            batch.sum_over_processes()

    @torch.no_grad()
    def factors(self, total: float) -> Iterator[tuple[str, Factors]]:
        zero = {name for batch in self._batches for name in batch.layers_with_zero_gradient()}
        # of the experts in one parameter, some may have no gradient, and all of them may not
        without = {name for experts in self._experts if not experts <= zero for name in experts & zero}
        unreached = {name for batch in self._batches for name in batch.layers_without_gradient()} - without
        refuse_unreached_layers(
            unreached,
            [name for name in self._position if name not in without],
            "the loss does not depend on it, or the model uses its weight without calling it (then gradient=exact)",
        )
        without |= unreached
        refuse_zero_gradients([name for name in self._position if name in zero - without])
        factors: dict[str, Factors] = {}
        eigen = eigenvectors([batch.scaled_side for batch in self._batches])
        for batch, of_batch in zip(self._batches, eigen, strict=True):
            factors.update(batch.factors(of_batch, total))
        for name in self._position:
            if name not in without:
                yield name, factors[name].transposed() if name in self._wide else factors[name]


def sketch_bytes(
    shapes: Iterable[tuple[int, int]], capacity: int, tokens: int, element_size: int, *, limit: int
) -> tuple[int, int]:
    """Memory that a sketch takes, in bytes.

    Args:
        shapes: (d_out, d_in) of the targets.
        tokens: of a micro-batch.
        element_size: of an activation, in bytes.
        limit: `queue_bytes`.

    Returns:
        The memory of the sketch itself, and that of the queue while it is condensed.
    """
    sketches = calls = 0
    for d_out, d_in in shapes:
        k = columns_of(capacity, (d_out, d_in))
        sums = 4 * k * (d_out + d_in)
        micro_batch = element_size * k * max(d_out, d_in) + 4 * k * min(d_out, d_in)
        sketches += sums + micro_batch + 4 * PROBES * (d_out + d_in)
        calls += tokens * (d_out + d_in) * element_size
    return sketches, round(STACKING * min(limit, calls))


def queue_bytes(device: torch.device, *, checkpointed: bool) -> int:
    """How many bytes may wait on a device to be condensed together."""
    if checkpointed or device.type != "cuda" or not torch.cuda.is_available():
        return QUEUE_BYTES
    return max(QUEUE_BYTES, int(QUEUE_SHARE * torch.cuda.get_device_properties(device).total_memory))
