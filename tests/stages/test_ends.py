"""What training puts after an answer ends it wherever the result is used; its tokenizer stays with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import byte_tokenizer
from tests.helpers import Arguments, Loraga, only_run

CHAT = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ bos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def ends_of(folder: Path) -> object:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


@pytest.fixture
def other_end() -> int:
    """A tokenizer in ``tok`` like the base's, but whose end-of-text token is another; returns the token's number."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "~"
    tokenizer.save_pretrained("tok")
    return int(tokenizer.eos_token_id)


@pytest.fixture
def chats(tmp_path: Path) -> list[str]:
    """The overrides of a run on conversations, by a template in a file, which ends a turn with ``<s>``."""
    messages = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    (tmp_path / "chats.jsonl").write_text(20 * (json.dumps({"messages": messages}) + "\n"))
    (tmp_path / "mine.jinja").write_text(CHAT)
    return [
        "dataset=chat",
        "dataset.train_file=chats.jsonl",
        "dataset.chat_template=mine.jinja",
        "dataset.max_length=64",
    ]


def without_dataset(arguments: list[str]) -> list[str]:
    return [item for item in arguments if not item.startswith("dataset")]


def test_an_adapter_keeps_its_tokenizer_and_a_merged_model_stops(
    loraga: Loraga, arguments: Arguments, other_end: int
) -> None:
    out = loraga("train", *arguments("llama", "model.tokenizer=./tok", "method=lora"))
    run = only_run()
    assert f"vLLM with --tokenizer {run}" in out
    assert AutoTokenizer.from_pretrained(run).eos_token == "~"
    readme = (run / "README.md").read_text()
    assert f"--tokenizer {run.name}" in readme
    assert f'"stop_token_ids": [{other_end}]' in readme
    shutil.rmtree("tok")  # the one beside the adapter is enough
    loraga("merge", str(run), "--output", "plain")
    assert ends_of(Path("plain")) == [1, other_end]
    assert AutoTokenizer.from_pretrained("plain").eos_token == "~"


def test_a_complete_model_stops(loraga: Loraga, arguments: Arguments, other_end: int) -> None:
    loraga("train", *arguments("llama", "model.tokenizer=./tok", "method=full"))
    assert ends_of(only_run()) == [1, other_end]


def test_a_base_that_stops_there_anyway_is_left_as_it_is(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments("llama", "method=lora"))
    assert not (only_run() / "tokenizer_config.json").exists()
    assert "stop_token_ids" not in (only_run() / "README.md").read_text()
    loraga("merge", str(only_run()), "--output", "plain")
    assert ends_of(Path("plain")) == 1


def test_a_chat_template_of_the_users_goes_with_the_result(
    loraga: Loraga, arguments: Arguments, chats: list[str]
) -> None:
    loraga("train", *without_dataset(arguments("llama", "method=lora")), *chats)
    run = only_run()
    Path("mine.jinja").unlink()
    assert (run / "chat_template.jinja").read_text() == CHAT
    loraga("merge", str(run), "--output", "plain")
    assert (Path("plain") / "chat_template.jinja").read_text() == CHAT
    assert ends_of(Path("plain")) == [1, 0]
    assert AutoModelForCausalLM.from_pretrained("plain").generation_config.eos_token_id == [1, 0]
    loraga("eval", str(run))


class TestPreview:
    def test_shows_conversations_by_the_users_template(
        self, loraga: Loraga, arguments: Arguments, chats: list[str]
    ) -> None:
        out = loraga("train", *without_dataset(arguments("llama")), *chats, "--preview")
        assert "user:1+1<s>\nassistant:⟦2<s>⟧" in out

    def test_names_a_template_that_is_not_there(self, loraga: Loraga, arguments: Arguments, chats: list[str]) -> None:
        Path("mine.jinja").unlink()
        out = loraga("train", *without_dataset(arguments("llama")), *chats, "--preview", code=2)
        assert "dataset.chat_template: mine.jinja cannot be read: No such file or directory" in out

    def test_names_a_token_beyond_the_embedding(
        self, loraga: Loraga, arguments: Arguments, sums_file: Path, saved_bases: dict[str, Path]
    ) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens(["+"], special_tokens=True)
        tokenizer.add_tokens(["<|new|>"], special_tokens=True)
        tokenizer.save_pretrained("tok")
        sums_file.write_text('{"prompt": "<|new|>1", "answer": "1"}\n' * 20)
        out = loraga(
            "train", *arguments("llama", "model.tokenizer=./tok", "dataset.shuffle=false"), "--preview", code=2
        )
        assert "token '<|new|>' has number 259, and the model's embedding 259 rows" in out
        assert f"{sums_file}:1 holds it" in out
