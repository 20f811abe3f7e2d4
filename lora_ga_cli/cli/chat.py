"""``loraga chat``"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Code, Debug, split_folders, unknown_flags, words
from lora_ga_cli.cli.output import Output, Written, print_line, with_json

if TYPE_CHECKING:
    from lora_ga_cli.stages.chat.session import Session

Words = Annotated[
    list[str] | None,
    words(
        "RUN... [OPTION=VALUE]...",
        "Finished runs, adapters or a model, as for eval; several have one base. Options of generation are eval's: "
        "eval.temperature=0.7 eval.top_p=0.9 eval.max_new_tokens=200 eval.prompt=…",
    ),
]
SIDE_BY_SIDE = 80
"""Columns that a terminal needs for two answers side by side."""
YOU = "you> "


def _chat(context: typer.Context, arguments: Words = None, code: Code = None, debug: Debug = False) -> Written:
    """Talk to trained models: answers appear as they are written, and adapters on one base are switched.

    On a terminal, /help lists the commands, such as /adapter NAME and /compare. In a pipe, each line is a message, and
    its answer goes to standard output.

    Example: loraga chat runs/mine
    """
    from lora_ga_cli.errors import Fault, Interrupted, InvalidInput

    names, options = split_folders(arguments)
    faults = unknown_flags(context, options)
    if not names:
        faults.append(Fault("command line", "no run is named", "loraga chat runs/NAME"))
    if Output.as_json and sys.stdin.isatty():
        what = "--json answers the lines of a pipe, and this is a terminal"
        faults.append(Fault("command line", what, 'echo "MESSAGE" | loraga chat runs/NAME --json'))
    if faults:
        raise InvalidInput(faults)
    stdout = Output.stdout if Output.as_json else sys.stdout
    try:
        # what is said while models load is no answer
        with contextlib.nullcontext() if sys.stdin.isatty() else contextlib.redirect_stdout(sys.stderr):
            session = _session(names, options, stdout)
            session.introduce()
            (_converse if session.display.interactive else _answer_lines)(session)
    except KeyboardInterrupt:
        raise Interrupted("nothing is kept of a chat; run the same command again") from None
    except BrokenPipeError:  # whoever read the answers has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
    return Written()


command = with_json(_chat, "In a pipe, print one JSON object for each line, and everything else on standard error.")


def _session(names: Sequence[str], options: Sequence[str], stdout: Any) -> Session:
    from lora_ga_cli.stages.chat.models import generation_options, load_models
    from lora_ga_cli.stages.chat.session import Session
    from lora_ga_cli.stages.chat.settings import OF_CHAT, generation

    others, chosen = generation_options(options)

    generation(chosen)
    models = load_models(names, others, chosen.get("prompt"))
    of_run = next(iter(models.speakers.values())).inputs.config.eval
    stored = {name: getattr(of_run, name) for name in OF_CHAT if name != "prompt" and hasattr(of_run, name)}
    options_now = generation({**stored, **chosen})
    if Output.as_json:
        return Session(models, options_now, JsonLines(stdout))
    return Session(models, options_now, Terminal() if sys.stdin.isatty() else Lines(stdout))


class Terminal:
    """Shows a chat on a terminal."""

    interactive = True

    def say(self, text: str) -> None:
        from rich.text import Text

        from lora_ga_cli.report.console import out
        from lora_ga_cli.report.visible import visible

        out.print(Text(visible(text), style="dim"), soft_wrap=False)

    def refuse(self, text: str) -> None:
        from rich.text import Text

        from lora_ga_cli.report.console import out
        from lora_ga_cli.report.visible import visible

        out.print(Text(visible(text), style="yellow"), soft_wrap=False)

    @contextlib.contextmanager
    def answers(self, names: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
        from lora_ga_cli.report.console import out

        if len(names) > 1 and out.is_terminal and out.width >= SIDE_BY_SIDE:
            with _side_by_side(names) as write:
                yield write
            return
        with _one_after_another(names) as write:
            yield write


@contextlib.contextmanager
def _one_after_another(names: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
    """Answers beneath one another. Where they come together, the text of a later one waits for the earlier one."""
    from rich.text import Text

    from lora_ga_cli.report.console import out
    from lora_ga_cli.report.visible import visible

    waiting = ["" for _ in names]

    def show(text: str, **options: Any) -> None:
        out.print(Text(visible(text), **options), end="")

    def write(number: int, text: str) -> None:
        if number:
            waiting[number] += text
        else:
            show(text)

    show(f"{names[0]}> ", style="bold cyan")
    try:
        yield write
    finally:
        out.print()
        for name, text in zip(names[1:], waiting[1:], strict=True):
            show(f"{name}> ", style="bold cyan")
            show(text)
            out.print()


@contextlib.contextmanager
def _side_by_side(names: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from lora_ga_cli.report.console import out
    from lora_ga_cli.report.visible import visible

    texts = ["" for _ in names]

    def table() -> Table:
        shown = Table(expand=True, header_style="bold cyan", border_style="dim")
        for name in names:
            shown.add_column(Text(visible(name)), ratio=1, overflow="fold")
        shown.add_row(*(Text(visible(text)) for text in texts))
        return shown

    def write(number: int, text: str) -> None:
        texts[number] += text
        live.update(table())

    try:
        with Live(table(), console=out, transient=True, refresh_per_second=8) as live:
            yield write
    finally:
        out.print(table())


class Lines:
    """Writes the answer to each line of a pipe.

    Args:
        stdout: where answers go; all else goes to standard error.
    """

    interactive = False

    def __init__(self, stdout: Any):
        self._stdout = stdout

    def say(self, text: str) -> None:
        from lora_ga_cli.report.console import say
        from lora_ga_cli.report.visible import visible

        say(visible(text))

    def refuse(self, text: str) -> None:
        from lora_ga_cli.report.console import warn
        from lora_ga_cli.report.visible import visible

        warn(visible(text))

    @contextlib.contextmanager
    def answers(self, names: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
        from lora_ga_cli.report.visible import visible

        texts = ["" for _ in names]
        yield functools.partial(_append, texts)
        for name, text in zip(names, texts, strict=True):
            heading = f"{visible(name)}> " if len(names) > 1 else ""
            self._stdout.write(f"{heading}{visible(text)}\n")
        self._stdout.flush()


def _append(texts: list[str], number: int, text: str) -> None:
    """Adds a piece to one of several answers that are written at the same time."""
    texts[number] += text


class JsonLines(Lines):
    """Writes one JSON object for each line of a pipe: the line, the answers, and what the program said to it."""

    def __init__(self, stdout: Any):
        super().__init__(stdout)
        self._answers: list[dict[str, str]] = []
        self._said: list[str] = []
        self._refused: str | None = None

    def say(self, text: str) -> None:
        super().say(text)
        self._said.append(text)

    def refuse(self, text: str) -> None:
        super().refuse(text)
        self._refused = text

    @contextlib.contextmanager
    def answers(self, names: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
        texts = ["" for _ in names]
        yield functools.partial(_append, texts)
        self._answers = [{"name": name, "text": text} for name, text in zip(names, texts, strict=True)]

    def begin(self) -> None:
        """Forgets what belongs to earlier lines."""
        self._answers, self._said, self._refused = [], [], None

    def end(self, line: str) -> None:
        """Writes what belongs to a line."""
        found = {"line": line, "answers": self._answers, "said": self._said, "refused": self._refused}
        print_line(found, self._stdout)


def _answer_lines(session: Session) -> None:
    stream = getattr(sys.stdin, "buffer", None)
    display = session.display
    for line in sys.stdin if stream is None else stream:
        text = (line if isinstance(line, str) else line.decode("utf-8", errors="replace")).rstrip("\r\n")
        if isinstance(display, JsonLines):
            display.begin()
        goes_on = session.handle(text)
        if isinstance(display, JsonLines) and text.strip():
            display.end(text)
        if not goes_on:
            return


def _converse(session: Session) -> None:
    """Reads messages until the user leaves: by /quit or Ctrl-D, or by a second Ctrl-C without a message between."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - lines can be edited, and earlier ones come back

    display = session.display
    display.say("/help lists the commands, /quit leaves")
    interrupted = False
    while True:
        try:
            line = input(YOU)
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo()
            if interrupted:
                return
            interrupted = True
            display.say("Ctrl-C again leaves")
            continue
        except UnicodeDecodeError:
            display.refuse("this line is not UTF-8")
            continue
        interrupted = False
        try:
            if not session.handle(line.encode("utf-8", errors="replace").decode("utf-8")):
                return
            interrupted = session.interrupted
        except KeyboardInterrupt:
            interrupted = True
