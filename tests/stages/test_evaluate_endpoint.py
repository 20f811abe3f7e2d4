"""`loraga eval` with a server in place of the model: the same scores, no weights, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_ga_cli.cli.app import main
from lora_ga_cli.paths import resolve_path
from tests.conftest import byte_tokenizer
from tests.evaluation.conftest import bench, endpoint
from tests.evaluation.endpoints import VARIABLE, Answer, Endpoint, completes, refuses, says
from tests.evaluation.models import save_alphabet
from tests.evaluation.mt_bench_rows import Bench, write
from tests.evaluation.serving import Served, serve
from tests.helpers import Loraga

__all__ = ["bench", "endpoint"]  # fixtures, which tests take by their names

Eval = Callable[..., str]
QUICKSTART = resolve_path("bundled:quickstart/validation.jsonl")
PROMPT = "eval.prompt='Question: {question}\nAnswer: '"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_alphabet(tmp_path / "model")


@pytest.fixture
def weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that loads weights."""
    forbid_weights(monkeypatch)


def forbid_weights(patch: pytest.MonkeyPatch) -> None:
    for name in ("lora_ga_cli.stages.inputs.load_model", "lora_ga_cli.stages.eval_targets.load_trained"):
        patch.setattr(name, lambda *_, **__: pytest.fail("weights were loaded"))


@pytest.fixture
def served_eval(loraga: Loraga, model: Path, endpoint: Endpoint, tmp_path: Path) -> Eval:
    """Scores models on three sums, by an endpoint."""
    rows = [{"question": f"{number}+1", "answer": f"#### {number + 1}"} for number in range(3)]
    file = write(tmp_path / "rows.jsonl", rows)
    fixed = ["eval=gsm8k", f"eval.file={file}", "eval.max_new_tokens=4", "device=cpu", "eval.endpoint.retries=0"]
    address = [f"eval.endpoint.base_url={endpoint.url}", f"eval.endpoint.key_variable={VARIABLE}"]

    def run(*options: str, folders: tuple[Path, ...] = (model,), code: int = 0) -> str:
        return loraga("eval", *map(str, folders), *fixed, *address, *options, code=code)

    return run


def sums(request: dict[str, Any]) -> Answer:
    """Answers 1+1 with 2, and so on; only 2+1 wrongly."""
    prompt = byte_tokenizer().decode(request["prompt"])
    number = int(prompt.removeprefix("Q: ")[0])
    return completes(f"#### {number + 1 + (number == 2)}", prompt_tokens=len(request["prompt"]))


def results() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(Path("runs/eval-model/eval").glob("*.json"))]


def test_a_server_answers_for_the_model_by_its_name(served_eval: Eval, endpoint: Endpoint, weightless: None) -> None:
    endpoint.answer = sums
    assert "accuracy 0.6667" in served_eval()
    assert {request["model"] for request in endpoint.requests} == {"model"}
    assert len(endpoint) == 1 + 3  # the first asks for one token
    assert "reused" in served_eval("eval.endpoint.concurrency=2", "eval.batch_size=2")
    assert len(endpoint) == 1 + 3
    assert not list(Path("runs").rglob("*.partial.jsonl"))


def test_answers_are_kept_for_the_servers_model(served_eval: Eval, endpoint: Endpoint) -> None:
    """Another model of the same server, and generation here, give results of their own."""
    endpoint.answer = sums
    served_eval()
    served_eval("eval.endpoint.model=other", "eval.endpoint.concurrency=1")
    assert [request["model"] for request in endpoint.requests] == ["model"] * 4 + ["other"] * 4
    served_eval("eval.endpoint.base_url=null")
    assert len(endpoint) == 8
    assert sorted(result["values"]["accuracy"] for result in results()) == [0, 2 / 3, 2 / 3]
    assert len({result["answers"] for result in results()}) == 3


def test_the_same_command_continues_after_a_failure(served_eval: Eval, endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: refuses(500, "out of luck") if len(endpoint) == 4 else sums(request)
    out = served_eval("eval.endpoint.concurrency=1", code=1)
    assert "out of luck" in out
    assert "2 answers stored in" in out
    assert "accuracy 0.6667" in served_eval()
    assert len(endpoint) == 4 + 1 + 1


def test_several_models_are_asked_for_by_their_own_names(
    served_eval: Eval, endpoint: Endpoint, model: Path, tmp_path: Path
) -> None:
    endpoint.answer = sums
    shutil.copytree(model, tmp_path / "second")
    folders = (model, tmp_path / "second")
    out = served_eval("eval.endpoint.model=one", folders=folders, code=2)
    assert "eval.endpoint.model: several models are scored" in out
    assert len(endpoint) == 0
    served_eval(folders=folders)
    assert [request["model"] for request in endpoint.requests] == ["model"] * 4 + ["second"] * 4


def test_faults_are_reported_together_and_before_anything_is_asked(
    served_eval: Eval, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    out = served_eval("eval.endpoint.base_url=http://server.example/v1", "eval.prompt=nothing", code=2)
    assert "eval.prompt: " in out
    assert f"eval.endpoint.key_variable: the environment variable {VARIABLE} is not set" in out
    assert "eval.endpoint.base_url: 'localhost' is not an address" in served_eval(
        "eval.endpoint.base_url=localhost", code=2
    )
    assert len(endpoint) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["eval=loss"], "eval.metrics has loss, computed from the model's logits"),
        (["eval=glue_text", "dataset.label_names=[a,b]"], "eval.metrics has loss, label_tokens, computed from"),
        (["eval=lm_eval", "eval.tasks=[x]"], "eval.task=lm_eval needs the model's logits"),
        (["model=classifier", "eval=accuracy", "dataset=sst2"], "eval.metrics has loss, accuracy, computed from"),
        (["model=seq2seq_lm", "eval=gsm8k"], "eval.endpoint.base_url is for model.task=causal_lm"),
        (["eval=gsm8k", "eval.endpoint.chat=true"], "eval.endpoint.chat=true is for tasks that are conversations"),
        (["eval=mt_bench", "eval.endpoint.chat=true", "eval.prompt='{question}'"], "are conversations, without eval.p"),
        (["eval=gsm8k"], "no server can have the model that is trained first (loraga train, then serve the run"),
    ],
)
def test_what_needs_more_than_texts_is_refused(
    loraga: Loraga, arguments: Callable[..., list[str]], options: list[str], message: str
) -> None:
    family = {"model=classifier": "bert", "model=seq2seq_lm": "t5"}.get(options[0], "llama")
    given = [option for option in options if not option.startswith("model=")]
    chosen = {option.partition("=")[0] for option in given}
    base = [option for option in arguments(family) if option.partition("=")[0] not in chosen]
    if "dataset" in chosen:
        base = [option for option in base if not option.startswith("dataset.")]
    out = loraga("eval", *base, *given, "eval.endpoint.base_url=http://localhost:9/v1", code=2)
    assert message in " ".join(out.split())


def test_a_file_may_not_name_a_server(loraga: Loraga) -> None:
    recipe = "defaults: [{override /model: tiny}, {override /dataset: quickstart}]\neval:\n  endpoint: {%s: X}\n"
    for option in ("base_url", "key_variable"):
        Path("mine/recipes").mkdir(parents=True, exist_ok=True)
        Path("mine/recipes/evil.yaml").write_text(recipe % option)
        out = loraga("eval", "recipe=evil", "--config-dir", "mine", code=2)
        assert f"eval.endpoint.{option} is refused in a file" in out


def test_a_conversation_needs_no_chat_template_here_if_the_server_has_one(
    loraga: Loraga, model: Path, endpoint: Endpoint, bench: Bench
) -> None:
    endpoint.answer = lambda request: says("Rating: [[7]]")
    judge = bench.options(endpoint.url).judge
    given = {
        f"eval.judge.{name}": getattr(judge, name) for name in ("base_url", "key_variable", "prompts", "references")
    }
    given |= {"eval.file": bench.options(endpoint.url).file, "eval.judge.model": "judge", "device": "cpu"}
    given |= {"eval.endpoint.base_url": endpoint.url, "eval.endpoint.key_variable": VARIABLE}
    words = [f"{name}={value}" for name, value in given.items()]
    assert "has no chat template" in loraga("eval", str(model), "eval=mt_bench", *words, code=2)
    loraga("eval", str(model), "eval=mt_bench", *words, "eval.endpoint.chat=true")
    (file,) = Path("runs/eval-model/eval").glob("*.jsonl")
    assert {text for line in file.read_text().splitlines() for text in json.loads(line)["texts"]} == {"Rating: [[7]]"}


@pytest.fixture(scope="module", params=["base", pytest.param("run", marks=pytest.mark.slow)])
def scored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Served]]:
    """The bundled base or a run of it, and `transformers serve` with the same weights in float32."""
    torch.set_num_threads(1)
    base, folder = resolve_path("bundled:tiny_base"), tmp_path_factory.mktemp("served")
    target, weights = base, AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if request.param == "run":
        options = ["trainer.max_steps=30", "trainer.batch_size=8", "trainer.micro_batch_size=8", "gradient.samples=16"]
        options += ["model.dtype=float32", "trainer.learning_rate=1e-3", "device=cpu", f"output_dir={folder}"]
        assert main(["train", "recipe=quickstart", "name=tuned", *options]) == 0
        target = folder / "tuned"
        weights = PeftModel.from_pretrained(weights, str(target)).merge_and_unload()
    weights.save_pretrained(folder / "weights")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "weights")
    with serve(folder / "weights", folder / "log") as served:
        yield target, served


@pytest.mark.parametrize(
    "task",
    [
        ["eval=gsm8k", PROMPT, f"eval.file={QUICKSTART}"],
        ["eval=gsm8k", f"eval.file={QUICKSTART}"],
        ["eval=exact_match", "eval.metrics=[exact_match]", r"eval.answer_pattern='(\d+)'"],
    ],
    ids=["gsm8k", "gsm8k with stops", "exact_match"],
)
def test_a_served_models_scores_and_answers_are_those_of_generation_here(
    loraga: Loraga, scored: tuple[Path, Served], task: list[str]
) -> None:
    target, served = scored
    of_run = (target / "manifest.json").is_file()
    results = target if of_run else Path("runs/eval-tiny_base")
    options = ["eval.limit=20", "eval.max_new_tokens=48", "device=cpu"]
    if not of_run:
        options += ["model.dtype=float32", *(["dataset=quickstart"] if task[0] == "eval=exact_match" else [])]

    def lines(*more: str) -> list[dict[str, Any]]:
        loraga("eval", str(target), *task, *options, *more)
        names = ["predictions.jsonl"] if task[0] == "eval=exact_match" else ["eval/*.jsonl"]
        (file,) = (file for name in names for file in results.glob(name))
        found = [json.loads(line) for line in file.read_text().splitlines()]
        file.unlink()
        return found

    expected = lines()
    with pytest.MonkeyPatch.context() as patch:
        forbid_weights(patch)
        found = lines(f"eval.endpoint.base_url={served.url}", f"eval.endpoint.model={served.model}")
    assert found == expected
    assert len(found) == 20
    assert len({json.dumps(line) for line in found}) > 10
