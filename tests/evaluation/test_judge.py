"""The judge: each request is sent once, failures are tried again and explained, and the key is never shown."""

from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.errors import UserError
from lora_ga_cli.evaluation.judge import Judge, JudgeOptions, Message
from tests.evaluation.endpoints import KEY, PATIENCE, VARIABLE, Answer, Endpoint, refuses, says


def options(endpoint: Endpoint, **fields: Any) -> JudgeOptions:
    return JudgeOptions(base_url=endpoint.url, key_variable=VARIABLE, **{"model": "judge", "concurrency": 1} | fields)


@pytest.fixture
def judge(endpoint: Endpoint, tmp_path: Path) -> Judge:
    return Judge(options(endpoint), tmp_path / "judgements")


def question(text: str = "how good is it?") -> list[Message]:
    return [{"role": "system", "content": "You grade."}, {"role": "user", "content": text}]


def trouble(judge: Judge) -> str:
    """The error of one question; it is one line and without the key."""
    with pytest.raises(UserError) as caught:
        judge.ask(question())
    text = str(caught.value)
    assert "\n" not in text
    assert KEY not in text
    return text


def nothing(done: int) -> None:
    """A report that is not shown."""


def test_a_question_is_sent_as_it_is_and_answered(judge: Judge, endpoint: Endpoint) -> None:
    judgement = judge.ask(question())
    assert (judgement.text, judgement.model, judgement.finish) == ("Rating: [[7]]", "judge-0613", "stop")
    assert endpoint.requests == [
        {"model": "judge", "messages": question(), "temperature": 0.0, "max_tokens": 2048},
    ]
    assert endpoint.keys == [f"Bearer {KEY}"]


def test_a_stored_judgement_is_not_requested_again(judge: Judge, endpoint: Endpoint, tmp_path: Path) -> None:
    first = judge.ask(question())
    assert judge.ask(question()) == first
    assert Judge(options(endpoint, concurrency=3, retries=1), judge.folder).ask(question()) == first
    assert len(endpoint) == 1
    (file,) = judge.folder.iterdir()
    stored = json.loads(file.read_text())
    assert stored["reply"] == {"text": "Rating: [[7]]", "model": "judge-0613", "finish": "stop"}
    assert stored["request"]["messages"] == question()


def test_a_judgement_is_stored_for_its_endpoint_model_and_options(judge: Judge, endpoint: Endpoint) -> None:
    judge.ask(question())
    judge.ask(question("and now?"))
    judge.ask(question(), attempt=1)
    for fields in ({"model": "other"}, {"temperature": 0.5}, {"max_tokens": 64}):
        Judge(options(endpoint, **fields), judge.folder).ask(question())
    moved = options(endpoint).model_copy(update={"base_url": endpoint.url.replace("127.0.0.1", "localhost")})
    Judge(moved, judge.folder).ask(question())
    assert len(endpoint) == len(list(judge.folder.iterdir())) == 7


def test_one_question_from_several_threads_is_asked_once(endpoint: Endpoint, tmp_path: Path) -> None:
    judge = Judge(options(endpoint, concurrency=4), tmp_path)
    judgements = judge.each(judge.ask, [question()] * 12, nothing)
    assert {judgement.text for judgement in judgements} == {"Rating: [[7]]"}
    assert len(endpoint) == 1


@pytest.mark.parametrize("content", [b"", b'{"request": {}, "rep', b"[]", b'{"reply": {"text": "7"}}', b"\xff"])
def test_a_damaged_file_is_requested_again_and_replaced(judge: Judge, endpoint: Endpoint, content: bytes) -> None:
    first = judge.ask(question())
    (file,) = judge.folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)
    assert judge.ask(question()) == first
    assert len(endpoint) == 2
    assert file.read_bytes() == whole


def test_a_withheld_judgement_and_one_truncated_within_a_character_are_stored(judge: Judge, endpoint: Endpoint) -> None:
    endpoint.script = [says(None, "content_filter"), says("half a smile: \ud83d", "length")]
    assert judge.ask(question()).finish == "content_filter"
    assert judge.ask(question()).text == ""
    assert judge.ask(question("another")).text == "half a smile: ?"
    assert judge.ask(question("another")).text == "half a smile: ?"
    assert len(endpoint) == 2


def test_the_wait_that_an_endpoint_asks_for_is_kept(judge: Judge, endpoint: Endpoint, waits: list[float]) -> None:
    endpoint.script = [refuses(429, headers={"Retry-After": "7"}), refuses(429, headers={"Retry-After": "31"})]
    assert judge.ask(question()).text == "Rating: [[7]]"
    assert waits == [7.0, 31.0]


def test_waits_between_attempts_double(judge: Judge, endpoint: Endpoint, waits: list[float]) -> None:
    endpoint.script = [refuses(status) for status in (429, 500, 503, 502)]
    assert judge.ask(question()).text == "Rating: [[7]]"
    # the client takes up to a quarter off, at random, so that clients do not return all at once
    for wait, full in zip(waits, (0.5, 1.0, 2.0, 4.0), strict=True):
        assert 0.75 * full <= wait <= full


def test_an_endpoint_that_stays_broken_is_given_up(endpoint: Endpoint, waits: list[float], tmp_path: Path) -> None:
    endpoint.answer = lambda request: refuses(500, "the model has\nfallen over")
    judge = Judge(options(endpoint, retries=3), tmp_path / "judgements")
    text = trouble(judge)
    assert (len(endpoint), len(waits)) == (4, 3)
    assert "failed with status 500" in text
    assert "(the model has fallen over): try again later" in text
    assert not judge.folder.exists()


def test_a_limit_says_how_many_judgements_are_stored_and_that_the_same_command_continues(
    endpoint: Endpoint, waits: list[float], tmp_path: Path
) -> None:
    judge = Judge(options(endpoint, retries=2), tmp_path / "judgements")
    endpoint.script = [says("1"), says("2"), says("3"), *[refuses(429, "slow down")] * 3]
    items = [question(str(number)) for number in range(8)]
    done: list[int] = []
    endpoint.answer = lambda request: refuses(401)  # a question after the one that failed would change the message
    with pytest.raises(UserError, match=r"slow down.*eval\.judge\.concurrency.*3 judgements stored in .*same command"):
        judge.each(judge.ask, items, done.append)
    assert done == [1, 2, 3]
    assert len(list(judge.folder.iterdir())) == 3
    asked = len(endpoint)
    endpoint.answer = lambda request: says("again")
    judgements = Judge(options(endpoint), judge.folder).each(judge.ask, items, nothing)
    assert [judgement.text for judgement in judgements] == ["1", "2", "3", *["again"] * 5]
    assert endpoint.questions()[asked:] == ["3", "4", "5", "6", "7"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500])
def test_the_key_is_in_no_message_and_no_file(
    judge: Judge, endpoint: Endpoint, waits: list[float], tmp_path: Path, status: int
) -> None:
    judge.ask(question("kept"))
    endpoint.answer = lambda request: refuses(status, f"what is {KEY}?")
    assert trouble(judge)
    endpoint.answer = lambda request: Answer(f"<html>{KEY}</html>", status)
    assert trouble(judge)
    kept = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(kept) == 1
    assert not any(KEY in content for content in kept)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refuses(401, "wrong"), [VARIABLE, "another"]),
        (refuses(403, "not yours"), [VARIABLE, "'judge'", "(not yours)", "eval.judge.model"]),
        (refuses(404, "The model does not exist"), ["'judge'", "(The model does not exist)", "/v1"]),
        (refuses(400, "temperature must be 1."), ["status 400", "(temperature must be 1)", "eval.judge.temperature"]),
        (Answer({"detail": "pinned to another"}, 400), ["(pinned to another)", "eval.judge.model"]),
        (refuses(413, "x" * 5000), ["status 413", "xxx..."]),
        (Answer("<html>a web page</html>"), ["does not speak OpenAI's chat protocol", "eval.judge.base_url"]),
        (Answer("not JSON", headers={"Content-Type": "application/json"}), ["is not JSON"]),
        (Answer({"choices": []}), ["has no choice"]),
        (Answer({"error": {"message": "upstream is down"}}), ["(upstream is down)"]),
        (Answer({"choices": [{"message": {"content": ["a", "part"]}}]}), ["has no text"]),
    ],
)
def test_every_error_names_what_happened_and_the_next_step(
    judge: Judge, endpoint: Endpoint, answer: Answer, words: list[str]
) -> None:
    endpoint.script = [answer]
    text = trouble(judge)
    assert [word for word in [*words, endpoint.url] if word not in text] == []
    assert len(endpoint) == 1
    assert len(text) < 1000


def test_no_connection_names_the_address(judge: Judge, endpoint: Endpoint, waits: list[float]) -> None:
    endpoint.server.server_close()
    text = trouble(judge)
    assert f"no connection to {endpoint.url} (" in text
    assert "eval.judge.base_url" in text
    assert len(waits) == judge.options.retries


def test_an_endpoint_that_never_answers_is_reported(
    judge: Judge, endpoint: Endpoint, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    endpoint.answer = lambda request: says(str(over.wait(PATIENCE)))
    monkeypatch.setattr(judge._client, "timeout", 0.05)
    try:
        assert f"{endpoint.url} did not answer in time" in trouble(judge)
        assert len(waits) == judge.options.retries
    finally:
        over.set()


def test_a_model_that_needs_the_newer_name_of_the_token_limit_gets_it(judge: Judge, endpoint: Endpoint) -> None:
    def newer(request: dict[str, Any]) -> Answer:
        known = "max_completion_tokens" in request and "max_tokens" not in request
        return says("[[9]]") if known else refuses(400, "Use 'max_completion_tokens' instead of 'max_tokens'.")

    endpoint.answer = newer
    assert judge.ask(question()).text == judge.ask(question("another")).text == "[[9]]"
    assert [request.get("max_completion_tokens") for request in endpoint.requests] == [None, 2048, 2048]


@pytest.mark.parametrize("address", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://host:port/v1", "v1"])
def test_a_malformed_address_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    (fault,) = Judge(JudgeOptions(base_url=address, key_variable=VARIABLE), tmp_path).faults()
    assert fault.where == "eval.judge.base_url"
    assert repr(address) in fault.what


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_key_must_be_there_unless_the_endpoint_is_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)
    (fault,) = Judge(JudgeOptions(key_variable=VARIABLE), tmp_path).faults()
    assert (fault.where, VARIABLE in fault.what, VARIABLE in fault.hint) == ("eval.judge.key_variable", True, True)
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert Judge(JudgeOptions(key_variable=VARIABLE, base_url=f"http://{host}/v1"), tmp_path).faults() == []


@pytest.mark.parametrize("value", [f"{KEY}\nsecond line", f"“{KEY}”"])
def test_a_key_that_cannot_be_sent_is_a_fault_that_does_not_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    (fault,) = Judge(JudgeOptions(key_variable=VARIABLE), tmp_path).faults()
    assert VARIABLE in str(fault)
    assert KEY not in str(fault)


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (fault,) = Judge(JudgeOptions(key_variable=VARIABLE), tmp_path).faults()
    assert "pip install 'loraga[judge]'" in str(fault)


def test_a_local_endpoint_gets_a_placeholder_key_and_no_proxy_is_used(
    judge: Judge, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    endpoint.script = [says("fine"), refuses(401, "none of your business")]
    assert judge.ask(question()).text == "fine"
    assert endpoint.keys == ["Bearer none"]
    with pytest.raises(UserError, match=f"needs a key: export {VARIABLE}="):
        judge.ask(question("another"))


def test_the_probe_is_sent_every_time_and_not_stored(judge: Judge, endpoint: Endpoint, waits: list[float]) -> None:
    judge.probe()
    judge.probe()
    assert len(endpoint) == 2
    assert {(request["max_tokens"], request["temperature"]) for request in endpoint.requests} == {(2048, 0.0)}
    assert not judge.folder.exists()
    endpoint.answer = lambda request: refuses(500)
    with pytest.raises(UserError, match="status 500"):
        judge.probe()
    assert len(waits) == 2


def test_as_many_requests_run_at_once_as_the_options_say(endpoint: Endpoint, tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def meet(request: dict[str, Any]) -> Answer:
        together.wait(PATIENCE)
        return says(request["messages"][-1]["content"])

    endpoint.answer = meet
    judge = Judge(options(endpoint, concurrency=3), tmp_path)
    done: list[int] = []
    judgements = judge.each(judge.ask, [question(str(number)) for number in range(9)], done.append)
    assert [judgement.text for judgement in judgements] == [str(number) for number in range(9)]
    assert done == list(range(1, 10))
    assert endpoint.most_underway == 3


def test_an_interrupted_run_loses_no_judgement(judge: Judge, endpoint: Endpoint) -> None:
    items = [question(str(number)) for number in range(200)]

    def interrupt(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge.each(judge.ask, items, interrupt)
    assert 3 <= len(endpoint) == len(list(judge.folder.iterdir())) < 200
    judge.each(judge.ask, items, nothing)
    assert sorted(endpoint.questions()) == sorted(str(number) for number in range(200))


def grade(base: JudgeOptions, folder: Path, questions: list[str]) -> None:
    """Runs in a child process that will be killed."""
    judge = Judge(base, folder)
    judge.each(judge.ask, [question(text) for text in questions], nothing)


def test_a_killed_run_continues_where_it_stopped(judge: Judge, endpoint: Endpoint) -> None:
    fourth, killed = threading.Event(), threading.Event()

    def hold(request: dict[str, Any]) -> Answer:
        if request["messages"][-1]["content"] == "3":
            fourth.set()
            assert killed.wait(PATIENCE)
        return says("Rating: [[7]]")

    endpoint.answer = hold
    questions = [str(number) for number in range(6)]
    work = (judge.options, judge.folder, questions)
    process = multiprocessing.get_context("spawn").Process(target=grade, args=work, daemon=True)
    process.start()
    assert fourth.wait(PATIENCE)
    process.kill()
    process.join(PATIENCE)
    killed.set()
    assert len(list(judge.folder.iterdir())) == 3
    judge.each(judge.ask, [question(text) for text in questions], nothing)
    assert endpoint.questions() == ["0", "1", "2", "3", "3", "4", "5"]
