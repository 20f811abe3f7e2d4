"""The report of runs as one HTML file: what is read for it, and where it is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ga_cli.errors import Fault, InvalidInput, RunError
from lora_ga_cli.files import read_json
from lora_ga_cli.report.console import size, step, warn
from lora_ga_cli.report.html import page
from lora_ga_cli.report.html.record import Report, RunRecord, TableRecord
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.stages.report_answers import results_of
from lora_ga_cli.stages.report_parts import Parts
from lora_ga_cli.training.cost import COST_NAMES, read_cost
from lora_ga_cli.training.run_files import points_of
from lora_ga_cli.training.run_folder import RunFolder, require_format

TABLE_FILE = "table.json"
"""What `loraga reproduce` writes beside a table, for programs."""
WRITTEN = (page.FILE, "comparison.png")
"""Files around runs that loraga writes, which a pattern such as ``runs/*`` names too."""
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
        ``report``, the file; ``runs``, the folders that it shows; ``left_out``, others with the reason.

    Raises:
        RunError: there is nothing to show.
        InvalidInput: ``output`` is a folder.
    """
    if output is not None and output.is_dir():
        raise InvalidInput([Fault("--output", f"{output} is a folder", f"give a file: {output / page.FILE}")])
    sources, left_out = _found(words)
    for problem in left_out.values():
        warn(f"left out: {problem}")
    file = output or _place(words, sources) / page.FILE
    length = page.write_page(_report(sources), file)
    step("report", f"{file} ({size(length)})")
    reasons = [{"folder": folder, "reason": str(problem)} for folder, problem in left_out.items()]
    failed = any(not isinstance(problem, NothingToReport) for problem in left_out.values())
    return {"report": file, "runs": [run.path for run in sources.runs], "left_out": reasons, "failed": failed}


def write_run_report(run: RunFolder, inputs: Inputs | None = None, before: Callable[[], None] = lambda: None) -> None:
    """Writes the report of a run into its folder. If that fails, the reason is a warning: the run is complete.

    Args:
        inputs: of the run, if they are loaded.
        before: adds to the run what only its report needs.
    """

    def make() -> Report:
        before()
        return _report(Sources([run]), inputs)

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
    manifest = run.manifest
    results = results_of(run)
    cost = read_cost(run.path / "cost.json")  # of a run that is not finished; of another one, the manifest has all
    known = {} if cost is None else dict(cost.entries)
    return RunRecord(
        name=name,
        folder=run.path,
        manifest=manifest,
        config=run.read_config(),
        points=points_of(run),
        cost=known | {key: manifest[key] for key in MANIFEST_COSTS if key in manifest},
        evaluations=list(results.values()),
        **(parts or Parts()).of(run, results, inputs),
    )


def _report(sources: Sources, inputs: Inputs | None = None) -> Report:
    """Reads everything that a report of these folders shows.

    Args:
        inputs: of the only run, if they are loaded.
    """
    names = _names([run.path for run in sources.runs])
    parts = Parts()
    runs = [collect(run, name, parts, inputs) for run, name in zip(sources.runs, names, strict=True)]
    tables = [_table(folder) for folder in sources.tables]
    return Report(_title(runs, tables), runs, tables)


def _title(runs: Sequence[RunRecord], tables: Sequence[TableRecord]) -> str:
    if tables:
        return tables[0].title if len(tables) == 1 else f"{len(tables)} tables"
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs"


def _table(folder: Path) -> TableRecord:
    content = read_json(folder / TABLE_FILE)
    return TableRecord(content["title"], content["headings"], content["rows"], content["notes"])


def _found(words: Sequence[str]) -> tuple[Sources, dict[str, RunError]]:
    """What the words name, and why others of them name nothing to show.

    Raises:
        RunError: nothing is named at all.
    """
    runs: dict[Path, RunFolder] = {}
    tables: dict[Path, None] = {}
    problems: dict[str, RunError] = {}
    for word in words:
        if Path(word).name in WRITTEN and Path(word).is_file():
            continue
        try:
            of_word = _sources_of(Path(word).expanduser())
        except RunError as problem:
            problems[word] = problem
            continue
        tables |= dict.fromkeys(of_word.tables)
        for run in of_word.runs:
            try:
                require_format(run)
                run.read_config()
                runs.setdefault(run.path.resolve(), run)
            except RunError as problem:
                problems[str(run.path)] = problem
    if not runs and not tables:
        raise next(iter(problems.values()), NothingToReport(f"{' '.join(words)}: neither a run nor a table"))
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
        return _of_table(folder)
    inside = sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    runs = [RunFolder(item) for item in inside if _is_run(item)]
    of_tables = [_of_table(item) for item in inside if (item / TABLE_FILE).is_file()]
    if not runs and not of_tables:
        raise NothingToReport(
            f"{folder}: neither a run (no manifest.json there), nor a table (no {TABLE_FILE}), nor a folder of them"
        )
    runs += [run for found in of_tables for run in found.runs]
    return Sources(runs, [table for found in of_tables for table in found.tables])


def _of_table(folder: Path) -> Sources:
    """A table with the runs that its cells trained, as far as they are there."""
    runs = [folder / path for path in read_json(folder / TABLE_FILE).get("runs", [])]
    return Sources([RunFolder(Path(os.path.normpath(run))) for run in runs if _is_run(run)], [folder])


def _is_run(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def _place(words: Sequence[str], sources: Sources) -> Path:
    """The folder of a report for which no file was given."""
    if len(words) == 1:
        return Path(words[0]).expanduser()
    folders = [run.path for run in sources.runs] + list(sources.tables)
    around = [folder.resolve().parent for folder in folders] if len(folders) > 1 else [folders[0]]
    return Path(os.path.relpath(os.path.commonpath(around)))


def _names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, with as many of the folders around it as tell all apart."""
    paths = [folder.resolve().parts[1:] for folder in folders]
    for count in range(1, max((len(path) for path in paths), default=0) + 1):
        names = ["/".join(path[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
