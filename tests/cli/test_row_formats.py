"""A file as another tool reads it is given to a command, and nothing else has to be said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.helpers import Loraga, only_run

ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Say hi.", "input": "", "output": "hi"},
    {"instruction": "Say ho.", "input": None, "output": "ho"},
    {"instruction": "Say ha.", "output": "ha"},
]
SHORT = ["gradient.samples=4", "trainer.max_steps=2", "trainer.batch_size=2", "trainer.learning_rate=1e-3", "rank=4"]
Write = Callable[..., list[str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes rows, and returns the shortest command line that trains on them."""
    monkeypatch.chdir(tmp_path)

    def build(rows: list[dict[str, object]], *options: str) -> list[str]:
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return ["model=tiny", "dataset.train_file=rows.jsonl", "dataset.validation_fraction=0", *options]

    return build


def test_a_file_alone_is_a_data_set_whose_format_is_named_on_screen(loraga: Loraga, command: Write) -> None:
    out = loraga("train", *command(ALPACA), "--preview")
    assert "format alpaca (columns instruction, input, output)" in out
    assert out.count("### Response:") == 4
    assert out.count("### Input:\n1 and 2\n") == out.count("### Input:") == 1


def test_a_line_end_in_a_template_on_the_command_line_is_one(loraga: Loraga, command: Write) -> None:
    template = r'dataset.prompt="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"'
    out = loraga("train", *command(ALPACA, template, 'dataset.answer="{output}"'), "--preview")
    assert "the paragraph of {input} in dataset.prompt is left out of rows without a value" in out
    assert out.count("### Response:\n") == 4
    assert out.count("### Input:") == 1


def test_what_a_run_found_is_stored_with_it_and_not_looked_for_again(loraga: Loraga, command: Write) -> None:
    words = command(ALPACA, *SHORT, "dataset.validation_file=rows.jsonl", "method=lora")
    words.remove("dataset.validation_fraction=0")
    assert "format alpaca" in loraga("train", *words)
    run = only_run()
    stored = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["dataset"]
    assert (stored["format"], stored["answer"]) == ("alpaca", "{output}")
    again = loraga("train", *words)
    assert "finished already" in again
    assert "format alpaca" not in again
    assert "format alpaca" not in loraga("eval", str(run))
    assert len(list(Path("runs").iterdir())) == 2  # the run, and its lock


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "1+1? ", "answer": ""}, "the answer is empty, which teaches the model to answer nothing"),
        ({"prompt": "1+1? ", "answer": " \n"}, "the answer is empty"),
    ],
)
def test_an_empty_answer_is_malformed_unless_it_is_wanted(
    loraga: Loraga, command: Write, row: dict[str, object], what: str
) -> None:
    rows = [row, {"prompt": "1+2? ", "answer": "3"}]
    out = loraga("train", *command(rows), "--preview", code=2)
    assert f"rows.jsonl:1: {what}" in out
    assert "dataset.allow_empty_answers=true" in out
    out = loraga("train", *command(rows, "dataset.on_bad_row=skip"), "--preview")
    assert "train: 1 row, " in out
    assert "1 skipped: an empty answer" in out
    assert "train: 2 rows, " in loraga("train", *command(rows, "dataset.allow_empty_answers=true"), "--preview")


def test_so_is_an_empty_turn_of_the_assistant(loraga: Loraga, command: Write) -> None:
    def chat(answer: str) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": answer}]}

    rows = [chat(""), chat("3")]
    out = loraga("train", *command(rows), "--preview", code=2)
    assert "rows.jsonl:1: message 2, of the assistant, is empty" in out
    assert "dataset.allow_empty_answers=true" in out
    assert "1 skipped: an empty answer" in loraga("train", *command(rows, "dataset.on_bad_row=skip"), "--preview")
    assert "train: 2 rows, " in loraga("train", *command(rows, "dataset.allow_empty_answers=true"), "--preview")


def test_columns_of_no_format_are_answered_with_how_to_rename_them(loraga: Loraga, command: Write) -> None:
    words = command([{"question": "1+2?", "response": "3"}])
    out = loraga("train", *words, "--preview", code=2)
    assert "dataset.columns={prompt: question, answer: response}" in out
    out = loraga("train", *words, "dataset.columns={prompt: question, answer: response}", "--preview")
    assert "format prompt_answer (columns prompt, answer)" in out


def test_an_option_that_replaces_a_default_is_told_of(loraga: Loraga, command: Write) -> None:
    words = [item for item in command(ALPACA) if "fraction" not in item]
    out = loraga("train", *words, "dataset.validation_file=rows.jsonl", "--preview")
    assert "dataset.validation_file=rows.jsonl replaces dataset.validation_fraction=0.05" in out
    assert "validation: 4 rows" in out
