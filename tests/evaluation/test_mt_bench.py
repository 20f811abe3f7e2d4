"""MT-Bench: prompts as FastChat builds them, ratings as the judge meant them, means as a hand computes them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from lora_ga_cli.config.schema import EvalConfig, JudgeConfig
from lora_ga_cli.errors import DataError, InvalidInput, UserError
from lora_ga_cli.evaluation.mt_bench import MtBench, rating
from lora_ga_cli.evaluation.task import Reply
from tests.conftest import SHARED_DATA, byte_tokenizer
from tests.evaluation.test_judge import KEY, PATIENCE, VARIABLE, Endpoint, endpoint, refuses, says, waits

__all__ = ["endpoint", "waits"]  # fixtures, which tests take by their names
REAL = SHARED_DATA / "mt_bench"
QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["Write a haiku.", "Now without nouns."]},
    {"question_id": 2, "category": "math", "turns": ["What is 6 times 7?", "And half of that?"]},
    {"question_id": 3, "category": "coding", "turns": ["Print {x}.", "Print it twice."]},
    {"question_id": 4, "category": "writing", "turns": ["Write a letter."]},
]
ANSWERS = {2: ["42", "21"], 3: ["print(x)", "print(x, x)"]}
PROMPTS = {
    "single-v1": "Asked: {question}\nSaid: {answer}",
    "single-math-v1": "Asked: {question}\nRight: {ref_answer_1}\nSaid: {answer}",
    "single-v1-multi-turn": "Asked: {question_1}\nSaid: {answer_1}\nAsked: {question_2}\nSaid: {answer_2}",
    "single-math-v1-multi-turn": (
        "Right: {ref_answer_1} then {ref_answer_2}\nAsked: {question_1}\nSaid: {answer_1}\nAsked: {question_2}\n"
        "Said: {answer_2}"
    ),
}


def prompt_rows() -> list[dict[str, Any]]:
    other = {"name": "pair-v2", "system_prompt": "", "prompt_template": "{question}{answer_a}{answer_b}"}
    return [other, *({"name": n, "system_prompt": f"You are {n}.", "prompt_template": t} for n, t in PROMPTS.items())]


def reference_rows() -> list[dict[str, Any]]:
    return [{"question_id": name, "choices": [{"index": 0, "turns": turns}]} for name, turns in ANSWERS.items()]


def write(file: Path, rows: Sequence[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@dataclass
class Bench:
    """Builds benchmarks whose three files lie in a folder."""

    folder: Path

    def options(self, url: str, **fields: Any) -> EvalConfig:
        """Those of a benchmark at an endpoint; ``judge`` holds further fields of the judge."""
        files = {"prompts": prompt_rows(), "references": reference_rows()}
        written = {name: write(self.folder / f"{name}.jsonl", rows) for name, rows in files.items()}
        base = {"base_url": url, "key_variable": VARIABLE, "model": "judge", "concurrency": 2} | written
        judge = JudgeConfig(**(base | fields.pop("judge", {})))
        questions = write(self.folder / "questions.jsonl", QUESTIONS)
        return EvalConfig(**({"task": "mt_bench", "file": questions, "judge": judge} | fields))

    def __call__(self, url: str, **fields: Any) -> MtBench:
        return MtBench(self.options(url, **fields), self.folder / "judgements")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


def replies(bench: MtBench, texts: Sequence[Sequence[str]], samples: int = 1) -> list[Reply]:
    """The problems' replies, each problem's samples one after the other."""
    kinds = [(problem, sample) for problem in bench.problems() for sample in range(samples)]
    return [
        Reply(problem, sample, problem.turns, tuple(found))
        for (problem, sample), found in zip(kinds, texts, strict=True)
    ]


@contextlib.contextmanager
def silent(stage: str, what: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def by_last_character(request: dict[str, Any]) -> Any:
    """A judge that rates by what a prompt ends in: ``8`` is an 8, and anything but a digit is no rating."""
    last = request["messages"][-1]["content"][-1]
    return says(f"Rating: [[{last}]]" if last.isdigit() else "I would rather not say.")


TEXTS = [["first 8", "second 5"], ["third 3", "no digit"], ["fourth 6", "fifth 9"], ["sixth 2"]]
VALUES = {
    "first_turn": (8 + 3 + 6 + 2) / 4,
    "second_turn": (5 + 9) / 2,
    "both_turns": (8 + 5 + 3 + 6 + 9 + 2) / 6,
    "first_turn/writing": (8 + 2) / 2,
    "first_turn/math": 3.0,
    "first_turn/coding": 6.0,
    "unrated": 1 / 7,
}


@pytest.mark.parametrize(
    ("judgement", "value"),
    [
        ("Good. Rating: [[8]]", 8.0),
        ("Rating: [[8.5]]", 8.5),
        ("**Rating: [[10]]**", 10.0),
        ("[[ 7 ]]", 7.0),
        ("Rating: [[8/10]]", 8.0),
        ("Rating: [9]", 9.0),
        ("Rating: [9/10].", 9.0),
        ("[4] at first, but in the end [[6]]", 6.0),
        ("[[6]], not [[7]]", 6.0),
        ("nums[1] is wrong. Rating: [3]", 3.0),
        ("grid[1][2] is wrong", None),
        ("call()[1] is wrong", None),
        ("[1, 2] is wrong", None),
        ("Rating: [[0]], although [5] was near", None),
        ("Rating: [[11]]", None),
        ("Rating: [[-1]]", None),
        ("Rating: 8", None),
        ("Rating: [[rating]]", None),
        ("Rating: [[A]]", None),
        ("", None),
    ],
)
def test_what_counts_as_a_rating(judgement: str, value: float | None) -> None:
    assert rating(judgement) == value


def test_prompts_are_filled_by_turn_and_category(bench: Bench, endpoint: Endpoint) -> None:
    found = bench(endpoint.url, judge={"concurrency": 1})
    texts = [["a {answer}", " b\n"], ["42!", "21!"], ["c", "d {ref_answer_1}"], ["e"]]
    found.score(replies(found, texts), silent)
    writing = {"question": "Write a haiku.", "answer": "a {answer}"}
    assert [request["messages"] for request in endpoint.requests] == [
        [{"role": "system", "content": f"You are {name}."}, {"role": "user", "content": PROMPTS[name].format(**values)}]
        for name, values in [
            ("single-v1", writing),
            (
                "single-v1-multi-turn",
                {
                    "question_1": "Write a haiku.",
                    "answer_1": "a {answer}",
                    "question_2": "Now without nouns.",
                    "answer_2": "b",
                },
            ),
            ("single-math-v1", {"question": "What is 6 times 7?", "answer": "42!", "ref_answer_1": "42"}),
            (
                "single-math-v1-multi-turn",
                {
                    "question_1": "What is 6 times 7?",
                    "answer_1": "42!",
                    "question_2": "And half of that?",
                    "answer_2": "21!",
                    "ref_answer_1": "42",
                    "ref_answer_2": "21",
                },
            ),
            ("single-math-v1", {"question": "Print {x}.", "answer": "c", "ref_answer_1": "print(x)"}),
            (
                "single-math-v1-multi-turn",
                {
                    "question_1": "Print {x}.",
                    "answer_1": "c",
                    "question_2": "Print it twice.",
                    "answer_2": "d {ref_answer_1}",
                    "ref_answer_1": "print(x)",
                    "ref_answer_2": "print(x, x)",
                },
            ),
            ("single-v1", {"question": "Write a letter.", "answer": "e"}),
        ]
    ]


def test_means_are_those_of_a_hand_and_what_is_unrated_is_in_none(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = by_last_character
    found = bench(endpoint.url)
    counted: list[tuple[str, str, int]] = []
    done: list[int] = []

    @contextlib.contextmanager
    def progress(stage: str, what: str, total: int) -> Iterator[Callable[[int], None]]:
        counted.append((stage, what, total))
        yield done.append

    score = found.score(replies(found, TEXTS), progress)
    assert score.values == pytest.approx(VALUES)
    assert list(score.values) == list(VALUES)
    assert counted == [("judge", "turn", 7)]
    assert done == list(range(1, 8))
    assert len(endpoint) == 8  # seven turns, and the one without a rating once more
    refused, rated = "I would rather not say.", {"model": "judge-0613"}
    assert score.verdicts[1] == {
        "category": "math",
        "judge": "judge",
        "turns": [
            rated | {"rating": 3.0, "judgements": ["Rating: [[3]]"]},
            rated | {"rating": None, "judgements": [refused, refused]},
        ],
    }
    assert [[turn["rating"] for turn in verdict["turns"]] for verdict in score.verdicts] == [
        [8, 5],
        [3, None],
        [6, 9],
        [2],
    ]
    json.dumps(score.verdicts)


def test_scoring_again_asks_nothing(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = by_last_character
    first = bench(endpoint.url)
    score = first.score(replies(first, TEXTS), silent)
    asked = len(endpoint)
    second = bench(endpoint.url)
    assert second.score(replies(second, TEXTS), silent) == score
    assert len(endpoint) == asked
    changed = [*TEXTS[:3], ["another letter 4"]]
    assert second.score(replies(second, changed), silent).values["first_turn/writing"] == (8 + 4) / 2
    assert len(endpoint) == asked + 1


def test_a_judgement_without_a_rating_is_asked_for_once_more(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.script = [says("hm"), says("[[4]]")]
    found = bench(endpoint.url, limit=1, judge={"concurrency": 1})
    score = found.score(replies(found, TEXTS[:1]), silent)
    assert endpoint.requests[0] == endpoint.requests[1]
    assert score.verdicts[0]["turns"][0] == {"rating": 4.0, "judgements": ["hm", "[[4]]"], "model": "judge-0613"}
    assert score.values == {
        "first_turn": 4.0,
        "second_turn": 7.0,
        "both_turns": 5.5,
        "first_turn/writing": 4.0,
        "unrated": 0.0,
    }


def test_a_judge_that_rates_nothing_is_an_error(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: says("I cannot help with that.")
    found = bench(endpoint.url)
    with pytest.raises(UserError, match=r"no judgement by 'judge' holds a rating from \[\[1\]\] to \[\[10\]\]"):
        found.score(replies(found, TEXTS), silent)


def test_a_category_without_any_rating_has_no_mean(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = by_last_character
    found = bench(endpoint.url)
    score = found.score(replies(found, [["8", "8"], ["x", "8"], ["8", "x"], ["8"]]), silent)
    assert "first_turn/math" not in score.values
    assert score.values["first_turn"] == 8
    assert score.values["unrated"] == 2 / 7


def test_every_sample_counts(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = by_last_character
    found = bench(endpoint.url, limit=2, samples=2)
    texts = [["9", "1"], ["1", "1"], ["4", "4"], ["6", "8"]]
    score = found.score(replies(found, texts, samples=2), silent)
    assert score.values == pytest.approx(
        {
            "first_turn": (9 + 1 + 4 + 6) / 4,
            "second_turn": (1 + 1 + 4 + 8) / 4,
            "both_turns": (9 + 1 + 1 + 1 + 4 + 4 + 6 + 8) / 8,
            "first_turn/writing": 5.0,
            "first_turn/math": 5.0,
            "unrated": 0.0,
        }
    )
    assert [verdict["turns"][0]["rating"] for verdict in score.verdicts] == [9, 1, 4, 6]


def test_a_scoring_that_stopped_asks_only_for_the_rest(bench: Bench, endpoint: Endpoint, waits: list[float]) -> None:
    endpoint.script = [says("[[1]]"), says("hm"), says("[[2]]"), says("[[3]]")]
    endpoint.answer = lambda request: refuses(503)
    found = bench(endpoint.url, judge={"concurrency": 1, "retries": 1})
    with pytest.raises(UserError, match=r"4 judgements kept in .*: the same command goes on from there"):
        found.score(replies(found, TEXTS), silent)
    stopped = len(endpoint)
    endpoint.answer = lambda request: says("[[7]]")
    again = bench(endpoint.url, judge={"concurrency": 1})
    score = again.score(replies(again, TEXTS), silent)
    assert len(endpoint) - stopped == 4
    assert [turn["rating"] for verdict in score.verdicts for turn in verdict["turns"]] == [1, 2, 3, 7, 7, 7, 7]


def test_problems_are_the_questions_with_what_grading_needs(bench: Bench) -> None:
    problems = bench("http://localhost:1/v1").problems()
    assert [problem.id for problem in problems] == ["1", "2", "3", "4"]
    assert problems[0].turns == ("Write a haiku.", "Now without nouns.")
    assert [problem.row["category"] for problem in problems] == ["writing", "math", "coding", "writing"]
    assert [problem.row["references"] for problem in problems] == [(), ("42", "21"), ("print(x)", "print(x, x)"), ()]
    assert [problem.id for problem in bench("http://localhost:1/v1", limit=2).problems()] == ["1", "2"]


def test_without_files_key_and_address_all_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bench = MtBench(EvalConfig(task="mt_bench", judge=JudgeConfig(key_variable=VARIABLE)), tmp_path)
    with pytest.raises(InvalidInput) as caught:
        bench.check()
    assert [fault.where for fault in caught.value.faults] == [
        "eval.file",
        "eval.judge.references",
        "eval.judge.prompts",
        "eval.judge",
        "eval.judge.key_variable",
    ]
    text = str(caught.value)
    for file in ("mt_bench/question.jsonl", "mt_bench/reference_answer/gpt-4.jsonl", "judge_prompts.jsonl"):
        assert f"github.com/lm-sys/FastChat has it: fastchat/llm_judge/data/{file}" in text
    with pytest.raises(DataError):
        bench.problems()


def faults(bench: MtBench) -> list[str]:
    """What its check finds before anything is asked."""
    with pytest.raises(InvalidInput) as caught:
        bench.check()
    return [str(fault) for fault in caught.value.faults]


def test_a_sound_benchmark_asks_the_judge_for_one_word(bench: Bench, endpoint: Endpoint) -> None:
    bench(endpoint.url).check()
    assert len(endpoint) == 1


def test_a_wrong_key_is_found_before_anything_is_generated(bench: Bench, endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: refuses(401, f"{KEY} is wrong")
    with pytest.raises(UserError, match=VARIABLE) as caught:
        bench(endpoint.url).check()
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question_id": 1, "turns": ["a"]}], ["no column 'category'"]),
        ([{**QUESTIONS[0], "turns": "one"}], ["question 1 (row 1)", "list of one or two texts"]),
        ([{**QUESTIONS[0], "turns": ["a", "b", "c"]}], ["list of one or two texts"]),
        ([{**QUESTIONS[0], "turns": ["a", " "]}], ["list of one or two texts"]),
        ([{**QUESTIONS[0], "category": None}], ["has no category"]),
        ([{**QUESTIONS[0], "question_id": None}], ["has no question_id"]),
        ([QUESTIONS[0], QUESTIONS[0]], ["question 1 (row 2) stands there twice"]),
        ([{**QUESTIONS[1], "question_id": 7}], ["eval.judge.references", "question 7", "FastChat"]),
        (
            [{**QUESTIONS[1], "question_id": number} for number in range(50, 70)],
            ["question 50, 51, 52, 53, 54, 55, 56, 57, 58, 59 and 10 more"],
        ),
    ],
)
def test_questions_that_are_none_are_faults(
    bench: Bench, endpoint: Endpoint, tmp_path: Path, rows: list[dict[str, Any]], words: list[str]
) -> None:
    (text,) = faults(bench(endpoint.url, file=write(tmp_path / "mine.jsonl", rows)))
    assert [word for word in words if word not in text] == []
    assert len(endpoint) == 0


@pytest.mark.parametrize(
    ("name", "template", "words"),
    [
        ("single-v1", "{question}", ["prompt single-v1 lacks {answer}"]),
        ("single-math-v1", "{question}{answer}{ref_answer_1}{ref_answer_2}", ["has an unknown {ref_answer_2}"]),
        ("single-v1", "{question}{answer.text}", ["lacks {answer}, has an unknown {answer.text}"]),
        ("single-v1", "{question}{answer", ["cannot be filled in: "]),
        ("single-v1", "{question}{answer!z}", ["cannot be filled in: "]),
        ("single-v1-multi-turn", None, ["lacks {answer_1}", "{question_2}"]),
    ],
)
def test_prompts_that_do_not_fit_are_faults(
    bench: Bench, endpoint: Endpoint, tmp_path: Path, name: str, template: str | None, words: list[str]
) -> None:
    rows = [row | ({"prompt_template": template} if row["name"] == name else {}) for row in prompt_rows()]
    (text,) = faults(bench(endpoint.url, judge={"prompts": write(tmp_path / "mine.jsonl", rows)}))
    assert text.startswith("eval.judge.prompts: ")
    assert [word for word in words if word not in text] == []


def test_only_the_prompts_that_the_questions_need_must_be_there(
    bench: Bench, endpoint: Endpoint, tmp_path: Path
) -> None:
    plain = [row for row in prompt_rows() if "math" not in row["name"]]
    prompts = {"prompts": write(tmp_path / "mine.jsonl", plain)}
    (text,) = faults(bench(endpoint.url, judge=prompts))
    assert "holds no prompt named single-math-v1 or single-math-v1-multi-turn" in text
    bench(endpoint.url, judge=prompts, limit=1).check()


def test_faults_of_all_files_come_together(bench: Bench, endpoint: Endpoint, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", QUESTIONS)
    references = {"references": str(tmp_path / "reference.jsonl"), "prompts": prompts}
    found = faults(bench(endpoint.url, file=str(tmp_path / "question.jsonl"), judge=references))
    assert len(found) == 3
    assert "question.jsonl: no such file" in found[0]
    assert "reference.jsonl: no such file" in found[1]
    assert "has no column 'name' and 'system_prompt' and 'prompt_template'" in found[2]


def test_the_key_is_in_no_file(bench: Bench, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answer = by_last_character
    found = bench(endpoint.url)
    found.check()
    score = found.score(replies(found, TEXTS), silent)
    contents = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(contents) == 3 + 8
    assert not any(KEY in content for content in [*contents, json.dumps(score.verdicts)])
    assert set(endpoint.keys) == {f"Bearer {KEY}"}


def test_the_configuration_says_what_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "conf" / "eval" / "mt_bench.yaml").read_text()
    chosen = EvalConfig(**yaml.safe_load(text))
    assert (chosen.task, chosen.max_new_tokens, chosen.temperature) == (MtBench.name, 1024, 0)
    assert text.startswith("# MT-Bench")


# A real model behind a real server.

RATINGS = {str(number % 10): f"Rating: [[{number}]]" for number in range(1, 11)}
REFUSAL = "I would rather not say."


def save_judge(folder: Path) -> Path:
    """A Llama that rates by the last character of a prompt, as `by_last_character` does, but for 0, which is a 10.

    Its one block adds nothing, so that what it says after a token is read off the head: token by token, the
    embedding is one-hot and the head holds a 1 where a token follows.
    """
    tokenizer = byte_tokenizer()
    characters = len(tokenizer)
    tokenizer.add_tokens([*RATINGS.values(), REFUSAL])
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] + '\n' * (not loop.last) }}{% endfor %}"
    )
    size = len(tokenizer) + len(tokenizer) % 2
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    number_of = tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), size))
        head = model.lm_head.weight.zero_()
        head[number_of(REFUSAL), :characters] = 1
        for digit, text in RATINGS.items():
            head[:, number_of(digit)] = 0
            head[number_of(text), number_of(digit)] = 1
        head[config.eos_token_id, characters:] = 1
    model.save_pretrained(folder)
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
    """Through `transformers serve`: the check, a score whose means are known, and nothing asked twice."""
    monkeypatch.delenv(VARIABLE, raising=False)
    found = bench(served.url, judge={"model": served.model, "max_tokens": 8})
    found.check()
    score = found.score(replies(found, TEXTS), silent)
    assert score.values == pytest.approx(VALUES)
    assert score.verdicts[3]["turns"] == [
        {"rating": 2.0, "judgements": ["Rating: [[2]]"], "model": f"{served.model}@main"}
    ]
    assert served.answers(1 + 8)
    again = bench(served.url, judge={"model": served.model, "max_tokens": 8})
    assert again.score(replies(again, TEXTS), silent) == score
    ten = replies(again, [["a 10", "b 10"], *TEXTS[1:]])
    assert again.score(ten, silent).values["first_turn"] == (10 + 3 + 6 + 2) / 4
    assert served.answers(1 + 8 + 2)


def test_a_served_model_of_another_name_is_named(bench: Bench, served: Served) -> None:
    with pytest.raises(UserError, match=r"'someone-else'\): check eval\.judge\.model"):
        bench(served.url, judge={"model": "someone-else"}).check()


# MT-Bench itself.


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason=f"MT-Bench is not in {SHARED_DATA}")
def test_all_of_mt_bench_is_asked_as_it_was_published(endpoint: Endpoint, tmp_path: Path) -> None:
    judge = JudgeConfig(
        base_url=endpoint.url,
        key_variable=VARIABLE,
        prompts=str(REAL / "judge_prompts.jsonl"),
        references=str(REAL / "reference_answer.jsonl"),
    )
    bench = MtBench(
        EvalConfig(task="mt_bench", file=str(REAL / "question.jsonl"), judge=judge), tmp_path / "judgements"
    )
    bench.check()
    endpoint.requests.clear()
    problems = bench.problems()
    assert len(problems) == 80
    assert {len(problem.turns) for problem in problems} == {2}
    texts = [[f"answer one of {problem.id}", f"answer two of {problem.id}"] for problem in problems]
    score = bench.score(replies(bench, texts), silent)
    assert len(endpoint) == len(set(endpoint.questions())) == 160
    categories = {f"first_turn/{problem.row['category']}" for problem in problems}
    assert len(categories) == 8
    assert set(score.values) == {"first_turn", "second_turn", "both_turns", "unrated", *categories}
    references = {
        str(row["question_id"]): row["choices"][0]["turns"]
        for row in map(json.loads, (REAL / "reference_answer.jsonl").read_text().splitlines())
    }
    asked = endpoint.questions()
    for problem in problems:
        (second,) = [text for text in asked if f"answer two of {problem.id}\n" in text]
        (first,) = [text for text in asked if f"answer one of {problem.id}\n" in text and text != second]
        needed = references[problem.id] if problem.row["category"] in ("math", "reasoning", "coding") else []
        for text, turns in ((first, 1), (second, 2)):
            assert [turn for turn in (*problem.turns[:turns], *needed[:turns]) if turn not in text] == []
            assert ("Reference Answer" in text) == bool(needed)
            assert not any(f"{{{name}}}" in text for name in PLACEHOLDERS)
        assert problem.turns[1] not in first
        if not needed:
            assert not any(turn in second for turns in references.values() for turn in turns)


PLACEHOLDERS = ["question", "answer", *(f"{n}_{i}" for n in ("question", "answer", "ref_answer") for i in (1, 2))]
