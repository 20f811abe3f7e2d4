"""How a row is shown."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from lora_ga_cli.data import render


def spans(text: Text) -> list[tuple[str, str]]:
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def row_of(tokenizer: Any, prompt: str, answer: str) -> dict[str, Any]:
    shown = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    learned = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return {"input_ids": shown + learned, "labels": [-100] * len(shown) + learned}


def test_the_part_without_loss_is_dim_and_special_tokens_stand_out(tokenizer: Any) -> None:
    text = render(row_of(tokenizer, "<s>Wer da? ", "Ich.</s>"), tokenizer, "causal_lm")
    assert text.plain == "<s>Wer da? Ich.</s>"
    assert spans(text) == [("<s>", "magenta dim"), ("Wer da? ", "dim"), ("</s>", "magenta")]


def test_a_character_whose_bytes_lie_on_both_sides_is_whole(tokenizer: Any) -> None:
    row = row_of(tokenizer, "é", "")
    row["labels"] = [-100, row["input_ids"][1]]
    assert render(row, tokenizer, "causal_lm").plain == "é"


def test_markup_in_a_text_is_text(tokenizer: Any) -> None:
    assert render(row_of(tokenizer, "[bold]x", "[/bold]"), tokenizer, "causal_lm").plain == "[bold]x[/bold]"


def test_encoder_decoder(ended: Any) -> None:
    row = {"input_ids": ended("ab")["input_ids"], "labels": ended("c")["input_ids"]}
    assert render(row, ended, "seq2seq_lm").plain == "ab</s>\n→ c</s>"


def test_a_class_is_shown_by_name(paired: Any) -> None:
    row = {"input_ids": paired("ab", "c")["input_ids"], "labels": 1}
    text = render(row, paired, "sequence_classification", label_names=["no", "yes"])
    assert text.plain == "<s>ab</s>c</s>\n→ yes"
    assert spans(text)[-1] == ("yes", "bold")
    assert render(row, paired, "sequence_classification").plain.endswith("→ 1")
