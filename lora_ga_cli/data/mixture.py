"""Several sources of rows as one, and how often the rows of each are seen."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from lora_ga_cli.data.arrow import Row
from lora_ga_cli.data.source import Source


class Mixture:
    """The rows of several sources, one source after another.

    Args:
        sources: the sources.
        weights: per source how often an epoch sees each of its rows: 2 is twice, 0.5 is half of the rows, once.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        self.sources, self.weights = list(sources), list(weights)
        self.name = f"{self.sources[0].name} and {len(self.sources) - 1} more"
        self.columns = list(dict.fromkeys(column for source in self.sources for column in source.columns))
        self.malformed = sum(source.malformed for source in self.sources)
        self.notes: Sequence[str] = [note for source in self.sources for note in source.notes]
        self.class_names = {
            column: names for source in reversed(self.sources) for column, names in source.class_names.items()
        }
        self._ends = np.fromiter(accumulate(map(len, self.sources)), dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, indices: Sequence[int], columns: Sequence[str]) -> list[Row]:
        numbers = self._numbers(indices)
        rows: dict[int, Row] = {}
        for number, source in enumerate(self.sources):
            begin = int(self._ends[number]) - len(source)
            places = [place for place, of in enumerate(numbers) if of == number]
            wanted = [column for column in columns if column in source.columns]
            taken = source.take([indices[place] - begin for place in places], wanted)
            rows |= dict(zip(places, taken, strict=True))
        return [rows[place] for place in range(len(indices))]

    def where(self, index: int) -> str:
        number = int(self._numbers([index])[0])
        return self.sources[number].where(index - int(self._ends[number]) + len(self.sources[number]))

    def weighted(self, order: Sequence[int], seed: int | None) -> Sequence[int]:
        """The rows of an order as often as the weights say.

        A part of a source is the first of its rows in this order.

        Args:
            seed: of shuffling the result; None leaves a row's copies side by side.
        """
        if all(weight == 1 for weight in self.weights):
            return order
        rows, numbers = np.asarray(order, dtype=np.int64), self._numbers(order)
        copies = np.zeros(len(rows), dtype=np.int64)
        for number, weight in enumerate(self.weights):
            (places,) = np.nonzero(numbers == number)
            copies[places] = int(weight)
            copies[places[: round((weight - int(weight)) * len(places))]] += 1
        result = array("q", np.repeat(rows, copies).tobytes())
        if seed is not None:
            random.Random(f"{seed}: copies").shuffle(result)
        return result

    def shares(self, indices: Sequence[int]) -> list[str]:
        """How many of these rows come from each source, a line each for people."""
        counts = Counter(self._numbers(indices).tolist())
        return [
            f"{counts[number]:,} rows are of {source.name} (weight {weight:g}, {len(source):,} rows)"
            for number, (source, weight) in enumerate(zip(self.sources, self.weights, strict=True))
        ]

    def _numbers(self, indices: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The number of each row's source."""
        return np.searchsorted(self._ends, np.asarray(indices, dtype=np.int64), side="right")


def parts(source: Source) -> list[Source]:
    """The sources that a source consists of."""
    return source.sources if isinstance(source, Mixture) else [source]
