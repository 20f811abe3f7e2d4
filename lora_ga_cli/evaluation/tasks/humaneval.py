"""HumanEval: functions to write from their docstrings (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from lora_ga_cli.config.schema import EvalConfig
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.template import as_text
from lora_ga_cli.errors import DataError, Fault, InvalidInput
from lora_ga_cli.evaluation.gathering import gathered
from lora_ga_cli.evaluation.prompt import prompt_of, question_template
from lora_ga_cli.evaluation.rows import benchmark_rows
from lora_ga_cli.evaluation.sandbox.check import check as check_sandbox
from lora_ga_cli.evaluation.sandbox.sandbox import Limits
from lora_ga_cli.evaluation.sandbox.verdict import PASSED, CandidateProgram, grade
from lora_ga_cli.evaluation.tasks.base import Problem, Progress, Reply, Score

PROMPT = "{question}"
"""The question is a module up to the end of the function's docstring, and a base model goes on with it."""
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\nassert")
"""The paper's (section 2.3), and tests that the model would write next."""
COLUMNS = ("task_id", "prompt", "entry_point", "test")
NO_CODE = "no code"
FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
PYTHON = ("python", "python3", "py")
FUTURE = re.compile(r"^from __future__ import .+\n", re.MULTILINE)
CLOSERS = (")", "]", "}")
"""With these a line in the first column goes on with the function: they close a bracket of its body."""
MODULE_LEVEL = re.compile(r"(?:from\s+\S+\s+import|import|def|class|async\s+def)\s|@\w|\w+\s*=[^=]|#")
"""What stands in the first column of a program around its functions, and of prose seldom."""


class HumanEval:
    """The problems of HumanEval. Programs run in sandboxes (see `sandbox`), and a reply counts if its program passes.

    ``pass@k`` for the k of ``eval.pass_at`` is the chance that of k replies at least one passes, estimated without bias
    from all (equation 1 of the paper) and averaged over the problems. ``no_code`` is the share of replies in which
    nothing was found that could run; those fail.
    """

    name = "humaneval"
    chat = False
    stops: tuple[str, ...]

    def __init__(self, options: EvalConfig):
        self._options = options
        self._prompt = prompt_of(options, PROMPT)
        # a reply to a prompt of another kind may begin with a whole module
        self.stops = STOPS if options.prompt is None else ()

    def check(self) -> None:
        """Refuses without leave to run programs, samples enough or a sandbox.

        Raises:
            InvalidInput, UserError
        """
        options = self._options
        faults: list[Fault] = []
        if not options.execute_code:
            what = "the programs that the model writes would run on this machine, in a sandbox"
            faults.append(Fault("eval.execute_code", what, "eval.execute_code=true on the command line allows it"))
        if max(options.pass_at) > options.samples:
            k = max(options.pass_at)
            what = f"pass@{k} needs at least {k} samples a problem, and there are {options.samples}"
            faults.append(Fault("eval.pass_at", what, f"eval.samples={k}"))
        gathered(faults, lambda: question_template(self._prompt))
        if faults:
            raise InvalidInput(faults)
        check_sandbox()

    def problems(self) -> Sequence[Problem]:
        """All problems, in the order of their file.

        Raises:
            DataError: no such file, or a row that is not as HumanEval's are.
        """
        rows = benchmark_rows(self._options, COLUMNS, path="openai/openai_humaneval", split="test")
        template, problems, faults = question_template(self._prompt), [], []
        for number, row in enumerate(rows):
            try:
                texts = {column: as_text(row, column) for column in COLUMNS}
                prompt = template.fill({"question": texts["prompt"]})
            except BadRow as bad:
                faults.append(Fault(f"problem {number + 1}", str(bad)))
                continue
            if not _defines(texts["prompt"], texts["entry_point"]):
                what = f"its prompt does not define {texts['entry_point']!r}"
                faults.append(Fault(f"problem {number + 1}", what, "entry_point names the function to write"))
            problems.append(Problem(texts["task_id"], (prompt,), texts))
        if faults:
            raise DataError(faults)
        return problems

    def grading(self) -> Mapping[str, Any]:
        return {}

    def score(self, replies: Sequence[Reply], progress: Progress) -> Score:
        """Runs the program of every reply, as many at once as there are processors.

        Raises:
            UserError: no sandbox could be built.
        """
        programs = [_program_of(reply) for reply in replies]
        reasons = [NO_CODE] * len(replies)
        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        try:
            running = {
                pool.submit(self._try, reply.problem, program): index
                for index, (reply, program) in enumerate(zip(replies, programs, strict=True))
                if program is not None
            }
            with progress("eval", "run", len(running)) as report:
                for done, future in enumerate(as_completed(running), start=1):
                    reasons[running[future]] = future.result()
                    report(done)
        finally:
            pool.shutdown(cancel_futures=True)
        verdicts = [
            {"program": program, "passed": reason == PASSED, "reason": reason}
            for program, reason in zip(programs, reasons, strict=True)
        ]
        return Score(self._values(replies, reasons), verdicts)

    def _try(self, problem: Problem, program: str) -> str:
        row = problem.row
        candidate = CandidateProgram(program, row["entry_point"], row["prompt"], row["test"])
        return grade(candidate, Limits(seconds=self._options.timeout))

    def _values(self, replies: Sequence[Reply], reasons: Sequence[str]) -> dict[str, float]:
        outcomes: dict[str, list[bool]] = {}
        for reply, reason in zip(replies, reasons, strict=True):
            outcomes.setdefault(reply.problem.id, []).append(reason == PASSED)
        values = {
            f"pass@{k}": math.fsum(pass_at_k(len(passed), sum(passed), k) for passed in outcomes.values())
            / len(outcomes)
            for k in self._options.pass_at
        }
        return {**values, "no_code": reasons.count(NO_CODE) / len(reasons)}


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that of k of n samples, drawn without replacement, at least one is among the c that pass.

    That is 1 - C(n-c, k) / C(n, k), as a product that neither overflows nor cancels (the paper's figure 3).
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"no {k} of {n} samples with {c} right")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def extract_program(text: str, prompt: str, entry_point: str) -> str | None:
    """The program of a reply.

    A reply whose first line is indented goes on with the prompt. Of any other, the first fenced block counts that
    defines the function, those of Python before all; or else the first block; or else all of it. If that defines the
    function, it is the program, after what the prompt has before the function (imports and helpers); if not, it goes on
    with the prompt, up to where the function ends.

    Args:
        prompt: the problem's own, up to the end of the docstring.

    Returns:
        None if nothing is left.
    """
    text = text.replace("\r\n", "\n")
    goes_on = _starts_indented(text)
    is_bare = goes_on or _defines(text.partition("```")[0], entry_point)
    block = None if is_bare else _fenced(text, entry_point)
    code = text if block is None else block
    if _defines(code, entry_point) and not goes_on:
        return _join(prompt[: _definition(entry_point, prompt)], _module(text, entry_point) if block is None else code)
    body = _body(code, prompt)
    return prompt + body if body.strip() else None


def _join(before: str, module: str) -> str:
    futures = "".join(re.findall(FUTURE, module))  # which must come first
    module = re.sub(FUTURE, "", module).strip("\n") + "\n"
    return futures + f"{before.rstrip()}\n\n{module}".lstrip("\n")


def _program_of(reply: Reply) -> str | None:
    row = reply.problem.row
    return extract_program(reply.texts[-1], row["prompt"], row["entry_point"])


def _definition(entry_point: str, code: str) -> int:
    """Where the function's definition begins; -1 if nowhere."""
    found = re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b", code, re.MULTILINE)
    return found.start() if found else -1


def _defines(code: str, entry_point: str) -> bool:
    return _definition(entry_point, code) >= 0


def _starts_indented(text: str) -> bool:
    """Whether the first line with anything on it is indented; by one space also prose may be."""
    return re.match(r"\s*?^(?: {2,}|\t)[ \t]*\S", text, re.MULTILINE) is not None


def _fenced(text: str, entry_point: str) -> str | None:
    blocks = [(language.lower() in PYTHON, code) for language, code in FENCE.findall(text)]
    dedented = [(is_python, textwrap.dedent(code)) for is_python, code in blocks]  # of a list item, say
    defining = [(is_python, code) for is_python, code in dedented if _defines(code, entry_point)]
    chosen = max(defining, key=lambda block: block[0], default=None) or next(iter(blocks), None)
    return None if chosen is None else chosen[1]


def _module(text: str, entry_point: str) -> str:
    """A program without fences, less the prose around it and what runs after it."""
    start = _definition(entry_point, text)
    head, rest = text[:start].split("\n")[:-1], text[start:].split("\n")
    first = next((number for number, line in enumerate(head) if MODULE_LEVEL.match(line)), len(head))
    end = next((number for number, line in enumerate(rest) if _is_outside(line)), len(rest))
    return "\n".join(head[first:] + rest[:end])


def _is_outside(line: str) -> bool:
    return not (_is_inside(line) or MODULE_LEVEL.match(line))


def _is_inside(line: str) -> bool:
    """Whether a line may belong to the function before it."""
    return (not line or line[0].isspace() or line.startswith(CLOSERS)) and not line.lstrip().startswith("```")


def _body(text: str, prompt: str) -> str:
    """The lines of a function up to the one that ends it.

    The official stop sequences (a class, def, comment, if or print in the first column) and whatever else stands there.
    """
    lines = text.rstrip().split("\n")
    start = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    lines = lines[start:]
    if not lines or lines[0].lstrip().startswith("```"):
        return ""
    docstring_end = prompt.rstrip().split("\n")[-1]
    indent = docstring_end[: len(docstring_end) - len(docstring_end.lstrip())]
    if not lines[0].startswith((indent, "\t")):
        lines[0] = indent + lines[0].lstrip()  # decoding may strip spaces where a text begins
    end = next((number for number, line in enumerate(lines) if not _is_inside(line)), len(lines))
    return "\n".join(lines[:end]).rstrip() + "\n"
