"""Dividing rows over processes and forward passes, by length.

A pass costs as many tokens as it computes: the sum of its rows' lengths where rows are flattened, and the number of
rows times the longest where they are padded. The loss of a step counts every token alike, so the division changes a
step by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Pass = list[int]
"""The numbers of a pass's rows."""


@dataclass(frozen=True)
class Limits:
    """What fits into one pass.

    Args:
        rows: the most rows; None for any number.
        tokens: the most tokens, padding included; None for any number. A longer row is a pass of its own.
        padded: whether every row takes as much as the longest one of its pass.
    """

    rows: int | None
    tokens: int | None
    padded: bool

    def shape(self, rows: Sequence[int], lengths: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the batch that a pass of these rows computes, in tokens."""
        own = [lengths[row] for row in rows]
        return (len(own), max(own, default=0)) if self.padded else (1, sum(own))

    def cost(self, rows: Sequence[int], lengths: Sequence[int]) -> int:
        """The tokens that a pass of these rows computes."""
        rows_of_batch, tokens = self.shape(rows, lengths)
        return rows_of_batch * tokens

    def fill(self, rows: Sequence[int], lengths: Sequence[int], tokens: int | None) -> list[Pass]:
        """Passes of rows that are sorted by length, the longest first, each as full as ``tokens`` allows."""
        passes: list[Pass] = []
        used = 0  # tokens of the last pass; with padding, the length of its longest row
        for row in rows:
            last = passes[-1] if passes else []
            cost = used * (len(last) + 1) if self.padded else used + lengths[row]
            too_many = self.rows is not None and len(last) >= self.rows
            if not last or too_many or (tokens is not None and cost > tokens):
                passes.append([row])
                used = lengths[row]
            else:
                last.append(row)
                used = used if self.padded else used + lengths[row]
        return passes


def divide(rows: Sequence[int], lengths: Sequence[int], limits: Limits, processes: int = 1) -> list[list[Pass]]:
    """The passes of every process, so that the largest one is small and all processes have as much to do.

    Every process has as many passes as the others, or one less. A process has none if there are fewer rows than
    processes.

    Args:
        rows: of one optimizer step.
        lengths: of all rows, in tokens.
    """
    order = _longest_first(rows, lengths)
    count = len(limits.fill(order, lengths, limits.tokens))
    while True:
        count = -(-count // processes) * processes  # as many for every process
        passes = (_padded if limits.padded else _flattened)(order, lengths, limits, count)
        if passes is not None:
            break
        count += 1
    passes = sorted(passes, key=lambda rows: -limits.cost(rows, lengths))
    shares: list[list[Pass]] = [[] for _ in range(processes)]
    for begin in range(0, len(passes), processes):
        # each process in turn gets the largest pass that is left
        together = shares if begin // processes % 2 == 0 else shares[::-1]
        for share, chosen in zip(together, passes[begin : begin + processes], strict=False):
            share.append(chosen)
    return shares


def in_order(rows: Sequence[int], lengths: Sequence[int], limits: Limits) -> list[Pass]:
    """Passes of rows sorted by length, each as full as the limits allow."""
    return limits.fill(_longest_first(rows, lengths), lengths, limits.tokens)


def _longest_first(rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    return sorted(rows, key=lambda row: (-lengths[row], row))


def _padded(order: Sequence[int], lengths: Sequence[int], limits: Limits, count: int) -> list[Pass]:
    """At most ``count`` passes of neighbors in length, of which the largest is as small as it can be."""
    low, high = 1, len(order) * lengths[order[0]]
    if limits.tokens is not None:
        high = min(high, limits.tokens)
    while low < high:
        middle = (low + high) // 2
        if len(limits.fill(order, lengths, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    return limits.fill(order, lengths, high)


def _flattened(order: Sequence[int], lengths: Sequence[int], limits: Limits, count: int) -> list[Pass] | None:
    """``count`` passes, each row in the one with the fewest tokens so far; None if one of them exceeds the limits."""
    passes: list[Pass] = [[] for _ in range(min(count, len(order)))]
    used = [0] * len(passes)
    for row in order:
        open_ones = [place for place, own in enumerate(passes) if limits.rows is None or len(own) < limits.rows]
        place = min(open_ones, key=used.__getitem__)
        passes[place].append(row)
        used[place] += lengths[row]
    over = [len(own) > 1 for own, cost in zip(passes, used, strict=True) if limits.tokens and cost > limits.tokens]
    return None if any(over) else passes
