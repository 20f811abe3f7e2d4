"""What a person sees of an error, and the exit code that it ends a command with."""

from __future__ import annotations


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
