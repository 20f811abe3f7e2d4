"""The answers in stored lines, as each task reads its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lora_ga_cli.evaluation.tasks.answers import Answer
from lora_ga_cli.registry import TASKS

COMPLETION = {"id": "7", "sample": 0, "prompts": ["Q: 3+1\nA: "], "texts": ["#### 4"], "truncated": False}


def answers(task: str, *lines: Mapping[str, Any]) -> list[Answer]:
    found: list[Answer] = TASKS[task].answers(lines)
    return found


def test_a_number_that_is_right_wrong_or_missing() -> None:
    verdicts = [
        {"answer": "4", "expected": "4", "correct": True, "outcome": "right"},
        {"answer": "5", "expected": "4", "correct": False, "outcome": "wrong"},
        {"answer": None, "expected": "4", "correct": False, "outcome": "no answer"},
    ]
    found = answers("gsm8k", *({**COMPLETION, **verdict} for verdict in verdicts))
    assert [(one.verdict, one.correct) for one in found] == [("right", True), ("wrong", False), ("no answer", False)]
    assert found[0] == Answer("7", "7", "Q: 3+1\nA: ", "#### 4", "4", "right", True)


def test_samples_are_told_apart_and_a_cut_answer_says_so() -> None:
    line = {**COMPLETION, "sample": 2, "truncated": True, "correct": True, "expected": "4", "outcome": "right"}
    (found,) = answers("gsm8k", line)
    assert (found.question, found.verdict) == ("7, sample 3", "right, cut at the longest length")


def test_a_program_is_code_with_the_reason_of_its_verdict() -> None:
    line = {**COMPLETION, "id": "HumanEval/0", "program": "…", "passed": False, "reason": "wrong answer"}
    (found,) = answers("humaneval", line)
    assert (found.is_code, found.correct, found.verdict, found.text) == (True, False, "wrong answer", "#### 4")


def test_every_turn_that_a_judge_rated_is_an_answer_of_its_own() -> None:
    line = {
        **COMPLETION,
        "prompts": ["one", "one, two"],
        "texts": ["first", "second"],
        "turns": [{"rating": 7.5}, {"rating": None}],
    }
    assert [(one.title, one.prompt, one.text, one.verdict, one.correct) for one in answers("mt_bench", line)] == [
        ("7, turn 1", "one", "first", "rated 7.5 of 10", None),
        ("7, turn 2", "one, two", "second", "no rating", None),
    ]


def test_rows_of_metrics_that_show_a_prompt() -> None:
    match = {"prompt": "p", "reference": "#### 4", "generated": "#### 5", "answer": "5", "expected": "4"}
    words = {"prompt": "p", "predicted": "yes", "expected": "no", "correct": False}
    found = answers("rows", {"exact_match": {**match, "correct": False}, "label_tokens": words})
    assert [(one.title, one.text, one.expected, one.verdict) for one in found] == [
        ("row 1, exact_match", "#### 5", "#### 4", "wrong"),
        ("row 1, label_tokens", "yes", "no", "wrong"),
    ]
    assert answers("rows", {"accuracy": {"predicted": 1, "expected": 0, "correct": False}}) == []


def test_the_same_prompt_twice_is_two_questions() -> None:
    line = {"exact_match": {"prompt": "p", "reference": "r", "generated": "g", "answer": None, "expected": "r"}}
    line["exact_match"]["correct"] = False  # type: ignore[assignment]
    first, second = answers("rows", line, line)
    assert first.question != second.question
    assert first.verdict == "no answer"


@pytest.mark.parametrize(
    ("metrics", "verdict", "correct"),
    [
        ({"exact_match": 1.0}, "exact_match 1", True),
        ({"f1": 0.25}, "f1 0.25", None),
        ({"exact_match": 0, "f1": 1}, "exact_match 0, f1 1", None),
    ],
)
def test_generated_answers_of_the_harness(metrics: dict[str, float], verdict: str, correct: bool | None) -> None:
    line = {
        "task": "mine",
        "doc_id": 3,
        "arguments": [["Q?", {"until": ["\n"]}]],
        "resps": [["A."]],
        "filter": "none",
        "filtered_resps": ["A."],
        "target": "A",
        **metrics,
    }
    assert answers("lm_eval", line) == [Answer("mine/3", "mine/3", "Q?", "A.", "A", verdict, correct)]
    assert answers("lm_eval", {**line, "resps": [[[-1.5, False]]]}) == []
