"""Text to text as classification: which label word a model prefers for its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lora_ga_cli.config.schema import Task
from lora_ga_cli.data.collate import causal_prompts
from lora_ga_cli.data.tokens import MASKED, plain_tokens
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.evaluation.classes import Classes
from lora_ga_cli.evaluation.subject import Subject
from lora_ga_cli.evaluation.tasks.base import Score

OPTION = "dataset.label_names"


def label_tokens(subject: Subject) -> Score:
    """Accuracy, Matthews correlation and, of two classes, F1 of the label word that the model prefers.

    At the first token of the answer only the logits of the label words' own first tokens are compared, so that no
    other token can win. This is how LoRA-GA scores GLUE (section 4.1): its code compares two tokens for tasks with two
    classes; here there are as many as classes. The answer is the words' own text, with white space around it or not.

    Raises:
        DataError: no label words, words that begin with the same token, or a reference that is none of them.
    """
    words = _words(subject)
    expected = [words.index(reference.strip()) for reference in subject.split.rows["reference"]]
    tokens = _first_tokens(subject, words)
    _check_first_tokens(subject, words, tokens, expected)
    found: list[int] = []
    for rows in subject.counted("label of row", subject.batches()):
        logits = _first_logits(subject, rows)
        found += logits[:, tokens].argmax(dim=-1).tolist()
    classes = Classes(found, expected, len(words))
    values = {name: measure() for name, measure in classes.measures().items()}
    prompts = subject.split.rows["prompt"]
    verdicts = [{"prompt": prompt, **one} for prompt, one in zip(prompts, classes.verdicts(words), strict=True)]
    return Score(values, verdicts)


@torch.no_grad()
def _first_logits(subject: Subject, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """The logits of each answer's first token, (rows, vocabulary); the model is shown nothing of the answer."""
    collate = subject.split.form.collate
    if subject.task == "seq2seq_lm":
        batch = subject.to_device(collate(rows))
        # a decoder sees the labels but for the last: of one label, only the token that every text starts from
        return subject.model(**batch | {"labels": batch["labels"][:, :1]}).logits[:, 0]
    batch = subject.to_device(collate([{"input_ids": ids, "labels": ids} for ids in causal_prompts(rows)]))
    del batch["labels"]
    last = batch["attention_mask"].sum(dim=1) - 1
    logits = subject.model(**batch).logits[:, -batch["input_ids"].shape[1] :]  # a trained prefix has logits too
    return logits[torch.arange(len(rows), device=last.device), last]


def _words(subject: Subject) -> list[str]:
    """The label words, all references being among them."""
    if not subject.label_names:
        hint = f"name the words in the order of their classes: {OPTION}=[negative,positive]"
        raise DataError([Fault(OPTION, "label_tokens of eval.metrics wants the words that are answers", hint)])
    words = list(subject.label_names)
    other = next((text for text in subject.split.rows["reference"] if text.strip() not in words), None)
    if other is not None:
        what = f"the answer {other[:60]!r} is none of {', '.join(words)}"
        raise DataError([Fault(OPTION, what, "label_tokens is for rows whose whole answer is a label word")])
    return words


def _first_tokens(subject: Subject, words: Sequence[str]) -> list[int]:
    """The first token of each word, as an answer has it."""
    some: str = subject.split.rows["reference"][0]
    lead = some[: len(some) - len(some.lstrip())]
    texts = [lead + word for word in words]
    ids = answer_tokens(subject.tokenizer, subject.task, texts)
    tokens = [of_word[0] if of_word else MASKED for of_word in ids]
    if MASKED in tokens:
        raise DataError([Fault(OPTION, f"{texts[tokens.index(MASKED)]!r} has no token", "name every class by a word")])
    for number, token in enumerate(tokens):
        if token in tokens[:number]:
            shown = subject.tokenizer.convert_ids_to_tokens(token)
            pair = f"{words[tokens.index(token)]!r} and {words[number]!r}"
            hint = "take words that differ there, or exact_match in eval.metrics"
            raise DataError([Fault(OPTION, f"{pair} begin with the same token, {shown!r}", hint)])
    return tokens


def answer_tokens(tokenizer: Any, task: Task, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of answers, as rows of the task have them, but for what ends them."""
    if task == "seq2seq_lm":
        result: list[list[int]] = tokenizer(text_target=list(texts), verbose=False)["input_ids"]
        return result
    return plain_tokens(tokenizer, texts)


def _check_first_tokens(subject: Subject, words: Sequence[str], tokens: Sequence[int], expected: Sequence[int]) -> None:
    """Refuses rows whose answers begin otherwise than their words do, as a chat template can bring about."""
    for row, number in zip(subject.split.rows, expected, strict=True):
        begins = row["input_ids"][row["prompt_length"]] if "prompt_length" in row else row["labels"][0]
        if begins != tokens[number]:
            shown = [subject.tokenizer.convert_ids_to_tokens(token) for token in (begins, tokens[number])]
            what = f"an answer {row['reference']!r} begins with the token {shown[0]!r}, and its word with {shown[1]!r}"
            raise DataError([Fault(OPTION, what, "dataset.prompt and dataset.answer instead of dataset.messages")])
