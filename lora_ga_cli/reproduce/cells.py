"""The cells of a table: what is trained and measured for each, as configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lora_ga_cli.config.check import check
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.files import sha256_json
from lora_ga_cli.reproduce.table import Part, Seed, Table, missing_columns

PLACES = {"name", "output_dir", "cache_dir", "device", "overwrite", "recipe"}
"""Options of where something is done, or what it is called, and not of what is done."""
SEED = "seed="


def key_of(override: str) -> str:
    """The name of the option, or choice, that an override sets."""
    return override.split("=", 1)[0].lstrip("+~").strip()


@dataclass(frozen=True)
class Cell:
    """One training, or estimation, and what is measured of it.

    Args:
        row, column, seed: where its value goes.
        overrides: what its configuration was composed from.
    """

    row: str
    column: str
    seed: int
    overrides: tuple[str, ...]
    config: Config
    measure: str
    value: str

    @property
    def key(self) -> str:
        """What is to be done, wherever, and whatever value of it goes where: tables share what they have in common."""
        left_out = PLACES if self.measure == "score" else PLACES | {"eval"}
        done = self.config.model_dump(mode="json", exclude=left_out)
        return sha256_json({"config": done, "measure": self.measure})[:16]

    @property
    def trains(self) -> bool:
        """It has a run; else it measures the gradient alone."""
        return self.measure in ("score", "loss")

    @property
    def title(self) -> str:
        return f"{self.row}, {self.column}, seed {self.seed}"


def cells_of(
    table: Table,
    part: Part,
    further: Sequence[str],
    output_dir: Path,
    *,
    rates: Mapping[tuple[str, str], float] | None = None,
    last: Sequence[str] = (),
    own: Path | None = None,
) -> list[Cell]:
    """All cells of a table, with their configurations.

    Args:
        further: overrides from the command line; ``seed=42,43`` are seeds in place of the table's.
        output_dir: of all runs.
        rates: learning rates by row and column, in place of the configured ones; what has none is left out.
        last: overrides that nothing replaces.
        own: a folder with recipes and choices of the user's own.

    Raises:
        InvalidInput: what is wrong with any of them, all faults at once.
    """
    lacking = missing_columns(part)
    if len(lacking) == len(part.columns):
        raise InvalidInput([Fault(table.title, f"no column can be filled: there is no {', '.join(lacking.values())}")])
    _refuse_replaced(table, part, further)
    seeds, further = _seeds(further)
    flags = [] if own is None else ["--config-dir", str(own)]
    cells, faults = [], []
    for row, of_row in table.rows.items():
        for heading, column in part.columns.items():
            if row in part.leave_out or heading in lacking or (rates is not None and (row, heading) not in rates):
                continue
            rate = [f"trainer.learning_rate={rates[row, heading]:g}"] if rates is not None else []
            overrides = (*part.overrides, *of_row, *column.overrides, *further, *rate, *last)
            try:
                config = compose([*_last_of_each(overrides), *flags], one_of_many=True)
            except InvalidInput as error:
                faults += [Fault(f"{row}, {heading}", str(fault.what), fault.hint) for fault in error.faults]
                continue
            for seed in seeds or part.seeds:
                seeded = config.model_copy(update={"seed": seed, "output_dir": str(output_dir)})
                given = (*overrides, f"{SEED}{seed}")
                cells.append(Cell(row, heading, seed, given, seeded, column.measure, column.value))
    if faults:
        raise InvalidInput(list(dict.fromkeys(faults)))
    return cells


def check_further(overrides: Sequence[str], own: Path | None = None) -> None:
    """Refuses overrides of the command line that name nothing, before they are blamed on every cell.

    Args:
        own: a folder with recipes and choices of the user's own.

    Raises:
        InvalidInput
    """
    _, others = _seeds(overrides)
    flags = [] if own is None else ["--config-dir", str(own)]
    _, faults = check([*others, *flags], complete=False)
    for option in ("name", "output_dir"):
        if any(key_of(override) == option for override in others):
            faults.append(Fault("command line", f"{option}= is refused: every cell has a run of its own", "--output"))
    if faults:
        raise InvalidInput(faults)


def _seeds(further: Sequence[str]) -> tuple[list[int], list[str]]:
    """Seeds that the command line names, and its other options.

    Raises:
        InvalidInput: they are none.
    """
    named = [option.split("=", 1)[-1] for option in further if key_of(option) == "seed"]
    others = [option for option in further if key_of(option) != "seed"]
    if not named:
        return [], others
    try:
        seeds: list[Any] = TypeAdapter(list[Seed]).validate_python(named[-1].split(","))
    except ValidationError:
        raise InvalidInput([Fault("command line", f"{SEED}{named[-1]}", "seed=42 or seed=42,43,44")]) from None
    return list(dict.fromkeys(seeds)), others


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """Overrides of which later ones replace earlier ones of the same name."""
    return list({key_of(override): override for override in overrides}.values())


def _refuse_replaced(table: Table, part: Part, further: Sequence[str]) -> None:
    """Refuses options of the command line that would make the rows, or the columns, other than they are called."""
    faults = []
    for flag, what, given in (
        ("--rows", "rows", table.rows.values()),
        ("--columns", "columns", (column.overrides for column in part.columns.values())),
    ):
        told_apart = {key_of(option) for options in given for option in options}
        for option in further:
            if key_of(option) in told_apart:
                text = f"{option}: {key_of(option)} is what tells this table's {what} apart"
                faults.append(Fault("command line", text, f"{flag} chooses some of them"))
    if faults:
        raise InvalidInput(faults)
