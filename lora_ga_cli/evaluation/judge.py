"""The judge: a model behind an endpoint that speaks OpenAI's chat protocol. Each judgement is stored and reused."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field

from lora_ga_cli.config.schema import Positive, Section
from lora_ga_cli.errors import Fault, UserError
from lora_ga_cli.files import read_json, sha256_json, write_json

if TYPE_CHECKING:
    from openai import OpenAI, OpenAIError

INSTALL = "pip install 'loraga[judge]'"
LOCAL = ("localhost", "127.0.0.1", "::1")
NO_KEY = "none"
"""Sent to a local endpoint if there is no key, because the protocol requires one."""
PROBE_RETRIES = 2
"""How often the probe is sent again; few times, because the user is waiting for it."""
TIMEOUT = 300.0
"""Seconds that an answer may take, enough for a long judgement of a slow local server."""
CONNECT_TIMEOUT = 10.0
"""Seconds until an endpoint must have accepted the connection."""
MAX_MESSAGE = 300
"""Characters of an endpoint's message that are shown."""
ERRORS = {
    "AuthenticationError": "{url} does not accept the key in {variable}: export {variable}=... with another",
    "PermissionDeniedError": "the key in {variable} may not use {model!r} at {url}{message}: check eval.judge.model",
    "NotFoundError": "{url} has no model {model!r}{message}: check eval.judge.model, and eval.judge.base_url, which "
    "usually ends in /v1",
    "RateLimitError": "{url} allows no more requests for now{message}: wait, or set eval.judge.concurrency lower or "
    "eval.judge.retries higher",
    "APITimeoutError": "{url} did not answer in time: check that its server is not stuck",
    "APIConnectionError": "no connection to {url} ({cause}): check eval.judge.base_url and that its server runs",
    "InternalServerError": "{url} failed with status {status}, each time{message}: try again later",
    "APIStatusError": "{url} refused a request with status {status}{message}: check eval.judge.model, "
    "eval.judge.temperature and eval.judge.max_tokens",
}
"""What happened and the next step, by class of the openai package's errors; the first class that fits counts."""
Message = dict[str, str]
Item = TypeVar("Item")
Result = TypeVar("Result")


class JudgeOptions(Section):
    """The model that grades answers, behind any endpoint that speaks OpenAI's chat protocol."""

    base_url: str = "https://api.openai.com/v1"
    """Address of the endpoint. Can only be set on the command line, because the endpoint receives the key."""
    model: str = "gpt-4"
    """Name of the judging model at that endpoint."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key. Can only be set on the command line."""
    prompts: str | None = None
    """File of the judge's prompts, FastChat's ``judge_prompts.jsonl``."""
    references: str | None = None
    """File of the reference answers, FastChat's ``reference_answer/gpt-4.jsonl``."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature of the judge; 0 decodes greedily."""
    max_tokens: Positive = 2048
    """Longest judgement, in tokens."""
    retries: Annotated[int, Field(ge=0)] = 6
    """How often a failed request is sent again: after half a second, then twice as long each time up to 8 s, or when
    the endpoint says."""
    concurrency: Positive = 4
    """Requests that are under way at the same time."""


@dataclass(frozen=True)
class Judgement:
    """One answer of the judge.

    Args:
        text: empty if the endpoint withheld it.
        model: the endpoint's name of the model that wrote it, often with a date.
        finish: why it ended (``stop``, ``length``, ``content_filter``, …).
    """

    text: str
    model: str
    finish: str


class Judge:
    """Asks one model, several requests at a time, and stores every answer.

    Args:
        options: the endpoint, the model and its sampling. The key is read from the environment when it is needed.
        folder: one JSON file for every answer, named by a hash of the request and the endpoint. No file has the key.
    """

    def __init__(self, options: JudgeOptions, folder: Path):
        self.options = options
        self.folder = folder
        self._client: OpenAI | None = None
        self._limit = "max_tokens"
        self._guard = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}
        self._stored: set[str] = set()

    def faults(self) -> list[Fault]:
        """What is wrong before a request is sent: a malformed address, a missing package or key."""
        faults = []
        if not _is_address(url := self.options.base_url):
            faults.append(
                Fault("eval.judge.base_url", f"{url!r} is not an address", "such as http://localhost:8000/v1")
            )
        if importlib.util.find_spec("openai") is None:
            faults.append(Fault("eval.judge", "the openai package is not installed", INSTALL))
        name, key = self.options.key_variable, self._key()
        if not key:
            what = f"the environment variable {name} is not set, and {url} needs a key"
            faults.append(Fault("eval.judge.key_variable", what, f"export {name}=..."))
        elif not (key.isascii() and key.isprintable()):
            # it becomes a header, and what refuses it there would print it
            what = f"{name} has characters that a key cannot have"
            faults.append(Fault("eval.judge.key_variable", what, "export it again, as one line of ASCII"))
        return faults

    def probe(self) -> None:
        """Asks for one word, with the model and options of judgements, and does not store it.

        Raises:
            UserError: no connection, a wrong key, an unknown model, options that the model does not take.
        """
        # with the token limit of judgements, so that a model which refuses that limit is noticed here
        system = {"role": "system", "content": "You are a judge."}
        self._send([system, {"role": "user", "content": "Reply with one word: ready."}], PROBE_RETRIES)

    def ask(self, messages: Sequence[Message], attempt: int = 0) -> Judgement:
        """The judge's answer; from the folder if the same request was answered before. Any thread may call it.

        Args:
            messages: each with ``role`` and ``content``.
            attempt: another number sends the same request again.

        Raises:
            UserError: the endpoint did not answer, or refused the request.
        """
        request = {
            "model": self.options.model,
            "messages": list(messages),
            "temperature": self.options.temperature,
            "max_tokens": self.options.max_tokens,
            "attempt": attempt,
        }
        # two endpoints may give different models the same name, such as "default"
        key = sha256_json(request | {"endpoint": self.options.base_url.rstrip("/")})
        file = self.folder / f"{key}.json"
        with self._lock(key):
            judgement = _stored(file)
            if judgement is None:
                judgement = self._send(messages, self.options.retries)
                write_json(file, {"request": request, "reply": asdict(judgement)})
            self._stored.add(key)
        return judgement

    def each(
        self, work: Callable[[Item], Result], items: Sequence[Item], report: Callable[[int], None]
    ) -> list[Result]:
        """``work`` on every item, `JudgeOptions.concurrency` at a time; the results in the order of items.

        Args:
            work: calls `ask`.
            report: called with the number of finished items, in the calling thread.

        Raises:
            UserError: the first one that ``work`` raised, with the number of stored judgements. No new item begins.
        """
        pool = ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="judge")
        try:
            futures = [pool.submit(work, item) for item in items]
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                report(done)
            return [future.result() for future in futures]
        except UserError as error:
            pool.shutdown(cancel_futures=True)
            stored = f"{len(self._stored)} judgement{'' if len(self._stored) == 1 else 's'}"
            raise UserError(
                f"{error}. {stored} stored in {self.folder}: the same command continues from there"
            ) from error
        finally:
            # requests under way are paid for, so their answers are waited for and stored
            pool.shutdown(cancel_futures=True)

    def _lock(self, key: str) -> threading.Lock:
        with self._guard:
            return self._asking.setdefault(key, threading.Lock())

    def _key(self) -> str:
        key = os.environ.get(self.options.key_variable, "").strip()
        return key or (NO_KEY if self._is_local() else "")

    def _is_local(self) -> bool:
        return _is_address(self.options.base_url) and urlsplit(self.options.base_url).hostname in LOCAL

    def _connected(self) -> OpenAI:
        with self._guard:
            if self._client is None:
                import openai

                # a proxy that the environment names cannot reach a server on this machine
                http = openai.DefaultHttpxClient(trust_env=False) if self._is_local() else None
                timeout = openai.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT)
                self._client = openai.OpenAI(
                    api_key=self._key(), base_url=self.options.base_url, http_client=http, timeout=timeout
                )
            return self._client

    def _send(self, messages: Sequence[Message], retries: int) -> Judgement:
        import openai

        limit, retries = self._limit, min(retries, self.options.retries)
        options: dict[str, Any] = {"temperature": self.options.temperature, limit: self.options.max_tokens}
        try:
            chat: Any = self._connected().with_options(max_retries=retries).chat
            reply = chat.completions.create(model=self.options.model, messages=list(messages), **options)
        except openai.BadRequestError as error:
            if limit == "max_tokens" and "max_completion_tokens" in str(error):
                self._limit = "max_completion_tokens"  # newer models accept the limit only under this name
                return self._send(messages, retries)
            raise self._error(error) from None
        except openai.OpenAIError as error:
            raise self._error(error) from None
        except ValueError:  # the body is not the JSON that its header announces
            raise self._protocol_error("its answer is not JSON") from None
        return self._read(reply)

    def _read(self, reply: Any) -> Judgement:
        try:
            choice = reply.choices[0]
            text = choice.message.content
            finish = choice.finish_reason
        except (AttributeError, IndexError, TypeError):
            raise self._protocol_error(
                self._message_in(getattr(reply, "error", None)) or "its answer has no choice"
            ) from None
        if not isinstance(text, str | None):
            raise self._protocol_error("its answer has no text")
        # half of a surrogate pair, from a truncated text, cannot be written to a file
        text = (text or "").encode(errors="replace").decode()
        return Judgement(text, str(reply.model or self.options.model), str(finish or ""))

    def _protocol_error(self, why: str) -> UserError:
        url = self.options.base_url
        return UserError(f"{url} does not speak OpenAI's chat protocol ({why}): check eval.judge.base_url")

    def _error(self, error: OpenAIError) -> UserError:
        """What happened and the next step, in one line that never contains the key."""
        import openai

        url, variable = self.options.base_url, self.options.key_variable
        if isinstance(error, openai.AuthenticationError) and self._key() == NO_KEY:
            return UserError(f"{url} needs a key: export {variable}=...")
        text = next((text for name, text in ERRORS.items() if isinstance(error, getattr(openai, name))), None)
        if text is None:
            return self._protocol_error(self._message_in(str(error)))
        message, cause = self._message_in(getattr(error, "body", None)), self._message_in(str(error.__cause__ or error))
        fields = {"url": url, "model": self.options.model, "variable": variable, "cause": cause}
        status = getattr(error, "status_code", None)
        return UserError(text.format(**fields, status=status, message=f" ({message})" if message else ""))

    def _message_in(self, body: object) -> str:
        """An endpoint's message: on one line, shortened, and without the key."""
        for field in ("error", "message", "detail"):
            if isinstance(body, dict) and field in body:
                body = body[field]
        text, key = str("" if body is None else body), self._key()
        if key not in ("", NO_KEY):
            text = text.replace(key, "...")
        text = " ".join(text.split()).rstrip(".")
        return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, or a single bracket
        return False


def _stored(file: Path) -> Judgement | None:
    """The judgement in a file; None if there is none, or it is incomplete."""
    try:
        reply = read_json(file)["reply"]
        return Judgement(str(reply["text"]), str(reply["model"]), str(reply["finish"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
