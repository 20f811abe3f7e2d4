"""``loraga reproduce``"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lora_ga_cli.cli.common import Debug, report_error


class Scale(StrEnum):
    """How large a table is made."""

    full = "full"
    tiny = "tiny"


def complete_table(incomplete: str) -> list[str]:
    """Shell completion of tables' names."""
    from lora_ga_cli.config.tables import all_tables

    return [name for name in all_tables() if name.startswith(incomplete)]


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TABLE] [OPTION=VALUE]...",
        help="A table's name, and options of all its cells; hydra/launcher=joblib or submitit_slurm spreads them. "
        "Without a name, all tables are listed.",
        autocompletion=complete_table,
        show_default=False,
    ),
]


def command(
    arguments: Arguments = None,
    scale: Annotated[
        Scale, typer.Option("--scale", help="tiny: the same on the bundled base, offline, in minutes.")
    ] = Scale.full,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the cells, their memory and GPU-hours; run nothing.")
    ] = False,
    fair: Annotated[bool, typer.Option("--fair", help="Every row at its own best learning rate.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Make every table.")] = False,
    rows: Annotated[str, typer.Option("--rows", help="Only these rows, with commas between them.")] = "",
    columns: Annotated[str, typer.Option("--columns", help="Only these columns, with commas between them.")] = "",
    output: Annotated[Path, typer.Option("--output", help="Folder of the results.")] = Path("reproduced"),
    config_dir: Annotated[Path | None, typer.Option("--config-dir", help="A folder with tables/ of your own.")] = None,
    debug: Debug = False,
) -> None:
    """Make a table of the paper, beside what the paper says.

    Finished cells are kept: the same command goes on, and a cell that failed is tried again.

    loraga reproduce ablation --scale tiny
    """
    from lora_ga_cli.config.tables import all_tables, check_further, find_table, only, part_of
    from lora_ga_cli.errors import Fault, InvalidInput

    words = list(arguments or [])
    names = list(dict.fromkeys(word for word in words if "=" not in word))
    options = [word for word in words if "=" in word]
    own = config_dir.resolve() if config_dir is not None else None
    if every:
        if names:
            raise InvalidInput([Fault("command line", f"--all makes every table, {names[0]} too", "leave one out")])
        names = list(all_tables(own))
    if not names:
        _list(own)
        return
    flags = tuple(option for option in options if option.startswith("hydra"))
    further = tuple(option for option in options if option not in flags)
    check_further(further)
    tables = {name: find_table(name, own) for name in names}

    from lora_ga_cli.report import console
    from lora_ga_cli.stages.reproduce import reproduce
    from lora_ga_cli.stages.table_cells import Reproduction

    whole = True
    for name, table in tables.items():
        if every and scale is Scale.tiny and table.tiny is None:
            continue
        folder = output / "-".join([name, *(["tiny"] if scale is Scale.tiny else []), *(["fair"] if fair else [])])
        part = part_of(table, name, scale.value)
        chosen, part = only(table, part, _listed(rows), _listed(columns))
        job = Reproduction(name, chosen, part, scale.value, further, flags, folder.resolve(), report_error)
        if len(tables) > 1:
            console.title(table.title)
        if plan:
            from lora_ga_cli.stages.table_plan import plan_table

            plan_table(job, fair=fair)
        elif fair and table.fair is None and every:
            console.warn(f"{name} has no learning rates to choose, and is left out")
        else:
            whole = reproduce(job, fair=fair) and whole
    if not whole:
        raise typer.Exit(1)


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _list(own: Path | None) -> None:
    from lora_ga_cli.config.tables import all_tables, describe
    from lora_ga_cli.report.console import say
    from lora_ga_cli.report.tables import print_table

    rows = []
    for name, file in all_tables(own).items():
        about = describe(file)
        rows.append(
            [name, about["title"], str(about["rows"]), ", ".join(about["columns"]), "yes" if about["tiny"] else "no"]
        )
    print_table(["table", "what it shows", "rows", "columns", "tiny"], rows)
    say("loraga reproduce TABLE --plan shows what it takes; --scale tiny makes it small, offline.")
