"""The best learning rate of each row: a grid that widens until the best is inside."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.files import read_json, sha256_json, write_json
from lora_ga_cli.reproduce.cells import Cell, key_of
from lora_ga_cli.reproduce.fill import Reproduction, run_cells
from lora_ga_cli.reproduce.results import Place
from lora_ga_cli.reproduce.table import Column, Fair

RATES = "rates.json"
HOLD = "dataset.validation_fraction=0.05"


def own_rates(job: Reproduction) -> tuple[dict[Place, float], list[str]]:
    """The best learning rate of every row and column, by the loss of rows held out from training, at the first seed.

    Returns:
        The rates, and what a reader of the table has to know of them. A row all of whose trials failed has none.

    Raises:
        InvalidInput: as of `check_fair`.
    """
    fair = check_fair(job)
    places = list(dict.fromkeys((cell.row, cell.column) for cell in _trials(job, fair, {})))
    known: dict[Place, dict[float, float]] = {place: {} for place in places}
    while True:
        wanted = {place: next_rates(known[place], fair.rates, fair.most) for place in places}
        if not any(wanted.values()):
            break
        for place, losses in _tried(job, fair, wanted).items():
            known[place] |= losses
    tried = [{"row": row, "column": column, "losses": _finite(known[row, column])} for row, column in places]
    best = [[*place, rate] for place, rate in _best(known).items()]
    write_json(job.folder / RATES, {"of": _subject(job, fair), "best": best, "tried": tried})
    return _best(known), _notes(fair, known)


def known_rates(job: Reproduction, fair: Fair) -> dict[Place, float]:
    """The best rates as they were found before, by the same trials; none before that."""
    file = job.folder / RATES
    found = read_json(file) if file.exists() else {}
    if found.get("of") != _subject(job, fair):
        return {}
    return {(row, column): rate for row, column, rate in found["best"]}


def _subject(job: Reproduction, fair: Fair) -> str:
    """What rates are sought for."""
    return sha256_json(sorted(cell.key for cell in _trials(job, fair, {})))


def _best(known: Mapping[Place, Mapping[float, float]]) -> dict[Place, float]:
    return {place: best_rate(losses) for place, losses in known.items() if not _all_failed(losses)}


def _finite(losses: Mapping[float, float]) -> dict[str, float | None]:
    """Losses by rate for JSON, which has no infinity."""
    return {f"{rate:g}": None if math.isinf(losses[rate]) else losses[rate] for rate in sorted(losses)}


def check_fair(job: Reproduction) -> Fair:
    """How a table's rates are chosen.

    Raises:
        InvalidInput: the table has no rates to choose from, holds no rows out for it, or the command line chose a rate.
    """
    fair = job.part.fair
    if fair is None:
        raise InvalidInput([Fault("command line", f"table {job.name} has no rates to choose from", "leave out --fair")])
    if any(key_of(option) == "trainer.learning_rate" for option in job.further):
        raise InvalidInput([Fault("command line", "--fair chooses trainer.learning_rate", "leave one of them out")])
    if not all(cell.config.dataset.has_validation for cell in _trials(job, fair, {})):
        raise InvalidInput([Fault(f"table {job.name}: fair.held_out", "no rows are held out to choose on", HOLD)])
    return fair


def _trials(job: Reproduction, fair: Fair, rates: Mapping[Place, float]) -> list[Cell]:
    """One training of every row and column, with rows held out, at these learning rates."""
    columns = {
        heading: Column(overrides=column.overrides, measure="loss", value="validation_loss", needs=column.needs)
        for heading, column in job.part.columns.items()
    }
    trial = job.part.model_copy(update={"columns": columns, "seeds": job.part.seeds[:1]})
    places = {(row, column): fair.rates[0] for row in job.table.rows for column in columns}
    cells = job.cells(trial, places | dict(rates), held_out=fair.held_out)
    return [cell for cell in cells if cell.seed == cells[0].seed]


def _tried(job: Reproduction, fair: Fair, wanted: Mapping[Place, Sequence[float]]) -> dict[Place, dict[float, float]]:
    """The losses of trials; infinite where one failed, as one does that diverges."""
    trials: list[tuple[Place, float, Cell]] = []
    for turn in range(max(map(len, wanted.values()))):
        rates = {place: of_place[turn] for place, of_place in wanted.items() if turn < len(of_place)}
        for cell in _trials(job, fair, rates):
            place = (cell.row, cell.column)
            if place in rates:
                trials.append((place, rates[place], cell))
    filled = run_cells(job, [cell for _, _, cell in trials])
    found: dict[Place, dict[float, float]] = defaultdict(dict)
    for place, rate, cell in trials:
        found[place][rate] = filled[cell.key]["values"]["validation_loss"] if cell.key in filled else math.inf
    return found


def _notes(fair: Fair, known: Mapping[Place, Mapping[float, float]]) -> list[str]:
    notes = [f"Every row at its own learning rate, the best of {fair.most} at most on rows held out from training."]
    edges = [
        f"{row} ({column})" for (row, column), losses in known.items() if at_an_edge(losses) and not _all_failed(losses)
    ]
    if edges:
        notes.append(f"The best rate may lie further out for {', '.join(edges)}: it was the last one tried.")
    failed = [
        f"{row} ({column}) at {rate:g}"
        for (row, column), losses in known.items()
        for rate, loss in sorted(losses.items())
        if math.isinf(loss)
    ]
    if failed:
        notes.append(f"These trials failed, and count as the worst: {', '.join(failed)}.")
    return notes


def next_rates(known: Mapping[float, float], grid: Sequence[float], most: int) -> list[float]:
    """The rates to try next; none when the best lies between two others, or enough were tried.

    Args:
        known: the loss of every rate tried so far; one that failed has an infinite loss.
        grid: what to begin with, ascending, evenly spaced in its logarithm.
        most: rates to try at most.
    """
    missing = [rate for rate in grid if rate not in known]
    if missing:
        return missing[: most - len(known)]
    if len(known) >= most or _all_failed(known):
        return []
    step = grid[1] / grid[0]
    rates = sorted(known)
    best = best_rate(known)
    if best == rates[0]:
        return [float(f"{best / step:.3g}")]
    if best == rates[-1]:
        return [float(f"{best * step:.3g}")]
    return []


def best_rate(known: Mapping[float, float]) -> float:
    """The rate of least loss; of equal ones, the smaller."""
    return min(sorted(known), key=known.__getitem__)


def at_an_edge(known: Mapping[float, float]) -> bool:
    """Whether the best rate is the least or largest that was tried."""
    return best_rate(known) in (min(known), max(known))


def _all_failed(known: Mapping[float, float]) -> bool:
    return bool(known) and all(math.isinf(loss) for loss in known.values())
