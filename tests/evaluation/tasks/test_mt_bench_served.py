"""MT-Bench with a real model behind a real server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_ga_cli.errors import UserError
from tests.conftest import byte_tokenizer
from tests.evaluation.endpoints import PATIENCE, VARIABLE
from tests.evaluation.models import going_on
from tests.evaluation.mt_bench_rows import (
    TEXTS,
    VALUES,
    Bench,
    completions,
    silent,
)

RATINGS = {str(number % 10): f"Rating: [[{number}]]" for number in range(1, 11)}
REFUSAL = "I would rather not say."


def save_judge(folder: Path) -> Path:
    """A Llama that rates by the last character of a prompt, as `by_last_character` does, but for 0, which is a 10."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([*RATINGS.values(), REFUSAL])
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] + '\n' * (not loop.last) }}{% endfor %}"
    )
    ends = dict.fromkeys([*RATINGS.values(), REFUSAL], "</s>")
    going_on(tokenizer, RATINGS | ends, REFUSAL, positions=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Served:
    """A model that `transformers serve` serves."""

    model: str
    url: str
    log: Path

    def answered(self) -> int:
        """Chats it has answered, by its log."""
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')

    def answers(self, count: int) -> bool:
        """Waits until its log, which it writes beside its answers, holds that many."""
        deadline = time.monotonic() + PATIENCE
        while self.answered() < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.answered() == count


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("judge")
    model = str(save_judge(folder / "model"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", model, "--device", "cpu"]
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not healthy(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Served(model, f"http://127.0.0.1:{port}/v1", log)
    finally:
        process.kill()
        process.wait(PATIENCE)


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_a_served_model_judges(bench: Bench, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `transformers serve`: the check, a score with known means, and no request sent twice."""
    monkeypatch.delenv(VARIABLE, raising=False)
    found = bench(served.url, judge={"model": served.model, "max_tokens": 8})
    found.check_requirements()
    score = found.score(completions(found, TEXTS), silent)
    assert score.values == pytest.approx(VALUES)
    assert score.verdicts[3]["turns"] == [
        {"rating": 2.0, "judgements": ["Rating: [[2]]"], "model": f"{served.model}@main"}
    ]
    assert served.answers(1 + 8)
    again = bench(served.url, judge={"model": served.model, "max_tokens": 8})
    assert again.score(completions(again, TEXTS), silent) == score
    ten = completions(again, [["a 10", "b 10"], *TEXTS[1:]])
    assert again.score(ten, silent).values["first_turn"] == (10 + 3 + 6 + 2) / 4
    assert served.answers(1 + 8 + 2)


def test_a_served_model_of_another_name_is_named(bench: Bench, served: Served) -> None:
    with pytest.raises(UserError, match=r"'someone-else'\): check eval\.judge\.model"):
        bench(served.url, judge={"model": "someone-else"}).check_requirements()
