"""The jobs of a command: one, or those of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ga_cli.cli.arguments import is_sweep
from lora_ga_cli.cli.errors import fail, report_error
from lora_ga_cli.cli.output import Output, error_as_data

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config
    from lora_ga_cli.errors import InvalidInput

Job = Callable[["Config"], Mapping[str, Any]]
"""Does what a configuration says, and returns its result as plain data."""


def run_jobs(
    arguments: Sequence[str] | None, job: Job, *, dry_run: str | None = None, shard: str | None = None
) -> dict[str, Any]:
    """Composes the configuration of every job and calls ``job`` with it.

    Args:
        dry_run: the last stage of a plan to print instead.
        shard: the part of the sweep that is done, such as ``2/4``.

    Returns:
        The result of the only job; of a sweep, ``jobs`` with the result of each that this process did.

    Raises:
        SweepError: some jobs failed; it has the result or the error of each.
        InvalidInput: results are to be collected, and the jobs are for other processes.
    """
    from lora_ga_cli.config.launch import launch
    from lora_ga_cli.config.shard import Shard
    from lora_ga_cli.errors import SweepError

    arguments = list(arguments or [])
    _check_launcher(arguments)
    jobs = _Jobs(job, dry_run)
    try:
        part = Shard.parse(shard) if shard is not None else None
        launch(arguments, jobs.run, jobs.refuse, _warn, shard=part, tell=_tell)
    except SweepError as error:
        error.results = jobs.as_data()
        raise
    if len(jobs.results) == 1 and not jobs.results[0][0]:
        return dict(jobs.results[0][1])
    return {"jobs": jobs.as_data()}


def _check_launcher(arguments: Sequence[str]) -> None:
    """Refuses ``--json`` with jobs in other processes, and says where submitit's jobs print.

    Raises:
        InvalidInput
    """
    from lora_ga_cli.config.launchers import launcher_of
    from lora_ga_cli.errors import Fault, InvalidInput

    launcher = launcher_of(arguments)
    if not launcher:
        return
    if Output.as_json:
        hint = "leave one of them out; each run's manifest.json has its result"
        what = f"--json collects results in this process, and hydra/launcher={launcher} makes them in others"
        raise InvalidInput([Fault("command line", what, hint)])
    if launcher.startswith("submitit") and is_sweep(arguments):
        where = "the newest folder of OUTPUT_DIR/.sweeps, in .submitit/JOB"
        _tell(f"what each of them prints is in {where}; loraga watch shows how far it is")


class _Jobs:
    """Does the jobs of a command, and keeps what becomes of them. A launcher sends it to other processes.

    Args:
        dry_run: the last stage of a plan to print instead of doing a job.
    """

    def __init__(self, job: Job, dry_run: str | None):
        from lora_ga_cli import distributed
        from lora_ga_cli.cli.stopping import Given, words_given

        self._job, self._dry_run = job, dry_run
        self._process, self._given, self._valued_flags = distributed.this_process(), words_given(), Given.valued_flags
        self.results: list[tuple[str, Mapping[str, Any]]] = []
        """The title of each job (empty for the only one), and its result or error."""

    def as_data(self) -> list[dict[str, Any]]:
        return [{"job": title, **result} for title, result in self.results]

    def run(self, config: Config, title: str) -> None:
        """Does a job. The error of one of several is printed here, under its title, and raised again."""
        from lora_ga_cli import distributed, peers, reachable
        from lora_ga_cli.cli.stopping import Given, is_submitted, report_lost, stopped
        from lora_ga_cli.config.listing import remember_options
        from lora_ga_cli.interruption import Interruption

        remember_options()  # the classes that have the options are imported by now
        if title:
            _print_title(title)
        is_worker = distributed.this_process() != self._process
        if is_worker:
            peers.report_to(report_lost)
            reachable.report_to(_warn)
        try:
            self.results.append((title, self._result(config)))
        except Interruption as stop:
            if is_worker:  # a launcher's, whose caller sees nothing of it
                Given.arguments, Given.valued_flags = self._given, self._valued_flags
                if stop.kept and is_submitted():
                    stop.then = "If the launcher does not begin this job again, go on with"
                fail(stopped(stop))  # the other tasks of the job need not look for this one any more
            raise
        except Exception as error:
            if title:
                self._keep_error(error, title)
                if distributed.count() > 1:
                    _report_of_several(error, title, is_worker=is_worker)
                else:
                    report_error(error)
            raise

    def refuse(self, error: InvalidInput, title: str) -> None:
        """Reports a job of a sweep whose options do not go together."""
        self._keep_error(error, title)
        _print_title(title)
        report_error(error)

    def _result(self, config: Config) -> Mapping[str, Any]:
        from lora_ga_cli.cli.paths import naming, paths_of

        with naming(paths_of(config)):
            if self._dry_run is None:
                return self._job(config)
            from lora_ga_cli.stages.forecast import forecast

            return forecast(config, self._dry_run)

    def _keep_error(self, error: Exception, title: str) -> None:
        self.results.append((title, {"error": error_as_data(error)}))


def _report_of_several(error: Exception, title: str, *, is_worker: bool) -> None:
    """Prints the error of a job of a sweep, which several processes do together.

    Args:
        title: the job's title.
        is_worker: the processes do nothing after this job.

    Raises:
        SystemExit: others wait for this process in the job, so that the sweep cannot go on. They end too.
    """
    from lora_ga_cli import distributed, peers
    from lora_ga_cli.errors import UserError

    if is_worker:
        fail(error)
    elif not isinstance(error, UserError) or not peers.have_all_failed(title):
        raise SystemExit(fail(error)) from error
    elif distributed.is_main():
        report_error(error)


def _print_title(text: str) -> None:
    from lora_ga_cli.report import console

    console.title(text)


def _warn(text: str) -> None:
    from lora_ga_cli.report import console

    console.warn(text)


def _tell(text: str) -> None:
    from lora_ga_cli.report import console

    console.step("jobs", text)
