"""HumanEval: functions to write from their docstrings (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

import ast
import math
import os
import re
import symtable
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lora_ga_cli.config.schema import EvalOptions, Positive
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.template import as_text
from lora_ga_cli.errors import DataError, Fault, InvalidInput
from lora_ga_cli.evaluation.benchmark_rows import benchmark_rows
from lora_ga_cli.evaluation.prompt import question_template
from lora_ga_cli.evaluation.sandbox.check import check as check_sandbox
from lora_ga_cli.evaluation.sandbox.sandbox import Limits
from lora_ga_cli.evaluation.sandbox.verdict import PASSED, CandidateProgram, grade
from lora_ga_cli.evaluation.tasks.answers import Answer, answers_of_completion
from lora_ga_cli.evaluation.tasks.base import Progress, Score
from lora_ga_cli.evaluation.tasks.benchmark import Benchmark, Completion, GenerationOptions, Problem, collect_faults
from lora_ga_cli.registry import TASKS

PROMPT = "{question}"
"""The question is a module up to the end of the function's docstring, which a base model continues."""
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\nassert")
"""The paper's stop sequences (section 2.3), and ``assert``, which begins tests."""
COLUMNS = ("task_id", "prompt", "entry_point", "test")
NO_CODE = "no code"
FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
PYTHON = ("python", "python3", "py")
FUTURE = re.compile(r"^from __future__ import .+\n", re.MULTILINE)
DEFINITIONS = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Assign,
    ast.AnnAssign,
)
"""What a block of helpers is made of. Calls, tests and loops beside them would run with the answer."""
CLOSERS = (")", "]", "}")
"""A line that begins with one of these in the first column still belongs to the function: it closes a bracket."""
MODULE_LEVEL = re.compile(r"(?:from\s+\S+\s+import|import|def|class|async\s+def)\s|@\w|\w+\s*=[^=]|#")
"""What begins a line of a program outside its functions, and rarely a line of prose."""


class HumanEvalOptions(GenerationOptions):
    """Options of HumanEval."""

    task: Literal["humaneval"] = "humaneval"
    """What is scored."""
    pass_at: list[Positive] = Field([1], min_length=1)
    """The k of pass@k; at most ``samples``."""
    execute_code: bool = False
    """Allow to run the programs that the model writes, in a sandbox. Can only be set on the command line."""
    timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that a program may take."""


@TASKS.register("humaneval")
class HumanEval(Benchmark):
    """The problems of HumanEval. A completion counts if its program passes the tests; programs run in a `sandbox`.

    ``pass@k``, for each k of ``eval.pass_at``, is the probability that at least one of k completions passes: the
    unbiased estimate from all completions (equation 1 of the paper), averaged over the problems. ``no_code`` is the
    share of completions that contain no program; they fail.
    """

    Options = HumanEvalOptions
    options: HumanEvalOptions
    irrelevant: ClassVar = {"execute_code": True}

    def __init__(self, options: EvalOptions, cache: Path | None = None):
        super().__init__(options, cache)
        self._prompt = PROMPT if self.options.prompt is None else self.options.prompt
        # with another prompt, the answer may begin with a complete module
        self.stops = STOPS if self.options.prompt is None else ()

    def check_requirements(self) -> None:
        """Refuses a machine without a sandbox, too few samples, and programs that the user has not allowed.

        Raises:
            InvalidInput, UserError
        """
        options = self.options
        faults: list[Fault] = []
        if not options.execute_code:
            what = "the programs that the model writes would run on this machine, in a sandbox"
            faults.append(Fault("eval.execute_code", what, "eval.execute_code=true on the command line allows it"))
        if max(options.pass_at) > options.samples:
            k = max(options.pass_at)
            what = f"pass@{k} needs at least {k} samples a problem, and there are {options.samples}"
            faults.append(Fault("eval.pass_at", what, f"eval.samples={k}"))
        collect_faults(faults, lambda: question_template(self._prompt))
        if faults:
            raise InvalidInput(faults)
        check_sandbox()

    def problems(self) -> Sequence[Problem]:
        """All problems, in the order of their file.

        Raises:
            DataError: a missing file, or a row without the columns of HumanEval.
        """
        rows = benchmark_rows(self.options, COLUMNS, path="openai/openai_humaneval", split="test")
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

    def score(self, completions: Sequence[Completion], progress: Progress) -> Score:
        """Runs the program of every completion, as many at a time as there are processors.

        Raises:
            UserError: no sandbox could be built.
        """
        programs = [_program_of(completion) for completion in completions]
        reasons = [NO_CODE] * len(completions)
        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        try:
            running = {
                pool.submit(self._grade, completion.problem, program): index
                for index, (completion, program) in enumerate(zip(completions, programs, strict=True))
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
        values = self._values(completions, reasons)
        return Score(values, verdicts, lower_is_better=frozenset({"no_code"}), shares=frozenset(values))

    @classmethod
    def answers(cls, lines: Sequence[Mapping[str, Any]]) -> list[Answer]:
        verdicts = [(str(line["reason"]), bool(line["passed"])) for line in lines]
        found = zip(lines, verdicts, strict=True)
        return [answer for line, one in found for answer in answers_of_completion(line, [one], is_code=True)]

    def _grade(self, problem: Problem, program: str) -> str:
        row = problem.row
        candidate = CandidateProgram(program, row["entry_point"], row["prompt"], row["test"])
        return grade(candidate, Limits(seconds=self.options.timeout))

    def _values(self, completions: Sequence[Completion], reasons: Sequence[str]) -> dict[str, float]:
        outcomes: dict[str, list[bool]] = {}
        for completion, reason in zip(completions, reasons, strict=True):
            outcomes.setdefault(completion.problem.id, []).append(reason == PASSED)
        values = {
            f"pass@{k}": math.fsum(pass_at_k(len(passed), sum(passed), k) for passed in outcomes.values())
            / len(outcomes)
            for k in self.options.pass_at
        }
        return {**values, "no_code": reasons.count(NO_CODE) / len(reasons)}


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that at least one of k samples passes, drawn without replacement from n of which c pass.

    That is 1 - C(n-c, k) / C(n, k), computed as a product, which neither overflows nor cancels (the paper's figure 3).
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"no {k} of {n} samples with {c} right")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def extract_program(text: str, prompt: str, entry_point: str) -> str | None:
    """The program in a completion.

    A completion whose first line is indented continues the prompt. In any other, the program is the first fenced block
    that defines the function (blocks marked as Python come first), or else the first block, or else the complete text.
    If it defines the function, it is put after the part of the prompt before the function (imports and helpers), and
    after those other blocks that define what it uses. If not, it continues the prompt: a block that is a function's
    body without its indentation as a whole, anything else up to the end of the function.

    Args:
        prompt: the problem's prompt, up to the end of the docstring.

    Returns:
        None if there is no program.
    """
    text = text.replace("\r\n", "\n")
    continues = _starts_indented(text)
    no_block = continues or _defines(text.partition("```")[0], entry_point)
    block = None if no_block else _fenced(text, entry_point)
    code = text if block is None else block
    if _defines(code, entry_point) and not continues:
        module = _module(text, entry_point) if block is None else _with_helpers(code, text, prompt)
        return _join(prompt[: _definition(entry_point, prompt)], module)
    body = (_unindented_body(block, prompt) if block is not None else None) or _body(code, prompt)
    return prompt + body if body.strip() else None


def _join(before: str, module: str) -> str:
    futures = "".join(re.findall(FUTURE, module))  # they must come first
    module = re.sub(FUTURE, "", module).strip("\n") + "\n"
    return futures + f"{before.rstrip()}\n\n{module}".lstrip("\n")


def _program_of(completion: Completion) -> str | None:
    row = completion.problem.row
    return extract_program(completion.texts[-1], row["prompt"], row["entry_point"])


def _definition(entry_point: str, code: str) -> int:
    """The position where the function's definition begins; -1 if there is none."""
    match = re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b", code, re.MULTILINE)
    return match.start() if match else -1


def _defines(code: str, entry_point: str) -> bool:
    return _definition(entry_point, code) >= 0


def _starts_indented(text: str) -> bool:
    """Whether the first line with text is indented by at least two spaces or a tab."""
    return re.match(r"\s*?^(?: {2,}|\t)[ \t]*\S", text, re.MULTILINE) is not None


def _dedented(text: str) -> list[tuple[bool, str]]:
    """Whether each fenced block is marked as Python, and its code."""
    # a block in a list item is indented
    return [(language.lower() in PYTHON, textwrap.dedent(code)) for language, code in FENCE.findall(text)]


def _fenced(text: str, entry_point: str) -> str | None:
    blocks = [(language.lower() in PYTHON, code) for language, code in FENCE.findall(text)]
    dedented = _dedented(text)
    defining = [(is_python, code) for is_python, code in dedented if _defines(code, entry_point)]
    chosen = max(defining, key=lambda block: block[0], default=None) or next(iter(blocks), None)
    return None if chosen is None else chosen[1]


def _with_helpers(code: str, text: str, prompt: str) -> str:
    """A block's code after those other blocks of its text that define names which it uses, and that neither it nor the
    prompt defines. Blocks that do anything else than define, such as calls and tests, stay out."""
    blocks = [block for _, block in _dedented(text) if block != code and _only_defines(block)]
    have = _top_level(prompt)[0] | _top_level(code)[0]
    needed, helpers = _top_level(code)[1] - have, [code]
    while useful := [block for block in blocks if _top_level(block)[0] & needed]:
        blocks.remove(useful[0])
        helpers.insert(0, useful[0])
        defines, uses = _top_level(useful[0])
        have |= defines
        needed = (needed | uses) - have
    return "\n\n".join(block.strip("\n") for block in helpers) + "\n"


def _only_defines(code: str) -> bool:
    tree = _parsed(code)
    return tree is not None and bool(tree.body) and all(isinstance(item, DEFINITIONS) for item in tree.body)


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _top_level(code: str) -> tuple[set[str], set[str]]:
    """The names that a module defines at its top level, and the global names that it uses anywhere."""
    try:
        module = symtable.symtable(code, "completion", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return set(), set()
    defined = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    used, tables = set(), [module]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()}
    return defined, used


def _unindented_body(block: str, prompt: str) -> str | None:
    """A block that is the function's body, indented as the prompt is; None if it is not a body without indentation."""
    block = block.strip("\n")
    if block[:1].isspace() or not block or _only_defines(block):
        return None
    body = textwrap.indent(block, _indentation(prompt)) + "\n"
    return body if _parsed(prompt + body) is not None else None


def _indentation(prompt: str) -> str:
    """The indentation of the prompt's last line, which ends the docstring."""
    docstring_end = prompt.rstrip().split("\n")[-1]
    return docstring_end[: len(docstring_end) - len(docstring_end.lstrip())]


def _module(text: str, entry_point: str) -> str:
    """A program outside of fences, without the prose around it and without code that runs after it."""
    start = _definition(entry_point, text)
    head, rest = text[:start].split("\n")[:-1], text[start:].split("\n")
    first = next((number for number, line in enumerate(head) if MODULE_LEVEL.match(line)), len(head))
    end = next((number for number, line in enumerate(rest) if _is_outside(line)), len(rest))
    return "\n".join(head[first:] + rest[:end])


def _is_outside(line: str) -> bool:
    return not (_is_inside(line) or MODULE_LEVEL.match(line))


def _is_inside(line: str) -> bool:
    """Whether a line can belong to the function before it."""
    return (not line or line[0].isspace() or line.startswith(CLOSERS)) and not line.lstrip().startswith("```")


def _body(text: str, prompt: str) -> str:
    """The lines of a function body, up to a line that ends it: any text in the first column.

    This includes the official stop sequences (a class, def, comment, if or print in the first column).
    """
    lines = text.rstrip().split("\n")
    start = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    lines = lines[start:]
    if not lines or lines[0].lstrip().startswith("```"):
        return ""
    indent = _indentation(prompt)
    if not lines[0].startswith((indent, "\t")):
        lines[0] = indent + lines[0].lstrip()  # decoding may remove spaces at the beginning of a text
    end = next((number for number, line in enumerate(lines) if not _is_inside(line)), len(lines))
    return "\n".join(lines[:end]).rstrip() + "\n"
