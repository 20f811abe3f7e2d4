"""The judge: a model behind an endpoint that speaks OpenAI's chat protocol. What it says is kept and asked once."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from lora_ga_cli.config.schema import JudgeConfig
from lora_ga_cli.errors import Fault, UserError
from lora_ga_cli.files import read_json, sha256_json, write_json

if TYPE_CHECKING:
    from openai import OpenAI, OpenAIError

INSTALL = "pip install 'loraga[judge]'"
LOCAL = ("localhost", "127.0.0.1", "::1")
NO_KEY = "none"
"""What a local endpoint is sent where there is no key; the protocol wants one."""
PROBE_RETRIES = 2
"""Times that the probe is sent again: whoever waits for it sits in front of the screen."""
TIMEOUT = 300.0
"""Seconds that an answer may take: a slow server of one's own writes a long judgement in them."""
CONNECT_TIMEOUT = 10.0
"""Seconds until an endpoint must have taken the call."""
SAID_LENGTH = 300
"""Characters of an endpoint's own message that are shown."""
TROUBLES = {
    "AuthenticationError": "{url} does not accept the key in {variable}: export {variable}=... with another",
    "PermissionDeniedError": "the key in {variable} may not use {model!r} at {url}{said}: check eval.judge.model",
    "NotFoundError": "{url} has no model {model!r}{said}: check eval.judge.model, and eval.judge.base_url, which "
    "usually ends in /v1",
    "RateLimitError": "{url} allows no more requests for now{said}: wait, or set eval.judge.concurrency lower or "
    "eval.judge.retries higher",
    "APITimeoutError": "{url} did not answer in time: check that its server is not stuck",
    "APIConnectionError": "no connection to {url} ({cause}): check eval.judge.base_url and that its server runs",
    "InternalServerError": "{url} failed with status {status}, each time{said}: try again later",
    "APIStatusError": "{url} refused a request with status {status}{said}: check eval.judge.model, "
    "eval.judge.temperature and eval.judge.max_tokens",
}
"""What happened and the next step, by the name of the openai package's error; the first that it is."""
Message = dict[str, str]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Judgement:
    """What the judge said.

    Args:
        text: empty where the endpoint withheld it.
        model: that said it, as the endpoint calls it (often with its date).
        finish: why it ended (``stop``, ``length``, ``content_filter``, …).
    """

    text: str
    model: str
    finish: str


class Judge:
    """Asks one model, several questions at a time, and none twice.

    Args:
        options: the endpoint, the model and its sampling. The key is read from the environment when it is needed.
        folder: one JSON file for every reply, named by what was asked of whom. The key is in none.
    """

    def __init__(self, options: JudgeConfig, folder: Path):
        self.options = options
        self.folder = folder
        self._client: OpenAI | None = None
        self._limit = "max_tokens"
        self._guard = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}
        self._kept: set[str] = set()

    def faults(self) -> list[Fault]:
        """What can be said before anything is sent: a malformed address, no package, no key."""
        faults = []
        if not _is_address(url := self.options.base_url):
            faults.append(Fault("eval.judge.base_url", f"{url!r} is no address", "such as http://localhost:8000/v1"))
        if importlib.util.find_spec("openai") is None:
            faults.append(Fault("eval.judge", "the openai package is not installed", INSTALL))
        name, key = self.options.key_variable, self._key()
        if not key:
            what = f"the environment variable {name} is not set, and {url} wants a key"
            faults.append(Fault("eval.judge.key_variable", what, f"export {name}=..."))
        elif not (key.isascii() and key.isprintable()):
            # it becomes a header, and what refuses it there would print it
            what = f"{name} holds characters that no key has"
            faults.append(Fault("eval.judge.key_variable", what, "export it again, as one line of ASCII"))
        return faults

    def probe(self) -> None:
        """Asks for one word, of the same model with the same options as judgements, and does not keep it.

        Raises:
            UserError: no connection, a wrong key, an unknown model, options that the model does not take.
        """
        # as many tokens as for a judgement, so that a limit which the model does not take shows here
        system = {"role": "system", "content": "You are a judge."}
        self._send([system, {"role": "user", "content": "Reply with one word: ready."}], PROBE_RETRIES)

    def ask(self, messages: Sequence[Message], attempt: int = 0) -> Judgement:
        """The judge's reply; from the folder, if it was asked the same before. Any thread may call it.

        Args:
            messages: with ``role`` and ``content``.
            attempt: another number asks the same once more.

        Raises:
            UserError: the endpoint did not answer, or refused.
        """
        request = {
            "model": self.options.model,
            "messages": list(messages),
            "temperature": self.options.temperature,
            "max_tokens": self.options.max_tokens,
            "attempt": attempt,
        }
        # two endpoints may call different models the same; a local server's name is often just "default"
        key = sha256_json(request | {"endpoint": self.options.base_url.rstrip("/")})
        file = self.folder / f"{key}.json"
        with self._lock(key):
            reply = _stored(file)
            if reply is None:
                reply = self._send(messages, self.options.retries)
                write_json(file, {"request": request, "reply": asdict(reply)})
            self._kept.add(key)
        return reply

    def each(
        self, work: Callable[[Item], Result], items: Sequence[Item], report: Callable[[int], None]
    ) -> list[Result]:
        """``work`` on every item, `JudgeConfig.concurrency` at a time; the results in the order of items.

        Args:
            work: calls `ask`.
            report: hears how many items are done, in the calling thread.

        Raises:
            UserError: the first that ``work`` raised, with how much is kept. Nothing new is begun after it.
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
            kept = f"{len(self._kept)} judgement{'' if len(self._kept) == 1 else 's'}"
            raise UserError(f"{error}. {kept} kept in {self.folder}: the same command goes on from there") from error
        finally:
            # what is under way has been paid for: its reply is waited for and kept
            pool.shutdown(cancel_futures=True)

    def _lock(self, key: str) -> threading.Lock:
        with self._guard:
            return self._asking.setdefault(key, threading.Lock())

    def _key(self) -> str:
        given = os.environ.get(self.options.key_variable, "").strip()
        return given or (NO_KEY if self._is_local() else "")

    def _is_local(self) -> bool:
        return _is_address(self.options.base_url) and urlsplit(self.options.base_url).hostname in LOCAL

    def _connected(self) -> OpenAI:
        with self._guard:
            if self._client is None:
                import openai

                # a proxy of the environment does not know what runs on this machine
                http = openai.DefaultHttpxClient(trust_env=False) if self._is_local() else None
                patience = openai.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT)
                self._client = openai.OpenAI(
                    api_key=self._key(), base_url=self.options.base_url, http_client=http, timeout=patience
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
                self._limit = "max_completion_tokens"  # newer models want the limit under this name only
                return self._send(messages, retries)
            raise self._trouble(error) from None
        except openai.OpenAIError as error:
            raise self._trouble(error) from None
        except ValueError:  # a body that is not the JSON it claims to be
            raise self._no_chat("its answer is not JSON") from None
        return self._read(reply)

    def _read(self, reply: Any) -> Judgement:
        try:
            choice = reply.choices[0]
            text = choice.message.content
            finish = choice.finish_reason
        except (AttributeError, IndexError, TypeError):
            raise self._no_chat(self._told(getattr(reply, "error", None)) or "its answer holds no choice") from None
        if not isinstance(text, str | None):
            raise self._no_chat("its answer holds no text")
        # half a character, where a text was cut, cannot be written to a file
        text = (text or "").encode(errors="replace").decode()
        return Judgement(text, str(reply.model or self.options.model), str(finish or ""))

    def _no_chat(self, why: str) -> UserError:
        url = self.options.base_url
        return UserError(f"{url} does not speak OpenAI's chat protocol ({why}): check eval.judge.base_url")

    def _trouble(self, error: OpenAIError) -> UserError:
        """What happened and the next step, in one line that never holds the key."""
        import openai

        url, variable = self.options.base_url, self.options.key_variable
        if isinstance(error, openai.AuthenticationError) and self._key() == NO_KEY:
            return UserError(f"{url} wants a key: export {variable}=...")
        told = next((text for name, text in TROUBLES.items() if isinstance(error, getattr(openai, name))), None)
        if told is None:
            return self._no_chat(self._told(str(error)))
        said, cause = self._told(getattr(error, "body", None)), self._told(str(error.__cause__ or error))
        known = {"url": url, "model": self.options.model, "variable": variable, "cause": cause}
        status = getattr(error, "status_code", None)
        return UserError(told.format(**known, status=status, said=f" ({said})" if said else ""))

    def _told(self, body: object) -> str:
        """An endpoint's own message, on one line, short, and without the key."""
        for field in ("error", "message", "detail"):
            if isinstance(body, dict) and field in body:
                body = body[field]
        text, key = str("" if body is None else body), self._key()
        if key not in ("", NO_KEY):
            text = text.replace(key, "...")
        text = " ".join(text.split()).rstrip(".")
        return text if len(text) <= SAID_LENGTH else text[:SAID_LENGTH] + "..."


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half a bracket
        return False


def _stored(file: Path) -> Judgement | None:
    """The reply in a file; None where there is none, or none that is whole."""
    try:
        reply = read_json(file)["reply"]
        return Judgement(str(reply["text"]), str(reply["model"]), str(reply["finish"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
