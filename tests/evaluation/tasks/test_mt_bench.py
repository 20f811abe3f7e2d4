"""MT-Bench: FastChat's prompts, the judge's ratings, and means that agree with a computation by hand."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_ga_cli.errors import UserError
from lora_ga_cli.evaluation.judge import JudgeOptions
from lora_ga_cli.evaluation.tasks.mt_bench import MtBench, MtBenchOptions, rating
from tests.conftest import SHARED_DATA
from tests.evaluation.endpoints import KEY, VARIABLE, Endpoint, refuses, says
from tests.evaluation.mt_bench_rows import (
    PROMPTS,
    TEXTS,
    VALUES,
    Bench,
    by_last_character,
    completions,
    silent,
)

REAL = SHARED_DATA / "mt_bench"


@pytest.mark.parametrize(
    ("judgement", "value"),
    [
        ("Good. Rating: [[8]]", 8.0),
        ("Rating: [[8.5]]", 8.5),
        ("**Rating: [[10]]**", 10.0),
        ("[[ 7 ]]", 7.0),
        ("Rating: [[8/10]]", 8.0),
        ("Rating: [9]", 9.0),
        ("Rating: [9/10].", 9.0),
        ("[4] at first, but in the end [[6]]", 6.0),
        ("[[6]], not [[7]]", 6.0),
        ("nums[1] is wrong. Rating: [3]", 3.0),
        ("grid[1][2] is wrong", None),
        ("call()[1] is wrong", None),
        ("[1, 2] is wrong", None),
        ("Rating: [[0]], although [5] was near", None),
        ("Rating: [[11]]", None),
        ("Rating: [[-1]]", None),
        ("Rating: 8", None),
        ("Rating: [[rating]]", None),
        ("Rating: [[A]]", None),
        ("", None),
    ],
)
def test_what_counts_as_a_rating(judgement: str, value: float | None) -> None:
    assert rating(judgement) == value


def test_prompts_are_filled_by_turn_and_category(bench: Bench, endpoint: Endpoint) -> None:
    found = bench(endpoint.url, judge={"concurrency": 1})
    texts = [["a {answer}", " b\n"], ["42!", "21!"], ["c", "d {ref_answer_1}"], ["e"]]
    found.score(completions(found, texts), silent)
    writing = {"question": "Write a haiku.", "answer": "a {answer}"}
    assert [request["messages"] for request in endpoint.requests] == [
        [{"role": "system", "content": f"You are {name}."}, {"role": "user", "content": PROMPTS[name].format(**values)}]
        for name, values in [
            ("single-v1", writing),
            (
                "single-v1-multi-turn",
                {
                    "question_1": "Write a haiku.",
                    "answer_1": "a {answer}",
                    "question_2": "Now without nouns.",
                    "answer_2": "b",
                },
            ),
            ("single-math-v1", {"question": "What is 6 times 7?", "answer": "42!", "ref_answer_1": "42"}),
            (
                "single-math-v1-multi-turn",
                {
                    "question_1": "What is 6 times 7?",
                    "answer_1": "42!",
                    "question_2": "And half of that?",
                    "answer_2": "21!",
                    "ref_answer_1": "42",
                    "ref_answer_2": "21",
                },
            ),
            ("single-math-v1", {"question": "Print {x}.", "answer": "c", "ref_answer_1": "print(x)"}),
            (
                "single-math-v1-multi-turn",
                {
                    "question_1": "Print {x}.",
                    "answer_1": "c",
                    "question_2": "Print it twice.",
                    "answer_2": "d {ref_answer_1}",
                    "ref_answer_1": "print(x)",
                    "ref_answer_2": "print(x, x)",
                },
            ),
            ("single-v1", {"question": "Write a letter.", "answer": "e"}),
        ]
    ]


def test_means_agree_with_a_hand_computation_and_leave_out_unrated_turns(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = by_last_character
    found = bench(endpoint.url)
    counted: list[tuple[str, str, int]] = []
    done: list[int] = []

    @contextlib.contextmanager
    def progress(stage: str, what: str, total: int) -> Iterator[Callable[[int], None]]:
        counted.append((stage, what, total))
        yield done.append

    score = found.score(completions(found, TEXTS), progress)
    assert score.values == pytest.approx(VALUES)
    assert list(score.values) == list(VALUES)
    assert counted == [("judge", "turn", 7)]
    assert done == list(range(1, 8))
    assert len(endpoint) == 8  # seven turns, and the one without a rating once more
    refused, rated = "I would rather not say.", {"model": "judge-0613"}
    assert score.verdicts[1] == {
        "category": "math",
        "judge": "judge",
        "turns": [
            rated | {"rating": 3.0, "judgements": ["Rating: [[3]]"]},
            rated | {"rating": None, "judgements": [refused, refused]},
        ],
    }
    assert [[turn["rating"] for turn in verdict["turns"]] for verdict in score.verdicts] == [
        [8, 5],
        [3, None],
        [6, 9],
        [2],
    ]
    json.dumps(score.verdicts)


def test_scoring_again_asks_nothing(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = by_last_character
    first = bench(endpoint.url)
    score = first.score(completions(first, TEXTS), silent)
    asked = len(endpoint)
    second = bench(endpoint.url)
    assert second.score(completions(second, TEXTS), silent) == score
    assert len(endpoint) == asked
    changed = [*TEXTS[:3], ["another letter 4"]]
    assert second.score(completions(second, changed), silent).values["first_turn/writing"] == (8 + 4) / 2
    assert len(endpoint) == asked + 1


def test_a_judgement_without_a_rating_is_asked_for_once_more(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.script = [says("hm"), says("[[4]]")]
    found = bench(endpoint.url, limit=1, judge={"concurrency": 1})
    score = found.score(completions(found, TEXTS[:1]), silent)
    assert endpoint.requests[0] == endpoint.requests[1]
    assert score.verdicts[0]["turns"][0] == {"rating": 4.0, "judgements": ["hm", "[[4]]"], "model": "judge-0613"}
    assert score.values == {
        "first_turn": 4.0,
        "second_turn": 7.0,
        "both_turns": 5.5,
        "first_turn/writing": 4.0,
        "unrated": 0.0,
    }


def test_a_judge_that_rates_nothing_is_an_error(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: says("I cannot help with that.")
    found = bench(endpoint.url)
    with pytest.raises(UserError, match=r"no judgement by 'judge' contains a rating from \[\[1\]\] to \[\[10\]\]"):
        found.score(completions(found, TEXTS), silent)


def test_a_category_without_any_rating_has_no_mean(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = by_last_character
    found = bench(endpoint.url)
    score = found.score(completions(found, [["8", "8"], ["x", "8"], ["8", "x"], ["8"]]), silent)
    assert "first_turn/math" not in score.values
    assert score.values["first_turn"] == 8
    assert score.values["unrated"] == 2 / 7


def test_every_sample_counts(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = by_last_character
    found = bench(endpoint.url, limit=2, samples=2)
    texts = [["9", "1"], ["1", "1"], ["4", "4"], ["6", "8"]]
    score = found.score(completions(found, texts, samples=2), silent)
    assert score.values == pytest.approx(
        {
            "first_turn": (9 + 1 + 4 + 6) / 4,
            "second_turn": (1 + 1 + 4 + 8) / 4,
            "both_turns": (9 + 1 + 1 + 1 + 4 + 4 + 6 + 8) / 8,
            "first_turn/writing": 5.0,
            "first_turn/math": 5.0,
            "unrated": 0.0,
        }
    )
    assert [verdict["turns"][0]["rating"] for verdict in score.verdicts] == [9, 1, 4, 6]


def test_a_stopped_scoring_requests_only_the_missing_judgements(
    bench: Bench, endpoint: Endpoint, waits: list[float]
) -> None:
    endpoint.script = [says("[[1]]"), says("hm"), says("[[2]]"), says("[[3]]")]
    endpoint.answer = lambda request: refuses(503)
    found = bench(endpoint.url, judge={"concurrency": 1, "retries": 1})
    with pytest.raises(UserError, match=r"4 judgements stored in .*: the same command continues from there"):
        found.score(completions(found, TEXTS), silent)
    stopped = len(endpoint)
    endpoint.answer = lambda request: says("[[7]]")
    again = bench(endpoint.url, judge={"concurrency": 1})
    score = again.score(completions(again, TEXTS), silent)
    assert len(endpoint) - stopped == 4
    assert [turn["rating"] for verdict in score.verdicts for turn in verdict["turns"]] == [1, 2, 3, 7, 7, 7, 7]


def test_the_key_is_in_no_file(bench: Bench, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answer = by_last_character
    found = bench(endpoint.url)
    found.check_requirements()
    score = found.score(completions(found, TEXTS), silent)
    contents = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(contents) == 3 + 8
    assert not any(KEY in content for content in [*contents, json.dumps(score.verdicts)])
    assert set(endpoint.keys) == {f"Bearer {KEY}"}


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason=f"MT-Bench is not in {SHARED_DATA}")
def test_the_published_files_of_mt_bench_are_read_completely(endpoint: Endpoint, tmp_path: Path) -> None:
    judge = JudgeOptions(
        base_url=endpoint.url,
        key_variable=VARIABLE,
        prompts=str(REAL / "judge_prompts.jsonl"),
        references=str(REAL / "reference_answer.jsonl"),
    )
    bench = MtBench(MtBenchOptions(file=str(REAL / "question.jsonl"), judge=judge), tmp_path)
    bench.check_requirements()
    endpoint.requests.clear()
    problems = bench.problems()
    assert len(problems) == 80
    assert {len(problem.turns) for problem in problems} == {2}
    texts = [[f"answer one of {problem.id}", f"answer two of {problem.id}"] for problem in problems]
    score = bench.score(completions(bench, texts), silent)
    assert len(endpoint) == len(set(endpoint.questions())) == 160
    categories = {f"first_turn/{problem.row['category']}" for problem in problems}
    assert len(categories) == 8
    assert set(score.values) == {"first_turn", "second_turn", "both_turns", "unrated", *categories}
    references = {
        str(row["question_id"]): row["choices"][0]["turns"]
        for row in map(json.loads, (REAL / "reference_answer.jsonl").read_text().splitlines())
    }
    asked = endpoint.questions()
    for problem in problems:
        (second,) = [text for text in asked if f"answer two of {problem.id}\n" in text]
        (first,) = [text for text in asked if f"answer one of {problem.id}\n" in text and text != second]
        needed = references[problem.id] if problem.row["category"] in ("math", "reasoning", "coding") else []
        for text, turns in ((first, 1), (second, 2)):
            assert [turn for turn in (*problem.turns[:turns], *needed[:turns]) if turn not in text] == []
            assert ("Reference Answer" in text) == bool(needed)
            assert not any(f"{{{name}}}" in text for name in PLACEHOLDERS)
        assert problem.turns[1] not in first
        if not needed:
            assert not any(turn in second for turns in references.values() for turn in turns)


PLACEHOLDERS = ["question", "answer", *(f"{n}_{i}" for n in ("question", "answer", "ref_answer") for i in (1, 2))]
