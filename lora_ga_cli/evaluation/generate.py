"""A model's answers to a benchmark's problems: batched, kept as they come, and taken up where they stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_ga_cli.config.schema import EvalConfig, Task
from lora_ga_cli.data.faults import RowFaults
from lora_ga_cli.data.template import Template
from lora_ga_cli.data.tokens import leading_tokens, plain_tokens
from lora_ga_cli.errors import Fault, InvalidInput, ModelError
from lora_ga_cli.evaluation.continuation import continuations, ends, positions_left
from lora_ga_cli.evaluation.prompt import OPTION, question_template
from lora_ga_cli.evaluation.tasks.base import Benchmark, Problem, Progress, Reply, problems_of
from lora_ga_cli.model.loading import max_positions

Key = tuple[str, int]
"""A problem's id, and the number of the sample."""


@dataclass(frozen=True)
class Writer:
    """What answers: a model with its tokenizer, and how.

    Args:
        model: in evaluation mode.
        seed: of sampling; the same for the same batch, so that an answer does not depend on interruptions.
    """

    model: Any
    tokenizer: Any
    task: Task
    options: EvalConfig
    seed: int

    def replies(self, benchmark: Benchmark, file: Path, progress: Progress) -> list[Reply]:
        """Replies to all problems, in the order of problems and samples.

        Args:
            file: JSON lines that keep every batch of replies once it is there; those in it are not made again.

        A later turn for which earlier answers have left no position is answered with nothing, and the reply is cut.

        Raises:
            ModelError: first turns that fill all of the model's positions.
        """
        problems = problems_of(benchmark)
        wanted = [(problem, sample) for problem in problems for sample in range(self.options.samples)]
        known = read_replies(file, problems)
        size = self.options.batch_size
        # long ones first, like with like; the same batches every time
        order = sorted(wanted, key=lambda pair: (-len(pair[0].turns[0]), pair[1]))
        self.require_room(benchmark)
        with progress("eval", f"answer to {benchmark.name}", len(wanted)) as report:
            report(len(known))
            for begin in range(0, len(order), size):
                batch = order[begin : begin + size]
                if all((problem.id, sample) in known for problem, sample in batch):
                    continue
                made = self._answer(batch, benchmark)
                append_replies(file, made)
                known |= {(reply.problem.id, reply.sample): reply for reply in made}
                report(len(known))
        return [known[problem.id, sample] for problem, sample in wanted]

    def require_room(self, benchmark: Benchmark) -> None:
        """Refuses a benchmark whose first turns leave the model no position for an answer. It needs no weights.

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

    def _answer(self, batch: Sequence[tuple[Problem, int]], benchmark: Benchmark) -> list[Reply]:
        prompts: list[list[str]] = [[] for _ in batch]
        texts: list[list[str]] = [[] for _ in batch]
        cut = [False] * len(batch)
        for turn in range(max(len(problem.turns) for problem, _ in batch)):
            asked = [place for place, (problem, _) in enumerate(batch) if turn < len(problem.turns)]
            for place in asked:
                prompts[place].append(self._prompt(benchmark, batch[place][0], texts[place]))
            torch.manual_seed(_seed_of(self.seed, turn, batch))
            made = self._generate([prompts[place][-1] for place in asked], benchmark.stops)
            for place, (text, ended) in zip(asked, made, strict=True):
                texts[place].append(text)
                cut[place] |= not ended
        return [
            Reply(problem, sample, tuple(prompts[place]), tuple(texts[place]), cut[place])
            for place, (problem, sample) in enumerate(batch)
        ]

    def _prompt(self, benchmark: Benchmark, problem: Problem, answers: Sequence[str]) -> str:
        """What the model reads of a problem once it has given some answers."""
        turns = problem.turns[: len(answers) + 1]
        return conversation(turns, answers, self.options, self.tokenizer) if benchmark.chat else turns[-1]

    def _generate(self, prompts: Sequence[str], stops: Sequence[str]) -> Iterator[tuple[str, bool]]:
        """Every prompt's continuation, and whether it came to an end by itself."""
        options, tokenizer = self.options, self.tokenizer
        written = continuations(
            self.model,
            tokenizer,
            self.task,
            self._rows(prompts),
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            stops=stops,
        )
        last = set(ends(self.model, tokenizer))
        for prompt, row in zip(prompts, written, strict=True):
            text = tokenizer.decode(row, skip_special_tokens=True)
            before = prompt if self.task == "causal_lm" else ""  # a stop may begin in a prompt, and ends in the answer
            stopped = any(stop in before[max(0, len(before) + 1 - len(stop)) :] + text for stop in stops)
            yield text, stopped or not last.isdisjoint(row)

    def _rows(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """Tokens of prompts, as a row of training data would begin with them."""
        if self.task == "seq2seq_lm":
            return [{"input_ids": ids} for ids in self.tokenizer(list(prompts), verbose=False)["input_ids"]]
        start = leading_tokens(self.tokenizer)
        begun = [ids if ids[: len(start)] == start else start + ids for ids in plain_tokens(self.tokenizer, prompts)]
        return [{"input_ids": ids, "prompt_length": len(ids)} for ids in begun]


def check_conversation(options: EvalConfig, tokenizer: Any) -> None:
    """Refuses a tokenizer that cannot write conversations, where the configuration does not say how; or says it wrong.

    Raises:
        InvalidInput
    """
    hint = "in bash, $'eval.prompt=\"### Instruction:\\n{question}\\n\\n### Response:\\n\"'"
    if options.prompt is not None:
        question_template(options.prompt, hint)
    elif getattr(tokenizer, "chat_template", None) is None:
        what = "the model's tokenizer has no chat template, so how does a conversation read?"
        raise InvalidInput([Fault(OPTION, what, hint)])


def conversation(turns: Sequence[str], answers: Sequence[str], options: EvalConfig, tokenizer: Any) -> str:
    """A conversation up to its last question, as the model reads it.

    In ``eval.prompt``, turn after turn, or else in the tokenizer's chat template.

    Args:
        answers: to all turns but the last.
    """
    if options.prompt is not None:
        template = Template(options.prompt)
        asked = [template.fill({"question": turn}) for turn in turns]
        told = [f"{question}{answer.strip()}\n\n" for question, answer in zip(asked, answers, strict=False)]
        return "".join([*told, asked[-1]])
    messages: list[dict[str, str]] = []
    for turn, answer in zip(turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": turns[-1]})
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def append_replies(file: Path, replies: Sequence[Reply]) -> None:
    """Adds replies to a file of JSON lines, a batch at a time."""
    lines = [json.dumps(reply.as_json(), ensure_ascii=False) for reply in replies]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as opened:
        opened.write("".join(line + "\n" for line in lines))


def read_replies(file: Path, problems: Sequence[Problem]) -> dict[Key, Reply]:
    """The replies in a file, without a last line that was not finished when a program ended."""
    if not file.exists():
        return {}
    by_id = {problem.id: problem for problem in problems}
    *lines, rest = file.read_bytes().split(b"\n")  # bytes: it may end within a character, and texts have line breaks
    if rest:
        os.truncate(file, file.stat().st_size - len(rest))
    found: dict[Key, Reply] = {}
    for line in lines:
        stored = json.loads(line)
        problem, sample = by_id.get(stored["id"]), stored["sample"]
        if problem is not None:
            prompts, texts = tuple(stored["prompts"]), tuple(stored["texts"])
            found[problem.id, sample] = Reply(problem, sample, prompts, texts, stored["cut"])
    return found


def _seed_of(seed: int, turn: int, batch: Sequence[tuple[Problem, int]]) -> int:
    key = "|".join(f"{problem.id}#{sample}" for problem, sample in batch)
    return int.from_bytes(hashlib.sha256(f"{seed}|{turn}|{key}".encode()).digest()[:7], "big")
