"""The micro-batches of a process, for every optimizer step."""

from __future__ import annotations

from lora_ga_cli.training.batches import StepSampler
from lora_ga_cli.training.passes import Limits


def passes_of(processes: int, *, equal: bool = False, tokens: int = 100) -> list[list[list[int]]]:
    """The passes of every process, for a step of two rows."""
    limits = Limits(None, tokens, padded=False)
    return [
        next(iter(StepSampler(lambda: [[0, 1]], 1, [5, 7], limits, processes=processes, index=index, equal=equal)))
        for index in range(processes)
    ]


def test_a_process_without_a_row_has_one_pass_without_rows() -> None:
    assert sorted(passes_of(3)) == [[[]], [[0]], [[1]]]


def test_processes_that_share_a_base_have_as_many_passes() -> None:
    assert {len(passes) for passes in passes_of(3, equal=True, tokens=5)} == {1}
    assert {len(passes) for passes in passes_of(1, equal=True, tokens=5)} == {2}
