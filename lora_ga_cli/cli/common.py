"""What the commands share: the arguments that go to Hydra, and readable error messages."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.output import Output, error_as_data

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config
    from lora_ga_cli.errors import Fault, InvalidInput

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Click settings of a command whose other arguments are overrides and flags of Hydra."""
VALUED_FLAGS = {"--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i"}
"""Hydra's flags after which a word is their value."""


class State:
    """What the global options set."""

    debug = False


def _set_debug(value: bool) -> bool:
    State.debug = State.debug or value
    return value


def _import_code(context: typer.Context, files: list[Path] | None) -> list[Path] | None:
    """Runs the Python files that register a user's methods and tasks."""
    if files and not context.resilient_parsing:
        from lora_ga_cli.registry import import_code

        for file in files:
            import_code(file)
    return files


def complete(context: typer.Context, incomplete: str) -> list[str]:
    """Shell completion of ``option=value``."""
    from lora_ga_cli.config.completion import candidates

    # Typer hands over no words; Click has parsed those before this one into the command's only argument
    words = [word for value in context.params.values() if isinstance(value, list | tuple) for word in value]
    return candidates([*words, *context.args], incomplete)


def words(metavar: str, text: str, completion: Callable[..., list[str]] = complete) -> Any:
    """A command's only argument: any number of words."""
    return typer.Argument(metavar=metavar, help=text, autocompletion=completion, show_default=False)


Overrides = Annotated[
    list[str] | None,
    words(
        "[OPTION=VALUE]...",
        "A recipe and changes to it: recipe=quickstart rank=16 trainer.learning_rate=1e-4. Hydra's flags work too: "
        "-m for a sweep (rank=4,8,16), --config-dir DIR for your recipes, --cfg job, hydra/launcher=joblib.",
    ),
]
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", help="A folder with recipes/, tables/ and your choices of options.")
]
Code = Annotated[
    list[Path] | None,
    typer.Option("--code", callback=_import_code, help="A Python file that adds methods or tasks; repeatable."),
]
Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show a traceback when something fails.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show configuration, stages, what is cached and a forecast; load no weights.")
]


def user_dir(config_dir: Path | None) -> Path | None:
    """The folder given by ``--config-dir``, as an absolute path.

    Raises:
        InvalidInput: there is no such folder.
    """
    from lora_ga_cli.errors import Fault, InvalidInput

    if config_dir is not None and not config_dir.is_dir():
        raise InvalidInput([Fault("command line", f"--config-dir {config_dir}: no such folder")])
    return config_dir.resolve() if config_dir is not None else None


def run_jobs(
    arguments: Sequence[str] | None,
    job: Callable[[Config], Mapping[str, Any]],
    *,
    dry_run: str | None = None,
    shard: str | None = None,
) -> dict[str, Any]:
    """Composes the configuration of every job and calls ``job`` with it.

    Args:
        job: returns its result as plain data.
        dry_run: the last stage of a plan to print instead.
        shard: the part of the sweep that is done, such as ``2/4``.

    Returns:
        The result of the only job; of a sweep, ``jobs`` with the result of each that this process did.

    Raises:
        SweepError: some jobs failed; it has the result or the error of each.
        InvalidInput: results are to be collected, and the jobs are for other processes.
    """
    from lora_ga_cli import distributed, peers, reachable
    from lora_ga_cli.cli.stopping import Given, report_lost, stopped, words_given
    from lora_ga_cli.config.launch import Shard, launch
    from lora_ga_cli.errors import Fault, InvalidInput, SweepError
    from lora_ga_cli.interruption import Interruption

    results: list[tuple[str, Mapping[str, Any]]] = []
    process, given, valued_flags = distributed.this_process(), words_given(), Given.valued_flags
    launcher = next((item for item in arguments or [] if item.startswith("hydra/launcher=")), None)
    if Output.as_json and launcher is not None:
        hint = "leave one of them out; each run's manifest.json has its result"
        what = f"--json collects results in this process, and {launcher} makes them in others"
        raise InvalidInput([Fault("command line", what, hint)])

    def jobs() -> list[dict[str, Any]]:
        return [{"job": heading, **result} for heading, result in results]

    def failed(error: Exception, heading: str) -> None:
        results.append((heading, {"error": error_as_data(error)}))

    def task(config: Config, heading: str) -> None:
        from lora_ga_cli.cli.paths import naming, paths_of
        from lora_ga_cli.config.listing import remember_options
        from lora_ga_cli.report import console

        remember_options()  # the classes that have the options are imported by now
        if heading:
            console.title(heading)
        is_worker = distributed.this_process() != process
        if is_worker:
            peers.report_to(report_lost)
            reachable.report_to(note)
        try:
            with naming(paths_of(config)):
                if dry_run is not None:
                    from lora_ga_cli.stages.forecast import forecast

                    results.append((heading, forecast(config, dry_run)))
                else:
                    results.append((heading, job(config)))
        except Interruption as stop:
            if is_worker:  # a launcher's, whose caller sees nothing of it
                Given.arguments, Given.valued_flags = given, valued_flags
                report_error(stopped(stop))
            raise
        except Exception as error:
            if heading:
                failed(error, heading)
                if distributed.count() > 1:
                    _report_of_several(error, heading, is_worker=is_worker)
                else:
                    report_error(error)  # the sweep goes on, so the error is printed under the heading of its job
            raise

    def invalid(error: InvalidInput, heading: str) -> None:
        from lora_ga_cli.report import console

        failed(error, heading)
        console.title(heading)
        report_error(error)

    def note(text: str) -> None:
        from lora_ga_cli.report import console

        console.warn(text)

    def tell(text: str) -> None:
        from lora_ga_cli.report import console

        console.step("jobs", text)

    if launcher is not None and "submitit" in launcher and {"-m", "--multirun"} & set(arguments or []):
        from lora_ga_cli.report import console

        where = "the newest folder of OUTPUT_DIR/.sweeps, in .submitit/JOB"
        console.step("jobs", f"what each of them prints is in {where}; loraga watch shows how far it is")
    try:
        part = Shard.parse(shard) if shard is not None else None
        launch(list(arguments or []), task, invalid, note, shard=part, tell=tell)
    except SweepError as error:
        error.results = jobs()
        raise
    return dict(results[0][1]) if len(results) == 1 and not results[0][0] else {"jobs": jobs()}


def _report_of_several(error: Exception, heading: str, *, is_worker: bool) -> None:
    """Prints the error of a job of a sweep, which several processes do together.

    Args:
        heading: the job's title.
        is_worker: the processes do nothing after this job.

    Raises:
        SystemExit: others wait for this process in the job, so that the sweep cannot go on. They end too.
    """
    from lora_ga_cli import distributed, peers
    from lora_ga_cli.errors import UserError

    if is_worker:
        fail(error)
    elif not isinstance(error, UserError) or not peers.have_all_failed(heading):
        raise SystemExit(fail(error)) from error
    elif distributed.is_main():
        report_error(error)


def split_folders(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Run folders, and what goes to Hydra: flags with their values, and what is written as an override."""
    folders: list[str] = []
    options: list[str] = []
    before = ""
    for item in arguments or []:
        override = "=" in item or item.startswith(("-", "~"))
        is_folder = before not in VALUED_FLAGS and (os.path.isdir(item) or not override)  # noqa: PTH112
        (folders if is_folder else options).append(item)
        before = item
    return folders, options


def require_words(arguments: Sequence[str] | None, missing: str, hint: str) -> None:
    """Refuses a command line without any word, which names neither a folder nor a recipe.

    Raises:
        InvalidInput
    """
    from lora_ga_cli.errors import Fault, InvalidInput

    if not arguments:
        raise InvalidInput([Fault("command line", missing, hint)])


def given_options(context: typer.Context) -> list[str]:
    """The options of a command that stand on the command line, as ``--name``; not what an environment variable or a
    default sets."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None
        and parameter.opts[0].startswith("-")
        and (source := context.get_parameter_source(parameter.name)) is not None
        and source.name == "COMMANDLINE"
    ]


def unknown_flags(
    context: typer.Context, arguments: Sequence[str] | None, renamed: Mapping[str, str] | None = None
) -> list[Fault]:
    """Faults for flags among a command's words that it does not have, with the nearest one.

    Args:
        renamed: earlier names of flags, and the present ones.
    """
    from lora_ga_cli.errors import Fault, suggest

    known = [flag for parameter in context.command.params for flag in parameter.opts if flag.startswith("-")]
    flags = dict.fromkeys(word.split("=")[0] for word in arguments or [] if word.startswith("-"))
    return [
        Fault(
            "command line",
            f"no option {flag}",
            f"did you mean {renamed[flag]}?" if renamed and flag in renamed else suggest(flag, known) or "see --help",
        )
        for flag in flags
    ]


def report_error(error: Exception) -> int:
    """Prints an error for a person; returns the exit code."""
    from rich.markup import escape

    from lora_ga_cli import distributed
    from lora_ga_cli.errors import Interrupted, InvalidInput, SeveralProblems, UserError, system_fault
    from lora_ga_cli.files import final_path
    from lora_ga_cli.report.console import err

    if isinstance(error, Interrupted):
        if distributed.is_main():  # all processes that train together stop
            err.print(f"[bold yellow]stopped[/]  {escape(str(error))}")
        return error.exit_code
    label = "[bold red]error[/]  "
    if distributed.count() > 1 and not str(error).startswith("process "):
        label += f"process {distributed.index()}: "
    if isinstance(error, InvalidInput):
        for fault in error.faults:
            hint = f" [dim]({escape(fault.hint)})[/]" if fault.hint else ""
            err.print(f"{label}[bold]{escape(fault.where)}[/]: {escape(fault.what)}{hint}")
        return error.exit_code
    if isinstance(error, UserError):
        for text in error.lines if isinstance(error, SeveralProblems) else [str(error)]:
            err.print(f"{label}{escape(text)}")
        return error.exit_code
    if type(error).__name__ == "OutOfMemoryError":
        err.print(
            f"{label}the accelerator's memory is full: set trainer.gradient_checkpointing=true, or with "
            "several processes a lower trainer.max_tokens (the result stays the same); or a lower dataset.max_length"
        )
        return 1
    if isinstance(error, OSError) and isinstance(error.filename, str) and error.strerror:
        err.print(f"{label}{escape(str(system_fault('system', final_path(error.filename), error)))}")
        return 2
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    err.print(f"{label}unexpected {type(error).__name__}: {escape(first)}  [dim](--debug shows where)[/]")
    return 1


def fail(error: Exception, *, silent: bool = False) -> int:
    """Prints the error that ends this command. Of several processes that train together, the first that failed does so.

    Args:
        silent: it is printed elsewhere.

    Returns:
        The exit code.
    """
    from lora_ga_cli import peers
    from lora_ga_cli.errors import Interrupted, UserError

    if isinstance(error, Interrupted):
        peers.ended(by_signal=True)
        return error.exit_code if silent else report_error(error)
    code = error.exit_code if isinstance(error, UserError) else 1
    # what a library raises may only mean that the connection to another process has ended
    by_itself = isinstance(error, UserError) or type(error).__name__ == "OutOfMemoryError"
    is_first = peers.has_failed_first(code, by_itself=by_itself)
    return report_error(error) if is_first and not silent else code
