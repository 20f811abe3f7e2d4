"""Completions in files: each is stored as soon as it is there, and an interrupted evaluation reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lora_ga_cli.evaluation.tasks.problems import Completion, Problem
from lora_ga_cli.files import read_json

Key = tuple[str, int]
"""A problem's id, and the number of the sample."""


def append_completions(file: Path, completions: Sequence[Completion]) -> None:
    """Adds a batch of completions to a file of JSON lines."""
    lines = [json.dumps(completion.as_json(), ensure_ascii=False) for completion in completions]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as opened:
        opened.write("".join(line + "\n" for line in lines))


def read_completions(file: Path, problems: Sequence[Problem]) -> dict[Key, Completion]:
    """The completions in a file. A last line that is incomplete, as a killed program leaves it, is removed."""
    if not file.exists():
        return {}
    by_id = {problem.id: problem for problem in problems}
    # as bytes: the file may end inside a character, and texts may hold Unicode line breaks
    *lines, rest = file.read_bytes().split(b"\n")
    if rest:
        os.truncate(file, file.stat().st_size - len(rest))
    completions: dict[Key, Completion] = {}
    for line in lines:
        stored = json.loads(line)
        problem, sample = by_id.get(stored["id"]), stored["sample"]
        if problem is not None:
            prompts, texts = tuple(stored["prompts"]), tuple(stored["texts"])
            completions[problem.id, sample] = Completion(problem, sample, prompts, texts, stored["truncated"])
    return completions


def stored_completions(folder: Path, answers: str, problems: Sequence[Problem]) -> tuple[Path, list[Completion]]:
    """The completions of an earlier result in a folder, and their file.

    Args:
        answers: the identity of the answers, as the result's file holds it.

    Returns:
        No completions if no result has these answers.
    """
    for file in sorted(folder.glob("*.json")):
        lines = file.with_suffix(".jsonl")
        if lines.is_file() and read_json(file).get("answers") == answers:
            return lines, list(read_completions(lines, problems).values())
    return folder, []
