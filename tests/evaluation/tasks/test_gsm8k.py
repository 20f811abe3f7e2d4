"""GSM8K: the number that is read from an answer, and the score of completions."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.errors import DataError, InvalidInput
from lora_ga_cli.evaluation.numbers import as_decimal, read_number, read_plain
from lora_ga_cli.evaluation.tasks.base import Score
from lora_ga_cli.evaluation.tasks.benchmark import Completion, Problem
from lora_ga_cli.evaluation.tasks.gsm8k import Gsm8k, Gsm8kOptions
from lora_ga_cli.report.progress import counting
from tests.conftest import SHARED_DATA

Options = Callable[..., Gsm8kOptions]
ROWS = [
    {"question": "Two and two?", "answer": "2 + 2 = 4.\n#### 4"},
    {"question": "A {thousand}?", "answer": "It is.\n#### 1,000"},
    {"question": "Less than none?", "answer": "5 - 10.\n#### -5"},
]


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """Options for the benchmark on `ROWS`, or other rows."""

    def build(rows: list[dict[str, Any]] = ROWS, **changed: Any) -> Gsm8kOptions:
        file = tmp_path / "test.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Gsm8kOptions(file=str(file), **changed)

    return build


def score(text: str, expected: str, **changed: Any) -> Score:
    """The score of one completion."""
    problem = Problem("gsm8k/0", ("Q: ?\nA: ",), {"expected": expected})
    return Gsm8k(Gsm8kOptions(**changed)).score([Completion(problem, 0, problem.turns, (text,))], counting)


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("18", "18"),
            ("007", "7"),
            ("1,234", "1234"),
            ("1,234,567.89", "1234567.89"),
            ("-5", "-5"),
            ("- 5", "-5"),
            ("−5", "-5"),
            ("+5", "5"),
            ("3.50", "3.5"),
            ("1.234", "1.234"),
            (".5", "0.5"),
            ("-.5", "-0.5"),
            ("18.", "18"),
            ("3.14.", "3.14"),
            ("12 apples", "12"),
            ("5 kg", "5"),
            ("5kg", "5"),
            ("20%", "20"),
            ("20\\%", "20"),
            ("60 miles/hour", "60"),
            ("10 m^2", "10"),
            ("$5", "5"),
            ("5$", "5"),
            ("$1,000.50", "1000.5"),
            ("-$5", "-5"),
            ("$-5", "-5"),
            ("€5", "5"),
            ("£5", "5"),
            ("\\$5", "5"),
            ("$5$", "5"),
            ("\\(5\\)", "5"),
            ("\\boxed{5}", "5"),
            ("$\\boxed{1{,}000}$", "1000"),
            ("1,\\!000", "1000"),
            ("5\\,\\text{kg}", "5"),
            ("**18**", "18"),
            ("1e3", "1000"),
            ("1.5E-2", "0.015"),
            ("1/2", "0.5"),
            ("3 / 4 cups", "0.75"),
            ("-\\frac{1}{2}", "-0.5"),
            ("15 The answer is: 15", "15"),
            ("5 = 5.0", "5"),
        ],
    )
    def test_a_number_is_read_exactly(self, text: str, value: str) -> None:
        found = read_number(text)
        assert found == Decimal(value)
        assert found is not None
        assert as_decimal(found) == value

    def test_a_fraction_without_a_decimal_form_stays_a_fraction(self) -> None:
        assert read_number("1/3") == Fraction(1, 3)
        assert as_decimal(Fraction(1, 3)) == "1/3"
        assert read_number("0.333") != read_number("1/3")

    @pytest.mark.parametrize("text", ["0.1", "1e-20", "123456789012345678901234567890.5"])
    def test_nothing_is_rounded(self, text: str) -> None:
        assert read_number(text) == Fraction(Decimal(text))
        assert read_number(as_decimal(Fraction(Decimal(text)))) == Fraction(Decimal(text))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "abc",
            "$",
            "x = 5",
            "about 5",
            "12.5.3",
            "...5",
            "1.234,5",
            "1,5",
            "1,2345",
            "12,34",
            "1/0",
            "1/2/3",
            "½",
            "٣",
        ],
    )
    def test_a_text_that_is_not_a_number_gives_none(self, text: str) -> None:
        assert read_number(text) is None

    @pytest.mark.parametrize(
        "text",
        ["3 or 4", "3-4", "5 to 6 kg", "-5 or 5", "2 1/2", "2\\frac{1}{2}", "5:30", "2^3", "3 * 10^4", "1/2 or 1"],
    )
    def test_two_different_numbers_are_ambiguous(self, text: str) -> None:
        assert read_number(text) is None

    @pytest.mark.parametrize("text", ["1e999999999", "1e-999999999", "9" * 20_000, "1e" + "0" * 20_000 + "1"])
    def test_a_very_long_number_is_refused_at_once(self, text: str) -> None:
        assert read_number(text) is None

    @pytest.mark.parametrize("text", ["18", "-5", "1,000", "3.50", "1,234,567.8"])
    def test_a_plain_number_is_digits_with_thousands_and_decimals(self, text: str) -> None:
        assert read_plain(text) == read_number(text) is not None

    @pytest.mark.parametrize(
        "text", ["", "18.", "$5", "5 kg", "20%", "1/2", "1e3", "−5", "+5", ".5", "1,00", "\\boxed{5}"]
    )
    def test_anything_else_is_not_plain(self, text: str) -> None:
        assert read_plain(text) is None


class TestReadings:
    @pytest.mark.parametrize(
        ("text", "answer", "strict"),
        [
            ("2 + 2 = 4.\n#### 4", "4", True),
            ("#### 4.0", "4", True),
            ("#### 4\nThe answer is: 4", "4", True),
            ("#### 4 \r\n", "4", True),
            ("   #### 4", "4", True),
            ("####4", "4", True),
            ("#### $4", "4", False),
            ("#### 4 apples", "4", False),
            ("so #### 4", "4", False),
            ("##### 4", "4", False),
            ("####\n\n4", "4", False),
            ("####\n#### 4", "4", False),
            ("#### Step 1\nAdd.\n#### 4", "4", False),
            ("#### 4\n#### 5", "4", False),
            ("#### 4 #### 5", "4", False),
            ("#### 4\nQ: And three?\nA: 3.\n#### 3", "4", True),
        ],
    )
    def test_the_first_number_after_the_mark_counts(self, text: str, answer: str, strict: bool) -> None:
        found = score(text, "4")
        assert found.values == {"accuracy": 1.0, "strict": float(strict), "no_answer": 0.0}
        verdict = {"answer": answer, "expected": "4", "correct": True, "strict": strict, "outcome": "right"}
        assert found.verdicts == [verdict]

    def test_a_wrong_answer_is_a_number_that_differs(self) -> None:
        found = score("#### 5", "4")
        assert found.values == {"accuracy": 0.0, "strict": 0.0, "no_answer": 0.0}
        assert (found.verdicts[0]["answer"], found.verdicts[0]["outcome"]) == ("5", "wrong")

    @pytest.mark.parametrize(
        "text", ["", "The answer is 4.", "####", "#### four", "#### 4 or 5", "Q: ?\n\nQ: ?\n#### 4"]
    )
    def test_no_answer_is_counted_separately_even_if_zero_would_be_right(self, text: str) -> None:
        found = score(text, "0")
        assert found.values == {"accuracy": 0.0, "strict": 0.0, "no_answer": 1.0}
        assert (found.verdicts[0]["answer"], found.verdicts[0]["outcome"]) == (None, "no answer")

    @pytest.mark.parametrize(
        ("prompt", "text"),
        [
            ("{question}\n", "x\nQ: y\n#### 4"),
            ("Solve.\n\n### Question:\n{question}\n", "#### 4\n### Question:\ny\n#### 5"),
            ("{{q}} {question}", "#### 4\n{q} y\n#### 5"),
        ],
    )
    def test_another_question_begins_like_the_prompt(self, prompt: str, text: str) -> None:
        assert score(text, "4", prompt=prompt).values["strict"] == 1.0

    def test_another_question_ends_generation(self) -> None:
        assert Gsm8k(Gsm8kOptions()).stops == ("\nQ:",)
        assert Gsm8k(Gsm8kOptions(prompt="Solve.\n\n### Question:\n{question}\n")).stops == ("\n### Question:",)
        assert Gsm8k(Gsm8kOptions(prompt="{question}\n")).stops == ()


class TestProblems:
    def test_each_problem_is_asked_with_the_authors_prompt(self, options: Options) -> None:
        problems = Gsm8k(options()).problems()
        assert [problem.id for problem in problems] == ["gsm8k/0", "gsm8k/1", "gsm8k/2"]
        assert problems[1].turns == ("Q: A {thousand}?\nA: ",)
        assert [problem.row["expected"] for problem in problems] == ["4", "1000", "-5"]

    def test_a_users_prompt_replaces_the_default(self, options: Options) -> None:
        benchmark = Gsm8k(options(prompt="{question} Think.", limit=1))
        benchmark.check_requirements()
        assert [problem.turns for problem in benchmark.problems()] == [("Two and two? Think.",)]

    @pytest.mark.parametrize("prompt", ["Q: {query}\nA: ", "{question} {answer}", "{question"])
    def test_a_prompt_without_the_question_is_refused(self, options: Options, prompt: str) -> None:
        benchmark = Gsm8k(options(prompt=prompt))
        for refuse in (benchmark.check_requirements, benchmark.problems):
            with pytest.raises(InvalidInput, match=r"^eval\.prompt: "):
                refuse()

    def test_every_solution_without_a_number_is_named(self, options: Options) -> None:
        rows = [*ROWS, {"question": "Why?", "answer": "So."}, {"question": None, "answer": "#### 1"}]
        with pytest.raises(DataError) as error:
            Gsm8k(options(rows)).problems()
        assert [str(fault) for fault in error.value.faults] == [
            "problem 4: no number after #### in 'So.'",
            "problem 5: column 'question' is null",
        ]


def test_samples_give_means_and_a_vote(options: Options) -> None:
    """Three samples for each problem: a majority, a tie that the first number wins, and no answer at all."""
    texts = [
        ["#### 4", "#### 5", "so #### 4"],
        ["#### 7", "?", "#### 1,000"],
        ["?", "?", "?"],
    ]
    benchmark = Gsm8k(options(samples=3, temperature=0.8))
    completions = [
        Completion(problem, sample, problem.turns, (text,))
        for problem, samples in zip(benchmark.problems(), texts, strict=True)
        for sample, text in enumerate(samples)
    ]
    found = benchmark.score(completions, counting)
    assert found.values == {"accuracy": 3 / 9, "strict": 2 / 9, "no_answer": 4 / 9, "majority": 1 / 3}
    outcomes = ["right", "wrong", "right", "wrong", "no answer", "right", "no answer", "no answer", "no answer"]
    assert [verdict["outcome"] for verdict in found.verdicts] == outcomes


GSM8K = SHARED_DATA / "gsm8k" / "test.jsonl.gz"


@pytest.mark.real_data
@pytest.mark.skipif(not GSM8K.is_file(), reason=f"GSM8K is not in {SHARED_DATA}")
def test_the_reference_solutions_are_all_right_in_both_readings() -> None:
    benchmark = Gsm8k(Gsm8kOptions(file=str(GSM8K)))
    benchmark.check_requirements()
    problems = benchmark.problems()
    with gzip.open(GSM8K, "rt", encoding="utf-8") as lines:
        solutions = [json.loads(line)["answer"] for line in lines]
    assert len(problems) == 1319
    completions = [Completion(item, 0, item.turns, (text,)) for item, text in zip(problems, solutions, strict=True)]
    assert benchmark.score(completions, counting).values == {"accuracy": 1.0, "strict": 1.0, "no_answer": 0.0}
    # the numbers themselves, read in the plainest way there is
    assert [item.row["expected"] for item in problems] == [
        text.rpartition("#### ")[2].replace(",", "").strip() for text in solutions
    ]
    shifted = [
        Completion(item, 0, item.turns, (text,)) for item, text in zip(problems, [*solutions[1:], ""], strict=True)
    ]
    values = benchmark.score(shifted, counting).values
    assert values["no_answer"] == 1 / 1319
    assert values["accuracy"] == values["strict"] < 0.03
