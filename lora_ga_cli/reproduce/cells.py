"""The cells of a table, as configurations: what is trained and measured for each one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.registry import MEASURES
from lora_ga_cli.reproduce.measures.base import Measure
from lora_ga_cli.reproduce.table import Part, RowColumn, Seed, Table, missing_columns

NOT_IN_KEY = {"name", "output_dir", "cache_dir", "device", "overwrite", "recipe"}
"""Options that say where something is computed, or what it is called. They do not change a cell's value."""
SEED = "seed="


def key_of(override: str) -> str:
    """The name of the option, or choice, that an override sets."""
    return override.split("=", 1)[0].lstrip("+~").strip()


@dataclass(frozen=True)
class Cell:
    """One training, or gradient estimation, and what is measured of it.

    Args:
        row, column, seed: where its value appears in the table.
        overrides: what its configuration was composed from.
        config: the configuration; for a measure without a model, the measure's own options.
        measure: name of a registered measure.
        value: which of the measure's values the table shows.
    """

    row: str
    column: str
    seed: int
    overrides: tuple[str, ...]
    config: Any
    measure: str
    value: str

    @property
    def key(self) -> str:
        """Identifies what is computed. Cells of several tables with the same key share one result, whichever of its
        values they show."""
        excluded = NOT_IN_KEY if self.measure_class.uses_eval else NOT_IN_KEY | {"eval"}
        config = self.config.model_dump(mode="json", exclude=excluded)
        if config.get("trainer", {}).get("learning_rate") is not None:
            config["method"].pop("learning_rate")  # it has no effect
        return sha256_json({"config": config, "measure": self.measure})[:16]

    @property
    def measure_class(self) -> type[Measure]:
        return MEASURES[self.measure]

    @property
    def position(self) -> RowColumn:
        return self.row, self.column

    @property
    def place(self) -> tuple[str, str, int]:
        return self.row, self.column, self.seed

    @property
    def title(self) -> str:
        return f"{self.row}, {self.column}, seed {self.seed}"


def cells_of(
    table: Table,
    part: Part,
    extra_overrides: Sequence[str],
    output_dir: Path,
    *,
    rates: Mapping[RowColumn, float] | None = None,
    final_overrides: Sequence[str] = (),
    user_dir: Path | None = None,
) -> list[Cell]:
    """All cells of a table, with their configurations.

    Args:
        extra_overrides: overrides from the command line; ``seed=42,43`` replaces the table's seeds.
        output_dir: the folder of all runs.
        rates: learning rates by row and column, in place of the configured ones. Cells without a rate are left out.
        final_overrides: overrides that no other override replaces.
        user_dir: a folder with recipes and choices of the user.

    Raises:
        InvalidInput: everything that is wrong with any cell.
    """
    missing = missing_columns(part)
    if len(missing) == len(part.columns):
        raise InvalidInput([Fault(table.title, f"no column can be filled: there is no {', '.join(missing.values())}")])
    _refuse_overrides_of_headings(table, part, extra_overrides)
    seeds, extra_overrides = _split_seeds(extra_overrides)
    cells, faults = [], []
    composed: dict[tuple[str, ...], Any] = {}  # columns that show values of the same trainings share them
    for row, row_overrides in table.rows.items():
        for heading, column in part.columns.items():
            measure = MEASURES[column.measure]
            if row in part.leave_out or heading in missing or (rates is not None and (row, heading) not in rates):
                continue
            rate = [f"trainer.learning_rate={rates[row, heading]:g}"] if rates is not None else []
            overrides = (*part.overrides, *row_overrides, *column.overrides, *extra_overrides, *rate, *final_overrides)
            try:
                if overrides not in composed:
                    composed[overrides] = measure.configure(_last_of_each(overrides), user_dir)
                config = composed[overrides]
            except InvalidInput as error:
                faults += [Fault(f"{row}, {heading}", str(fault.what), fault.hint) for fault in error.faults]
                continue
            for seed in seeds or part.seeds:
                changes = {"seed": seed} | ({"output_dir": str(output_dir)} if measure.needs_model else {})
                seeded = config.model_copy(update=changes)
                cells.append(
                    Cell(row, heading, seed, (*overrides, f"{SEED}{seed}"), seeded, column.measure, column.value)
                )
    if faults:
        raise InvalidInput(list(dict.fromkeys(faults)))
    return cells


def measures_of(part: Part) -> list[type[Measure]]:
    """The measures of a table's columns, each once."""
    return [MEASURES[name] for name in dict.fromkeys(column.measure for column in part.columns.values())]


def check_extra_overrides(
    overrides: Sequence[str], user_dir: Path | None = None, measures: Sequence[type[Measure]] = ()
) -> None:
    """Checks overrides of the command line once, so that a wrong one is not reported for every cell.

    Args:
        user_dir: a folder with recipes and choices of the user.
        measures: those of all tables; by default one that needs a model.

    Raises:
        InvalidInput: an override that sets nothing, or one that would give all cells the same run.
    """
    _, others = _split_seeds(overrides)
    distinct = dict.fromkeys(Measure if measure.needs_model else measure for measure in measures)
    faults = [fault for measure in distinct or [Measure] for fault in measure.faults_of(others, user_dir)]
    for option in ("name", "output_dir"):
        if any(key_of(override) == option for override in others):
            faults.append(Fault("command line", f"{option}= is refused: every cell has its own run", "--output"))
    if faults:
        raise InvalidInput(list(dict.fromkeys(faults)))


def names_seeds(overrides: Sequence[str]) -> bool:
    """Whether overrides of the command line replace the table's seeds."""
    return any(key_of(override) == "seed" for override in overrides)


def _split_seeds(overrides: Sequence[str]) -> tuple[list[int], list[str]]:
    """The seeds that the command line names, and its other overrides.

    Raises:
        InvalidInput: a seed is no number, or out of range.
    """
    given = [override.split("=", 1)[-1] for override in overrides if key_of(override) == "seed"]
    others = [override for override in overrides if key_of(override) != "seed"]
    if not given:
        return [], others
    try:
        seeds: list[Any] = TypeAdapter(list[Seed]).validate_python(given[-1].split(","))
    except ValidationError:
        raise InvalidInput([Fault("command line", f"{SEED}{given[-1]}", "seed=42 or seed=42,43,44")]) from None
    return list(dict.fromkeys(seeds)), others


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """The last override of each option."""
    return list({key_of(override): override for override in overrides}.values())


def _refuse_overrides_of_headings(table: Table, part: Part, extra_overrides: Sequence[str]) -> None:
    """Refuses overrides of options that distinguish the rows or the columns: the headings would no longer be true.

    Raises:
        InvalidInput: there is such an override.
    """
    faults = []
    for flag, what, overrides_of_each in (
        ("--rows", "rows", table.rows.values()),
        ("--columns", "columns", (column.overrides for column in part.columns.values())),
    ):
        distinguishing = {key_of(option) for overrides in overrides_of_each for option in overrides}
        for option in extra_overrides:
            if key_of(option) in distinguishing:
                message = f"{option}: this table's {what} differ in {key_of(option)}"
                faults.append(Fault("command line", message, f"{flag} selects some of them"))
    if faults:
        raise InvalidInput(faults)
