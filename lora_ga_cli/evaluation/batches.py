"""Work on rows in batches: rows of similar length together, and smaller batches once memory has run out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

Item = TypeVar("Item")
Result = TypeVar("Result")


def by_length(lengths: Sequence[int]) -> list[int]:
    """The numbers of rows, the longest row first; rows of one length stay in their order.

    Neighbors need little padding, and if memory runs out, it does so in the first batch.
    """
    return sorted(range(len(lengths)), key=lambda number: -lengths[number])


def halved_message(size: int) -> str:
    """The warning that memory has run out."""
    return (
        f"the accelerator's memory is full: the evaluation goes on with batches of {size} "
        f"(eval.batch_size={size} would do so from the beginning)"
    )


class Batches(Generic[Item, Result]):
    """Does work on batches, and halves them where memory runs out.

    Args:
        size: items in a batch.
        work: the results of a batch, one for every item. If it has other effects, it may be repeated without harm.
        on_halved: called when memory ran out, with the number of items that a batch has from now on.
    """

    def __init__(self, size: int, work: Callable[[Sequence[Item]], Sequence[Result]], on_halved: Callable[[int], None]):
        self.size = size
        self.work = work
        self.on_halved = on_halved

    def run(self, items: Sequence[Item]) -> Iterator[Sequence[Result]]:
        """The results of batches of items, in their order.

        Raises:
            RuntimeError: memory does not suffice for one item.
        """
        begin = 0
        while begin < len(items):
            batch = items[begin : begin + self.size]
            try:
                results = self.work(batch)
            except RuntimeError as error:
                if len(batch) == 1 or not should_reduce_batch_size(error):
                    raise
                results = None
            if results is None:  # outside of the except block, whose traceback holds the tensors that fill the memory
                clear_device_cache(garbage_collection=True)
                self.size = (len(batch) + 1) // 2
                self.on_halved(self.size)
                continue
            yield results
            begin += len(batch)
