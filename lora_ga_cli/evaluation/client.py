"""A connection to an endpoint that speaks OpenAI's protocol: its key, its errors in words, requests side by side."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from lora_ga_cli.errors import Fault, UserError

if TYPE_CHECKING:
    from openai import OpenAI, OpenAIError

INSTALL = "pip install 'loraga[judge]'"
LOCAL = ("localhost", "127.0.0.1", "::1")
NO_KEY = "none"
"""Sent to a local endpoint if there is no key, because the protocol requires one."""
PROBE_RETRIES = 2
"""How often a probe is sent again; few times, because the user is waiting for it."""
CONNECT_TIMEOUT = 10.0
"""Seconds until an endpoint must have accepted the connection."""
MAX_MESSAGE = 300
"""Characters of an endpoint's message that are shown."""
ERRORS = {
    "AuthenticationError": "{url} does not accept the key in {variable}: export {variable}=... with another",
    "PermissionDeniedError": "the key in {variable} may not use {model!r} at {url}{message}: check {section}.model",
    "NotFoundError": "{url} has no model {model!r}{message}: check {section}.model, and {section}.base_url, which "
    "usually ends in /v1",
    "RateLimitError": "{url} allows no more requests for now{message}: wait, or set {section}.concurrency lower or "
    "{section}.retries higher",
    "APITimeoutError": "{url} did not answer in time: check that its server is not stuck",
    "APIConnectionError": "no connection to {url} ({cause}): check {section}.base_url and that its server runs",
    "InternalServerError": "{url} failed with status {status}, each time{message}: try again later",
    "APIStatusError": "{url} refused a request with status {status}{message}: check {section}.model, {limits}",
}
"""What happened and the next step, by class of the openai package's errors; the first class that fits counts."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class ClientOptions(Protocol):
    """The options of an endpoint that a connection needs."""

    @property
    def base_url(self) -> str | None: ...

    @property
    def key_variable(self) -> str: ...

    @property
    def retries(self) -> int: ...


class Client:
    """A connection that is opened when it is first used. No message contains the key.

    Args:
        options: the endpoint. The key is read from the environment when it is needed.
        model: the endpoint's name of the model.
        section: where the options are, for messages: ``eval.judge``.
        protocol: the part of the protocol that is spoken, for messages.
        limits: the other options that a request depends on, for messages.
        timeout: seconds that an answer may take.
    """

    def __init__(self, options: ClientOptions, model: str, *, section: str, protocol: str, limits: str, timeout: float):
        assert options.base_url is not None
        self.options = options
        self.url = options.base_url
        self.model = model
        self.section = section
        self.protocol = protocol
        self.limits = limits
        self.timeout = timeout
        self._opened: OpenAI | None = None
        self._guard = threading.Lock()

    def faults(self) -> list[Fault]:
        """What is wrong before a request is sent: a malformed address, a missing package or key."""
        faults = []
        section = self.section
        if not _is_address(url := self.url):
            faults.append(
                Fault(f"{section}.base_url", f"{url!r} is not an address", "such as http://localhost:8000/v1")
            )
        if importlib.util.find_spec("openai") is None:
            faults.append(Fault(section, "the openai package is not installed", INSTALL))
        name, key = self.options.key_variable, self._key()
        if not key:
            what = f"the environment variable {name} is not set, and {url} needs a key"
            faults.append(Fault(f"{section}.key_variable", what, f"export {name}=..."))
        elif not (key.isascii() and key.isprintable()):
            # it becomes a header, and what refuses it there would print it
            what = f"{name} has characters that a key cannot have"
            faults.append(Fault(f"{section}.key_variable", what, "export it again, as one line of ASCII"))
        return faults

    def connection(self, retries: int, timeout: float | None = None) -> OpenAI:
        """The openai package's client.

        Args:
            retries: how often it sends a failed request again; at most as often as the options say.
            timeout: seconds that an answer may take, if they are others than usual.
        """
        import openai

        with self._guard:
            if self._opened is None:
                # a proxy that the environment names cannot reach a server on this machine
                http = openai.DefaultHttpxClient(trust_env=False) if self._is_local() else None
                self._opened = openai.OpenAI(api_key=self._key(), base_url=self.url, http_client=http)
        limit = openai.Timeout(self.timeout if timeout is None else timeout, connect=CONNECT_TIMEOUT)
        return self._opened.with_options(max_retries=min(retries, self.options.retries), timeout=limit)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raises what the openai package raises inside the ``with`` block as a `UserError` of one line."""
        import openai

        try:
            yield
        except openai.OpenAIError as error:
            raise self._error(error) from None
        except ValueError:  # the body is not the JSON that its header announces
            raise self.protocol_error("its answer is not JSON") from None

    def choice_of(self, reply: Any) -> Any:
        """The first choice of an answer.

        Raises:
            UserError: it has none.
        """
        try:
            return reply.choices[0]
        except (AttributeError, IndexError, TypeError):
            message = self._message_in(getattr(reply, "error", None))
            raise self.protocol_error(message or "its answer has no choice") from None

    def text_of(self, text: object) -> str:
        """A text of an answer as it can be written to a file; empty if the endpoint withheld it.

        Raises:
            UserError: it is something else.
        """
        if not isinstance(text, str | None):
            raise self.protocol_error("its answer has no text")
        # half of a surrogate pair, from a truncated text, cannot be written to a file
        return (text or "").encode(errors="replace").decode()

    def protocol_error(self, why: str) -> UserError:
        url, section = self.url, self.section
        return UserError(f"{url} does not speak OpenAI's {self.protocol} protocol ({why}): check {section}.base_url")

    def _key(self) -> str:
        key = os.environ.get(self.options.key_variable, "").strip()
        return key or (NO_KEY if self._is_local() else "")

    def _is_local(self) -> bool:
        return _is_address(self.url) and urlsplit(self.url).hostname in LOCAL

    def _error(self, error: OpenAIError) -> UserError:
        """What happened and the next step, in one line that never contains the key."""
        import openai

        url, variable = self.url, self.options.key_variable
        if isinstance(error, openai.AuthenticationError) and self._key() == NO_KEY:
            return UserError(f"{url} needs a key: export {variable}=...")
        text = next((text for name, text in ERRORS.items() if isinstance(error, getattr(openai, name))), None)
        if text is None:
            return self.protocol_error(self._message_in(str(error)))
        message, cause = self._message_in(getattr(error, "body", None)), self._message_in(str(error.__cause__ or error))
        fields: dict[str, Any] = {
            "url": url,
            "model": self.model,
            "variable": variable,
            "section": self.section,
            "cause": cause,
        }
        fields |= {"status": getattr(error, "status_code", None), "limits": self.limits}
        return UserError(text.format(**fields, message=f" ({message})" if message else ""))

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


def in_parallel(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    report: Callable[[int], None],
    stored: Callable[[], str],
) -> list[Result]:
    """``work`` on every item, some at a time; the results in the order of items.

    Args:
        work: stores what it was answered.
        workers: items that are under way at the same time.
        report: called with the number of finished items, in the calling thread.
        stored: says how much is stored, and where, if something fails.

    Raises:
        UserError: the first one that ``work`` raised, and what is stored. No new item begins.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="endpoint")
    try:
        futures = [pool.submit(work, item) for item in items]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            report(done)
        return [future.result() for future in futures]
    except UserError as error:
        pool.shutdown(cancel_futures=True)
        raise UserError(f"{error}. {stored()}: the same command continues from there") from error
    finally:
        # requests under way are paid for, so their answers are waited for and stored
        pool.shutdown(cancel_futures=True)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, or a single bracket
        return False
