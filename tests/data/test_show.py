"""How a row is shown."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data.examples.base import Form
from lora_ga_cli.data.show import Segment, marked
from tests.data.examples import make_form


def spans(text: Text) -> list[tuple[str, str]]:
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def language_form(tokenizer: Any, task: str) -> Form:
    return make_form(DatasetConfig(train_file="d.jsonl", prompt="{q}", answer="{a}"), task, tokenizer)


def row_of(tokenizer: Any, prompt: str, answer: str) -> dict[str, Any]:
    shown = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    learned = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return {"input_ids": shown + learned, "labels": [-100] * len(shown) + learned}


def test_the_part_without_loss_is_dim_and_special_tokens_stand_out(tokenizer: Any) -> None:
    text = language_form(tokenizer, "causal_lm").show(row_of(tokenizer, "<s>Wer da? ", "Ich.</s>"))
    assert text.plain == "<s>Wer da? Ich.</s>"
    assert spans(text) == [("<s>", "magenta dim"), ("Wer da? ", "dim"), ("</s>", "magenta")]


def test_a_character_is_shown_once_where_only_its_second_byte_has_a_loss(tokenizer: Any) -> None:
    row = row_of(tokenizer, "é", "")
    row["labels"] = [-100, row["input_ids"][1]]
    assert language_form(tokenizer, "causal_lm").show(row).plain == "é"


def test_markup_in_a_text_is_text(tokenizer: Any) -> None:
    assert language_form(tokenizer, "causal_lm").show(row_of(tokenizer, "[bold]x", "[/bold]")).plain == "[bold]x[/bold]"


def test_an_encoder_decoders_labels_follow_an_arrow(ended: Any) -> None:
    row = {"input_ids": ended("ab")["input_ids"], "labels": ended("c")["input_ids"]}
    assert language_form(ended, "seq2seq_lm").show(row).plain == "ab</s>\n→ c</s>"


def test_a_class_is_shown_by_name(paired: Any) -> None:
    row = {"input_ids": paired("ab", "c")["input_ids"], "labels": 1}
    config = DatasetConfig(train_file="d.jsonl", text="{q}", text_pair="{r}", label="y")
    text = make_form(config, "sequence_classification", paired, ["no", "yes"]).show(row)
    assert text.plain == "<s>ab</s>c</s>\n→ yes"
    assert spans(text)[-1] == ("yes", "bold")
    without_names = make_form(config, "sequence_classification", paired)
    assert without_names.show(row).plain.endswith("→ 1")


class TestParts:
    def test_they_say_what_has_a_loss_and_what_is_a_special_token(self, tokenizer: Any) -> None:
        row = row_of(tokenizer, "<s>Wer da? ", "Ich.</s>")
        assert language_form(tokenizer, "causal_lm").parts(row) == [
            Segment("<s>", learned=False, special=True),
            Segment("Wer da? ", learned=False),
            Segment("Ich.", learned=True),
            Segment("</s>", learned=True, special=True),
        ]

    def test_a_character_that_is_half_learned_is_in_one_part(self, tokenizer: Any) -> None:
        row = row_of(tokenizer, "xé", "y")
        row["labels"] = [-100, -100, *row["input_ids"][2:]]
        assert [part.text for part in language_form(tokenizer, "causal_lm").parts(row)] == ["x", "éy"]

    def test_of_an_encoder_decoder_the_labels_alone_are_learned(self, ended: Any) -> None:
        row = {"input_ids": ended("ab")["input_ids"], "labels": ended("c")["input_ids"]}
        parts = language_form(ended, "seq2seq_lm").parts(row)
        assert "".join(part.text for part in parts) == "ab</s>\n→ c</s>"
        assert [part.text for part in parts if part.learned] == ["c", "</s>"]

    def test_of_a_classifiers_row_the_class_alone_is_learned(self, paired: Any) -> None:
        row = {"input_ids": paired("ab", "c")["input_ids"], "labels": 1}
        config = DatasetConfig(train_file="d.jsonl", text="{q}", text_pair="{r}", label="y")
        parts = make_form(config, "sequence_classification", paired, ["no", "yes"]).parts(row)
        assert [part.text for part in parts if part.learned] == ["yes"]

    def test_marks_stand_around_what_is_learned(self) -> None:
        parts = [Segment("<s>", False, True), Segment("a", False), Segment("b", True), Segment("</s>", True, True)]
        assert marked([*parts, *parts]) == "<s>a⟦b</s>⟧<s>a⟦b</s>⟧"
