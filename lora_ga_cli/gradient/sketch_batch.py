"""The sketches of all targets of one shape, stacked so that one operation serves them all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ga_cli import distributed
from lora_ga_cli.gradient.factors import Factors, complete, fix_signs
from lora_ga_cli.gradient.lowrank import Pair, merge, orthonormal, outer, singular_triplets
from lora_ga_cli.gradient.quality import probe_errors

OVERSAMPLING = 0.25
"""Columns of the sketch beyond the capacity, relative to it."""
PROBES = 10
"""Random vectors a side that take no part in the reconstruction, and measure its error."""


def columns_of(capacity: int, shape: tuple[int, int]) -> int:
    """Columns of the sketch of a layer (d_out, d_in), for so many singular vectors."""
    return min(round(capacity * (1 + OVERSAMPLING)), *shape)


@dataclass(frozen=True)
class Call:
    """What one call of a layer left.

    Args:
        position: of the layer in its stack.
        x: (tokens, n), its input.
        d: (tokens, m), the gradient of the loss at its output.
    """

    stack: Stack
    position: int
    x: Tensor
    d: Tensor


@dataclass(frozen=True)
class Group:
    """Calls of g different layers of one stack, alike in their number of tokens: x (g, tokens, n), d (g, tokens, m)."""

    stack: Stack
    positions: tuple[int, ...]
    x: Tensor
    d: Tensor


class Stack:
    """Sketches ``G ≈ left · rightᵀ`` of layers of one shape on one device, in float32.

    Shapes are written with L layers, m = d_out, n = d_in, k columns, p probes; g of the L layers at a time.

    Args:
        names: the layers.
        shape: (d_out, d_in) of each.
        capacity: singular vectors wanted.
        seed: of the random vectors.
    """

    def __init__(self, names: Sequence[str], shape: tuple[int, int], device: torch.device, capacity: int, seed: int):
        self.names, self.device, self.seed = names, device, seed
        self.d_out, self.d_in = shape
        self.capacity = min(capacity, *shape)
        self.k = columns_of(capacity, shape)
        self.left = self.right = torch.empty(0)  # (L, m, k) and (L, n, k), once there is something
        self._turned = False
        self._moving = "right"  # the side that holds the size; the other is orthonormal
        self._batch: Pair | None = None
        self._in_batch: set[int] = set()
        self._seen = torch.zeros(len(names), device=device)  # micro-batches that have called a layer
        self._tests: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        self._where: dict[tuple[int, ...], Tensor] = {}
        self._probed_left = self._zeros(self.d_in, PROBES)  # Gᵀ Ψ, (L, n, p)
        self._probed_right = self._zeros(self.d_out, PROBES)  # G Ω, (L, m, p)

    def _zeros(self, rows: int, columns: int) -> Tensor:
        return torch.zeros(len(self.names), rows, columns, device=self.device)

    def where(self, positions: tuple[int, ...]) -> Tensor:
        """Layers' positions as a tensor on the device; remembered, since every micro-batch asks for the same."""
        if positions not in self._where:
            self._where[positions] = torch.tensor(positions, device=self.device)
        return self._where[positions]

    def tests(self, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        """Random vectors in a number type: tests and probes on the right (n, k + p), probes on the left (m, p)."""
        if kind not in self._tests:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = [
                torch.randn(rows, columns, generator=generator)
                for rows, columns in ((self.d_in, self.k + PROBES), (self.d_out, PROBES))
            ]
            # rounded to bfloat16, which every type holds exactly
            right, left = (vectors.bfloat16().to(self.device, kind) for vectors in drawn)
            self._tests[kind] = right, left
        return self._tests[kind]

    def probed(self, where: Tensor, right: Tensor, left: Tensor, weight: float) -> None:
        """Adds up layers' ``G Ω`` (g, m, p) and ``Gᵀ Ψ`` (g, n, p)."""
        self._probed_right.index_add_(0, where, right, alpha=weight)
        self._probed_left.index_add_(0, where, left, alpha=weight)

    def put(self, positions: tuple[int, ...], left: Tensor, right: Tensor) -> None:
        """Takes layers' condensed gradients (g, m, k), (g, n, k) into the micro-batch."""
        if self._batch is None:
            self._batch = self._zeros(self.d_out, self.k).to(left.dtype), self._zeros(self.d_in, self.k)
        again = [place for place, position in enumerate(positions) if position in self._in_batch]
        if again:  # layers that are called more than once
            earlier = self.where(tuple(positions[place] for place in again))
            before = self._batch[0][earlier], self._batch[1][earlier]
            merge([before], [(left[again], right[again])])
            left[again], right[again] = before
        self._batch[0].index_copy_(0, self.where(positions), left.to(self._batch[0].dtype))
        self._batch[1].index_copy_(0, self.where(positions), right)
        self._in_batch.update(positions)

    def project(self, call: Group, weight: float) -> None:
        """Adds ``Gᵀ left`` or ``G right`` of layers' gradients to the side that a further pass sums anew."""
        where, x, d = self.where(call.positions), call.x, call.d
        if self._moving == "right":
            self.right.index_add_(0, where, outer(x, d @ self.left[where].to(d.dtype)), alpha=weight)
        else:
            self.left.index_add_(0, where, outer(d, x @ self.right[where].to(x.dtype)), alpha=weight)

    def turn(self) -> None:
        """Readies a further pass: one side becomes orthonormal, and the other will be summed anew, in turns."""
        if self._moving == "right" and self._turned:
            (self.right,), self.left, self._moving = orthonormal([self.right]), self._zeros(self.d_out, self.k), "left"
        else:
            (self.left,), self.right, self._moving = orthonormal([self.left]), self._zeros(self.d_in, self.k), "right"
        self._turned = True

    def close_batch(self) -> Pair:
        """The micro-batch's condensed gradients of all layers, zeros where a layer was not called; forgets them."""
        if self._in_batch:
            self._seen[self.where(tuple(sorted(self._in_batch)))] += 1
        self._in_batch.clear()
        batch, self._batch = self._batch, None
        return batch or (self._zeros(self.d_out, self.k), self._zeros(self.d_in, self.k))

    def add_up(self) -> None:
        """Sums over processes what each has added up alone."""
        if self._turned:
            distributed.sum_tensor(self.moving)
        else:
            for tensor in (self._seen, self._probed_left, self._probed_right):
                distributed.sum_tensor(tensor)

    def not_finite(self) -> Tensor:
        """(L,) whether a layer has met a number that is not finite."""
        seen = self.moving if self._turned else self._probed_left
        return ~torch.linalg.vector_norm(seen, ord=float("inf"), dim=(1, 2)).isfinite()

    def silent(self) -> list[str]:
        """Layers that backpropagation never passed."""
        return [name for name, times in zip(self.names, self._seen.tolist(), strict=True) if not times]

    def empty(self) -> list[str]:
        """Layers whose gradient is zero."""
        sizes = torch.linalg.vector_norm(self._probed_left, dim=(1, 2)).tolist()
        return [name for name, size in zip(self.names, sizes, strict=True) if not size]

    @property
    def moving(self) -> Tensor:
        """The side that holds the size of the gradient; the other is orthonormal."""
        return self.right if self._moving == "right" else self.left

    def factors(self, eigen: Pair, total: float) -> Iterator[tuple[str, Factors]]:
        """The leading singular triplets of each layer's gradient, divided by ``total``, in float16 on the CPU.

        Args:
            eigen: `eigenvectors` of the moving side.
        """
        if self._moving == "right":
            left, singular, right = singular_triplets(self.left, self.right, eigen, self.capacity)
        else:
            right, singular, left = singular_triplets(self.right, self.left, eigen, self.capacity)
        right_tests, left_probes = self.tests(torch.float32)
        missed, rest = probe_errors(
            (left, singular, right),
            tests=(left_probes, right_tests[:, self.k :]),
            seen=(self._probed_left, self._probed_right),
        )
        norm = (singular.double().square().sum(1) + rest).sqrt() / total
        left, right = fix_signs(complete(left), complete(right))
        found = left.half(), singular / total, right.half(), norm, (missed / total**2).float()
        left, singular, right, norm, missed = (tensor.to("cpu", non_blocking=True) for tensor in found)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for place, name in enumerate(self.names):
            yield name, Factors(left[place], singular[place], right[place], float(norm[place]), missed[place])


def condense(calls: list[Call], weight: float) -> None:
    """Takes layers' gradients ``G = dᵀ x`` into the micro-batch; empties the list."""
    for groups in _grouped(calls):
        _condense(groups, weight)


def project(calls: list[Call], weight: float) -> None:
    """Adds layers' gradients, seen from the range found before, to a further pass; empties the list."""
    for groups in _grouped(calls):
        for group in groups:
            group.stack.project(group, weight)


def _grouped(calls: list[Call]) -> Iterator[list[Group]]:
    """Calls of equal shape together, and no layer twice in what is yielded at a time."""
    turns: list[dict[tuple[object, ...], list[Call]]] = []
    times: dict[tuple[int, int], int] = defaultdict(int)
    for call in calls:
        layer = (id(call.stack), call.position)
        if times[layer] == len(turns):
            turns.append(defaultdict(list))
        turns[times[layer]][id(call.stack), len(call.x), call.x.dtype].append(call)
        times[layer] += 1
    calls.clear()
    for alike in turns:
        groups = []
        for members in alike.values():
            positions = tuple(call.position for call in members)
            x, d = torch.stack([call.x for call in members]), torch.stack([call.d for call in members])
            groups.append(Group(members[0].stack, positions, x, d))
            members.clear()
        yield groups


def _condense(calls: Sequence[Group], weight: float) -> None:
    """Finds a basis of the range of each gradient, and the gradient seen from there.

    A randomized range finder with a power iteration: ``G Ω``, ``Gᵀ G Ω``, ``G Gᵀ G Ω``. The first is not made
    orthonormal, which costs directions below a hundredth of the leading one some accuracy in half precision.
    """
    ranges, probes = [], []
    for call in calls:
        k, x, d = call.stack.k, call.x, call.d
        seen = outer(d, x @ call.stack.tests(x.dtype)[0])  # G [tests, Ω], (g, m, k + p)
        probes.append(seen[..., k:])
        start = seen[..., :k]
        if d.dtype == torch.float16:  # whose range is small
            start = start / start.norm(dim=1, keepdim=True).clamp(min=torch.finfo(start.dtype).tiny)
        ranges.append(outer(x, d @ start.to(d.dtype)))
    backs = orthonormal(ranges, [call.x.dtype for call in calls])
    ranges = [outer(call.d, call.x @ back) for call, back in zip(calls, backs, strict=True)]
    # in the type that the last product is taken in, so that it is exactly what G is seen from
    bases = orthonormal(ranges, [call.d.dtype for call in calls])
    for call, basis, probe in zip(calls, bases, probes, strict=True):
        stack, x, d = call.stack, call.x, call.d
        left_probes = stack.tests(d.dtype)[1].expand(len(d), -1, -1)
        seen = outer(x, d @ torch.cat([basis, left_probes], 2))  # Gᵀ [basis, Ψ], (g, n, k + p)
        stack.probed(stack.where(call.positions), probe, seen[..., stack.k :], weight)
        stack.put(call.positions, basis, seen[..., : stack.k] * weight)


def merge_batches(stacks: Sequence[Stack]) -> None:
    """Adds the micro-batches at hand to the sums: those of all processes, in their order, in each of them."""
    batches = [stack.close_batch() for stack in stacks]
    if distributed.connected() > 1:  # a process in which no layer was called has zeros of another type
        batches = [(left.float(), right) for left, right in batches]
    for source in range(distributed.connected()):
        received = [
            (distributed.tensor_of(left, source), distributed.tensor_of(right, source)) for left, right in batches
        ]
        if not stacks[0].left.numel():
            for stack, (left, right) in zip(stacks, received, strict=True):
                stack.left, stack.right = left.float(), right
            continue
        merge([(stack.left, stack.right) for stack in stacks], received)
