"""Tasks of lm-evaluation-harness: scores agree with the model, and the harness prints nothing."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from lora_ga_cli.cli.app import main
from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.evaluation.tasks.lm_eval import LmEvalOptions, _score, check
from tests.conftest import byte_tokenizer
from tests.evaluation.models import restless
from tests.helpers import Loraga

pytest.importorskip("lm_eval")

QUESTIONS = [
    {"question": f"{number} and {number} is", "choices": [str(2 * number), "nothing", "too much"], "label": number % 3}
    for number in range(12)
]
COMMAND = ["eval=lm_eval", "eval.tasks=[tiny_choice]", "eval.file=tasks", "device=cpu", "model.dtype=float32"]
LEAVE = "eval.execute_code=true"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a user's task in the harness's form, and its questions."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    task = {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(folder / "tiny.jsonl")},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture
def bases(tmp_path: Path) -> Callable[[str], Path]:
    """Saves a model of a family whose likelihoods depend on all that it reads."""

    def save(family: str) -> Path:
        restless(family).save_pretrained(tmp_path / family)
        byte_tokenizer().save_pretrained(tmp_path / family)
        return tmp_path / family

    return save


def likeliest(model: PreTrainedModel, question: str, choices: list[str]) -> int:
    """The choice whose tokens have the largest sum of log-likelihoods, each from logits alone."""
    tokenizer = byte_tokenizer()
    asked, sums = tokenizer(question)["input_ids"], []
    for choice in choices:
        told = tokenizer(f" {choice}")["input_ids"]
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                logits = model(input_ids=torch.tensor([asked]), labels=torch.tensor([told])).logits[0]
            else:
                logits = model(input_ids=torch.tensor([asked + told])).logits[0, len(asked) - 1 : -1]
        sums.append(logits.log_softmax(-1)[range(len(told)), told].sum().item())
    return max(range(len(choices)), key=sums.__getitem__)


def result(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The only result of a folder, and its lines."""
    (file,) = folder.glob("eval/*.json")
    lines = file.with_suffix(".jsonl").read_text().splitlines()
    return json.loads(file.read_text()), [json.loads(line) for line in lines]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_accuracy_is_that_of_the_likeliest_choices(
    loraga: Loraga, tasks: Path, bases: Callable[[str], Path], family: str
) -> None:
    """Against one choice at a time through transformers alone."""
    base = bases(family)
    kind = "seq2seq_lm" if family == "t5" else "causal_lm"
    out = loraga("eval", str(base), *COMMAND, f"model={kind}", LEAVE)
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    model = auto.from_pretrained(base, dtype=torch.float32).eval()
    right = [likeliest(model, row["question"], row["choices"]) == row["label"] for row in QUESTIONS]
    assert 0 < sum(right) < len(right)
    found, lines = result(Path(f"runs/eval-{family}"))
    assert found["values"]["tiny_choice/acc"] == sum(right) / len(right)
    assert list(found["values"]) == ["tiny_choice/acc", "tiny_choice/acc_stderr"]
    assert (found["rows"], found["split"]) == (12, "tiny_choice")
    assert [(line["task"], line["doc_id"], line["acc"]) for line in lines] == [
        ("tiny_choice", number, float(one)) for number, one in enumerate(right)
    ]
    assert f"tiny choice/acc {sum(right) / len(right):.4f}" in out


def test_no_output_of_the_harness_reaches_the_screen(
    tasks: Path, bases: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither its progress bars, logs and prints, nor git's message if there is no repository."""
    base = bases("llama")
    capfd.readouterr()
    assert main(["eval", str(base), *COMMAND, LEAVE]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    told = [line.split() for line in printed.out.splitlines() if line.strip()]
    assert [line[0] for line in told[:3]] == ["eval", "eval", "run"]
    assert (told[-1][0], len(told)) == ("llama", 5)


def test_a_score_is_reused_until_its_tasks_change(loraga: Loraga, tasks: Path, bases: Callable[[str], Path]) -> None:
    base = bases("llama")
    loraga("eval", str(base), *COMMAND, LEAVE)
    assert "reused" in loraga("eval", str(base), *COMMAND, LEAVE)
    questions = tasks / "tiny.jsonl"
    questions.write_text(questions.read_text() + json.dumps(QUESTIONS[0]) + "\n")
    assert "(13 problems)" in loraga("eval", str(base), *COMMAND, LEAVE)
    assert "(3 problems)" in loraga("eval", str(base), *COMMAND, LEAVE, "eval.limit=3")


def test_a_task_that_fails_is_an_error_of_the_harness(
    loraga: Loraga, tasks: Path, bases: Callable[[str], Path]
) -> None:
    (tasks / "tiny.yaml").write_text((tasks / "tiny.yaml").read_text().replace("{{question}}", "{{query}}"))
    out = loraga("eval", str(bases("llama")), *COMMAND, LEAVE, code=1)
    assert "lm-evaluation-harness could not score tiny_choice: UndefinedError: 'query' is undefined" in out


def faults(**options: Any) -> list[str]:
    """The faults of options that are reported before a model is loaded."""
    with pytest.raises(InvalidInput) as caught:
        check(LmEvalOptions(**options))
    return [str(fault) for fault in caught.value.faults]


def test_an_unknown_task_is_refused_with_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a few of the harness's tasks are indexed, as all take ten seconds to read; a pattern is not a name."""
    manager = importlib.import_module("lm_eval.tasks.manager")
    for name in ("hellaswag", "arc", "mmlu/default"):
        shutil.copytree(Path(str(manager.__file__)).parent / name, tmp_path / "few" / name)
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "few" / "manager.py"))
    assert faults(tasks=["hellaswga", "mmlu", "mmlu_anatomy", "arc_*"]) == [
        "eval.tasks: lm-evaluation-harness has no task hellaswga (did you mean hellaswag?)",
        "eval.tasks: lm-evaluation-harness has no task arc_* (did you mean arc_easy?)",
    ]


def test_no_task_named_is_refused() -> None:
    assert faults() == ["eval.tasks: no task is named (eval.tasks=[mmlu,hellaswag])"]


def test_the_users_tasks_need_permission_to_run_code(tasks: Path) -> None:
    """Their templates alone can: the harness fills them in without a sandbox."""
    own = {"tasks": ["tiny_choice"], "file": str(tasks)}
    (fault,) = faults(**own)
    assert fault.startswith("eval.execute_code: ")
    check(LmEvalOptions(execute_code=True, **own))


def test_a_strangers_recipe_does_not_run_its_tasks(loraga: Loraga, tasks: Path, saved_bases: dict[str, Path]) -> None:
    """A template that makes a folder, which it can do only with the user's permission."""
    trap = "{{ cycler.__init__.__globals__.os.makedirs('trap', exist_ok=True) or question }}"
    task = yaml.safe_load((tasks / "tiny.yaml").read_text())
    (tasks / "tiny.yaml").write_text(yaml.safe_dump(task | {"doc_to_text": trap}))
    recipe = "defaults:\n  - override /model: causal_lm\n  - override /dataset: quickstart\n"
    options = "eval: {task: lm_eval, tasks: [tiny_choice], file: tasks, limit: 1}\n"
    Path("own/recipes").mkdir(parents=True)
    Path("own/recipes/evil.yaml").write_text(recipe + "model: {path: x}\n" + options)
    command = ["eval", str(saved_bases["llama"]), "recipe=evil", "--config-dir", "own", "device=cpu"]
    assert "eval.execute_code: " in loraga(*command, code=2)
    assert not Path("trap").exists()
    loraga(*command, LEAVE)
    assert Path("trap").exists()


def test_a_missing_folder_is_reported_with_the_other_faults() -> None:
    assert [fault.split(": ")[0] for fault in faults(file="nowhere")] == [
        "eval.tasks",
        "eval.file",
        "eval.execute_code",
    ]


def test_the_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert faults(tasks=["mmlu"]) == [
        "eval.task=lm_eval: lm-evaluation-harness is not installed (pip install 'loraga[lm-eval]')"
    ]


def test_the_harness_says_which_values_are_better() -> None:
    """By metric; a standard error is neither better nor worse, whatever the filter."""
    results = {
        "results": {
            "wikitext": {"word_perplexity,none": 9.0, "word_perplexity_stderr,none": "N/A", "alias": "wikitext"},
            "arc": {"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 7},
            "gsm8k": {"exact_match,strict-match": 0.2, "exact_match_stderr,strict-match": 0.01},
        },
        "higher_is_better": {"wikitext": {"word_perplexity": False}, "arc": {"acc": True}, "gsm8k": {}},
    }
    score = _score(results)
    assert list(score.values) == [
        "wikitext/word_perplexity",
        "arc/acc",
        "arc/acc_stderr",
        "gsm8k/exact_match/strict-match",
        "gsm8k/exact_match_stderr/strict-match",
    ]
    assert score.lower_is_better == {"wikitext/word_perplexity"}
    assert score.unranked == {"arc/acc_stderr", "gsm8k/exact_match_stderr/strict-match"}
