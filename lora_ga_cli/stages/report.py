"""The report of runs as one HTML file: what is read for it, and where it is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_ga_cli.disk import folder_problem
from lora_ga_cli.errors import DamagedFile, Fault, InvalidInput, RunError, together
from lora_ga_cli.json_files import read_json
from lora_ga_cli.report.console import reason, size, step, warn
from lora_ga_cli.report.html import page
from lora_ga_cli.report.html.record import Report, RunRecord, TableRecord
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.stages.report_answers import results_of
from lora_ga_cli.stages.report_parts import Parts
from lora_ga_cli.training.cost import COST_NAMES, read_cost
from lora_ga_cli.training.manifest import type_problem
from lora_ga_cli.training.own_outputs import is_own_output, without_own_outputs
from lora_ga_cli.training.run_files import points_of
from lora_ga_cli.training.run_folder import RunFolder, require_format
from lora_ga_cli.training.run_names import names_told_apart

TABLE_FILE = "table.json"
"""What `loraga reproduce` writes beside a table, for programs."""
TABLE_AGAIN = "loraga reproduce writes the table again"
Problem = RunError | DamagedFile
MANIFEST_COSTS = (*COST_NAMES, "training_seconds", "forecast_peak_memory_bytes")


class NothingToReport(RunError):
    """A file or folder that is there, and neither run nor table: a pattern such as ``runs/*`` names such too."""


@dataclass(frozen=True)
class Sources:
    """The folders that a report is of."""

    runs: Sequence[RunFolder]
    tables: Sequence[Path] = ()


def report(words: Sequence[str], output: Path | None = None) -> dict[str, Any]:
    """Writes a report of runs, of folders of runs, and of tables' folders.

    If several are named, those that cannot be shown are left out with a warning.

    Args:
        output: the file; by default ``report.html`` in the only folder that is named, or in the one around all runs.

    Returns:
        ``report``, the file; ``runs``, the folders that it shows; ``left_out``, others with the reason, and what could
        not be read of those; ``failed``, whether something that was asked for could not be read.

    Raises:
        RunError, DamagedFile: there is nothing to show.
        InvalidInput: ``output`` is a folder, or the file cannot be written.
    """
    if output is not None and output.is_dir():
        raise InvalidInput([Fault("--output", f"{output} is a folder", f"give a file: {output / page.FILE}")])
    words = without_own_outputs(words)
    sources, left_out = _found(words)
    for problem in left_out.values():
        warn(f"left out: {problem}")
    file, parts = output or _place(words, sources) / page.FILE, Parts()
    if refused := folder_problem(file.parent):  # before anything is collected, which may take long
        raise InvalidInput([_not_written(file, refused, output)])
    content = _report(sources, parts)
    try:
        length = page.write_page(content, file)
    except OSError as error:
        raise InvalidInput([_not_written(file, error, output)]) from error
    step("report", f"{file} ({size(length)})")
    reasons = [{"folder": folder, "reason": str(problem)} for folder, problem in left_out.items()]
    reasons += [{"folder": folder, "reason": what} for folder, found in parts.damaged.items() for what in found]
    failed = bool(parts.damaged) or any(not isinstance(problem, NothingToReport) for problem in left_out.values())
    return {"report": file, "runs": [run.path for run in sources.runs], "left_out": reasons, "failed": failed}


def _not_written(file: Path, error: OSError, output: Path | None) -> Fault:
    hint = "give --output FILE, in a folder that you may write" if output is None else "give another --output"
    return Fault(str(file), reason(error), hint)


def write_run_report(run: RunFolder, inputs: Inputs | None = None, before: Callable[[], None] = lambda: None) -> None:
    """Writes the report of a run into its folder. If that fails, the reason is a warning: the run is complete.

    Args:
        inputs: of the run, if they are loaded.
        before: adds to the run what only its report needs.
    """

    def make() -> Report:
        before()
        return _report(Sources([run]), Parts(), inputs)

    page.write_beside(run.path, make)


def renew_run_report(run: RunFolder) -> None:
    """Writes the report of a run again, if it has one: there is something new to show."""
    if (run.path / page.FILE).exists():
        write_run_report(run)


def collect(run: RunFolder, name: str, parts: Parts | None = None, inputs: Inputs | None = None) -> RunRecord:
    """Reads what a report shows of a run, from its folder and the cache. No model is loaded.

    Args:
        name: what the report calls it.
        parts: collects what is not in its own files; one for several runs loads once what they share.
        inputs: of the run, if they are loaded.

    Raises:
        RunError: there is no run, or one of an earlier version.
    """
    require_format(run)
    parts = parts or Parts()
    manifest, notify = run.manifest, parts.note_damage(run)
    results = results_of(run, notify)
    # of a run that is not finished; of another one, the manifest has all
    cost = None if run.finished else read_cost(run.path / "cost.json", notify)
    known = {} if cost is None else dict(cost.entries)
    return RunRecord(
        name=name,
        folder=run.path,
        manifest=manifest,
        config=run.read_config(),
        points=points_of(run, notify),
        cost=known | {key: manifest[key] for key in MANIFEST_COSTS if key in manifest},
        evaluations=list(results.values()),
        **parts.of(run, results, inputs),
    )


def _report(sources: Sources, parts: Parts, inputs: Inputs | None = None) -> Report:
    """Reads everything that a report of these folders shows.

    Args:
        parts: collects what is not in the files of a run, and which files are damaged.
        inputs: of the only run, if they are loaded.
    """
    names = names_told_apart([run.path for run in sources.runs])
    runs = [collect(run, name, parts, inputs) for run, name in zip(sources.runs, names, strict=True)]
    tables = [read_table(folder).shown for folder in sources.tables]
    return Report(_title(runs, tables), runs, tables)


def _title(runs: Sequence[RunRecord], tables: Sequence[TableRecord]) -> str:
    if tables:
        return tables[0].title if len(tables) == 1 else f"{len(tables)} tables"
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs"


class StoredTable(BaseModel):
    """What `loraga reproduce` writes of a table for programs, as far as it is read here."""

    model_config = ConfigDict(strict=True, extra="ignore")

    title: str
    headings: list[str]
    rows: list[list[str]]
    notes: list[str]
    runs: list[str] = []

    @property
    def shown(self) -> TableRecord:
        return TableRecord(self.title, self.headings, self.rows, self.notes)


def read_table(folder: Path) -> StoredTable:
    """The table in a folder.

    Raises:
        DamagedFile
    """
    file = folder / TABLE_FILE
    try:
        return StoredTable.model_validate(read_json(file, TABLE_AGAIN))
    except ValidationError as error:
        raise DamagedFile(file, f"is damaged ({type_problem(error)})", TABLE_AGAIN) from error


def _found(words: Sequence[str]) -> tuple[Sources, dict[str, Problem]]:
    """What the words name, and why others of them name nothing to show.

    Raises:
        RunError, DamagedFile: nothing is named that can be shown; it says why of all words.
    """
    runs: dict[Path, RunFolder] = {}
    tables: dict[Path, None] = {}
    problems: dict[str, Problem] = {}
    for word in words:
        try:
            of_word = _sources_of(Path(word).expanduser())
        except RunError as problem:
            problems[word] = problem
            continue
        found = list(of_word.runs)
        for folder in of_word.tables:
            try:
                found += _runs_of_table(folder)
                tables[folder] = None
            except DamagedFile as problem:
                problems[str(folder)] = problem
        for run in found:
            try:
                run.require_manifest()
                require_format(run)
                run.read_config()
                runs.setdefault(run.path.resolve(), run)
            except (RunError, DamagedFile) as problem:
                problems[str(run.path)] = problem
    if not runs and not tables:
        raise together([*problems.values()] or [NothingToReport(f"{' '.join(words)}: neither a run nor a table")])
    return Sources(list(runs.values()), list(tables)), problems


def _sources_of(folder: Path) -> Sources:
    """The runs and tables in a folder, which may be one itself.

    Raises:
        RunError: there is no such folder, or neither a run nor a table is in it.
    """
    if not folder.exists():
        raise RunError(f"{folder}: no such run folder")
    if not folder.is_dir():
        raise NothingToReport(f"{folder}: a file, not a run folder")
    if _is_run(folder):
        return Sources([RunFolder(folder)])
    if (folder / TABLE_FILE).is_file():
        return Sources([], [folder])
    inside = sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    inside = [item for item in inside if not is_own_output(item)]
    runs = [RunFolder(item) for item in inside if _is_run(item)]
    tables = [item for item in inside if (item / TABLE_FILE).is_file()]
    if not runs and not tables:
        raise NothingToReport(
            f"{folder}: neither a run (no manifest.json there), nor a table (no {TABLE_FILE}), nor a folder of them"
        )
    return Sources(runs, tables)


def _runs_of_table(folder: Path) -> list[RunFolder]:
    """The runs that the cells of a table trained, as far as they are there.

    Raises:
        DamagedFile
    """
    found = [Path(os.path.normpath(folder / path)) for path in read_table(folder).runs]
    return [RunFolder(run) for run in found if _is_run(run)]


def _is_run(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() or RunFolder(folder).lost_manifest


def _place(words: Sequence[str], sources: Sources) -> Path:
    """The folder of a report for which no file was given."""
    if len(words) == 1:
        return Path(words[0]).expanduser()
    folders = [run.path for run in sources.runs] + list(sources.tables)
    around = [folder.resolve().parent for folder in folders] if len(folders) > 1 else [folders[0]]
    return Path(os.path.relpath(os.path.commonpath(around)))
