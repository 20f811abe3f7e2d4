"""HumanEval: which program a completion holds, what runs of them are worth, and that the published solutions pass."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.errors import DataError, InvalidInput, UserError
from lora_ga_cli.evaluation.sandbox.verdict import CandidateProgram
from lora_ga_cli.evaluation.tasks import humaneval
from lora_ga_cli.evaluation.tasks.base import Score
from lora_ga_cli.evaluation.tasks.benchmark import Benchmark, Completion, Problem
from lora_ga_cli.evaluation.tasks.humaneval import HumanEval, HumanEvalOptions, extract_program, pass_at_k
from lora_ga_cli.report.progress import counting
from tests.conftest import SHARED_DATA

Options = Callable[..., HumanEvalOptions]
PUBLISHED = SHARED_DATA / "humaneval" / "HumanEval.jsonl.gz"
HEAD = "from typing import List\n\n\ndef helper(x):\n    return x\n\n\n"
PROMPT = HEAD + 'def double(x: int) -> int:\n    """ Twice x\n    """\n'
TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == -6\n"
ROW = {"task_id": "HumanEval/0", "prompt": PROMPT, "entry_point": "double", "test": TEST}
OTHER = {
    "task_id": "HumanEval/1",
    "prompt": 'def one():\n    """ One """\n',
    "entry_point": "one",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}
FULL = "def double(x):\n    return x + x\n"


@pytest.fixture
def options(tmp_path: Path) -> Options:
    def build(rows: list[dict[str, Any]] | None = None, **changed: Any) -> HumanEvalOptions:
        file = tmp_path / "problems.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows or [ROW, OTHER]))
        return HumanEvalOptions(**{"file": str(file), "execute_code": True, **changed})

    return build


def completions(problems: list[Problem], *texts: list[str]) -> list[Completion]:
    """Replies to problems, several texts to each."""
    return [
        Completion(problem, sample, problem.turns, (text,))
        for problem, samples in zip(problems, texts, strict=True)
        for sample, text in enumerate(samples)
    ]


class TestPassAtK:
    @pytest.mark.parametrize("n", range(1, 8))
    def test_it_is_the_share_of_subsets_with_a_right_one(self, n: int) -> None:
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations(range(n), k))
            share = sum(min(subset) < c for subset in subsets) / len(subsets)
            assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)

    def test_many_samples_neither_overflow_nor_cancel(self) -> None:
        assert pass_at_k(10_000, 1, 1) == pytest.approx(1e-4, rel=1e-9)
        assert pass_at_k(10_000, 5000, 100) == pytest.approx(
            1 - math.comb(5000, 100) / math.comb(10_000, 100), rel=1e-12
        )

    @pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 2), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
    def test_impossible_counts_are_refused(self, n: int, c: int, k: int) -> None:
        with pytest.raises(ValueError, match=f"no {k} of {n} samples"):
            pass_at_k(n, c, k)


class TestExtract:
    @pytest.mark.parametrize(
        ("text", "body"),
        [
            ("    return 2 * x\n", "    return 2 * x\n"),
            ("\n\n    return 2 * x", "    return 2 * x\n"),
            ("    return 2 * x\n\n\ndef main():\n    pass\n", "    return 2 * x\n"),
            ("    y = 2\n\n    return y * x\nclass A:\n", "    y = 2\n\n    return y * x\n"),
            ("    return 2 * x\n# Test\n", "    return 2 * x\n"),
            ("    # twice\n    return 2 * x\nif __name__ == '__main__':\n", "    # twice\n    return 2 * x\n"),
            ("    return 2 * x\nprint(double(2))", "    return 2 * x\n"),
            ("    return 2 * x\nassert double(2) == 4", "    return 2 * x\n"),
            ("    return 2 * x\n```\nThis doubles.\n```python\ndouble(1)\n```", "    return 2 * x\n"),
            ("    return 2 * x\n    ```\n", "    return 2 * x\n"),
            ("    return sum([\n        x,\n        x,\n])\nprint()", "    return sum([\n        x,\n        x,\n])\n"),
            ("   return 2 * x\n", "    return 2 * x\n"),
            ("return 2 * x\n", "    return 2 * x\n"),
            ("y = 2\n    return y * x\n", "    y = 2\n    return y * x\n"),
            ("\treturn 2 * x\n", "\treturn 2 * x\n"),
            ("    return 2 * x\r\n    \r\ndef f\r\n", "    return 2 * x\n"),
            ("```python\n    return 2 * x\n```\n", "    return 2 * x\n"),
            ("```\n    return 2 * x\nprint(1)\n```\n", "    return 2 * x\n"),
            ("    return 2 * x\ndef", "    return 2 * x\n"),
        ],
    )
    def test_a_continuation_follows_the_prompt_to_the_end_of_the_function(self, text: str, body: str) -> None:
        assert extract_program(text, PROMPT, "double") == PROMPT + body

    @pytest.mark.parametrize(
        "text",
        [
            f"Here:\n```python\n{FULL}```\nIt adds.",
            f"Here:\n```python\n{FULL}",
            f"Here:\n```\n{FULL}```",
            f"```bash\npip install x\n```\n```python\nimport x\n```\n```py\n{FULL}```\n```python\n{FULL}# again\n```",
            f"```\n{FULL}# not marked\n```\n```python\n{FULL}```",
            f"1. First\n   ```python\n   {FULL.replace(chr(10), chr(10) + '   ')}\n   ```\n",
        ],
    )
    def test_the_first_python_block_with_the_function_is_the_program(self, text: str) -> None:
        found = extract_program(text, PROMPT, "double")
        assert found is not None
        assert found.rstrip() == f"{HEAD.rstrip()}\n\n{FULL}".rstrip()

    def test_what_stands_around_the_function_in_a_block_stays(self) -> None:
        block = f"import math\n{FULL}\ndef more():\n    pass\nX = 1\n"
        assert extract_program(f"```python\n{block}```", PROMPT, "double") == f"{HEAD.rstrip()}\n\n{block}"

    @pytest.mark.parametrize(
        ("text", "program"),
        [
            (FULL, FULL),
            (f"Sure! Here it is:\n\n{FULL}\nThis doubles x.\n", FULL),
            (f"import math\n\n{FULL}\nprint(double(2))\n", f"import math\n\n{FULL}"),
            (f"{FULL}\ndef more():\n    pass\n\nassert double(1)", f"{FULL}\ndef more():\n    pass\n"),
            (f"{FULL}```\n", FULL),
            (f"{FULL}```\nIn use:\n```python\ndouble(1)\n```", FULL),
        ],
    )
    def test_a_whole_program_without_fences_loses_the_prose(self, text: str, program: str) -> None:
        assert extract_program(text, PROMPT, "double") == f"{HEAD.rstrip()}\n\n{program}"

    def test_a_block_of_another_function_is_taken_as_it_is(self) -> None:
        assert extract_program("```python\nprint(1)\n```", PROMPT, "double") == f"{PROMPT}    print(1)\n"

    @pytest.mark.parametrize(
        "others",
        [
            (
                "def twice(x):\n    return plus(x, x)\n",
                "from operator import add\n\n\ndef plus(a, b):\n    return add(a, b)\n",
            ),
            (
                "import operator\n\n\nclass Sum:\n    plus = operator.add\n\n\nPLUS = Sum.plus\n\n\n"
                "def twice(x):\n    return PLUS(x, x)\n",
            ),
        ],
        ids=["a helper of a helper", "everything that defines"],
    )
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    def test_helpers_in_blocks_of_their_own_belong_to_the_program(self, others: tuple[str, ...], after: bool) -> None:
        own = "def double(x):\n    return twice(x)\n"
        unused = ["double(2)\n", "x = double(1)\n", "def twice(\n", "pip install numpy\n"]
        blocks = [own, *others] if after else [*others, own]
        text = "\n".join(f"Then:\n```python\n{block}```" for block in [*blocks, *unused])
        scope: dict[str, Any] = {}
        program = extract_program(text, PROMPT, "double")
        assert program is not None
        exec(program, scope)
        assert scope["double"](4) == 8
        assert "x = double" not in program
        assert "pip" not in program

    def test_a_helper_that_the_prompt_has_is_not_replaced(self) -> None:
        text = "```python\ndef helper(x):\n    return 0\n```\n```python\ndef double(x):\n    return 2 * helper(x)\n```"
        assert (
            extract_program(text, PROMPT, "double") == f"{HEAD.rstrip()}\n\ndef double(x):\n    return 2 * helper(x)\n"
        )

    @pytest.mark.parametrize(
        "block", ["s = x\ns += x\nreturn s\n", "\nif x:\n    s = x\nelse:\n    s = 0\n\nreturn s + s\n"]
    )
    def test_a_body_without_indentation_is_indented_whole(self, block: str) -> None:
        scope: dict[str, Any] = {}
        program = extract_program(f"Sure:\n```python\n{block}```\nDone.", PROMPT, "double")
        assert program is not None
        exec(program, scope)
        assert scope["double"](4) == 8

    def test_future_imports_come_first(self) -> None:
        found = extract_program(f"```python\nfrom __future__ import annotations\n{FULL}```", PROMPT, "double")
        assert found is not None
        assert found.startswith("from __future__ import annotations\nfrom typing import List\n")
        compile(found, "program.py", "exec")

    def test_a_longer_name_is_another_function(self) -> None:
        found = extract_program("```python\ndef double_it(x): return 2\n```", PROMPT, "double")
        assert found is not None
        assert found.startswith(PROMPT)

    @pytest.mark.parametrize("text", ["", "\n \n", "```", "```python\n```"])
    def test_there_may_be_none(self, text: str) -> None:
        assert extract_program(text, PROMPT, "double") is None


class TestCheck:
    def test_leave_and_samples_and_prompt_are_asked_for_together(self, options: Options) -> None:
        with pytest.raises(InvalidInput) as raised:
            HumanEval(options(execute_code=False, pass_at=[1, 10], samples=5, prompt="Solve!")).check_requirements()
        first, second, third = str(raised.value).splitlines()
        assert "eval.execute_code=true on the command line" in first
        assert "would run" in first
        assert second == "eval.pass_at: pass@10 needs at least 10 samples a problem, and there are 5 (eval.samples=10)"
        assert "'Solve!' must have {question}" in third

    def test_a_broken_template_is_refused(self, options: Options) -> None:
        with pytest.raises(InvalidInput, match=r"eval\.prompt: "):
            HumanEval(options(prompt="{question")).check_requirements()

    def test_without_a_sandbox_it_refuses(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> None:
            raise UserError("no sandbox")

        monkeypatch.setattr(humaneval, "check_sandbox", refuse)
        with pytest.raises(UserError, match="no sandbox"):
            HumanEval(options()).check_requirements()

    @pytest.mark.usefixtures("sandbox")
    def test_it_is_content_with_leave_and_a_sandbox(self, options: Options) -> None:
        benchmark: Benchmark = HumanEval(options())
        benchmark.check_requirements()
        assert benchmark.name == "humaneval"


class TestProblems:
    def test_the_prompt_is_the_problem(self, options: Options) -> None:
        problems = HumanEval(options()).problems()
        assert [problem.id for problem in problems] == ["HumanEval/0", "HumanEval/1"]
        assert problems[0].turns == (PROMPT,)

    def test_a_template_goes_around_it(self, options: Options) -> None:
        benchmark = HumanEval(options(prompt="Complete:\n{question}Answer:", limit=1))
        (problem,) = benchmark.problems()
        assert problem.turns == (f"Complete:\n{PROMPT}Answer:",)
        assert problem.row["prompt"] == PROMPT

    def test_stop_sequences_are_for_continuations_only(self, options: Options) -> None:
        assert "\ndef" in HumanEval(options()).stops
        assert HumanEval(options(prompt="{question}\n### Response:\n")).stops == ()

    @pytest.mark.parametrize(
        ("changed", "what"),
        [({"test": None}, "problem 1: column 'test' is null"), ({"entry_point": "triple"}, "does not define 'triple'")],
    )
    def test_other_rows_are_refused(self, options: Options, changed: dict[str, Any], what: str) -> None:
        with pytest.raises(DataError, match=what):
            HumanEval(options([{**ROW, **changed}])).problems()

    def test_a_missing_column_is_named(self, options: Options) -> None:
        with pytest.raises(DataError, match="no column 'entry_point' and 'test'"):
            HumanEval(options([{"task_id": "a", "prompt": PROMPT}])).problems()


class TestScore:
    def test_values_are_means_over_problems(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[CandidateProgram] = []

        def verdict(trial: CandidateProgram, limits: Any) -> str:
            seen.append(trial)
            assert limits.seconds == 3.5
            return "passed" if "right" in trial.program else "wrong answer"

        monkeypatch.setattr(humaneval, "grade", verdict)
        benchmark = HumanEval(options(samples=4, pass_at=[1, 2, 4], timeout=3.5))
        texts = (
            ["    return right", "    return 1", "", "    return 2"],
            ["    return right", "    right", "    1", "    2"],
        )
        score = benchmark.score(completions(list(benchmark.problems()), *texts), counting)
        assert score.values == pytest.approx(
            {"pass@1": (1 / 4 + 2 / 4) / 2, "pass@2": (1 / 2 + 5 / 6) / 2, "pass@4": 1.0, "no_code": 1 / 8}
        )
        assert [verdict["passed"] for verdict in score.verdicts] == [True] + [False] * 3 + [True] * 2 + [False] * 2
        assert score.verdicts[2] == {"program": None, "passed": False, "reason": "no code"}
        assert len(seen) == 7
        assert {trial.entry_point for trial in seen} == {"double", "one"}

    def test_progress_is_reported(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(humaneval, "grade", lambda *_: "passed")
        told: list[Any] = []

        class Bar:
            def __init__(self, *labels: Any):
                told.append(labels)

            def __enter__(self) -> Callable[[int], None]:
                return told.append

            def __exit__(self, *_: object) -> None:
                return None

        benchmark = HumanEval(options())
        benchmark.score(completions(list(benchmark.problems()), ["    1"], ["    1"]), Bar)
        assert told == [("eval", "run", 2), 1, 2]

    def test_a_sandbox_that_breaks_stops_it(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> str:
            raise UserError("no sandbox")

        monkeypatch.setattr(humaneval, "grade", refuse)
        benchmark = HumanEval(options())
        with pytest.raises(UserError, match="no sandbox"):
            benchmark.score(completions(list(benchmark.problems()), ["    1"], ["    1"]), counting)

    @pytest.mark.usefixtures("sandbox")
    def test_programs_run(self, options: Options) -> None:
        benchmark = HumanEval(options(samples=3, pass_at=[1, 3], timeout=2))
        texts = (
            ["    return 2 * x", "    return x", f"```python\n{FULL}```"],
            ["    return 2", "    1 /", "    while 1: 1"],
        )
        score = benchmark.score(completions(list(benchmark.problems()), *texts), counting)
        assert [verdict["reason"].partition(":")[0] for verdict in score.verdicts] == [
            "passed",
            "wrong answer",
            "passed",
            "wrong answer",
            "exception",
            "timed out",
        ]
        assert score.values == pytest.approx({"pass@1": 1 / 3, "pass@3": 1 / 2, "no_code": 0.0})


@pytest.mark.usefixtures("sandbox")
@pytest.mark.real_data
@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"HumanEval is not in {SHARED_DATA}")
class TestPublished:
    def score(self, text_of: Callable[[dict[str, Any]], str], limit: int | None = None) -> Score:
        with gzip.open(PUBLISHED, "rt", encoding="utf-8") as file:
            solutions = {row["task_id"]: row for row in map(json.loads, file)}
        options = HumanEvalOptions(file=str(PUBLISHED), execute_code=True, timeout=60, limit=limit)
        benchmark = HumanEval(options)
        problems = benchmark.problems()
        assert len(problems) == (limit or 164)
        return benchmark.score(
            completions(list(problems), *([text_of(solutions[item.id])] for item in problems)), counting
        )

    @pytest.mark.slow  # half a minute
    def test_all_canonical_solutions_pass(self) -> None:
        score = self.score(lambda row: row["canonical_solution"])
        assert [verdict for verdict in score.verdicts if not verdict["passed"]] == []
        assert score.values == {"pass@1": 1.0, "no_code": 0.0}

    def test_prompts_alone_do_not_pass(self) -> None:
        score = self.score(lambda row: "    pass\n", limit=10)
        assert score.values == {"pass@1": 0.0, "no_code": 0.0}
