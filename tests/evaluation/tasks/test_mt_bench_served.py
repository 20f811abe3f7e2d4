"""MT-Bench with a real model behind a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ga_cli.errors import UserError
from tests.conftest import byte_tokenizer
from tests.evaluation.endpoints import VARIABLE
from tests.evaluation.models import going_on
from tests.evaluation.mt_bench_rows import (
    TEXTS,
    VALUES,
    Bench,
    completions,
    silent,
)
from tests.evaluation.serving import Served, serve

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


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("judge")
    with serve(save_judge(folder / "model"), folder / "log") as served:
        yield served


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
