"""The section ``eval``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_ga_cli.config.schema.section import Section
from lora_ga_cli.config.schema.typed import EVAL
from lora_ga_cli.config.schema.values import Positive


class EndpointOptions(Section):
    """A server that generates the answers in place of the model in this process. It speaks OpenAI's protocol."""

    base_url: str | None = None
    """Address of the server, such as ``http://localhost:8000/v1``. Null loads the model and generates here. Can only be
    set on the command line, because the server receives the key."""
    model: str | None = None
    """The server's name of the model or adapter. Null: the name of what is scored, which for a run is its folder's."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a server on this machine needs none. Can only be set on the command
    line."""
    chat: bool = False
    """Send a conversation as messages, around which the server puts its own chat template. Without it, the server is
    sent the complete prompt, with the very tokens that would be generated from here."""
    retries: Annotated[int, Field(ge=0)] = 6
    """How often a failed request is sent again: after half a second, then twice as long each time up to 8 s, or when
    the server says."""
    concurrency: Positive = 32
    """Requests that are under way at the same time."""


class EvalOptions(Section):
    """How a run is scored by `loraga eval`. The class of the task, which ``task`` names, has the other options."""

    task: str = EVAL.default
    """What is scored. It decides which other ``eval`` options there are."""
    file: str | list[str] | None = None
    """Local file or files to score on, instead of the data set's validation rows or the benchmark's files on the
    hub."""
    limit: Positive | None = None
    """Score only the first rows or problems, at most this many; a row may become several examples."""
    batch_size: Positive = 16
    """Rows per forward pass or generation batch."""
    endpoint: EndpointOptions = EndpointOptions()
