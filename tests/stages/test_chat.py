"""`loraga chat`: who answers, what the model reads, and what a user sees."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lora_ga_cli.cli.app import main
from lora_ga_cli.config.compose import compose
from lora_ga_cli.data.ends import Ends
from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.evaluation.tasks.problems import GenerationOptions
from lora_ga_cli.stages.chat.models import load_models
from lora_ga_cli.stages.chat.prompts import Talk, chat_prompt
from lora_ga_cli.stages.chat.session import Session
from tests.conftest import byte_tokenizer
from tests.data.chat_templates import FAMILIES
from tests.evaluation.models import going_on, restless
from tests.helpers import Loraga
from tests.stages.test_shared_base import KINDS, save_adapter

FLOAT = ["model.dtype=float32", "device=cpu"]
LENGTH = 6
Chat = Callable[..., tuple[list[str], str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and adapters on it, of which one is DoRA's."""
    home = tmp_path_factory.mktemp("home")
    restless("llama").save_pretrained(home / "base")
    byte_tokenizer().save_pretrained(home / "base")
    for number, (name, options) in enumerate(KINDS.items()):
        save_adapter(home / "base", home / name, number, **options)
    return home


@pytest.fixture(autouse=True)
def laid_out(home: Path) -> None:
    for name in ("base", *KINDS):
        Path(name).symlink_to(home / name)


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    """Sends lines through a pipe; returns the lines of standard output, and standard error."""

    def run(words: list[str], *lines: str | bytes) -> tuple[list[str], str]:
        sent = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sent), encoding="utf-8"))
        capsys.readouterr()
        assert main(["chat", *words, *FLOAT]) == 0
        printed = capsys.readouterr()
        return printed.out.splitlines(), printed.err

    return run


def by_peft(adapter: str | None, message: str) -> str:
    """What PEFT alone answers, as a pipe shows it in the first line."""
    model: Any = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer = byte_tokenizer()
    ids = torch.tensor([tokenizer(message)["input_ids"]])
    with torch.no_grad():
        out = model.generate(input_ids=ids, do_sample=False, max_new_tokens=LENGTH)
    text: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return text


def test_each_adapter_and_the_base_answer_as_alone(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in one batch with the base, and DoRA after the base."""
    monkeypatch.setattr("lora_ga_cli.report.visible._shown", repr)
    expected = {name: by_peft(name, "3+1=") for name in KINDS} | {"base": by_peft(None, "3+1=")}
    assert len(set(expected.values())) == 4
    lines = ["3+1=", "/adapter c", "3+1=", "/base", "3+1=", "/compare", "3+1=", "/adapter b", "3+1=", "/quit", "3+1="]
    out, err = chat(["a", "b", "c", f"eval.max_new_tokens={LENGTH}"], *lines)
    from lora_ga_cli.report.visible import visible

    shown = {name: visible(text).split("\n") for name, text in expected.items()}
    both = {
        name: "\n".join([f"base> {visible(expected['base'])}", f"{name}> {visible(expected[name])}"]) for name in "bc"
    }
    assert out == [*shown["a"], *shown["c"], *shown["base"], *both["c"].split("\n"), *both["b"].split("\n")]
    assert "base is loaded once, for a, b, c" in err
    assert "the model continues each message as it stands" in err


def test_what_is_typed_wrong_is_said_and_the_chat_goes_on(chat: Chat) -> None:
    lines = [
        "/adaptor b",
        "/adapter d",
        "/set top_p=3",
        "/set temperature=1e-320",
        "/set size=1",
        "/base now",
        "/system x",
        "",
        "/help",
        b"\xff\xfe",
    ]
    out, err = chat(["a", f"eval.max_new_tokens={LENGTH}"], *lines, "/set temperature=0.5", "/set")
    for text in (
        "no command /adaptor (did you mean /adapter?)",
        "no adapter d here",
        "top_p=3 should be less than or equal to 1",
        "temperature=1e-320 should be 0, for greedy answers, or from 0.001 to 1000",
        "cannot set 'size=1'",
        "/base takes nothing after it",
        "there is no place for a system's text",
        "leaves, as does Ctrl-D",
        "a · temperature 0.5, at most 6 tokens",
        "cut at 6 tokens",
    ):
        assert text in err
    assert out, "the line that is not UTF-8 has an answer"


def test_answers_side_by_side_end_at_the_last_position_together(chat: Chat) -> None:
    out, err = chat(["a", "eval.max_new_tokens=100000"], "/compare", "x" * 250)
    assert [line.split(">")[0] for line in out if ">" in line][:1] == ["base"]
    assert "no answer" not in err


def test_each_line_of_a_pipe_is_answered_by_one_object(chat: Chat) -> None:
    lines = ["3+1=", "", "/set temperature=1e-320", "/compare", "3+1=", "/quit", "x"]
    out, _ = chat(["a", f"eval.max_new_tokens={LENGTH}", "--json"], *lines)
    found = [json.loads(line) for line in out]
    assert [item["line"] for item in found] == [line for line in lines[:-1] if line]
    assert found[0]["answers"] == [{"name": "a", "text": by_peft("a", "3+1=")}]
    assert "should be 0" in found[1]["refused"]
    assert [answer["name"] for answer in found[3]["answers"]] == ["base", "a"]


def test_an_answer_that_fails_does_not_end_a_chat(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("probability tensor contains either `inf`\nand more")

    monkeypatch.setattr("lora_ga_cli.stages.chat.models.continuations", fail)
    _, err = chat(["a"], "x", "/reset")
    assert "no answer: RuntimeError: probability tensor contains either `inf` (another message" in err
    assert "nothing was said yet" in err


def test_a_message_too_long_is_said_and_the_chat_goes_on(chat: Chat) -> None:
    out, err = chat(["base", f"eval.max_new_tokens={LENGTH}"], "x" * 300, "x", "/compare")
    assert "no position left after the 300 tokens" in err
    assert out
    assert "base is a complete model here, without a base beside it" in err


def test_escape_sequences_of_a_model_do_not_reach_the_terminal(chat: Chat) -> None:
    tokenizer = byte_tokenizer()
    escape = tokenizer.tokenize("\x1b")[0]
    following = {"x": escape, escape: "[", "[": "2", "2": "J", "J": "</s>"}
    going_on(tokenizer, following, "?").save_pretrained("hostile")
    tokenizer.save_pretrained("hostile")
    assert chat(["hostile"], "x")[0] == ["␛[2J"]


def test_what_cannot_chat_is_refused_at_once(loraga: Loraga, saved_bases: dict[str, Path], home: Path) -> None:
    out = loraga("chat", str(saved_bases["bert"]), "nothing", "eval.top_k=3", code=2)
    assert "eval.top_k is for loraga eval (here: eval.temperature" in out
    out = loraga("chat", str(saved_bases["bert"]), "nothing", "device=cpu", code=2)
    assert "it is a classifier, which gives classes and no text" in out
    assert "nothing: no such run folder, adapter or model" in out
    assert "no run is named" in loraga("chat", code=2)
    assert "eval.temperature=-1 should be 0" in loraga("chat", "a", "eval.temperature=-1", code=2)
    shutil.copytree(home / "a", "moved")
    file = Path("moved/adapter_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(saved_bases["llama"])}))
    assert f"moved: its base is {saved_bases['llama']}, and that of a is" in loraga(
        "chat", "a", "moved", *FLOAT, code=2
    )
    file.write_text(json.dumps(json.loads(file.read_text()) | {"modules_to_save": ["lm_head"]}))
    out = loraga("chat", "a", "moved", *FLOAT, code=2)
    assert "cannot share a base with others: lm_head was trained with it" in out


class Interrupting:
    """A display at which the user presses Ctrl-C after some pieces of text."""

    def __init__(self, *, interactive: bool, after: int):
        self.interactive, self.after = interactive, after
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    refuse = say

    @contextlib.contextmanager
    def answers(self, names: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
        def write(number: int, text: str) -> None:
            self.after -= 1
            if not self.after:
                raise KeyboardInterrupt

        yield write


@pytest.mark.parametrize("interactive", [True, False])
def test_an_answer_can_be_interrupted(interactive: bool) -> None:
    models = load_models(["a"], FLOAT, None)
    display = Interrupting(interactive=interactive, after=2)
    session = Session(models, GenerationOptions(task="chat", max_new_tokens=LENGTH), display)
    if not interactive:
        with pytest.raises(KeyboardInterrupt):
            session.handle("3+1=")
        return
    assert session.handle("3+1=")
    assert session.interrupted
    assert display.said == ["interrupted; Ctrl-C again leaves"]
    assert session.handle("3+1=")
    assert not session.interrupted


def test_on_a_terminal_a_second_interruption_leaves(monkeypatch: pytest.MonkeyPatch, loraga: Loraga) -> None:
    typed: list[Any] = [KeyboardInterrupt, "3+1=", KeyboardInterrupt, KeyboardInterrupt]

    def read(_: str) -> str:
        item = typed.pop(0)
        if item is KeyboardInterrupt:
            raise item
        return str(item)

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    out = loraga("chat", "a", *FLOAT, "eval.max_new_tokens=2")
    assert out.count("Ctrl-C again leaves") == 2
    assert typed == []


def inputs_of(tokenizer: Any, *data: str) -> Any:
    """What a prompt is made from, without a model."""
    config = compose(["model=causal_lm", "model.path=x", "dataset=jsonl", "dataset.train_file=x", *data])
    return SimpleNamespace(tokenizer=tokenizer, config=config, ends=Ends())


def test_a_chat_template_writes_all_that_was_said() -> None:
    tokenizer = FAMILIES["chatml"].tokenizer()
    prompt = chat_prompt(inputs_of(tokenizer), is_run=False, template=None, name="x")
    talk = Talk("Be short.", [("2+2?", "4")])
    said = ["system", "Be short.", "user", "2+2?", "assistant", "4", "user", "3+3?"]
    messages = [{"role": role, "content": text} for role, text in zip(said[::2], said[1::2], strict=True)]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt.text(talk, "3+3?") == expected
    assert prompt.row(talk, "3+3?")["input_ids"] == tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert prompt.remembers
    assert tokenizer.convert_ids_to_tokens(list(prompt.ends.tokens)) == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("data", "template", "text"),
    [
        (["dataset.prompt='Q: {question} A:'", "dataset.answer='{answer}'"], None, "Q: hi A:"),
        (["dataset.prompt='{?more}{more} {/more}{task}!'", "dataset.answer='{answer}'"], None, "hi!"),
        (["dataset.prompt='Q: {question} A:'", "dataset.answer='{answer}'"], "<{question}>", "<hi>"),
        (["dataset.text='{text}'"], None, "hi"),
    ],
)
def test_a_run_is_asked_as_its_rows_were_written(data: list[str], template: str | None, text: str) -> None:
    """Although its tokenizer has a chat template."""
    prompt = chat_prompt(inputs_of(FAMILIES["chatml"].tokenizer(), *data), is_run=True, template=template, name="x")
    assert prompt.text(Talk(), "hi") == text
    assert not prompt.remembers


def test_a_prompt_of_several_columns_asks_for_another() -> None:
    data = ["dataset.prompt='{context} {question}'", "dataset.answer='{answer}'"]
    with pytest.raises(InvalidInput, match=r"several columns \(context, question\).*eval\.prompt="):
        chat_prompt(inputs_of(byte_tokenizer(), *data), is_run=True, template=None, name="x")
