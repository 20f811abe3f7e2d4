"""Generates a model's answers to a benchmark's problems, in batches that are stored as soon as they are complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_ga_cli.config.schema import Task
from lora_ga_cli.data.faults import RowFaults
from lora_ga_cli.data.tokens import leading_tokens, plain_tokens
from lora_ga_cli.errors import ModelError
from lora_ga_cli.evaluation.continuation import continuations, end_tokens, positions_left
from lora_ga_cli.evaluation.prompt import conversation
from lora_ga_cli.evaluation.tasks.base import Progress
from lora_ga_cli.evaluation.tasks.problems import Completion, GenerationOptions, Problem, ProblemSource, problems_of
from lora_ga_cli.files import read_json
from lora_ga_cli.model.loading import max_positions

Key = tuple[str, int]
"""A problem's id, and the number of the sample."""


@dataclass(frozen=True)
class Generator:
    """A model with its tokenizer, and the options of generation.

    Args:
        model: in evaluation mode.
        seed: seed of sampling. Each batch is seeded by its contents, so interruptions do not change an answer.
    """

    model: Any
    tokenizer: Any
    task: Task
    options: GenerationOptions
    seed: int

    def completions(self, benchmark: ProblemSource, file: Path, progress: Progress) -> list[Completion]:
        """Completions of all problems, in the order of problems and samples.

        If earlier answers leave no position for the answer to a later turn, that answer is empty and the completion
        counts as truncated.

        Args:
            file: JSON lines to which each batch is added once it is complete; those that are there are not made again.

        Raises:
            ModelError: a first turn fills all of the model's positions.
        """
        problems = problems_of(benchmark)
        wanted = [(problem, sample) for problem in problems for sample in range(self.options.samples)]
        cached = read_completions(file, problems)
        size = self.options.batch_size
        # sorted by length, which needs little padding; the order is the same in every session, and so are the batches
        order = sorted(wanted, key=lambda pair: (-len(pair[0].turns[0]), pair[1]))
        self.check_room(benchmark)
        with progress("eval", f"answer to {benchmark.name}", len(wanted)) as report:
            report(len(cached))
            for begin in range(0, len(order), size):
                batch = order[begin : begin + size]
                if all((problem.id, sample) in cached for problem, sample in batch):
                    continue
                made = self._complete(batch, benchmark)
                append_completions(file, made)
                cached |= {(one.problem.id, one.sample): one for one in made}
                report(len(cached))
        return [cached[problem.id, sample] for problem, sample in wanted]

    def check_room(self, benchmark: ProblemSource) -> None:
        """Checks that every first turn leaves the model a position for an answer. The model needs no weights.

        Raises:
            ModelError
        """
        problems = problems_of(benchmark)
        rows = self._rows([self._prompt(benchmark, problem, ()) for problem in problems])
        bad, limit = RowFaults("eval.file"), max_positions(self.model.config)
        for problem, row in zip(problems, rows, strict=True):
            if not positions_left(self.model, self.task, row):
                what = f"its prompt has {len(row['input_ids']):,} tokens, and the model {limit:,} positions"
                bad.add("long", f"problem {problem.id}", what)
        if len(bad):
            faults = bad.faults({"long": "leave it out, or take a model with more positions"})
            raise ModelError("\n".join(map(str, faults)))

    def _complete(self, batch: Sequence[tuple[Problem, int]], benchmark: ProblemSource) -> list[Completion]:
        prompts: list[list[str]] = [[] for _ in batch]
        texts: list[list[str]] = [[] for _ in batch]
        truncated = [False] * len(batch)
        for turn in range(max(len(problem.turns) for problem, _ in batch)):
            asked = [place for place, (problem, _) in enumerate(batch) if turn < len(problem.turns)]
            for place in asked:
                prompts[place].append(self._prompt(benchmark, batch[place][0], texts[place]))
            torch.manual_seed(_seed_of(self.seed, turn, batch))
            made = self._generate([prompts[place][-1] for place in asked], benchmark.stops)
            for place, (text, ended) in zip(asked, made, strict=True):
                texts[place].append(text)
                truncated[place] |= not ended
        return [
            Completion(problem, sample, tuple(prompts[place]), tuple(texts[place]), truncated[place])
            for place, (problem, sample) in enumerate(batch)
        ]

    def _prompt(self, benchmark: ProblemSource, problem: Problem, answers: Sequence[str]) -> str:
        """The model's input for a problem's next turn, after its answers to the earlier ones."""
        turns = problem.turns[: len(answers) + 1]
        return conversation(turns, answers, self.options.prompt, self.tokenizer) if benchmark.chat else turns[-1]

    def _generate(self, prompts: Sequence[str], stops: Sequence[str]) -> Iterator[tuple[str, bool]]:
        """Each prompt's continuation, and whether the model ended it."""
        options, tokenizer = self.options, self.tokenizer
        generated = continuations(
            self.model,
            tokenizer,
            self.task,
            self._rows(prompts),
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            stops=stops,
        )
        ends = set(end_tokens(self.model, tokenizer))
        for prompt, row in zip(prompts, generated, strict=True):
            text = tokenizer.decode(row, skip_special_tokens=True)
            # a stop may begin in the prompt and end in the answer
            before = prompt if self.task == "causal_lm" else ""
            stopped = any(stop in before[max(0, len(before) + 1 - len(stop)) :] + text for stop in stops)
            yield text, stopped or not ends.isdisjoint(row)

    def _rows(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """Tokens of prompts, with the tokens that begin a row of training data."""
        if self.task == "seq2seq_lm":
            return [{"input_ids": ids} for ids in self.tokenizer(list(prompts), verbose=False)["input_ids"]]
        lead = leading_tokens(self.tokenizer)
        rows = [ids if ids[: len(lead)] == lead else lead + ids for ids in plain_tokens(self.tokenizer, prompts)]
        return [{"input_ids": ids, "prompt_length": len(ids)} for ids in rows]


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


def _seed_of(seed: int, turn: int, batch: Sequence[tuple[Problem, int]]) -> int:
    key = "|".join(f"{problem.id}#{sample}" for problem, sample in batch)
    return int.from_bytes(hashlib.sha256(f"{seed}|{turn}|{key}".encode()).digest()[:7], "big")
