"""Completions in files: each is stored as soon as it is there, and an interrupted evaluation reads them.

Every line ends with a digest of what stands before it. The lines of a finished result have none, because the result's
file holds that of all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.evaluation.tasks.problems import Completion, Problem
from lora_ga_cli.files import sha256_file
from lora_ga_cli.json_files import read_json

Key = tuple[str, int]
"""A problem's id, and the number of the sample."""
LINES_DIGEST = "lines_sha256"
"""The entry of a result's file with the digest of its lines."""


def append_completions(file: Path, completions: Sequence[Completion]) -> None:
    """Adds a batch of completions to a file of JSON lines."""
    lines = [json.dumps(completion.as_json(), ensure_ascii=False) for completion in completions]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as opened:
        opened.write(b"".join(_with_digest(line.removesuffix("}").encode()) + b"\n" for line in lines))


def read_completions(
    file: Path, problems: Sequence[Problem], warn: Callable[[str], None] = warnings.warn
) -> dict[Key, Completion]:
    """The completions that `append_completions` wrote into a file.

    A last line that is incomplete, as a killed program leaves it, is removed. Damaged lines are left out.

    Args:
        warn: is told how many lines are damaged.
    """
    if not file.exists():
        return {}
    # as bytes: the file may end inside a character, and texts may hold Unicode line breaks
    *lines, rest = file.read_bytes().split(b"\n")
    if rest:
        os.truncate(file, file.stat().st_size - len(rest))
    sound = [line for line in lines if _is_sound(line)]
    if damaged := len(lines) - len(sound):
        warn(f"{file}: {damaged} of {len(lines)} stored answers are damaged, and are made again")
    return _completions([json.loads(line) for line in sound], problems)


def stored_completions(
    folder: Path, answers: str, problems: Sequence[Problem], warn: Callable[[str], None] = warnings.warn
) -> tuple[Path, list[Completion]]:
    """The completions of an earlier result in a folder, and their file.

    Args:
        answers: the identity of the answers, as the result's file holds it.
        warn: is told which file is damaged.

    Returns:
        No completions if no sound result has these answers.
    """
    for file in sorted(folder.glob("*.json")):
        lines = file.with_suffix(".jsonl")
        try:
            result = read_json(file) if lines.is_file() else {}
        except DamagedFile as error:
            warn(f"{error}; the answers beside it are not used")
            continue
        if result.get("answers") != answers:
            continue
        if result.get(LINES_DIGEST, digest := sha256_file(lines)) != digest:
            warn(f"{lines} is damaged (it does not have the bytes that were written), and its answers are made again")
            continue
        stored = [json.loads(line) for line in lines.read_bytes().split(b"\n") if line]
        return lines, list(_completions(stored, problems).values())
    return folder, []


def said_of_kept(file: Path) -> str:
    """How many completions `append_completions` has stored in a file, as a part of a sentence; empty if none."""
    count = sum(map(_is_sound, file.read_bytes().split(b"\n"))) if file.exists() else 0
    return f"{count} answer{' is' if count == 1 else 's are'} kept in {file}" if count else ""


def _is_sound(line: bytes) -> bool:
    return line == _with_digest(line.rpartition(b', "sha256": "')[0])


def _with_digest(line: bytes) -> bytes:
    """A line of JSON, from what stands in it before its digest."""
    return line + b', "sha256": "' + hashlib.sha256(line).hexdigest().encode() + b'"}'


def _completions(stored: Sequence[Any], problems: Sequence[Problem]) -> dict[Key, Completion]:
    by_id = {problem.id: problem for problem in problems}
    completions: dict[Key, Completion] = {}
    for line in stored:
        problem, sample = by_id.get(line["id"]), line["sample"]
        if problem is not None:
            prompts, texts = tuple(line["prompts"]), tuple(line["texts"])
            completions[problem.id, sample] = Completion(problem, sample, prompts, texts, line["truncated"])
    return completions
