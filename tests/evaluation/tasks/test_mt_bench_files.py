"""The files of MT-Bench: what they contain, and all faults of other files together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.errors import DataError, InvalidInput, UserError
from lora_ga_cli.evaluation.judge import JudgeOptions
from lora_ga_cli.evaluation.tasks.mt_bench import MtBench, MtBenchOptions
from tests.evaluation.endpoints import KEY, VARIABLE, Endpoint, refuses
from tests.evaluation.mt_bench_rows import (
    QUESTIONS,
    Bench,
    prompt_rows,
    write,
)


def test_problems_are_the_questions_with_what_grading_needs(bench: Bench) -> None:
    problems = bench("http://localhost:1/v1").problems()
    assert [problem.id for problem in problems] == ["1", "2", "3", "4"]
    assert problems[0].turns == ("Write a haiku.", "Now without nouns.")
    assert [problem.row["category"] for problem in problems] == ["writing", "math", "coding", "writing"]
    assert [problem.row["references"] for problem in problems] == [(), ("42", "21"), ("print(x)", "print(x, x)"), ()]
    assert [problem.id for problem in bench("http://localhost:1/v1", limit=2).problems()] == ["1", "2"]


def test_missing_files_key_and_package_are_reported_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bench = MtBench(MtBenchOptions(judge=JudgeOptions(key_variable=VARIABLE)), tmp_path)
    with pytest.raises(InvalidInput) as caught:
        bench.check_requirements()
    assert [fault.where for fault in caught.value.faults] == [
        "eval.file",
        "eval.judge.references",
        "eval.judge.prompts",
        "eval.judge",
        "eval.judge.key_variable",
    ]
    text = str(caught.value)
    for file in ("mt_bench/question.jsonl", "mt_bench/reference_answer/gpt-4.jsonl", "judge_prompts.jsonl"):
        assert f"it is in github.com/lm-sys/FastChat: fastchat/llm_judge/data/{file}" in text
    with pytest.raises(DataError):
        bench.problems()


def faults(bench: MtBench) -> list[str]:
    """The faults that are reported before the judge is asked."""
    with pytest.raises(InvalidInput) as caught:
        bench.check_requirements()
    return [str(fault) for fault in caught.value.faults]


def test_a_sound_benchmark_asks_the_judge_for_one_word(bench: Bench, endpoint: Endpoint) -> None:
    bench(endpoint.url).check_requirements()
    assert len(endpoint) == 1


def test_a_wrong_key_is_found_before_anything_is_generated(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: refuses(401, f"{KEY} is wrong")
    with pytest.raises(UserError, match=VARIABLE) as caught:
        bench(endpoint.url).check_requirements()
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question_id": 1, "turns": ["a"]}], ["no column 'category'"]),
        ([{**QUESTIONS[0], "turns": "one"}], ["question 1 (row 1)", "list of one or two texts"]),
        ([{**QUESTIONS[0], "turns": ["a", "b", "c"]}], ["list of one or two texts"]),
        ([{**QUESTIONS[0], "turns": ["a", " "]}], ["list of one or two texts"]),
        ([{**QUESTIONS[0], "category": None}], ["has no category"]),
        ([{**QUESTIONS[0], "question_id": None}], ["has no question_id"]),
        ([QUESTIONS[0], QUESTIONS[0]], ["problem 1 is there 2 times"]),
        ([{**QUESTIONS[1], "question_id": 7}], ["eval.judge.references", "question 7", "FastChat"]),
        (
            [{**QUESTIONS[1], "question_id": number} for number in range(50, 70)],
            ["question 50, 51, 52, 53, 54, 55, 56, 57, 58, 59 and 10 more"],
        ),
    ],
)
def test_malformed_questions_are_faults(
    bench: Bench, endpoint: Endpoint, tmp_path: Path, rows: list[dict[str, Any]], words: list[str]
) -> None:
    (text,) = faults(bench(endpoint.url, file=write(tmp_path / "mine.jsonl", rows)))
    assert [word for word in words if word not in text] == []
    assert len(endpoint) == 0


@pytest.mark.parametrize(
    ("name", "template", "words"),
    [
        ("single-v1", "{question}", ["prompt single-v1 lacks {answer}"]),
        ("single-math-v1", "{question}{answer}{ref_answer_1}{ref_answer_2}", ["has an unknown {ref_answer_2}"]),
        ("single-v1", "{question}{answer.text}", ["lacks {answer}, has an unknown {answer.text}"]),
        ("single-v1", "{question}{answer", ["cannot be filled in: "]),
        ("single-v1", "{question}{answer!z}", ["cannot be filled in: "]),
        ("single-v1-multi-turn", None, ["lacks {answer_1}", "{question_2}"]),
    ],
)
def test_prompts_that_do_not_fit_are_faults(
    bench: Bench, endpoint: Endpoint, tmp_path: Path, name: str, template: str | None, words: list[str]
) -> None:
    rows = [row | ({"prompt_template": template} if row["name"] == name else {}) for row in prompt_rows()]
    (text,) = faults(bench(endpoint.url, judge={"prompts": write(tmp_path / "mine.jsonl", rows)}))
    assert text.startswith("eval.judge.prompts: ")
    assert [word for word in words if word not in text] == []


def test_only_the_prompts_that_the_questions_need_must_be_there(
    bench: Bench, endpoint: Endpoint, tmp_path: Path
) -> None:
    plain = [row for row in prompt_rows() if "math" not in row["name"]]
    prompts = {"prompts": write(tmp_path / "mine.jsonl", plain)}
    (text,) = faults(bench(endpoint.url, judge=prompts))
    assert "has no prompt named single-math-v1 or single-math-v1-multi-turn" in text
    bench(endpoint.url, judge=prompts, limit=1).check_requirements()


def test_faults_of_all_files_are_reported_together(bench: Bench, endpoint: Endpoint, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", QUESTIONS)
    references = {"references": str(tmp_path / "reference.jsonl"), "prompts": prompts}
    found = faults(bench(endpoint.url, file=str(tmp_path / "question.jsonl"), judge=references))
    assert len(found) == 3
    assert "question.jsonl: no such file" in found[0]
    assert "reference.jsonl: no such file" in found[1]
    assert "has no column 'name' and 'system_prompt' and 'prompt_template'" in found[2]
