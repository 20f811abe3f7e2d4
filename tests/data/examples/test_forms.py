"""What each form makes of a row, with the tokens written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_ga_cli.config.row_forms import row_form
from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data.build import needed_columns
from lora_ga_cli.data.examples.base import Form
from lora_ga_cli.data.examples.chat import Chat
from lora_ga_cli.data.examples.classification import Classification
from lora_ga_cli.data.examples.prompt_answer import PromptAnswer
from lora_ga_cli.data.examples.text_to_text import TextToText
from tests.data.examples import learned_tokens, make_form, one_example, tokens

SPLIT = {"train_file": "d.jsonl"}


class TestPromptAnswer:
    """causal_lm with prompt and answer."""

    @pytest.fixture
    def config(self) -> DatasetConfig:
        return DatasetConfig(**SPLIT, prompt="Q{q} A", answer="{a}")

    def test_the_answer_and_the_end_are_learned(self, config: DatasetConfig, tokenizer: Any) -> None:
        example = one_example(make_form(config, "causal_lm", tokenizer), {"q": "x", "a": "yz"})
        assert tokens(tokenizer, example) == "<s> Q x Ġ A y z </s>"
        assert learned_tokens(tokenizer, example) == ". . . . . y z </s>"
        assert example.row["prompt_length"] == 5
        assert example.row["length"] == 8
        assert (example.row["prompt"], example.row["reference"]) == ("Qx A", "yz")

    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            (None, "Q x Ġ A y </s>"),
            ("<s> $A </s>", "<s> Q x Ġ A y </s>"),
            ("$A </s>", "Q x Ġ A y </s>"),
            ("</s> <s> $A", "</s> <s> Q x Ġ A y </s>"),
        ],
    )
    def test_the_prompt_has_the_tokenizers_start_and_never_its_end(
        self, config: DatasetConfig, make_tokenizer: Callable[..., Any], template: str | None, expected: str
    ) -> None:
        tokenizer = make_tokenizer(template=template)
        example = one_example(make_form(config, "causal_lm", tokenizer), {"q": "x", "a": "y"})
        assert tokens(tokenizer, example) == expected

    def test_no_token_lies_across_prompt_and_answer(
        self, config: DatasetConfig, make_tokenizer: Callable[..., Any]
    ) -> None:
        """So that the prompt is the same tokens in training as in generation."""
        tokenizer = make_tokenizer(merges=[("A", "y")])
        assert tokenizer.tokenize("Ay") == ["Ay"]
        example = one_example(make_form(config, "causal_lm", tokenizer), {"q": "x", "a": "y"})
        assert tokens(tokenizer, example) == "<s> Q x Ġ A y </s>"

    def test_truncation_drops_the_end_token(self, config: DatasetConfig, tokenizer: Any) -> None:
        form = make_form(config, "causal_lm", tokenizer)
        example = form.truncate(one_example(form, {"q": "x", "a": "yz"}), 7)
        assert learned_tokens(tokenizer, example) == ". . . . . y z"
        assert (example.row["length"], example.row["prompt_length"], example.row["reference"]) == (7, 5, "yz")
        assert form.learns(example)
        assert not form.learns(form.truncate(example, 5))

    def test_a_first_token_is_not_predicted_so_it_has_no_loss(self, make_tokenizer: Callable[..., Any]) -> None:
        config = DatasetConfig(**SPLIT, prompt="", answer="{a}", allow_empty_answers=True)
        tokenizer = make_tokenizer(template=None)
        form = make_form(config, "causal_lm", tokenizer)
        assert not form.learns(one_example(form, {"a": ""}))
        assert form.learns(one_example(form, {"a": "x"}))

    def test_a_tokenizer_without_end_token(self, config: DatasetConfig, make_tokenizer: Callable[..., Any]) -> None:
        (fault,) = row_form(config, "causal_lm").faults(config, make_tokenizer(eos=False))
        assert str(fault) == (
            "model.tokenizer: the tokenizer has no end-of-text token, which ends each answer (take another)"
        )


class TestTextToText:
    """seq2seq_lm."""

    @pytest.fixture
    def form(self, ended: Any) -> Form:
        return make_form(DatasetConfig(**SPLIT, prompt="{q}", answer="{a}"), "seq2seq_lm", ended)

    def test_each_side_ends(self, form: Form, ended: Any) -> None:
        example = one_example(form, {"q": "abc", "a": "x"})
        assert tokens(ended, example) == "a b c </s>"
        assert tokens(ended, example, "labels") == "x </s>"
        assert example.row["length"] == 4
        assert (example.row["prompt"], example.row["reference"]) == ("abc", "x")

    def test_the_end_is_added_to_the_answer_where_the_tokenizer_does_not(self, tokenizer: Any) -> None:
        form = make_form(DatasetConfig(**SPLIT, prompt="{q}", answer="{a}"), "seq2seq_lm", tokenizer)
        assert tokens(tokenizer, one_example(form, {"q": "a", "a": "x"}), "labels") == "<s> x </s>"

    def test_truncation_keeps_the_end_token_of_the_input_only(self, form: Form, ended: Any) -> None:
        truncated = form.truncate(one_example(form, {"q": "abcd", "a": "wxyz"}), 3)
        assert tokens(ended, truncated) == "a b </s>"
        assert tokens(ended, truncated, "labels") == "w x y"
        assert truncated.row["length"] == 3

    def test_only_the_long_side_is_truncated(self, form: Form, ended: Any) -> None:
        truncated = form.truncate(one_example(form, {"q": "a", "a": "wxyz"}), 3)
        assert tokens(ended, truncated) == "a </s>"


@pytest.mark.parametrize("task", ["seq2seq_lm", "causal_lm"])
def test_templates_insert_the_name_of_a_class(task: Any, ended: Any) -> None:
    named = {"label": "y", "label_names": ["no", "yes"]}
    config = DatasetConfig(**SPLIT, prompt="{q}? ", answer="({y})", **named)
    form = make_form(config, task, ended)
    assert needed_columns(type(form), config) == {"q": "dataset.prompt", "y": "dataset.answer"}
    example = one_example(form, {"q": "ab", "y": 1})
    assert (example.row["prompt"], example.row["reference"]) == ("ab? ", "(yes)")
    labels = [label for label in example.row["labels"] if label != -100]
    assert ended.decode(labels) == "(yes)</s>"


class TestClassification:
    """sequence_classification."""

    def test_one_text(self, paired: Any) -> None:
        config = DatasetConfig(**SPLIT, text="{q}", label="y")
        form = make_form(config, "sequence_classification", paired, ["no", "yes"])
        example = one_example(form, {"q": "ab", "y": "yes"})
        assert tokens(paired, example) == "<s> a b </s>"
        assert example.row.keys() == {"input_ids", "labels", "length"}
        assert (example.row["labels"], example.row["length"]) == (1, 4)

    def test_a_pair_has_type_ids_where_the_tokenizer_makes_them(self, paired: Any) -> None:
        config = DatasetConfig(**SPLIT, text="{q}", text_pair="{r}", label="y")
        form = make_form(config, "sequence_classification", paired, ["no", "yes"])
        example = one_example(form, {"q": "ab", "r": "c", "y": 0})
        assert tokens(paired, example) == "<s> a b </s> c </s>"
        assert example.row["token_type_ids"] == [0, 0, 0, 0, 1, 1]

    def test_truncation_keeps_the_added_tokens_and_shortens_the_longer_text_first(self, paired: Any) -> None:
        config = DatasetConfig(**SPLIT, text="{q}", text_pair="{r}", label="y")
        form = make_form(config, "sequence_classification", paired, ["no", "yes"])
        truncated = form.truncate(one_example(form, {"q": "abcdef", "r": "xy", "y": 1}), 7)
        assert tokens(paired, truncated) == "<s> a b </s> x y </s>"
        assert truncated.row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
        assert (truncated.row["labels"], truncated.row["length"]) == (1, 7)

    def test_truncation_keeps_the_beginning_whatever_side_the_tokenizer_truncates(
        self, make_tokenizer: Callable[..., Any]
    ) -> None:
        tokenizer = make_tokenizer(template="<s> $A </s>")
        tokenizer.truncation_side = "left"
        config = DatasetConfig(**SPLIT, text="{q}", label="y")
        form = make_form(config, "sequence_classification", tokenizer, ["no", "yes"])
        truncated = form.truncate(one_example(form, {"q": "abcdef", "y": 1}), 4)
        assert tokens(tokenizer, truncated) == "<s> a b </s>"
        assert tokenizer.truncation_side == "left"


def test_every_faulty_template_is_named_by_its_option(tokenizer: Any) -> None:
    config = DatasetConfig(**SPLIT, prompt="{a.b}", answer="{")
    assert [fault.where for fault in row_form(config, "causal_lm").faults(config, tokenizer)] == [
        "dataset.prompt",
        "dataset.answer",
    ]


def test_only_a_causal_form_that_makes_the_usual_batches_is_flattened() -> None:
    class OwnBatches(PromptAnswer):
        def collate(self, rows: Any) -> Any:
            return super().collate(rows) | {"extra": 1}

    class BothOwn(OwnBatches):
        def flatten(self, rows: Any) -> Any:
            return super().flatten(rows) | {"extra": 1}

    flattened = {form.__name__: form.flattens() for form in (PromptAnswer, Chat, TextToText, Classification)}
    assert flattened == {"PromptAnswer": True, "Chat": True, "TextToText": False, "Classification": False}
    assert not OwnBatches.flattens(), "its batches have an entry that flatten_tokens would leave out"
    assert BothOwn.flattens()


@pytest.mark.parametrize(
    ("options", "inserts_none"),
    [
        ({"prompt": "question", "answer": "{a}"}, "dataset.prompt"),
        ({"prompt": "{q}", "answer": "answer"}, "dataset.answer"),
        ({"prompt": "Write a poem.\n", "answer": "{a}"}, ""),
        ({"prompt": "", "answer": "{a}"}, ""),
    ],
)
def test_a_column_without_braces_is_a_fault(tokenizer: Any, options: dict[str, str], inserts_none: str) -> None:
    """Every row would have the column's name for a text. A prompt may be the same for all rows."""
    config = DatasetConfig(train_file="d.jsonl", **options)
    faults = row_form(config, "causal_lm").faults(config, tokenizer)
    assert [fault.where for fault in faults] == ([inserts_none] if inserts_none else [])
