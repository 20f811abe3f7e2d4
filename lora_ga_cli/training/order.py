"""The rows of every optimizer step of a run: their order in each epoch, packs of short rows, steps of similar length.

The order depends on the seed alone, so that runs that differ in their method see the same rows at every step, and so do
the links of a chain and a run without links.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_ga_cli.config.schema import Config

STEPS_SORTED_TOGETHER = 50
"""Steps whose rows are sorted by length together, with `Order.group_by_length`. Fewer would need more padding, more
would make the order of rows less random."""


class Order:
    """The order in which a run reads its rows.

    Args:
        lengths: the length of every training row, in tokens.
        batch_size: rows of an optimizer step (packs, with ``pack_length``); the last step of an epoch may have fewer.
        seed: of everything that is drawn at random.
        group_by_length: make steps of rows of similar length.
        pack_length: join rows into packs of at most this many tokens, which are then counted instead of rows.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        group_by_length: bool = False,
        pack_length: int | None = None,
    ):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.group_by_length = group_by_length
        self.units = (
            [[row] for row in range(len(lengths))] if pack_length is None else pack(lengths, pack_length, seed=seed)
        )
        """What is counted: rows, or packs. Each is a list of rows that are in one step together."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, the last of which may have fewer rows."""
        return -(-len(self.units) // self.batch_size)

    def epoch(self, number: int) -> list[list[int]]:
        """The rows of every step of an epoch, which is counted from 0."""
        draw = np.random.default_rng([self.seed, number])
        order = draw.permutation(len(self.units)).tolist()
        if self.group_by_length:
            together = STEPS_SORTED_TOGETHER * self.batch_size
            order = [
                unit
                for begin in range(0, len(order), together)
                for unit in sorted(order[begin : begin + together], key=self._length_of, reverse=True)
            ]
        size = self.batch_size
        steps = [order[begin : begin + size] for begin in range(0, len(order), size)]
        if self.group_by_length:
            complete = len(order) // size  # the step that may have fewer rows stays the last one
            steps[:complete] = [steps[place] for place in draw.permutation(complete)]
        return [[row for unit in step for row in self.units[unit]] for step in steps]

    def steps(self, first: int, count: int) -> list[list[int]]:
        """The rows of ``count`` steps of the run, from step ``first``."""
        epoch, skipped = divmod(first, self.steps_per_epoch)
        steps = self.epoch(epoch)[skipped:]
        while len(steps) < count:
            epoch += 1
            steps += self.epoch(epoch)
        return steps[:count]

    def total_steps(self, config: Config) -> int:
        """Optimizer steps of the complete run."""
        return config.trainer.max_steps or math.ceil(self.steps_per_epoch * config.trainer.epochs)

    def _length_of(self, unit: int) -> int:
        return sum(self.lengths[row] for row in self.units[unit])


def order_of(config: Config, rows: Any) -> Order:
    """The order of a run's training rows.

    Args:
        rows: a data set with the column ``length``, in tokens.
    """
    options = config.trainer
    return Order(
        rows["length"][:],
        options.batch_size,
        config.seed,
        group_by_length=options.group_by_length,
        pack_length=config.dataset.max_length if config.dataset.packing else None,
    )


def pack(lengths: Sequence[int], room: int, *, seed: int) -> list[list[int]]:
    """Rows in packs of at most ``room`` tokens, by best-fit decreasing: each row, the longest first, goes where the
    least room is left for it. A row longer than ``room`` is a pack of its own.

    Args:
        lengths: of the rows, in tokens.
        seed: of the order of rows that are equally long.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(lengths)).tolist()
    by_room: dict[int, list[list[int]]] = {}
    rooms: list[int] = []  # the keys of `by_room`, ascending
    packs: list[list[int]] = []
    for row in sorted(order, key=lengths.__getitem__, reverse=True):
        place = bisect.bisect_left(rooms, lengths[row])
        if place == len(rooms):
            packs.append(chosen := [])
            left = room
        else:
            left = rooms[place]
            chosen = by_room[left].pop()
            if not by_room[left]:
                del by_room[left], rooms[place]
        chosen.append(row)
        left -= lengths[row]
        if left > 0:
            if left not in by_room:
                bisect.insort(rooms, left)
            by_room.setdefault(left, []).append(chosen)
    return packs
