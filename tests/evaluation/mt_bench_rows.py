"""A small MT-Bench: four questions, the judge's prompts and references, answers and their score."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ga_cli.evaluation.judge import JudgeOptions
from lora_ga_cli.evaluation.tasks.benchmark import Completion
from lora_ga_cli.evaluation.tasks.mt_bench import MtBench, MtBenchOptions
from tests.evaluation.endpoints import VARIABLE, says

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["Write a haiku.", "Now without nouns."]},
    {"question_id": 2, "category": "math", "turns": ["What is 6 times 7?", "And half of that?"]},
    {"question_id": 3, "category": "coding", "turns": ["Print {x}.", "Print it twice."]},
    {"question_id": 4, "category": "writing", "turns": ["Write a letter."]},
]
ANSWERS = {2: ["42", "21"], 3: ["print(x)", "print(x, x)"]}
PROMPTS = {
    "single-v1": "Asked: {question}\nSaid: {answer}",
    "single-math-v1": "Asked: {question}\nRight: {ref_answer_1}\nSaid: {answer}",
    "single-v1-multi-turn": "Asked: {question_1}\nSaid: {answer_1}\nAsked: {question_2}\nSaid: {answer_2}",
    "single-math-v1-multi-turn": (
        "Right: {ref_answer_1} then {ref_answer_2}\nAsked: {question_1}\nSaid: {answer_1}\nAsked: {question_2}\n"
        "Said: {answer_2}"
    ),
}


def prompt_rows() -> list[dict[str, Any]]:
    other = {"name": "pair-v2", "system_prompt": "", "prompt_template": "{question}{answer_a}{answer_b}"}
    return [other, *({"name": n, "system_prompt": f"You are {n}.", "prompt_template": t} for n, t in PROMPTS.items())]


def reference_rows() -> list[dict[str, Any]]:
    return [{"question_id": name, "choices": [{"index": 0, "turns": turns}]} for name, turns in ANSWERS.items()]


def write(file: Path, rows: Sequence[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@dataclass
class Bench:
    """Builds benchmarks whose three files are in one folder."""

    folder: Path

    def options(self, url: str, **fields: Any) -> MtBenchOptions:
        """The options of a benchmark with the judge at an endpoint; ``judge`` has more fields of the judge."""
        files = {"prompts": prompt_rows(), "references": reference_rows()}
        written = {name: write(self.folder / f"{name}.jsonl", rows) for name, rows in files.items()}
        base = {"base_url": url, "key_variable": VARIABLE, "model": "judge", "concurrency": 2} | written
        judge = JudgeOptions(**(base | fields.pop("judge", {})))
        questions = write(self.folder / "questions.jsonl", QUESTIONS)
        return MtBenchOptions(**({"file": questions, "judge": judge} | fields))

    def __call__(self, url: str, **fields: Any) -> MtBench:
        return MtBench(self.options(url, **fields), self.folder)


def completions(bench: MtBench, texts: Sequence[Sequence[str]], samples: int = 1) -> list[Completion]:
    """Completions of the problems, with the samples of each problem in a row."""
    kinds = [(problem, sample) for problem in bench.problems() for sample in range(samples)]
    return [
        Completion(problem, sample, problem.turns, tuple(found))
        for (problem, sample), found in zip(kinds, texts, strict=True)
    ]


@contextlib.contextmanager
def silent(stage: str, what: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def by_last_character(request: dict[str, Any]) -> Any:
    """A judge that rates by what a prompt ends in: ``8`` is an 8, and anything but a digit is no rating."""
    last = request["messages"][-1]["content"][-1]
    return says(f"Rating: [[{last}]]" if last.isdigit() else "I would rather not say.")


TEXTS = [["first 8", "second 5"], ["third 3", "no digit"], ["fourth 6", "fifth 9"], ["sixth 2"]]
VALUES = {
    "first_turn": (8 + 3 + 6 + 2) / 4,
    "second_turn": (5 + 9) / 2,
    "both_turns": (8 + 5 + 3 + 6 + 9 + 2) / 6,
    "first_turn/writing": (8 + 2) / 2,
    "first_turn/math": 3.0,
    "first_turn/coding": 6.0,
    "unrated": 1 / 7,
}
