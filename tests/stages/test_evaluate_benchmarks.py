"""Results of benchmarks: when they are reused, when answers are reused, and what is refused beforehand."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lora_ga_cli.config.compose import compose
from lora_ga_cli.errors import InvalidInput, ModelError
from lora_ga_cli.evaluation.generate import Generator
from lora_ga_cli.evaluation.tasks.benchmark import ANSWER_OPTIONS, GenerationOptions
from lora_ga_cli.registry import TASKS
from lora_ga_cli.stages.evaluate import check_evaluation
from tests.conftest import byte_tokenizer
from tests.evaluation.conftest import bench, endpoint
from tests.evaluation.endpoints import VARIABLE, Endpoint, says
from tests.evaluation.models import going_on, save_alphabet
from tests.evaluation.mt_bench_rows import Bench, prompt_rows, reference_rows, write
from tests.helpers import Loraga

__all__ = ["bench", "endpoint"]  # fixtures, which tests take by their names

Eval = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_alphabet(tmp_path / "model")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that a model has answered."""
    generate, sizes = Generator._generate, []

    def counted(writer: Generator, prompts: list[str], stops: Any) -> Any:
        sizes.append(len(prompts))
        return generate(writer, prompts, stops)

    monkeypatch.setattr(Generator, "_generate", counted)
    return sizes


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """SIGTERM has its usual effect."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def judged(loraga: Loraga, model: Path, bench: Bench, endpoint: Endpoint) -> Eval:
    """Scores the model on MT-Bench."""
    options = bench.options(endpoint.url)
    judge = {name: getattr(options.judge, name) for name in ("base_url", "key_variable", "prompts", "references")}
    given = {f"eval.judge.{name}": value for name, value in judge.items()}
    given |= {"eval.file": options.file, "eval.judge.model": "judge", "eval.max_new_tokens": 4, "device": "cpu"}

    def run(code: int = 0, **changed: Any) -> str:
        words = given | {f"eval.{name.replace('__', '.')}": value for name, value in changed.items()}
        chosen = [f"{name}={value}" for name, value in words.items()]
        return loraga("eval", str(model), "eval=mt_bench", "eval.prompt='{question}'", *chosen, code=code)

    return run


def results() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in Path("runs/eval-model/eval").glob("*.json")]


def test_an_evaluation_that_is_stopped_says_which_answers_are_kept(
    judged: Eval, monkeypatch: pytest.MonkeyPatch, usual_signals: None
) -> None:
    """A signal before the first batch leaves no answers; one before the second leaves those of the first."""
    complete, batches = Generator._complete, list[int]()

    def stopped_before(batch: int | None) -> Callable[..., Any]:
        def completing(*arguments: Any) -> Any:
            batches.append(1)
            if len(batches) == batch:
                os.kill(os.getpid(), signal.SIGTERM)
            return complete(*arguments)

        batches.clear()
        return completing

    monkeypatch.setattr(Generator, "_complete", stopped_before(1))
    printed = judged(143, batch_size=1)
    assert "SIGTERM: no result was complete, so none is kept" in printed
    assert "To start from the beginning: loraga eval" in printed
    monkeypatch.setattr(Generator, "_complete", stopped_before(2))
    printed = judged(143, batch_size=1)
    (partial,) = Path("runs/eval-model/eval").glob("*.partial.jsonl")
    assert f"SIGTERM: 1 answer is kept in {partial}. To go on: loraga eval" in printed.replace(f"{Path.cwd()}/", "")
    monkeypatch.setattr(Generator, "_complete", stopped_before(None))
    judged(batch_size=1)
    (result,) = results()
    assert len(batches) == result["rows"] - 1
    assert not partial.exists()


def test_options_that_change_no_score_reuse_the_result(
    judged: Eval, endpoint: Endpoint, bench: Bench, made: list[int]
) -> None:
    """Neither the model nor the judge is asked, and the judge is not probed."""
    judged()
    asked, answered = len(endpoint), len(made)
    moved = {
        "judge__prompts": write(bench.folder / "moved" / "prompts.jsonl", prompt_rows()),
        "judge__references": write(bench.folder / "moved" / "references.jsonl", reference_rows()),
    }
    patient = {"judge__concurrency": 1, "judge__retries": 0, "judge__key_variable": "UNSET_KEY"}
    for changed in ({"batch_size": 2}, patient, moved):
        assert "reused" in judged(**changed)
    assert (len(endpoint), len(made), len(results())) == (asked, answered, 1)


@pytest.mark.parametrize("changed", ["judge", "prompts", "references"])
def test_another_judgement_needs_no_new_answers(
    judged: Eval, endpoint: Endpoint, bench: Bench, made: list[int], changed: str
) -> None:
    judged()
    answered, asked = len(made), len(endpoint)
    endpoint.answer = lambda request: says("Rating: [[3]]")
    if changed == "judge":
        judged(judge__model="another")
    else:
        file = bench.folder / f"{changed}.jsonl"
        file.write_text(file.read_text().replace("Right: ", "Correct: ").replace("42", "41").replace("Said", "Says"))
        judged()
    assert len(made) == answered
    assert len(endpoint) > asked + 1
    assert len({result["answers"] for result in results()}) == 1
    assert len(results()) == 2
    first, second = (file.read_text().splitlines() for file in Path("runs/eval-model/eval").glob("*.jsonl"))
    assert [json.loads(line)["texts"] for line in first] == [json.loads(line)["texts"] for line in second]


def test_incomplete_stored_answers_are_generated_again(judged: Eval, made: list[int]) -> None:
    judged()
    answered = len(made)
    (lines,) = Path("runs/eval-model/eval").glob("*.jsonl")
    lines.write_text(lines.read_text().partition("\n")[0] + "\n")
    judged(judge__model="another")
    assert len(made) == 2 * answered


def test_options_of_generation_give_new_answers(judged: Eval, made: list[int]) -> None:
    judged()
    answered = len(made)
    judged(max_new_tokens=3)
    assert len(made) == 2 * answered


def test_answers_are_reused_after_a_judge_has_failed(judged: Eval, endpoint: Endpoint, made: list[int]) -> None:
    endpoint.answer = lambda request: says("I would rather not say.")
    assert "contains a rating" in judged(code=1)
    answered = len(made)
    endpoint.answer = lambda request: says("Rating: [[3]]")
    judged(judge__model="another")
    assert len(made) == answered
    assert [file.suffix for file in sorted(Path("runs/eval-model/eval").iterdir())] == [".json", ".jsonl"]


def test_only_options_are_named_as_irrelevant_or_as_those_of_answers() -> None:
    assert set(GenerationOptions.model_fields) >= ANSWER_OPTIONS
    for name in TASKS.names():
        task = TASKS[name]
        for option, parts in task.irrelevant.items():
            field = task.Options.model_fields[option]
            assert parts is True or parts <= set(field.annotation.model_fields)


def refused(*options: str) -> str:
    """What is refused before a training."""
    with pytest.raises(InvalidInput) as caught:
        check_evaluation(compose([*options, "device=cpu"]))
    return str(caught.value)


def test_missing_rows_are_reported_before_training(saved_bases: dict[str, Path], sums_file: Path) -> None:
    options = ["model=causal_lm", f"model.path={saved_bases['llama']}", "dataset=jsonl"]
    options += [f"dataset.train_file={sums_file}", "dataset.validation_fraction=0"]
    assert "there are no rows to evaluate on (eval.file=FILE" in refused(*options)
    check_evaluation(compose([*options, f"eval.file={sums_file}"]))


def test_a_missing_chat_template_is_reported_before_training(
    saved_bases: dict[str, Path], bench: Bench, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together with what else is wrong."""
    monkeypatch.delenv(VARIABLE)
    options = bench.options("http://judge.example/v1")
    files = [f"eval.file={options.file}", f"eval.judge.prompts={options.judge.prompts}"]
    message = refused(
        "model=causal_lm",
        f"model.path={saved_bases['llama']}",
        "dataset=quickstart",
        "eval=mt_bench",
        *files,
        f"eval.judge.key_variable={VARIABLE}",
    )
    assert [line.partition(": ")[0] for line in message.splitlines()] == [
        "eval.prompt",
        "eval.judge.references",
        "eval.judge.key_variable",
    ]


@pytest.mark.parametrize(("method", "refused"), [("lora", False), ("prefix_embedding", True), ("prefix_layer", True)])
def test_a_prompt_without_room_is_refused_before_training(
    saved_bases: dict[str, Path], sums_file: Path, tmp_path: Path, method: str, refused: bool
) -> None:
    """Trained vectors before it count."""
    rows = [{"question": "a" * 170, "answer": "#### 1"}]
    options = ["model=causal_lm", f"model.path={saved_bases['gpt2']}", "dataset=jsonl", "dataset.max_length=64"]
    options += [f"dataset.train_file={sums_file}", "eval=gsm8k", "device=cpu", f"method={method}"]
    options += ["method.prefix_length=100"] if refused else []
    config = compose([*options, f"eval.file={write(tmp_path / 'rows.jsonl', rows)}", "eval.prompt='{question}'"])
    with pytest.raises(ModelError, match="has 170 tokens") if refused else contextlib.nullcontext():
        check_evaluation(config)


def test_a_repeated_problem_is_a_fault(loraga: Loraga, model: Path, tmp_path: Path) -> None:
    row = {"task_id": "x", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f):\n    pass\n"}
    options = ["eval=humaneval", f"eval.file={write(tmp_path / 'programs.jsonl', [row, row])}", "device=cpu"]
    out = loraga("eval", str(model), *options, code=2)
    assert "eval.execute_code" in out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_ga_cli.evaluation.tasks.humaneval.check_sandbox", lambda: None)
        out = loraga("eval", str(model), *options, "eval.execute_code=true", code=2)
    assert "eval.file: problem x is there 2 times" in out
    assert "each needs an id of its own" in out


def test_a_model_that_cannot_be_loaded_is_left_out(loraga: Loraga, model: Path, tmp_path: Path) -> None:
    """Whether that is noticed early or late; wrong options stop everything."""
    for name in ("weightless", "headless"):
        shutil.copytree(model, tmp_path / name)
    (tmp_path / "weightless" / "model.safetensors").unlink()
    file = tmp_path / "headless" / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "lm_head.weight"}, file)
    rows = [{"question": "a", "answer": "#### 1"}]
    benchmark = ["eval=gsm8k", f"eval.file={write(tmp_path / 'rows.jsonl', rows)}", "eval.max_new_tokens=2"]
    folders = [str(tmp_path / "weightless"), str(tmp_path / "headless"), str(model)]
    out = loraga("eval", *folders, *benchmark, "device=cpu", code=1)
    assert "no weights there" in out
    assert "1 weights are not in its files (lm_head.weight" in out
    assert out.count("left out: ") == 2
    assert " model: accuracy" in out
    assert "weights are not in its files" in loraga("eval", *folders[:2], *benchmark, "device=cpu", code=2)
    assert "did you mean eval.limit?" in loraga("eval", *folders, *benchmark, "eval.limt=3", code=2)


def test_a_model_without_room_for_a_prompt_is_left_out(loraga: Loraga, model: Path, tmp_path: Path) -> None:
    going_on(byte_tokenizer(), {}, "</s>", positions=1000).save_pretrained(tmp_path / "roomy")
    byte_tokenizer().save_pretrained(tmp_path / "roomy")
    rows = [{"question": "a" * 300, "answer": "#### 1"}]
    benchmark = ["eval=gsm8k", f"eval.file={write(tmp_path / 'rows.jsonl', rows)}", "eval.max_new_tokens=2"]
    out = loraga("eval", str(model), str(tmp_path / "roomy"), *benchmark, "device=cpu", code=1)
    assert "left out: problem" in out
    assert "and the model 256 positions" in " ".join(out.split())
    assert " roomy: accuracy" in out
