"""``loraga reproduce``"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Code, ConfigDir, Debug, complete, unknown_flags, words
from lora_ga_cli.cli.arguments import user_dir as find_user_dir
from lora_ga_cli.cli.errors import report_error
from lora_ga_cli.cli.output import Outcome, with_json
from lora_ga_cli.cli.paths import naming

if TYPE_CHECKING:
    from lora_ga_cli.reproduce.fill import TableJob
    from lora_ga_cli.reproduce.table import Table

RENAMED = {"--fair": "--tune-lr", "--plan": "--dry-run"}
"""Earlier names of flags, and the present ones."""


class Scale(StrEnum):
    """The scale of a table."""

    full = "full"
    tiny = "tiny"


def complete_word(context: typer.Context, incomplete: str) -> list[str]:
    """Shell completion of tables' names, and of options."""
    from lora_ga_cli.reproduce.table_files import all_tables

    return [*(name for name in all_tables() if name.startswith(incomplete)), *complete(context, incomplete)]


Words = Annotated[
    list[str] | None,
    words(
        "[TABLE]... [OPTION=VALUE]...",
        "Names of tables, and options for all their cells, such as seed=42,43. hydra/launcher=submitit_slurm "
        "distributes the cells over a cluster. Without a name, all tables are listed.",
        complete_word,
    ),
]


@with_json
def command(
    context: typer.Context,
    arguments: Words = None,
    scale: Annotated[
        Scale, typer.Option("--scale", help="tiny: the same table with a tiny base model, offline, in minutes.")
    ] = Scale.full,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells with a forecast of memory and time; run nothing.")
    ] = False,
    tune_lr: Annotated[
        bool, typer.Option("--tune-lr", help="Train every row at its own best learning rate, found on held-out rows.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Make every table.")] = False,
    rows: Annotated[str, typer.Option("--rows", help="Only these rows, separated by commas.")] = "",
    columns: Annotated[str, typer.Option("--columns", help="Only these columns, separated by commas.")] = "",
    output: Annotated[Path, typer.Option("--output", help="Folder of results and runs.")] = Path("reproduced"),
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="How many cells are made at once, each in its own process.")
    ] = None,
    gpus: Annotated[
        str, typer.Option("--gpus", help="Divide the cells among GPUs: 0,1,2,3. Without --jobs, one on each.")
    ] = "",
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="Do a part of each table's trainings; 2/4 does number 2, 6, 10 and so on."),
    ] = None,
    config_dir: ConfigDir = None,
    code: Code = None,
    debug: Debug = False,
) -> Any:
    """Make a table of the paper beside the paper's values, or compare the methods on your own data.

    Finished cells are kept: run the same command again to continue, and to retry cells that failed.

    Example: loraga reproduce ablation --scale tiny
    """
    from lora_ga_cli.config.shard import Shard
    from lora_ga_cli.errors import InvalidInput

    if faults := unknown_flags(context, arguments, RENAMED):
        raise InvalidInput(faults)
    part_of_all = Shard.parse(shard) if shard is not None else None
    user_dir = find_user_dir(config_dir)
    names, options = _names_and_options(arguments)
    if not names and not every:
        return {"tables": _list(user_dir)}
    hydras_flags = tuple(option for option in options if option.lstrip("+~").startswith("hydra"))
    extra_overrides = tuple(option for option in options if option not in hydras_flags)
    chosen_rows = _split(rows)
    if every:
        tables = _all_tables(names, user_dir, scale, extra_overrides, chosen_rows, tune_lr=tune_lr)
    else:
        tables = _tables(names, user_dir)

    from lora_ga_cli.reproduce.cells import check_extra_overrides, measures_of
    from lora_ga_cli.reproduce.fill import TableJob
    from lora_ga_cli.reproduce.table import part_of, select

    parts = {name: part_of(table, name, scale.value) for name, table in tables.items()}
    measures = [measure for part in parts.values() for measure in measures_of(part)]
    check_extra_overrides(extra_overrides, user_dir, measures)
    gpu_names = tuple(_split(gpus))
    launcher_flags = _launcher_flags(hydras_flags, jobs, gpu_names)

    def job_of(name: str, table: Table) -> TableJob:
        selected, part = select(table, parts[name], chosen_rows, _split(columns))
        return TableJob(
            name=name,
            table=selected,
            part=part,
            scale=scale.value,
            tune_lr=tune_lr,
            extra_overrides=extra_overrides,
            launcher_flags=launcher_flags,
            output_dir=output.resolve(),
            user_dir=user_dir,
            report_error=report_error,
            gpus=gpu_names,
            shard=part_of_all,
        )

    table_jobs = [job_of(name, table) for name, table in tables.items()]
    with naming({"--output": output.resolve()}):
        result, complete = _run(table_jobs, dry_run=dry_run)
    return Outcome({"tables": result}, 0 if complete else 1)


def _launcher_flags(flags: tuple[str, ...], jobs: int | None, gpus: tuple[str, ...]) -> tuple[str, ...]:
    """Hydra's flags for the processes that ``--jobs`` and ``--gpus`` ask for.

    Args:
        flags: those of the command line, which win over ``--gpus``.

    Raises:
        InvalidInput: ``--jobs`` is given beside Hydra's flags, or Hydra's launcher for joblib is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    from lora_ga_cli.errors import Fault, InvalidInput

    if flags and jobs is not None:
        raise InvalidInput([Fault("command line", f"--jobs chooses a launcher, and so does {flags[0]}", "give one")])
    processes = jobs or len(gpus)
    if flags or processes <= 1:
        return flags
    try:
        version("hydra-joblib-launcher")
    except PackageNotFoundError:
        what = "--jobs and --gpus need Hydra's launcher for joblib"
        raise InvalidInput([Fault("command line", what, "pip install 'loraga[joblib]'")]) from None
    # one cell at a time for each process: joblib would put short ones together
    return ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={processes}", "hydra.launcher.batch_size=1")


def _run(jobs: Sequence[TableJob], *, dry_run: bool) -> tuple[list[dict[str, Any]], bool]:
    """Makes tables, or shows what they need; returns their results, and whether every cell has a value."""
    from lora_ga_cli.report import console
    from lora_ga_cli.reproduce.forecast import forecast_table
    from lora_ga_cli.reproduce.run import check_jobs, make_table

    if not dry_run:
        check_jobs(jobs)
    complete = True
    results = []
    for job in jobs:
        if len(jobs) > 1:
            console.title(job.title)
        if dry_run:
            results.append({"table": job.title, **forecast_table(job)})
        else:
            made = make_table(job)
            complete = complete and made["complete"]
            results.append({"table": job.title, **made})
    return results, complete


def _tables(names: Sequence[str], user_dir: Path | None) -> dict[str, Table]:
    from lora_ga_cli.reproduce.table_files import find_table

    return {name: find_table(name, user_dir) for name in names}


def _all_tables(
    names: Sequence[str],
    user_dir: Path | None,
    scale: Scale,
    extra_overrides: Sequence[str],
    rows: Sequence[str],
    *,
    tune_lr: bool,
) -> dict[str, Table]:
    """Every table that can be made with these flags; warns about the others."""
    from lora_ga_cli.errors import Fault, InvalidInput
    from lora_ga_cli.report import console
    from lora_ga_cli.reproduce.cells import key_of, measures_of
    from lora_ga_cli.reproduce.table import missing_columns, part_of
    from lora_ga_cli.reproduce.table_files import all_tables

    options = [option for option in extra_overrides if key_of(option) != "seed"]
    if names:
        raise InvalidInput([Fault("command line", f"--all makes every table, {names[0]} too", "leave out one of them")])
    tables = {}
    for name, table in _tables(list(all_tables(user_dir)), user_dir).items():
        if scale is Scale.tiny and table.tiny is None:
            console.warn(f"{name} has no tiny scale, and is left out")
            continue
        part = part_of(table, name, scale.value)
        missing = missing_columns(part)
        if tune_lr and part.tune_lr is None:
            console.warn(f"{name} has no learning rates to choose from, and is left out")
        elif options and not all(measure.needs_model for measure in measures_of(part)):
            console.warn(f"{name} trains no model, and is left out: {' '.join(options)} is for those that do")
        elif rows and not set(rows) & set(table.rows):
            console.warn(f"{name} has no row {', '.join(rows)}, and is left out")
        elif len(missing) == len(part.columns):
            console.warn(f"{name} is left out: there is no {', '.join(missing.values())}")
        else:
            tables[name] = table
    return tables


def _names_and_options(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The names of tables, each once, and options."""
    given = list(arguments or [])
    return list(dict.fromkeys(word for word in given if "=" not in word)), [word for word in given if "=" in word]


def _split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _list(user_dir: Path | None) -> list[dict[str, Any]]:
    from lora_ga_cli.report.console import say
    from lora_ga_cli.report.tables import print_table
    from lora_ga_cli.reproduce.table_files import all_tables, summarize

    rows, tables = [], []
    for name, file in all_tables(user_dir).items():
        summary = summarize(file)
        flags = {"--scale tiny": summary.tiny, "--tune-lr": summary.tune_lr}
        flags_text = ", ".join(flag for flag, is_possible in flags.items() if is_possible)
        rows.append([name, summary.title, str(summary.rows), ", ".join(summary.columns), flags_text])
        tables.append(
            {
                "name": name,
                "title": summary.title,
                "rows": summary.rows,
                "columns": list(summary.columns),
                "flags": flags,
            }
        )
    print_table(["table", "what it shows", "rows", "columns", "flags"], rows)
    say("loraga reproduce TABLE --dry-run shows what a table needs; --scale tiny makes it small and offline;")
    say("--tune-lr trains every row at its own best learning rate.")
    return tables
