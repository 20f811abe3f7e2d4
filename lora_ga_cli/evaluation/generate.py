"""Generates a model's answers to a benchmark's problems, in batches that are stored as soon as they are complete."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_ga_cli.errors import ModelError
from lora_ga_cli.evaluation.batches import Batches, halved_message
from lora_ga_cli.evaluation.completions import append_completions, read_completions
from lora_ga_cli.evaluation.continuation import continuations, end_tokens, without_end
from lora_ga_cli.evaluation.inputs import ModelInputs, seed_of
from lora_ga_cli.evaluation.tasks.base import Progress
from lora_ga_cli.evaluation.tasks.problems import Completion, Problem, ProblemSource, problems_of


@dataclass(frozen=True)
class Generator(ModelInputs):
    """A model in evaluation mode with its tokenizer, and the options of generation.

    Each batch of samples is seeded by its contents, so interruptions do not change an answer. When memory runs out,
    batches of greedy answers are halved, which changes none of them.

    Args:
        warn: shows a warning to the user.
    """

    warn: Callable[[str], None] = warnings.warn

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
        cached = read_completions(file, problems, self.warn)
        rows = self.first_rows(benchmark)
        lengths = {problem.id: len(row["input_ids"]) for problem, row in zip(problems, rows, strict=True)}
        wanted = [(problem, sample) for problem in problems for sample in range(self.options.samples)]
        # long prompts first, as in `by_length`; the order is the same in every session, and so are the batches
        order = sorted(wanted, key=lambda pair: (-lengths[pair[0].id], pair[1]))
        batches: Batches[tuple[Problem, int], Completion] = Batches(
            self.options.batch_size,
            lambda batch: self._complete(batch, benchmark),
            self._halved,
        )
        with progress("eval", f"answer to {benchmark.name}", len(wanted)) as report:
            report(len(cached))
            for begin in range(0, len(order), self.options.batch_size):
                batch = order[begin : begin + self.options.batch_size]
                if all((problem.id, sample) in cached for problem, sample in batch):
                    continue
                made = [completion for part in batches.run(batch) for completion in part]
                append_completions(file, made)
                cached |= {(one.problem.id, one.sample): one for one in made}
                report(len(cached))
        return [cached[problem.id, sample] for problem, sample in wanted]

    def _halved(self, size: int) -> None:
        """Says that batches are smaller from now on.

        Raises:
            ModelError: answers are sampled, and would be others.
        """
        if self.options.temperature > 0:
            raise ModelError(
                f"the accelerator's memory is full, and smaller batches would draw other samples: start the evaluation "
                f"again with eval.batch_size={size}"
            )
        self.warn(halved_message(size))

    def _complete(self, batch: Sequence[tuple[Problem, int]], benchmark: ProblemSource) -> list[Completion]:
        prompts: list[list[str]] = [[] for _ in batch]
        texts: list[list[str]] = [[] for _ in batch]
        truncated = [False] * len(batch)
        for turn in range(max(len(problem.turns) for problem, _ in batch)):
            asked = [place for place, (problem, _) in enumerate(batch) if turn < len(problem.turns)]
            for place in asked:
                prompts[place].append(self.prompt(benchmark, batch[place][0], texts[place]))
            torch.manual_seed(seed_of(self.seed, turn, batch))
            made = self._generate([prompts[place][-1] for place in asked], benchmark)
            for place, (text, ended) in zip(asked, made, strict=True):
                texts[place].append(text)
                truncated[place] |= not ended
        return [
            Completion(problem, sample, tuple(prompts[place]), tuple(texts[place]), truncated[place])
            for place, (problem, sample) in enumerate(batch)
        ]

    def _generate(self, prompts: Sequence[str], benchmark: ProblemSource) -> Iterator[tuple[str, bool]]:
        """Each prompt's continuation, and whether the model ended it."""
        options, tokenizer, stops = self.options, self.tokenizer, benchmark.stops
        ends = self.ends(benchmark)
        generated = continuations(
            self.model,
            tokenizer,
            self.task,
            self.rows(benchmark, prompts),
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            stops=stops,
            ends=ends,
        )
        tokens = set(end_tokens(self.model, tokenizer, ends))
        for prompt, row in zip(prompts, generated, strict=True):
            text = tokenizer.decode(row, skip_special_tokens=True)
            # a stop may begin in the prompt and end in the answer
            before = prompt if self.task == "causal_lm" else ""
            stopped = any(stop in before[max(0, len(before) + 1 - len(stop)) :] + text for stop in stops)
            ended = stopped or not tokens.isdisjoint(row) or bool(ends.text and ends.text in text)
            yield without_end(text, ends), ended
