"""A judge's endpoint that answers what a test wants."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-a-key-that-nothing-may-show"
VARIABLE = "JUDGE_TEST_KEY"
PATIENCE = 60.0
"""Seconds after which a test that waits for another thread or process gives up."""


@dataclass(frozen=True)
class Answer:
    """What an endpoint answers: a value as JSON, or a text as HTML."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def says(text: str | None, finish: str = "stop") -> Answer:
    """A chat completion."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    return Answer({"id": "1", "object": "chat.completion", "created": 0, "model": "judge-0613", "choices": [choice]})


def refuses(status: int, message: str = "no", headers: dict[str, str] | None = None, **fields: str) -> Answer:
    return Answer({"error": {"message": message} | fields}, status, headers or {})


class Endpoint:
    """A server that answers what a test wants, with behaviors that no real model can be made to show.

    It answers with the ``script`` first, then with whatever ``answer`` makes of a request.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.script: list[Answer] = []
        self.answer: Callable[[dict[str, Any]], Answer] = lambda request: says("Rating: [[7]]")
        self.underway = self.most_underway = 0
        self.guard = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __len__(self) -> int:
        return len(self.requests)

    def questions(self) -> list[str]:
        """What was asked, the last message of every request."""
        return [request["messages"][-1]["content"] for request in self.requests]

    def _reply(self, request: dict[str, Any], key: str | None) -> Answer:
        with self.guard:
            self.requests.append(request)
            self.keys.append(key)
            self.underway += 1
            self.most_underway = max(self.underway, self.most_underway)
            answer = self.script.pop(0) if self.script else None
        try:
            return answer or self.answer(request)
        finally:
            with self.guard:
                self.underway -= 1

    def _handler(endpoint) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler within
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = endpoint._reply(request, self.headers["Authorization"])
                plain = isinstance(answer.body, str)
                content = (answer.body if plain else json.dumps(answer.body)).encode()
                kind = {"Content-Type": "text/html" if plain else "application/json"}
                self.send_response(answer.status)
                for name, value in (kind | answer.headers | {"Content-Length": str(len(content))}).items():
                    self.send_header(name, value)
                with contextlib.suppress(ConnectionError):  # whoever asked was killed, or tired of waiting
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        return Handler


def completes(text: str, finish: str = "stop", prompt_tokens: int | None = None) -> Answer:
    """A completion of a text."""
    choice = {"index": 0, "finish_reason": finish, "text": text, "logprobs": None}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 1, "total_tokens": (prompt_tokens or 0) + 1}
    body = {"id": "1", "object": "text_completion", "created": 0, "model": "served", "choices": [choice]}
    return Answer(body | ({} if prompt_tokens is None else {"usage": usage}))
