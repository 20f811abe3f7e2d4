"""Answers of a server to problems and to rows, many at a time; each is stored as soon as it is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ga_cli.data.collate import causal_prompts
from lora_ga_cli.data.ends import Ends
from lora_ga_cli.evaluation.client import in_parallel
from lora_ga_cli.evaluation.completions import Key, append_completions, read_completions
from lora_ga_cli.evaluation.continuation import positions_left, without_end
from lora_ga_cli.evaluation.endpoint import Endpoint, Generation
from lora_ga_cli.evaluation.inputs import ModelInputs, seed_of
from lora_ga_cli.evaluation.tasks.base import Progress
from lora_ga_cli.evaluation.tasks.problems import Completion, Problem, ProblemSource, problems_of

SEEDS = 2**31
"""Servers take seeds of 31 bits."""


@dataclass(frozen=True)
class ServedGenerator(ModelInputs):
    """The problems of a benchmark, answered by a server.

    Every sample has a seed of its own, so neither an interruption nor other requests change one.
    """

    endpoint: Endpoint

    def completions(self, benchmark: ProblemSource, file: Path, progress: Progress) -> list[Completion]:
        """Completions of all problems, in the order of problems and samples; see `Generator.completions`.

        Args:
            file: JSON lines to which every completion is added; those that are there are not asked for again.

        Raises:
            ModelError: a first turn fills all of the model's positions.
            UserError: the server does not answer, or refuses a request.
        """
        if not self.endpoint.options.chat:
            self.first_rows(benchmark)
        problems = problems_of(benchmark)
        wanted = [(problem, sample) for problem in problems for sample in range(self.options.samples)]
        return answer_all(
            wanted,
            lambda problem, sample: self._complete(problem, sample, benchmark),
            file,
            workers=self.endpoint.options.concurrency,
            progress=progress,
            what=f"answer to {benchmark.name}",
        )

    def _complete(self, problem: Problem, sample: int, benchmark: ProblemSource) -> Completion:
        prompts: list[str] = []
        texts: list[str] = []
        truncated = False
        for turn, question in enumerate(problem.turns):
            seed = seed_of(self.seed, turn, [(problem, sample)]) % SEEDS
            if self.endpoint.options.chat:
                prompts.append(question)
                messages = _messages(problem.turns[: turn + 1], texts)
                text, ended = self.endpoint.reply(messages, self._generation(benchmark, seed))
            else:
                with self.endpoint.tokenizing:
                    prompts.append(self.prompt(benchmark, problem, texts))
                    (row,) = self.rows(benchmark, [prompts[-1]])
                room = min(self.options.max_new_tokens, positions_left(self.model, self.task, row))
                generation = self._generation(benchmark, seed, room)
                text, ended = ("", False)
                if room:
                    text, ended = self.endpoint.complete(prompts[-1], row["input_ids"], generation)
                    text = without_end(text, self.ends(benchmark))
            texts.append(text)
            truncated |= not ended
        return Completion(problem, sample, tuple(prompts), tuple(texts), truncated)

    def _generation(self, benchmark: ProblemSource, seed: int, room: int | None = None) -> Generation:
        options, limit = self.options, self.options.max_new_tokens if room is None else room
        end = self.ends(benchmark).text if room is not None else ""
        stops = [*benchmark.stops, *([end] if end else [])]
        return Generation(limit, options.temperature, options.top_p, stops, seed)


def served_texts(
    endpoint: Endpoint,
    rows: Sequence[Mapping[str, Any]],
    file: Path,
    *,
    max_new_tokens: int,
    ends: Ends,
    model: Any,
    progress: Progress,
) -> list[str]:
    """The server's greedy answers to rows of a causal model, in their order.

    Args:
        file: JSON lines to which every answer is added; those that are there are not asked for again.
        ends: what ends an answer beside the server's own tokens.
        model: for its configuration; it needs no weights.

    Raises:
        DataError: a prompt without a token.
        UserError: the server does not answer, or refuses a request.
    """
    prompts = causal_prompts(rows)
    problems = [Problem(str(number), (row["prompt"],)) for number, row in enumerate(rows)]

    def asked(room: int) -> Generation:
        return Generation(room, stops=[ends.text] if ends.text else ())

    def answer(problem: Problem, sample: int) -> Completion:
        ids = prompts[int(problem.id)]
        room = min(max_new_tokens, positions_left(model, "causal_lm", {"input_ids": ids}))
        text, ended = endpoint.complete(problem.turns[0], ids, asked(room)) if room else ("", False)
        return Completion(problem, sample, problem.turns, (without_end(text, ends),), not ended)

    wanted = [(problem, 0) for problem in problems]
    workers = endpoint.options.concurrency
    made = answer_all(wanted, answer, file, workers=workers, progress=progress, what="answer")
    return [completion.texts[0] for completion in made]


def answer_all(
    wanted: Sequence[tuple[Problem, int]],
    answer: Callable[[Problem, int], Completion],
    file: Path,
    *,
    workers: int,
    progress: Progress,
    what: str,
) -> list[Completion]:
    """The completions of problems and samples, in their order.

    Args:
        answer: completes a problem for a sample; several threads call it.
        file: JSON lines to which every completion is added; those that are there are not asked for again.
        workers: completions that are under way at the same time.
        what: what is counted, while the progress is shown.

    Raises:
        UserError: the first one that ``answer`` raised, and how many answers are stored.
    """
    cached = read_completions(file, list({problem.id: problem for problem, _ in wanted}.values()))
    missing = [(problem, sample) for problem, sample in wanted if (problem.id, sample) not in cached]
    guard, before = threading.Lock(), len(wanted) - len(missing)

    def work(pair: tuple[Problem, int]) -> None:
        made = answer(*pair)
        key: Key = (made.problem.id, made.sample)
        with guard:
            append_completions(file, [made])
            cached[key] = made

    def stored() -> str:
        return f"{len(cached)} answer{'' if len(cached) == 1 else 's'} stored in {file}"

    with progress("eval", what, len(wanted)) as report:
        report(before)
        in_parallel(work, missing, workers=workers, report=lambda done: report(before + done), stored=stored)
    return [cached[problem.id, sample] for problem, sample in wanted]


def _messages(turns: Sequence[str], answers: Sequence[str]) -> list[dict[str, str]]:
    """A conversation up to its last question."""
    messages = [{"role": "user", "content": turn} for turn in turns]
    for number, answer in enumerate(answers):
        messages.insert(2 * number + 1, {"role": "assistant", "content": answer})
    return messages
