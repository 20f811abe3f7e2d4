"""The sketches of all targets of one shape, as one batch of matrices, so that one operation serves all of them.

How the sketch of one layer comes about:

1. Backpropagation gives, for each call of the layer, its input x (tokens, d_in) and the gradient at its output
   (tokens, d_out). The gradient of the weight is ``G = grad_outputᵀ · x``, (d_out, d_in); it is never formed. (Of
   experts it gives G itself, since each expert has its own tokens: `Gradients`.)
2. `condense` reduces each micro-batch's G to two thin factors, ``left · rightᵀ`` (`_condense_stacks`).
3. `merge_micro_batches` adds these to the factors of all micro-batches before, and reduces the sum to k columns again.
4. If there is another pass over the rows, `SketchBatch.fix_one_side` makes one factor an orthonormal basis, and
   `project` computes the other one exactly for this basis.
5. `SketchBatch.factors` turns the two factors into singular triplets.

Shapes are written with L layers of a batch, g of them at a time, k columns and p probes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ga_cli import distributed
from lora_ga_cli.gradient.factors import Factors, complete, fix_signs
from lora_ga_cli.gradient.lowrank import Eigen, LowRank, merge, orthonormal, outer, singular_triplets
from lora_ga_cli.gradient.quality import probe_errors

OVERSAMPLING = 0.25
"""Columns of the sketch beyond the capacity, relative to it."""
PROBES = 10
"""Random vectors on each side that the sketch does not use, and that measure its error."""


def columns_of(capacity: int, shape: tuple[int, int]) -> int:
    """The number of columns k of the sketch of a layer.

    Args:
        capacity: singular vectors wanted.
        shape: (d_out, d_in).
    """
    return min(round(capacity * (1 + OVERSAMPLING)), *shape)


@dataclass(frozen=True)
class LayerCall:
    """What backpropagation saw in one call of one layer.

    Args:
        batch: the sketches that the layer's sketch belongs to.
        index: of the layer in this batch.
        x: (tokens, d_in), the layer's input.
        grad_output: (tokens, d_out), the gradient of the loss at its output.
    """

    batch: SketchBatch
    index: int
    x: Tensor
    grad_output: Tensor


@dataclass(frozen=True)
class StackedCalls:
    """Calls of g different layers of one batch with equal numbers of tokens, stacked.

    Args:
        indices: g indices of layers in the batch.
        x: (g, tokens, d_in).
        grad_output: (g, tokens, d_out).
    """

    batch: SketchBatch
    indices: tuple[int, ...]
    x: Tensor
    grad_output: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrices that gradients are multiplied with."""
        return self.grad_output.dtype

    def times(self, matrix: Tensor) -> Tensor:
        """``G · matrix``, (g, d_out, columns), for a matrix (d_in, columns) or (g, d_in, columns)."""
        return outer(self.grad_output, self.x @ matrix)

    def transposed_times(self, matrix: Tensor) -> Tensor:
        """``Gᵀ · matrix``, (g, d_in, columns), for a matrix (d_out, columns) or (g, d_out, columns)."""
        return outer(self.x, self.grad_output @ matrix)


@dataclass(frozen=True)
class Gradients:
    """Gradients of g different layers of one batch that backpropagation has formed, of which it keeps none.

    Args:
        indices: g indices of layers in the batch.
        gradient: (g, d_out, d_in), float32.
    """

    batch: SketchBatch
    indices: tuple[int, ...]
    gradient: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """As in `StackedCalls`."""
        return self.gradient.dtype

    def times(self, matrix: Tensor) -> Tensor:
        """As in `StackedCalls`."""
        return self.gradient @ matrix

    def transposed_times(self, matrix: Tensor) -> Tensor:
        """As in `StackedCalls`."""
        return self.gradient.mT @ matrix


Stack = StackedCalls | Gradients
"""What multiplies the gradients of several layers of one batch with thin matrices."""


class SketchBatch:
    """Sketches ``G ≈ left · rightᵀ`` of L layers of one shape on one device, in float32.

    One of the two sides has orthonormal columns. The other one, the scaled side, holds the size of the gradient: after
    passes 1 and 2 this is ``right = Gᵀ · left``, after pass 3 ``left = G · right``, and so on in turns.

    Args:
        names: the layers.
        shape: (d_out, d_in) of each.
        capacity: singular vectors wanted.
        seed: for the random vectors.
    """

    def __init__(self, names: Sequence[str], shape: tuple[int, int], device: torch.device, capacity: int, seed: int):
        self.names, self.device, self.seed = names, device, seed
        self.d_out, self.d_in = shape
        self.capacity = min(capacity, *shape)
        self.k = columns_of(capacity, shape)
        self.left = self.right = torch.empty(0)  # (L, d_out, k) and (L, d_in, k), from the first micro-batch on
        self._first_pass = True
        self._scaled_side = "right"
        self._micro_batch: LowRank | None = None
        self._in_micro_batch: set[int] = set()
        self._times_called = torch.zeros(len(names), device=device)  # (L,), micro-batches in which a layer was called
        self._random: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        self._index_tensors: dict[tuple[int, ...], Tensor] = {}
        self._left_probes = self._zeros(self.d_in, PROBES)  # Gᵀ Ψ, (L, d_in, p)
        self._right_probes = self._zeros(self.d_out, PROBES)  # G Ω, (L, d_out, p)

    def _zeros(self, rows: int, columns: int) -> Tensor:
        """(L, rows, columns)."""
        return torch.zeros(len(self.names), rows, columns, device=self.device)

    def index_tensor(self, indices: tuple[int, ...]) -> Tensor:
        """Indices of layers as a tensor on the device; cached, since every micro-batch asks for the same ones."""
        if indices not in self._index_tensors:
            self._index_tensors[indices] = torch.tensor(indices, device=self.device)
        return self._index_tensors[indices]

    def random_vectors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The Gaussian vectors that gradients are multiplied with.

        Returns:
            For the right, (d_in, k + p): k test vectors for the range finder, then the p probes Ω. For the left,
            (d_out, p): the probes Ψ.
        """
        if dtype not in self._random:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = [
                torch.randn(rows, columns, generator=generator)
                for rows, columns in ((self.d_in, self.k + PROBES), (self.d_out, PROBES))
            ]
            # rounded to bfloat16, which every type holds exactly
            right, left = (vectors.bfloat16().to(self.device, dtype) for vectors in drawn)
            self._random[dtype] = right, left
        return self._random[dtype]

    def add_probes(self, indices: tuple[int, ...], right: Tensor, left: Tensor, weight: float) -> None:
        """Adds products of gradients with the probes, times ``weight``, to their sums.

        Args:
            indices: g layers.
            right: ``G Ω``, (g, d_out, p).
            left: ``Gᵀ Ψ``, (g, d_in, p).
        """
        layers = self.index_tensor(indices)
        self._right_probes.index_add_(0, layers, right, alpha=weight)
        self._left_probes.index_add_(0, layers, left, alpha=weight)

    def add_to_micro_batch(self, indices: tuple[int, ...], left: Tensor, right: Tensor) -> None:
        """Adds condensed gradients ``left · rightᵀ`` to those of the micro-batch.

        Args:
            indices: g layers.
            left: (g, d_out, k).
            right: (g, d_in, k).
        """
        if self._micro_batch is None:
            self._micro_batch = self._zeros(self.d_out, self.k).to(left.dtype), self._zeros(self.d_in, self.k)
        batch_left, batch_right = self._micro_batch
        repeated = [place for place, index in enumerate(indices) if index in self._in_micro_batch]
        if repeated:  # layers that the model calls more than once
            layers = self.index_tensor(tuple(indices[place] for place in repeated))
            total = batch_left[layers], batch_right[layers]
            merge([total], [(left[repeated], right[repeated])])
            left[repeated], right[repeated] = total
        batch_left.index_copy_(0, self.index_tensor(indices), left.to(batch_left.dtype))
        batch_right.index_copy_(0, self.index_tensor(indices), right)
        self._in_micro_batch.update(indices)

    def take_micro_batch(self) -> LowRank:
        """The condensed gradients of the micro-batch, and begins an empty one.

        Returns:
            left (L, d_out, k) and right (L, d_in, k); zeros for a layer that was not called.
        """
        if self._in_micro_batch:
            self._times_called[self.index_tensor(tuple(sorted(self._in_micro_batch)))] += 1
        self._in_micro_batch.clear()
        micro_batch, self._micro_batch = self._micro_batch, None
        return micro_batch or (self._zeros(self.d_out, self.k), self._zeros(self.d_in, self.k))

    def fix_one_side(self) -> None:
        """Prepares another pass: makes one side orthonormal and fixed, and empties the other, the scaled one.

        Pass 2 fixes the left side, pass 3 the right one, and so on in turns.
        """
        if self._first_pass or self._scaled_side == "left":
            (self.left,), self.right = orthonormal([self.left]), self._zeros(self.d_in, self.k)
            self._scaled_side = "right"
        else:
            (self.right,), self.left = orthonormal([self.right]), self._zeros(self.d_out, self.k)
            self._scaled_side = "left"
        self._first_pass = False

    def add_projection(self, stack: Stack, weight: float) -> None:
        """Adds gradients, projected on the fixed side, to the scaled side: ``Gᵀ · left`` or ``G · right``."""
        layers = self.index_tensor(stack.indices)
        if self._scaled_side == "right":
            product = stack.transposed_times(self.left[layers].to(stack.dtype))  # (g, d_in, k)
            self.right.index_add_(0, layers, product, alpha=weight)
        else:
            product = stack.times(self.right[layers].to(stack.dtype))  # (g, d_out, k)
            self.left.index_add_(0, layers, product, alpha=weight)

    def sum_over_processes(self) -> None:
        """Replaces what each process has summed over its own micro-batches by the sums over all processes."""
        if self._first_pass:
            for tensor in (self._times_called, self._left_probes, self._right_probes):
                distributed.sum_tensor(tensor)
        else:
            distributed.sum_tensor(self.scaled_side)

    def nonfinite_layers(self) -> Tensor:
        """(L,), whether the gradient of a layer holds a number that is not finite."""
        sums = self._left_probes if self._first_pass else self.scaled_side
        return ~torch.linalg.vector_norm(sums, ord=float("inf"), dim=(1, 2)).isfinite()

    def layers_without_gradient(self) -> list[str]:
        """The layers that backpropagation never reached."""
        return [name for name, times in zip(self.names, self._times_called.tolist(), strict=True) if not times]

    def layers_with_zero_gradient(self) -> list[str]:
        """The layers whose gradient is zero."""
        sizes = torch.linalg.vector_norm(self._left_probes, dim=(1, 2)).tolist()
        return [name for name, size in zip(self.names, sizes, strict=True) if not size]

    @property
    def scaled_side(self) -> Tensor:
        """The side that holds the size of the gradient, (L, d_in or d_out, k); the other one is orthonormal."""
        return self.right if self._scaled_side == "right" else self.left

    def factors(self, eigen: Eigen, total: float) -> Iterator[tuple[str, Factors]]:
        """The leading singular triplets of each layer's gradient, divided by ``total``, in float16 on the CPU.

        Args:
            eigen: `eigenvectors` of the scaled side.
        """
        if self._scaled_side == "right":
            left, singular, right = singular_triplets(self.left, self.right, eigen, self.capacity)
        else:
            right, singular, left = singular_triplets(self.right, self.left, eigen, self.capacity)
        right_vectors, left_probes = self.random_vectors(torch.float32)
        missed, squared_error = probe_errors(
            (left, singular, right),
            probes=(left_probes, right_vectors[:, self.k :]),
            products=(self._left_probes, self._right_probes),
        )
        norm = (singular.double().square().sum(1) + squared_error).sqrt() / total
        left, right = fix_signs(complete(left), complete(right))
        on_device = left.half(), singular / total, right.half(), norm, (missed / total**2).float()
        left, singular, right, norm, missed = (tensor.to("cpu", non_blocking=True) for tensor in on_device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for index, name in enumerate(self.names):
            yield name, Factors(left[index], singular[index], right[index], float(norm[index]), missed[index])


def condense(calls: list[LayerCall], weight: float) -> None:
    """Condenses the gradients of some calls and adds them to their layers' micro-batches; empties the list.

    Args:
        weight: counts the gradients so many times.
    """
    for stacks in _stacked(calls):
        _condense_stacks(stacks, weight)


def condense_gradients(gradients: Gradients, weight: float) -> None:
    """`condense` for gradients that are formed already."""
    _condense_stacks([gradients], weight)


def project(calls: list[LayerCall], weight: float) -> None:
    """Adds the gradients of some calls to another pass (`SketchBatch.add_projection`); empties the list.

    Args:
        weight: counts the gradients so many times.
    """
    for stacks in _stacked(calls):
        for stack in stacks:
            stack.batch.add_projection(stack, weight)


def merge_micro_batches(batches: Sequence[SketchBatch]) -> None:
    """Adds the micro-batches of all processes, in the order of their ranks, to the sketches; in every process."""
    micro_batches = [batch.take_micro_batch() for batch in batches]
    if distributed.connected() > 1:  # a process in which no layer was called has zeros of another type
        micro_batches = [(left.float(), right) for left, right in micro_batches]
    for source in range(distributed.connected()):
        received = [
            (distributed.tensor_of(left, source), distributed.tensor_of(right, source)) for left, right in micro_batches
        ]
        if not batches[0].left.numel():
            for batch, (left, right) in zip(batches, received, strict=True):
                batch.left, batch.right = left.float(), right
            continue
        merge([(batch.left, batch.right) for batch in batches], received)


def _stacked(calls: list[LayerCall]) -> Iterator[list[StackedCalls]]:
    """Stacks calls of equal shapes; empties the list.

    Yields:
        Stacks of all shapes that can be condensed together: no layer occurs twice in what is yielded at a time.
    """
    rounds: list[dict[tuple[object, ...], list[LayerCall]]] = []
    times_called: dict[tuple[int, int], int] = defaultdict(int)
    for call in calls:
        layer = (id(call.batch), call.index)
        if times_called[layer] == len(rounds):
            rounds.append(defaultdict(list))
        rounds[times_called[layer]][id(call.batch), len(call.x), call.x.dtype].append(call)
        times_called[layer] += 1
    calls.clear()
    for by_shape in rounds:
        stacks = []
        for members in by_shape.values():
            indices = tuple(call.index for call in members)
            x = torch.stack([call.x for call in members])
            grad_output = torch.stack([call.grad_output for call in members])
            stacks.append(StackedCalls(members[0].batch, indices, x, grad_output))
            members.clear()
        yield stacks


def _condense_stacks(stacks: Sequence[Stack], weight: float) -> None:
    """Finds an orthonormal basis Q (d_out, k) of the leading range of each gradient G, and the projection ``Gᵀ Q``.

    A randomized range finder with one power iteration: the columns of ``G Ω``, ``Gᵀ G Ω``, ``G Gᵀ G Ω`` one after the
    other. The first is not made orthonormal, which costs directions below a hundredth of the leading one some accuracy
    in half precision.
    """
    ranges, right_probes = [], []
    for stack in stacks:
        k = stack.batch.k
        product = stack.times(stack.batch.random_vectors(stack.dtype)[0])  # G [tests, Ω], (g, d_out, k + p)
        right_probes.append(product[..., k:])
        columns = product[..., :k]
        if stack.dtype == torch.float16:  # whose range is small
            columns = columns / columns.norm(dim=1, keepdim=True).clamp(min=torch.finfo(columns.dtype).tiny)
        ranges.append(stack.transposed_times(columns.to(stack.dtype)))  # Gᵀ G Ω, (g, d_in, k)
    dtypes = [stack.dtype for stack in stacks]
    row_bases = orthonormal(ranges, dtypes)
    ranges = [stack.times(row_basis) for stack, row_basis in zip(stacks, row_bases, strict=True)]  # (g, d_out, k)
    # in the type of the last product, so that this product is exactly the projection on the basis
    bases = orthonormal(ranges, dtypes)
    for stack, basis, right_probe in zip(stacks, bases, right_probes, strict=True):
        batch = stack.batch
        left_vectors = batch.random_vectors(stack.dtype)[1].expand(len(stack.indices), -1, -1)
        product = stack.transposed_times(torch.cat([basis, left_vectors], 2))  # Gᵀ [Q, Ψ], (g, d_in, k + p)
        batch.add_probes(stack.indices, right_probe, product[..., batch.k :], weight)
        batch.add_to_micro_batch(stack.indices, basis, product[..., : batch.k] * weight)
