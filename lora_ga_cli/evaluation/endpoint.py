"""A model behind a server that speaks OpenAI's protocol, which generates the answers in place of one that is loaded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lora_ga_cli.config.schema import EndpointOptions
from lora_ga_cli.data.tokens import leading_tokens
from lora_ga_cli.errors import Fault, UserError
from lora_ga_cli.evaluation.client import PROBE_RETRIES, Client

SECTION = "eval.endpoint"
LIMITS = "eval.max_new_tokens, and how long a text its server takes"
TIMEOUT = 1800.0
"""Seconds that an answer may take: a server that answers one after another makes most requests wait."""
PROBE_TEXT = "1"
PROBE_TIMEOUT = 60.0
"""Seconds that the first answer, of one token, may take."""


@dataclass(frozen=True)
class Generation:
    """How an answer is generated; temperature 0 is greedy.

    Args:
        stops: texts that end an answer.
        seed: from 0 to 2**31 - 1; for sampling.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stops: Sequence[str] = ()
    seed: int = 0

    def as_request(self) -> dict[str, Any]:
        """The fields of a request. Whatever may be left out is, because some servers refuse what they do not know."""
        sampled = {"top_p": self.top_p, "seed": self.seed} if self.temperature > 0 else {}
        stops = {"stop": list(self.stops)} if self.stops else {}
        return {"max_tokens": self.max_new_tokens, "temperature": self.temperature, **sampled, **stops}


class Endpoint:
    """Asks for one answer at a time; any thread may.

    A prompt is sent as its tokens, so that the server reads what the model would read here. To a server that takes only
    texts, it is sent as a text with these very tokens.

    Args:
        name: the model's name, where the options have none.
        tokenizer: the model's.
    """

    def __init__(self, options: EndpointOptions, name: str, tokenizer: Any):
        assert options.base_url is not None
        self.options = options
        self.model = options.model or name
        self.tokenizing = threading.Lock()
        """Held while the tokenizer is used, which is for one thread at a time."""
        self._tokenizer = tokenizer
        self._form: Literal["tokens", "text"] | None = None
        protocol = "chat" if options.chat else "completions"
        self._client = Client(options, self.model, section=SECTION, protocol=protocol, limits=LIMITS, timeout=TIMEOUT)

    def faults(self) -> list[Fault]:
        """What is wrong before a request is sent: a malformed address, a missing package or key."""
        return self._client.faults()

    def probe(self) -> None:
        """Asks for one token, which is not kept.

        Raises:
            UserError: no connection, a wrong key, an unknown model, or a server that reads prompts otherwise.
        """
        one = Generation(1)
        if self.options.chat:
            self.reply([{"role": "user", "content": PROBE_TEXT}], one, retries=PROBE_RETRIES)
        else:
            self.complete(PROBE_TEXT, self._tokenizer(PROBE_TEXT)["input_ids"], one, retries=PROBE_RETRIES)

    def complete(
        self, prompt: str, ids: Sequence[int], generation: Generation, *, retries: int | None = None
    ) -> tuple[str, bool]:
        """How the model goes on after a prompt, and whether it ended the answer itself or by a stop.

        Args:
            prompt: the text of the prompt.
            ids: its tokens, all of them that the model reads.
            retries: by default those of the options.

        Raises:
            UserError: the server did not answer, refused the request, or read another number of tokens.
        """
        import openai

        with self._client.explained():
            create: Any = self._connection(retries).completions.create
            fields = {"model": self.model, **generation.as_request()}
            try:
                reply = create(prompt=self._as_text(prompt, ids) if self._form == "text" else list(ids), **fields)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if self._form is not None:
                    raise
                reply = create(prompt=self._as_text(prompt, ids), **fields)
                self._form = "text"
        self._form = self._form or "tokens"
        choice = self._client.choice_of(reply)
        read = getattr(getattr(reply, "usage", None), "prompt_tokens", None)
        if read is not None and read != len(ids):
            raise UserError(
                f"{self.options.base_url} read a prompt of {len(ids)} tokens as {read}: it has another tokenizer than "
                f"the model that is scored, check {SECTION}.model"
            )
        text = getattr(choice, "text", None)
        if text is None:
            raise self._client.protocol_error("its answer has no text")
        return _up_to_stop(prompt, self._client.text_of(text), generation.stops, ended=_has_ended(choice))

    def reply(
        self, messages: Sequence[dict[str, str]], generation: Generation, *, retries: int | None = None
    ) -> tuple[str, bool]:
        """The model's reply to a conversation, and whether the model ended it.

        Args:
            messages: each with ``role`` and ``content``.
            retries: by default those of the options.

        Raises:
            UserError: the server did not answer, or refused the request.
        """
        with self._client.explained():
            create: Any = self._connection(retries).chat.completions.create
            reply = create(messages=list(messages), model=self.model, **generation.as_request())
        choice = self._client.choice_of(reply)
        text = self._client.text_of(getattr(getattr(choice, "message", None), "content", None))
        return text, _has_ended(choice)

    def _connection(self, retries: int | None) -> Any:
        """The connection of a usual request, or of a probe, which has its own number of retries."""
        if retries is None:
            return self._client.connection(self.options.retries)
        return self._client.connection(retries, PROBE_TIMEOUT)

    def _as_text(self, prompt: str, ids: Sequence[int]) -> str:
        """A text that has these tokens after the tokenizer has added its own.

        Raises:
            UserError: neither the prompt nor what the tokens are decoded to is one.
        """
        tokenizer, wanted = self._tokenizer, list(ids)
        with self.tokenizing:
            for text in (prompt, tokenizer.decode(wanted[len(leading_tokens(tokenizer)) :])):
                if tokenizer(text, verbose=False)["input_ids"] == wanted:
                    return str(text)
        raise UserError(
            f"{self.options.base_url} takes prompts as texts only, and no text has the tokens of the prompt "
            f"{prompt[:60]!r}: take a server that accepts tokens, such as vLLM"
        )


def _has_ended(choice: Any) -> bool:
    """Whether something else than the limit of tokens ended an answer."""
    return getattr(choice, "finish_reason", None) != "length"


def _up_to_stop(prompt: str, text: str, stops: Sequence[str], *, ended: bool) -> tuple[str, bool]:
    """An answer that ends with a stop which begins in the prompt; servers look for stops in the answer alone."""
    for stop in stops:
        before = prompt[max(0, len(prompt) + 1 - len(stop)) :]
        place = (before + text).find(stop)
        if 0 <= place < len(before):
            return text[: place + len(stop) - len(before)], True
        ended |= place >= 0
    return text, ended
