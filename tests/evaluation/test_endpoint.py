"""A server in place of a model: what it is asked, what is made of its answers, and that nothing is asked twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from lora_ga_cli.config.schema import EndpointOptions
from lora_ga_cli.errors import UserError
from lora_ga_cli.evaluation.endpoint import Endpoint as Client
from lora_ga_cli.evaluation.endpoint import Generation
from lora_ga_cli.evaluation.generate import Generator
from lora_ga_cli.evaluation.served import ServedGenerator
from lora_ga_cli.evaluation.tasks.benchmark import Completion, GenerationOptions
from lora_ga_cli.report.progress import counting
from tests.conftest import byte_tokenizer
from tests.evaluation.endpoints import KEY, VARIABLE, Answer, Endpoint, completes, refuses, says
from tests.evaluation.models import alphabet, restless
from tests.evaluation.test_generate import PROMPTS, TEMPLATE, Bench

BEGINNING = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])


def options(endpoint: Endpoint, **fields: Any) -> EndpointOptions:
    given = {"base_url": endpoint.url, "key_variable": VARIABLE, "concurrency": 1} | fields
    return EndpointOptions(**given)


def client(endpoint: Endpoint, tokenizer: Any = None, **fields: Any) -> Client:
    return Client(options(endpoint, **fields), "mine", tokenizer or byte_tokenizer())


def written_by(model: Any) -> Callable[[dict[str, Any]], Answer]:
    """A server's answers as a model gives them to one prompt alone, through transformers; texts end before a stop."""
    tokenizer, guard = byte_tokenizer(), threading.Lock()

    def answer(request: dict[str, Any]) -> Answer:
        ids, limit = request["prompt"], request["max_tokens"]
        with guard, torch.no_grad():
            new = model.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=limit)[0, len(ids) :]
        text, finish = tokenizer.decode(new, skip_special_tokens=True), "stop" if 1 in new else "length"
        for stop in request.get("stop", []):
            if stop in text:
                text, finish = text.partition(stop)[0], "stop"
        return completes(text, finish, len(ids))

    return answer


def before(stops: Sequence[str], text: str) -> str:
    """The text before the first of these; a server leaves out what generation here leaves in."""
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text)


@pytest.fixture
def ask(endpoint: Endpoint, tmp_path: Path) -> Callable[..., list[Completion]]:
    """The completions of a benchmark's problems by the endpoint."""

    def run(bench: Bench, *, model: Any = None, tokenizer: Any = None, file: str = "x", **fields: Any) -> Any:
        of_endpoint = {name: fields.pop(name) for name in ("concurrency", "chat", "retries") if name in fields}
        chosen = GenerationOptions(task="bench", **({"max_new_tokens": 8} | fields))
        asked = client(endpoint, tokenizer, **of_endpoint)
        tokenizer = tokenizer or byte_tokenizer()
        generator = ServedGenerator(model or alphabet(), tokenizer, "causal_lm", chosen, 0, asked)
        return generator.completions(bench, tmp_path / f"{file}.jsonl", counting)

    return run


Ask = Callable[..., list[Completion]]


def test_a_prompt_is_sent_as_its_tokens_and_decoded_greedily(endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: completes("b", prompt_tokens=2)
    assert client(endpoint).complete("a!", [68, 4], Generation(7, stops=("\nQ",))) == ("b", True)
    assert client(endpoint, model="theirs").complete("a!", [68, 4], Generation(7)) == ("b", True)
    fields = {"prompt": [68, 4], "max_tokens": 7, "temperature": 0.0}
    assert endpoint.requests == [{"model": "mine", "stop": ["\nQ"], **fields}, {"model": "theirs", **fields}]
    assert endpoint.keys == [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("begins", [False, True])
def test_a_server_that_takes_only_texts_gets_a_text_of_these_tokens(
    endpoint: Endpoint, status: int, begins: bool
) -> None:
    """The first token is there once, whether the prompt has it or the tokenizer adds it."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = BEGINNING
    asked = client(endpoint, tokenizer)

    def takes_texts(request: dict[str, Any]) -> Answer:
        if not isinstance(request["prompt"], str):
            return refuses(status, "prompt must be a string.")
        return completes("b", prompt_tokens=len(tokenizer(request["prompt"])["input_ids"]))

    endpoint.answer = takes_texts
    ids = tokenizer("ab")["input_ids"]
    for _ in range(2):
        assert asked.complete("<s>ab" if begins else "ab", ids, Generation(4)) == ("b", True)
    assert [request["prompt"] for request in endpoint.requests] == [ids, "ab", "ab"]
    with pytest.raises(UserError, match="no text has the tokens of the prompt 'ab'"):
        asked.complete("ab", ids[1:], Generation(4))
    assert len(endpoint) == 3


def test_a_server_that_refuses_texts_too_says_why(endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: refuses(400, "too long" if isinstance(request["prompt"], str) else "no list")
    with pytest.raises(UserError, match=r"status 400 \(too long\): check eval\.endpoint\.model, eval\.max_new_tokens"):
        client(endpoint).complete("a", [68], Generation(4))
    endpoint.script = [completes("b")]
    asked = client(endpoint)
    asked.complete("a", [68], Generation(4))
    with pytest.raises(UserError, match="no list"):  # tokens have been accepted before
        asked.complete("a", [68], Generation(4))


def test_a_server_with_another_tokenizer_is_noticed(endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: completes("b", prompt_tokens=3)
    with pytest.raises(UserError, match=r"read a prompt of 1 tokens as 3: it has another tokenizer"):
        client(endpoint).probe()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refuses(401), [VARIABLE, "another"]),
        (refuses(404, "no such model"), ["'mine'", "(no such model)", "eval.endpoint.model", "/v1"]),
        (Answer("<html>a page</html>"), ["OpenAI's completions protocol", "eval.endpoint.base_url"]),
        (Answer({"choices": []}), ["has no choice"]),
        (says("a chat"), ["has no text"]),
    ],
)
def test_an_error_names_what_happened_and_the_next_step(endpoint: Endpoint, answer: Answer, words: list[str]) -> None:
    endpoint.answer = lambda request: answer
    with pytest.raises(UserError) as caught:
        client(endpoint).probe()
    text = str(caught.value)
    assert [word for word in [*words, endpoint.url] if word not in text] == []
    assert KEY not in text
    assert "\n" not in text


def test_the_answers_are_those_of_generation_here(endpoint: Endpoint, ask: Ask, tmp_path: Path) -> None:
    """Two turns, a stop, and prompts that leave little room or none; many requests at once."""
    model = restless("llama")
    endpoint.answer = written_by(model)
    turns = [*[(prompt, "And?") for prompt in PROMPTS], ("a" * 250, "b"), ("c" * 253,)]
    for name, bench in (("chat", Bench(turns, chat=True)), ("stop", Bench(PROMPTS, stops=("é", "o")))):
        fields = {"prompt": "{question}", "max_new_tokens": 6}
        chosen = GenerationOptions(task="bench", **fields)
        here = Generator(model, byte_tokenizer(), "causal_lm", chosen, 0)
        expected = here.completions(bench, tmp_path / f"{name}.jsonl", counting)
        found = ask(bench, model=model, file=f"{name}-served", concurrency=4, **fields)
        for one, other in zip(found, expected, strict=True):
            assert [before(bench.stops, text) for text in one.texts] == [
                before(bench.stops, text) for text in other.texts
            ]
            assert (one.prompts, one.truncated, one.sample) == (other.prompts, other.truncated, other.sample)
    assert 1 < endpoint.most_underway <= 4
    assert {request["max_tokens"] for request in endpoint.requests} >= {6, 3}


@pytest.mark.parametrize(
    ("prompt", "text", "made", "ended"),
    [("ae", "fgh", "f", True), ("a", "bcdefgh", "bcdefgh", True), ("a", "bcd", "bcd", False), ("e", "xf", "xf", False)],
)
def test_a_stop_may_begin_in_the_prompt(endpoint: Endpoint, prompt: str, text: str, made: str, ended: bool) -> None:
    endpoint.answer = lambda request: completes(text, "length")
    assert client(endpoint).complete(prompt, [68], Generation(8, stops=("ef", "zz"))) == (made, ended)


def test_every_sample_has_a_seed_of_its_own_that_stays(endpoint: Endpoint, ask: Ask) -> None:
    endpoint.answer = lambda request: completes(str(request["seed"]))
    fields = {"samples": 3, "temperature": 0.8, "top_p": 0.9}
    found = ask(Bench(["a", "b"]), file="one", **fields)
    assert ask(Bench(["a", "b"]), file="two", concurrency=3, **fields) == found
    assert len({completion.texts for completion in found}) == 6
    assert all(0 <= int(completion.texts[0]) < 2**31 for completion in found)
    assert {(request["temperature"], request["top_p"]) for request in endpoint.requests} == {(0.8, 0.9)}
    assert [(completion.problem.id, completion.sample) for completion in found[:4]] == [
        ("bench/0", 0),
        ("bench/0", 1),
        ("bench/0", 2),
        ("bench/1", 0),
    ]


def test_answers_that_are_there_are_not_asked_for_again(
    endpoint: Endpoint, ask: Ask, waits: list[float], tmp_path: Path
) -> None:
    """After errors that pass, one that does not, and a file that ends within a line."""
    endpoint.script = [completes("1"), refuses(503), refuses(429), completes("2"), refuses(401)]
    endpoint.answer = lambda request: refuses(401)
    with pytest.raises(UserError, match=r"does not accept.*2 answers stored in .*x\.jsonl: the same command continues"):
        ask(Bench(PROMPTS))
    assert len(waits) == 2
    endpoint.answer = lambda request: completes("again")
    asked = len(endpoint)
    found = ask(Bench(PROMPTS), concurrency=3)
    assert [completion.texts[0] for completion in found] == ["1", "2", *["again"] * 5]
    assert len(endpoint) == asked + 5
    file = tmp_path / "x.jsonl"
    assert len(file.read_text().splitlines()) == len(PROMPTS)
    file.write_bytes(file.read_bytes()[:-20])
    assert ask(Bench(PROMPTS)) == found
    assert len(endpoint) == asked + 6


def test_a_conversation_can_be_sent_as_messages(endpoint: Endpoint, ask: Ask) -> None:
    endpoint.answer = lambda request: says(f"answer {len(request['messages'])}", "length")
    (found,) = ask(Bench([("One?", "Two?")], chat=True), tokenizer=byte_tokenizer(), chat=True)
    assert (found.texts, found.truncated) == (("answer 1", "answer 3"), True)
    assert [request["messages"] for request in endpoint.requests] == [
        [{"role": "user", "content": "One?"}],
        [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "answer 1"},
            {"role": "user", "content": "Two?"},
        ],
    ]


def test_a_conversation_is_a_prompt_in_the_chat_template_by_default(endpoint: Endpoint, ask: Ask) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    endpoint.answer = lambda request: completes("xyz")
    ask(Bench([("One?", "Two?")], chat=True), tokenizer=tokenizer)
    assert [tokenizer.decode(request["prompt"]) for request in endpoint.requests] == [
        "<user>One?\n<assistant>w",
        "<user>One?\n<assistant>xyz\n<user>Two?\n<assistant>w",
    ]


def test_no_file_has_the_key(endpoint: Endpoint, ask: Ask, tmp_path: Path) -> None:
    endpoint.answer = lambda request: completes("b")
    ask(Bench(PROMPTS))
    (line, *_) = (tmp_path / "x.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"id", "sample", "prompts", "texts", "truncated", "sha256"}
    assert not any(KEY in file.read_text() for file in tmp_path.rglob("*") if file.is_file())
