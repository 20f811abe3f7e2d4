"""The judge: a model behind an endpoint that speaks OpenAI's chat protocol. Each judgement is stored and reused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lora_ga_cli.config.schema import Positive, Section, Temperature
from lora_ga_cli.errors import Fault
from lora_ga_cli.evaluation.client import PROBE_RETRIES, Client, Item, Result, in_parallel
from lora_ga_cli.json_files import read_json, sha256_json, write_json

TIMEOUT = 300.0
"""Seconds that an answer may take, enough for a long judgement of a slow local server."""
LIMITS = "eval.judge.temperature and eval.judge.max_tokens"
Message = dict[str, str]


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
    temperature: Temperature = 0.0
    """Sampling temperature of the judge, 0 or from 0.001 to 1000; 0 decodes greedily."""
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
        where = {"section": "eval.judge", "protocol": "chat", "limits": LIMITS}
        self._client = Client(options, options.model, **where, timeout=TIMEOUT)
        self._limit = "max_tokens"
        self._guard = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}
        self._stored: set[str] = set()

    def faults(self) -> list[Fault]:
        """What is wrong before a request is sent: a malformed address, a missing package or key."""
        return self._client.faults()

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
                write_json(file, {"request": request, "reply": asdict(judgement)}, digest=True)
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

        def stored() -> str:
            return f"{len(self._stored)} judgement{'' if len(self._stored) == 1 else 's'} stored in {self.folder}"

        return in_parallel(work, items, workers=self.options.concurrency, report=report, stored=stored)

    def _lock(self, key: str) -> threading.Lock:
        with self._guard:
            return self._asking.setdefault(key, threading.Lock())

    def _send(self, messages: Sequence[Message], retries: int) -> Judgement:
        import openai

        limit = self._limit
        options: dict[str, Any] = {"temperature": self.options.temperature, limit: self.options.max_tokens}
        with self._client.explained():
            chat: Any = self._client.connection(retries).chat
            try:
                reply = chat.completions.create(model=self.options.model, messages=list(messages), **options)
            except openai.BadRequestError as error:
                if limit != "max_tokens" or "max_completion_tokens" not in str(error):
                    raise
                self._limit = "max_completion_tokens"  # newer models accept the limit only under this name
                return self._send(messages, retries)
        return self._read(reply)

    def _read(self, reply: Any) -> Judgement:
        choice = self._client.choice_of(reply)
        try:
            text, finish = choice.message.content, choice.finish_reason
        except AttributeError:
            raise self._client.protocol_error("its answer has no choice") from None
        return Judgement(self._client.text_of(text), str(reply.model or self.options.model), str(finish or ""))


def _stored(file: Path) -> Judgement | None:
    """The judgement in a file; None if there is none, or it is damaged."""
    try:
        reply = read_json(file)["reply"]
        return Judgement(str(reply["text"]), str(reply["model"]), str(reply["finish"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
