"""``loraga reproduce``"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_ga_cli.cli.common import Code, ConfigDir, Debug, complete, report_error, user_dir, words

if TYPE_CHECKING:
    from lora_ga_cli.reproduce.fill import Reproduction
    from lora_ga_cli.reproduce.table import Table


class Scale(StrEnum):
    """How large a table is made."""

    full = "full"
    tiny = "tiny"


def complete_word(context: typer.Context, incomplete: str) -> list[str]:
    """Shell completion of tables' names, and of options."""
    from lora_ga_cli.reproduce.table import all_tables

    return [*(name for name in all_tables() if name.startswith(incomplete)), *complete(context, incomplete)]


Words = Annotated[
    list[str] | None,
    words(
        "[TABLE]... [OPTION=VALUE]...",
        "Tables' names, and options of all their cells, such as seed=42,43; hydra/launcher=joblib or submitit_slurm "
        "spreads them. Without a name, all tables are listed.",
        complete_word,
    ),
]


def command(
    arguments: Words = None,
    scale: Annotated[
        Scale, typer.Option("--scale", help="tiny: the same with a tiny base, offline, in minutes.")
    ] = Scale.full,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the cells, their memory and GPU-hours; run nothing.")
    ] = False,
    fair: Annotated[bool, typer.Option("--fair", help="Every row at its own best learning rate.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Make every table.")] = False,
    rows: Annotated[str, typer.Option("--rows", help="Only these rows, with commas between them.")] = "",
    columns: Annotated[str, typer.Option("--columns", help="Only these columns, with commas between them.")] = "",
    output: Annotated[Path, typer.Option("--output", help="Folder of results and runs.")] = Path("reproduced"),
    config_dir: ConfigDir = None,
    code: Code = None,
    debug: Debug = False,
) -> None:
    """Make a table of the paper, beside what the paper says; or the table of methods for your own data.

    Finished cells are kept: the same command goes on, and a cell that failed is tried again.

    loraga reproduce ablation --scale tiny
    """
    own = user_dir(config_dir)
    names, options = _names_and_options(arguments)
    if not names and not every:
        _list(own)
        return
    tables = _all_tables(names, own, scale, fair=fair) if every else _named(names, own)

    from lora_ga_cli.reproduce.cells import check_further
    from lora_ga_cli.reproduce.fill import Reproduction
    from lora_ga_cli.reproduce.table import only, part_of

    flags = tuple(option for option in options if option.lstrip("+~").startswith("hydra"))
    further = tuple(option for option in options if option not in flags)
    check_further(further, own)
    jobs = []
    for name, table in tables.items():
        chosen, part = only(table, part_of(table, name, scale.value), _listed(rows), _listed(columns))
        jobs.append(
            Reproduction(name, chosen, part, scale.value, fair, further, flags, output.resolve(), own, report_error)
        )
    if not _run(jobs, plan=plan):
        raise typer.Exit(1)


def _run(jobs: Sequence[Reproduction], *, plan: bool) -> bool:
    """Plans or makes tables; returns whether all of them are whole."""
    from lora_ga_cli.report import console
    from lora_ga_cli.reproduce.forecast import plan_table
    from lora_ga_cli.reproduce.run import check_tables, reproduce

    if not plan:
        check_tables(jobs)
    whole = True
    for job in jobs:
        if len(jobs) > 1:
            console.title(job.title)
        if plan:
            plan_table(job)
        else:
            whole = reproduce(job) and whole
    return whole


def _named(names: Sequence[str], own: Path | None) -> dict[str, Table]:
    from lora_ga_cli.reproduce.table import find_table

    return {name: find_table(name, own) for name in names}


def _all_tables(names: Sequence[str], own: Path | None, scale: Scale, *, fair: bool) -> dict[str, Table]:
    """Every table that there is of this kind; says which there are not."""
    from lora_ga_cli.errors import Fault, InvalidInput
    from lora_ga_cli.report import console
    from lora_ga_cli.reproduce.table import all_tables, missing_columns, part_of

    if names:
        raise InvalidInput([Fault("command line", f"--all makes every table, {names[0]} too", "leave one out")])
    found = {}
    for name, table in _named(list(all_tables(own)), own).items():
        if scale is Scale.tiny and table.tiny is None:
            console.warn(f"{name} has no tiny form, and is left out")
            continue
        part = part_of(table, name, scale.value)
        missing = missing_columns(part)
        if fair and part.fair is None:
            console.warn(f"{name} has no learning rates to choose, and is left out")
        elif len(missing) == len(part.columns):
            console.warn(f"{name} is left out: there is no {', '.join(missing.values())}")
        else:
            found[name] = table
    return found


def _names_and_options(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Tables' names, each once, and options."""
    given = list(arguments or [])
    return list(dict.fromkeys(word for word in given if "=" not in word)), [word for word in given if "=" in word]


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _list(own: Path | None) -> None:
    from lora_ga_cli.report.console import say
    from lora_ga_cli.report.tables import print_table
    from lora_ga_cli.reproduce.table import all_tables, describe

    rows = []
    for name, file in all_tables(own).items():
        about = describe(file)
        kinds = [kind for kind in ("tiny", "fair") if about[kind]]
        rows.append([name, about["title"], str(about["rows"]), ", ".join(about["columns"]), ", ".join(kinds)])
    print_table(["table", "what it shows", "rows", "columns", "also"], rows)
    say("loraga reproduce TABLE --plan shows what it takes; --scale tiny makes it small, offline;")
    say("--fair gives every row its own learning rate.")
