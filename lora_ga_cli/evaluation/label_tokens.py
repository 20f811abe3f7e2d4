"""Classification by a language model: which label word the model prefers as its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lora_ga_cli.data.collate import causal_prompts
from lora_ga_cli.data.tokens import MASKED, answer_tokens
from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.evaluation.classes import Classes
from lora_ga_cli.evaluation.scoring import ScoringContext
from lora_ga_cli.evaluation.tasks.base import Score

OPTION = "dataset.label_names"


def label_tokens(context: ScoringContext) -> Score:
    """Accuracy, Matthews correlation and, of two classes, F1 of the label word that the model prefers.

    At the first token of the answer, only the logits of the label words' first tokens are compared. LoRA-GA scores GLUE
    in this way (section 4.1): its code compares two tokens for tasks with two classes; here there is one for each
    class. White space around an answer does not count.

    Raises:
        DataError: no label words, words that begin with the same token, or a reference that is not one of them.
    """
    words = _words(context)
    expected = [words.index(reference.strip()) for reference in context.split.rows["reference"]]
    tokens = _first_tokens(context, words)
    _check_first_tokens(context, words, tokens, expected)

    def preferred(rows: Sequence[Mapping[str, Any]]) -> list[int]:
        numbers: list[int] = _first_logits(context, rows)[:, tokens].argmax(dim=-1).tolist()
        return numbers

    predicted = context.of_rows("label of row", preferred)
    classes = Classes(predicted, expected, len(words))
    values = {name: measure() for name, measure in classes.measures().items()}
    prompts = context.split.rows["prompt"]
    verdicts = [{"prompt": prompt, **one} for prompt, one in zip(prompts, classes.verdicts(words), strict=True)]
    return Score(values, verdicts, shares=frozenset(values) & {"accuracy", "f1"})


@torch.no_grad()
def _first_logits(context: ScoringContext, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """The logits of each answer's first token, of shape (rows, vocabulary); the answer is not in the input."""
    collate = context.split.form.collate
    if context.task == "seq2seq_lm":
        batch = context.to_device(collate(rows))
        # the decoder input is the labels shifted by one: with one label, it is only the token that begins every text
        return context.model(**batch | {"labels": batch["labels"][:, :1]}).logits[:, 0]
    batch = context.to_device(collate([{"input_ids": ids, "labels": ids} for ids in causal_prompts(rows)]))
    del batch["labels"]
    last = batch["attention_mask"].sum(dim=1) - 1
    # a trained prefix has logits too, which are dropped
    logits = context.model(**batch).logits[:, -batch["input_ids"].shape[1] :]
    return logits[torch.arange(len(rows), device=last.device), last]


def _words(context: ScoringContext) -> list[str]:
    """The label words. Every reference must be one of them."""
    if not context.label_names:
        hint = f"name the words in the order of their classes: {OPTION}=[negative,positive]"
        raise DataError([Fault(OPTION, "label_tokens in eval.metrics needs the words that are answers", hint)])
    words = list(context.label_names)
    other = next((text for text in context.split.rows["reference"] if text.strip() not in words), None)
    if other is not None:
        what = f"the answer {other[:60]!r} is not one of {', '.join(words)}"
        raise DataError([Fault(OPTION, what, "label_tokens is for rows whose complete answer is a label word")])
    return words


def _first_tokens(context: ScoringContext, words: Sequence[str]) -> list[int]:
    """The first token of each word in an answer."""
    some: str = context.split.rows["reference"][0]
    lead = some[: len(some) - len(some.lstrip())]
    texts = [lead + word for word in words]
    ids = _answers(context, texts)
    tokens = [of_word[0] if of_word else MASKED for of_word in ids]
    if MASKED in tokens:
        raise DataError([Fault(OPTION, f"{texts[tokens.index(MASKED)]!r} has no token", "name every class by a word")])
    for number, token in enumerate(tokens):
        if token in tokens[:number]:
            shown = context.tokenizer.convert_ids_to_tokens(token)
            pair = f"{words[tokens.index(token)]!r} and {words[number]!r}"
            hint = "take words that differ there, or exact_match in eval.metrics"
            raise DataError([Fault(OPTION, f"{pair} begin with the same token, {shown!r}", hint)])
    return tokens


def _answers(context: ScoringContext, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of answers, as they follow the first row's prompt."""
    if context.task == "seq2seq_lm":
        result: list[list[int]] = context.tokenizer(text_target=list(texts), verbose=False)["input_ids"]
        return result
    row = context.split.rows[0]
    (prompt,) = causal_prompts([row])
    return [answer_tokens(context.tokenizer, prompt, row["prompt"], text) for text in texts]


def _check_first_tokens(
    context: ScoringContext, words: Sequence[str], tokens: Sequence[int], expected: Sequence[int]
) -> None:
    """Refuses rows whose answers begin with another token than their words do, which a chat template can cause."""
    for row, number in zip(context.split.rows, expected, strict=True):
        begins = row["input_ids"][row["prompt_length"]] if "prompt_length" in row else row["labels"][0]
        if begins != tokens[number]:
            shown = [context.tokenizer.convert_ids_to_tokens(token) for token in (begins, tokens[number])]
            what = f"an answer {row['reference']!r} begins with the token {shown[0]!r}, and its word with {shown[1]!r}"
            raise DataError([Fault(OPTION, what, "dataset.prompt and dataset.answer instead of dataset.messages")])
