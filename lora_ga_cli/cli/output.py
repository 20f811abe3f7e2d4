"""``--json``: the frame in which a command's result is one JSON object."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from lora_ga_cli.cli.stopping import stopped

HELP = "Print the result as one JSON object on standard output, and everything else on standard error."


class Output:
    """What ``--json`` set."""

    as_json = False
    stdout: Any = None
    """Where JSON goes with the flag; standard output of the program is then standard error."""


class Written:
    """The result of a command that wrote its JSON line by line."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a command that ends with another exit code than 0 although it did its work."""

    result: Mapping[str, Any]
    code: int


def with_json(command: Callable[..., Any], text: str = HELP) -> Callable[..., None]:
    """A command of Typer with the flag ``--json``.

    Args:
        command: returns its result as a mapping of plain data, an `Outcome`, or `Written`.
        text: what ``--help`` says of the flag.

    Returns:
        The command with one more parameter. With the flag, standard output has only the result, or else an object with
        ``error``, and with ``jobs`` where some jobs of a sweep finished.
    """

    @functools.wraps(command)
    def framed(*arguments: Any, as_json: bool = False, **options: Any) -> None:
        Output.as_json = as_json
        if not as_json:
            _end(command(*arguments, **options))
            return
        stdout = Output.stdout = sys.stdout
        try:
            with contextlib.redirect_stdout(sys.stderr):
                outcome = command(*arguments, **options)
        except KeyboardInterrupt as error:
            interrupted = stopped(error)
            print_line({"error": error_as_data(interrupted)}, stdout)
            raise interrupted from error
        except Exception as error:
            if (found := error_as_data(error)) is not None:
                results = getattr(error, "results", None)  # of the jobs of a sweep
                print_line({**({"jobs": results} if results else {}), "error": found}, stdout)
            raise
        finally:
            Output.as_json, Output.stdout = False, None
        if isinstance(outcome, Written):
            return
        print_line(outcome.result if isinstance(outcome, Outcome) else outcome or {}, stdout)
        _end(outcome)

    flagged = Annotated[bool, typer.Option("--json", help=text)]
    # Typer reads the types from the signature, and finds no names in another module than this one
    types = get_type_hints(command, include_extras=True)
    given = [
        item.replace(annotation=types.get(item.name, Any)) for item in inspect.signature(command).parameters.values()
    ]
    flag = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flagged)
    framed.__signature__ = inspect.Signature([*given, flag])  # type: ignore[attr-defined]
    framed.__annotations__ = {**types, "as_json": flagged}
    return framed


def _end(outcome: Any) -> None:
    if isinstance(outcome, Outcome) and outcome.code:
        raise typer.Exit(outcome.code)


def error_as_data(error: Exception) -> dict[str, Any] | None:
    """An error as plain data; None for what Typer raises, which has its own messages."""
    from lora_ga_cli.errors import InvalidInput, UserError

    if type(error).__module__.partition(".")[0] in ("click", "typer"):
        return None
    found: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
    if isinstance(error, InvalidInput):
        found["faults"] = [dataclasses.asdict(fault) for fault in error.faults]
    return found | {"exit_code": error.exit_code if isinstance(error, UserError) else 1}


def print_line(result: Mapping[str, Any], stdout: Any) -> None:
    """Writes plain data as one line of JSON."""
    if os.environ.get("RANK", "0") == "0":  # of several processes that train together
        stdout.write(json.dumps(plain(result), ensure_ascii=False, allow_nan=False) + "\n")
        stdout.flush()


def plain(value: Any) -> Any:
    """A value as JSON has it: paths as texts, numbers that JSON does not have as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
