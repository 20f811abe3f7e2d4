"""The model's inputs for a benchmark's problems: texts, tokens, and whether they leave room for an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lora_ga_cli.config.schema import Task
from lora_ga_cli.data.chat_template import ChatTemplate
from lora_ga_cli.data.ends import Ends
from lora_ga_cli.data.faults import RowFaults
from lora_ga_cli.data.tokens import plain_tokens, prompt_tokens
from lora_ga_cli.errors import ModelError
from lora_ga_cli.evaluation.continuation import positions_left
from lora_ga_cli.evaluation.prompt import conversation
from lora_ga_cli.evaluation.tasks.problems import GenerationOptions, Problem, ProblemSource, problems_of
from lora_ga_cli.model.loading import max_positions


@dataclass(frozen=True)
class ModelInputs:
    """What a model is given for the problems of a benchmark.

    Args:
        model: for its configuration; it needs no weights.
        seed: seed of sampling.
    """

    model: Any
    tokenizer: Any
    task: Task
    options: GenerationOptions
    seed: int

    def first_rows(self, benchmark: ProblemSource) -> list[dict[str, Any]]:
        """Checks that every first turn leaves the model a position for an answer.

        Returns:
            The tokens of every problem's first turn.

        Raises:
            ModelError
        """
        problems = problems_of(benchmark)
        rows = self.rows(benchmark, [self.prompt(benchmark, problem, ()) for problem in problems])
        bad, limit = RowFaults("eval.file"), max_positions(self.model.config)
        for problem, row in zip(problems, rows, strict=True):
            if not positions_left(self.model, self.task, row):
                what = f"its prompt has {len(row['input_ids']):,} tokens, and the model {limit:,} positions"
                bad.add("long", f"problem {problem.id}", what)
        if len(bad):
            faults = bad.faults({"long": "leave it out, or take a model with more positions"})
            raise ModelError("\n".join(map(str, faults)))
        return rows

    def prompt(self, benchmark: ProblemSource, problem: Problem, answers: Sequence[str]) -> str:
        """The model's input for a problem's next turn, after its answers to the earlier ones."""
        turns = problem.turns[: len(answers) + 1]
        return conversation(turns, answers, self.options.prompt, self.tokenizer) if benchmark.chat else turns[-1]

    def by_template(self, benchmark: ProblemSource) -> bool:
        """Whether the tokenizer's chat template writes the prompts."""
        return benchmark.chat and self.options.prompt is None

    def ends(self, benchmark: ProblemSource) -> Ends:
        """What ends an answer beside the model's and the tokenizer's own tokens."""
        return self._template_ends if self.by_template(benchmark) else Ends()

    @cached_property
    def _template_ends(self) -> Ends:
        return ChatTemplate(self.tokenizer).ends

    def rows(self, benchmark: ProblemSource, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """Tokens of prompts, with the tokens that begin a row of training data."""
        if self.task == "seq2seq_lm":
            return [{"input_ids": ids} for ids in self.tokenizer(list(prompts), verbose=False)["input_ids"]]
        # a chat template writes all of the text, and so it is trained; nothing is put before it
        tokens = plain_tokens if self.by_template(benchmark) else prompt_tokens
        rows = tokens(self.tokenizer, prompts)
        return [{"input_ids": ids, "prompt_length": len(ids)} for ids in rows]


def seed_of(seed: int, turn: int, batch: Sequence[tuple[Problem, int]]) -> int:
    """A seed of 56 bits for the samples of a turn that are drawn together."""
    key = "|".join(f"{problem.id}#{sample}" for problem, sample in batch)
    return int.from_bytes(hashlib.sha256(f"{seed}|{turn}|{key}".encode()).digest()[:7], "big")
