"""`loraga eval` of runs, adapters and models: how they are recognized, where results go, and when they are reused."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_ga_cli.cli.app import main
from lora_ga_cli.digests import written
from lora_ga_cli.evaluation.generate import Generator
from lora_ga_cli.evaluation.judge import JudgeOptions
from lora_ga_cli.report import console
from lora_ga_cli.stages.eval_targets import find_target
from lora_ga_cli.training.run_folder import RunFolder
from tests.conftest import byte_tokenizer
from tests.data.chat_templates import FAMILIES
from tests.evaluation.models import going_on, restless
from tests.helpers import Arguments, Loraga, write_sums

PROBLEMS = [("Two and 2?", "#### 4"), ("Is 7 a 7", "It is.\n#### 7"), ("How many? 9", "#### 10")]
BENCHMARK = [
    "eval=gsm8k",
    "eval.file=problems.jsonl",
    "eval.prompt='{question}'",
    "eval.max_new_tokens=6",
    "device=cpu",
]
FLOAT = "model.dtype=float32"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose answers depend on all of a prompt, and two short runs on it that change them."""
    home = tmp_path_factory.mktemp("home")
    restless("llama").save_pretrained(home / "base")
    byte_tokenizer().save_pretrained(home / "base")
    write_sums(home / "rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("LORAGA_CACHE", str(home / "cache"))
        for name, method in (("plain", "lora"), ("custom", "bottleneck_adapter")):
            command = ["train", "model=causal_lm", f"model.path={home / 'base'}", FLOAT, "device=cpu", f"name={name}"]
            data = ["dataset=jsonl", f"dataset.train_file={home / 'rows.jsonl'}", "dataset.max_length=64"]
            options = ["trainer.max_steps=3", "trainer.learning_rate=0.3", "trainer.warmup_ratio=0", "rank=4"]
            assert main([*command, *data, *options, f"method={method}"]) == 0
    return home


@pytest.fixture(autouse=True)
def laid_out(home: Path) -> None:
    """Copies of the runs, the plain one's adapter alone, and problems, in the test's own folder."""
    for name in ("plain", "custom"):
        shutil.copytree(home / "runs" / name, f"runs/{name}")
    Path("exported").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(home / "runs" / "plain" / file, "exported")
    Path("moved").mkdir()
    for file in home.glob("runs/custom/custom_adapter.*"):
        shutil.copy(file, "moved")
    lines = [json.dumps({"question": question, "answer": solution}) + "\n" for question, solution in PROBLEMS]
    Path("problems.jsonl").write_text("".join(lines))


def listing(folder: str | Path) -> dict[str, bytes]:
    """All that lies in a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def results(folder: str | Path) -> list[dict[str, Any]]:
    """The results of benchmarks in a folder, the oldest first."""
    files = sorted(Path(folder).glob("eval/*.json"), key=lambda file: file.stat().st_mtime_ns)
    return [json.loads(file.read_text()) for file in files]


def texts(folder: str | Path) -> list[str]:
    """The answers to the only benchmark in a folder."""
    (file,) = Path(folder).glob("eval/*.jsonl")
    return [json.loads(line)["texts"][0] for line in file.read_text().splitlines()]


def written_by(model: torch.nn.Module) -> list[str]:
    """What a model answers to the problems, one by one."""
    tokenizer = byte_tokenizer()
    found = []
    for question, _ in PROBLEMS:
        ids = torch.tensor([tokenizer(question)["input_ids"]])
        with torch.no_grad():
            out = model.generate(input_ids=ids, do_sample=False, max_new_tokens=6)  # type: ignore[operator]
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return found


@pytest.fixture
def digits() -> Path:
    """A model that writes ``#### n`` after a digit n and then ends; after anything else it writes a question mark."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"#### {digit}" for digit in range(10)])
    following = {str(digit): f"#### {digit}" for digit in range(10)}
    following |= {f"#### {digit}": "</s>" for digit in range(10)}
    model = going_on(tokenizer, following, "?")
    model.save_pretrained("digits")
    tokenizer.save_pretrained("digits")
    return Path("digits")


def test_a_run_and_its_exported_adapter_have_the_same_score(loraga: Loraga, home: Path) -> None:
    """Against PEFT alone, a problem at a time; an adapter's results lie beside the runs, and not in its folder."""
    before = listing("exported")
    loraga("eval", "runs/plain", *BENCHMARK)
    loraga("eval", "exported", *BENCHMARK, FLOAT)
    base = AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
    without = written_by(base)
    assert texts("runs/plain") == texts("runs/eval-exported") == written_by(PeftModel.from_pretrained(base, "exported"))
    assert texts("runs/plain") != without
    (run,), (adapter,) = results("runs/plain"), results("runs/eval-exported")
    assert run["values"] == adapter["values"]
    assert (run["rows"], run["split"], run["options"]["task"]) == (3, "gsm8k", "gsm8k")
    assert listing("exported") == before
    assert set(listing("runs/plain/eval")) == {f"gsm8k-{run['identity'][:8]}{end}" for end in (".json", ".jsonl")}


def test_a_run_and_its_exported_adapter_have_the_same_loss(loraga: Loraga, home: Path) -> None:
    rows = [f"eval.file={home / 'rows.jsonl'}", "eval.limit=8", "device=cpu"]
    data = ["dataset=jsonl", f"dataset.train_file={home / 'rows.jsonl'}", "dataset.max_length=64"]
    loraga("eval", "runs/plain", *rows)
    loraga("eval", "exported", *rows, *data, FLOAT)
    run, adapter = (json.loads(Path(f"runs/{name}/eval.json").read_text()) for name in ("plain", "eval-exported"))
    assert adapter["values"] == run["values"]
    assert (adapter["rows"], run["rows"]) == (8, 8)


def test_a_custom_adapter_is_scored_on_the_base_that_is_named(loraga: Loraga, home: Path) -> None:
    before = listing("moved")
    assert "which base is this adapter for? (model.path=ORG/MODEL)" in loraga("eval", "moved", *BENCHMARK, code=2)
    loraga("eval", "moved", *BENCHMARK, FLOAT, f"model.path={home / 'base'}")
    loraga("eval", "runs/custom", *BENCHMARK)
    assert texts("runs/eval-moved") == texts("runs/custom")
    assert texts("runs/custom") != written_by(AutoModelForCausalLM.from_pretrained(home / "base"))
    assert listing("moved") == before


def test_a_model_in_a_folder_is_scored_as_it_is(loraga: Loraga, digits: Path) -> None:
    """Of three problems it gets one right, one wrong, and does not answer the third."""
    before = listing(digits)
    out = loraga("eval", str(digits), *BENCHMARK)
    assert "digits: accuracy 0.3333, strict 0.3333, no answer 0.3333, truncated 0.3333 (3 problems)" in out
    assert texts("runs/eval-digits") == ["??????", "#### 7", "#### 9"]
    third = {"accuracy": 1 / 3, "strict": 1 / 3, "no_answer": 1 / 3, "truncated": 1 / 3}
    assert results("runs/eval-digits")[0]["values"] == third
    assert listing(digits) == before


def test_a_target_has_the_name_of_its_folder_from_any_working_folder(
    loraga: Loraga, digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = [*BENCHMARK, f"eval.file={tmp_path / 'problems.jsonl'}", f"output_dir={tmp_path / 'elsewhere'}"]
    for folder in ("digits", "exported"):
        monkeypatch.chdir(tmp_path / folder)
        assert f" {folder}: accuracy" in loraga("eval", ".", *options)
        assert len(results(tmp_path / "elsewhere" / f"eval-{folder}")) == 1
    monkeypatch.chdir(tmp_path / "runs" / "plain")
    assert " plain: accuracy" in loraga("eval", ".", *BENCHMARK, f"eval.file={tmp_path / 'problems.jsonl'}")


def test_an_encoder_decoder_is_scored_too(loraga: Loraga, saved_bases: dict[str, Path]) -> None:
    loraga("eval", str(saved_bases["t5"]), *BENCHMARK, "model=seq2seq_lm")
    assert results("runs/eval-t5")[0]["values"]["no_answer"] == 1


def test_a_result_is_reused_and_other_options_add_another(loraga: Loraga) -> None:
    for command in (["runs/plain", *BENCHMARK], ["exported", *BENCHMARK, FLOAT]):
        folder = Path("runs/plain" if command[0] == "runs/plain" else "runs/eval-exported")
        loraga("eval", *command)
        first = listing(folder / "eval")
        assert "reused" in loraga("eval", *command, "eval.batch_size=1")
        assert listing(folder / "eval") == first
        assert "(2 problems)" in loraga("eval", *command, "eval.limit=2")
        both = listing(folder / "eval")
        assert first.items() <= both.items()
        assert len(both) == 4
        assert "reused" in loraga("eval", *command)


def retrain() -> None:
    """Another adapter of the same size in the same place."""
    tensors = load_file("exported/adapter_model.safetensors")
    save_file(
        {name: -tensor for name, tensor in tensors.items()}, "exported/adapter_model.safetensors", {"format": "pt"}
    )


def replace_base() -> None:
    base = AutoModelForCausalLM.from_pretrained("base")
    base.model.norm.weight.data *= 2
    base.save_pretrained("base")


def correct_solution() -> None:
    file = Path("problems.jsonl")
    file.write_text(file.read_text().replace("#### 10", "#### 11"))


@pytest.mark.parametrize("change", [retrain, replace_base, correct_solution])
def test_a_result_is_not_reused_after_the_model_has_changed(
    loraga: Loraga, home: Path, change: Callable[[], None]
) -> None:
    """The same command, after what it names has become another."""
    shutil.copytree(home / "base", "base")
    command = ["exported", *BENCHMARK, FLOAT, "model.path=./base"]
    loraga("eval", *command)
    assert "reused" in loraga("eval", *command)
    change()
    assert "reused" not in loraga("eval", *command)
    assert len(results("runs/eval-exported")) == 2


def test_a_model_in_another_precision_is_another(loraga: Loraga, digits: Path) -> None:
    loraga("eval", str(digits), *BENCHMARK, FLOAT)
    assert "reused" not in loraga("eval", str(digits), *BENCHMARK, "model.dtype=bfloat16")
    assert len(results("runs/eval-digits")) == 2


def test_an_interrupted_benchmark_continues(loraga: Loraga, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, asked = Generator._generate, []

    def once(*arguments: Any) -> Any:
        asked.append(None)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(Generator, "_generate", once)
    loraga("eval", "runs/plain", *BENCHMARK, "eval.batch_size=2", code=130)
    (partial,) = Path("runs/plain/eval").iterdir()
    assert partial.name.endswith(".partial.jsonl")
    assert len(partial.read_text().splitlines()) == 2
    loraga("eval", "runs/plain", *BENCHMARK, "eval.batch_size=2")
    assert len(asked) == 3
    assert not partial.exists()
    loraga("eval", "exported", *BENCHMARK, FLOAT)
    assert texts("runs/plain") == texts("runs/eval-exported")


def test_runs_adapters_and_models_are_in_one_table(
    loraga: Loraga, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "_width", 160)
    out = loraga("eval", "runs/plain", "exported", str(digits), "nonsense", *BENCHMARK, code=1)
    table = out[out.index(" run ") :].splitlines()
    assert [line.split()[:2] for line in table[2:5]] == [["plain", "lora"], ["exported", "–"], ["digits", "–"]]
    assert "all runs: rank 4, " in out
    assert "33.3%" in table[4]
    assert "left out: nonsense: no such run folder, adapter or model" in out


def test_runs_of_one_name_are_told_apart_in_lines_and_the_table(loraga: Loraga) -> None:
    shutil.copytree("runs/plain", "old/plain")
    out = loraga("eval", "runs/plain", "old/plain", *BENCHMARK)
    table = out[out.index(" run ") :].splitlines()
    assert [line.split()[0] for line in table[2:4]] == ["runs/plain", "old/plain"]
    assert "is loaded once, for runs/plain, old/plain" in out
    lines = [line.split()[1] for line in out.splitlines() if line.split()[:1] == ["eval"] and "accuracy" in line]
    assert lines == ["runs/plain:", "old/plain:"]


def tamper(**changes: Any) -> None:
    """Changes ``eval`` options in the run's stored configuration, and its digest: a stranger can compute one too."""
    run = RunFolder(Path("runs/plain"))
    file = run.config_file
    config = yaml.safe_load(file.read_text())
    config["eval"] |= changes
    file.write_text(yaml.safe_dump(config))
    run.update_manifest(files={file.name: written(file)})


def test_a_strangers_run_does_not_run_code(loraga: Loraga, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ga_cli.evaluation.tasks.humaneval.grade", lambda *_: pytest.fail("a program ran"))
    row = {"task_id": "x", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f):\n    pass\n"}
    Path("programs.jsonl").write_text(json.dumps(row) + "\n")
    tamper(task="humaneval", file="programs.jsonl", execute_code=True)
    assert "eval.execute_code: the programs that the model writes would run" in loraga("eval", "runs/plain", code=2)
    assert not Path("runs/plain/eval").exists()


def test_a_strangers_run_does_not_choose_who_receives_the_key() -> None:
    judge = {"base_url": "http://evil.example/v1", "key_variable": "SECRET", "model": "kept"}
    tamper(task="mt_bench", judge=judge)
    assert find_target("runs/plain", []).config.eval.judge == JudgeOptions(model="kept")


def test_a_strangers_adapter_does_not_read_the_environment(loraga: Loraga, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "leaked")
    file = Path("exported/adapter_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "${oc.env:SECRET}/x"}))
    out = loraga("eval", "exported", *BENCHMARK, code=2)
    assert "which base is this adapter for?" in out
    assert "leaked" not in out


@pytest.mark.parametrize("base", [None, ""])
def test_an_adapter_that_does_not_name_its_base_asks_for_it(loraga: Loraga, home: Path, base: str | None) -> None:
    file = Path("exported/adapter_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    assert "which base is this adapter for?" in loraga("eval", "exported", *BENCHMARK, code=2)
    loraga("eval", "exported", *BENCHMARK, FLOAT, f"model.path={home / 'base'}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "nothing: no such run folder, adapter or model"),
        ("runs/nothing", "runs/nothing: no such run folder, adapter or model"),
        ("./nothing", "./nothing: no such run folder, adapter or model"),
        ("../nothing", "../nothing: no such run folder, adapter or model"),
        ("/nowhere/nothing", "/nowhere/nothing: no such run folder, adapter or model"),
        ("a/b/c", "a/b/c: no such run folder, adapter or model"),
        ("problems.jsonl", "problems.jsonl: a file, not a run folder"),
        ("runs", "runs: no run folder, adapter or model (neither manifest.json, adapter_config.json nor config.json"),
    ],
)
@pytest.mark.parametrize("options", [[], BENCHMARK])
def test_an_unknown_name_is_an_error_of_one_line(loraga: Loraga, name: str, message: str, options: list[str]) -> None:
    out = loraga("eval", name, *options, code=2)
    assert len(out.splitlines()) == 1
    assert message in out


def test_an_unknown_name_on_the_hub_is_an_error_of_one_line(loraga: Loraga, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the library reads the variable only once
    out = loraga("eval", "nobody/nothing", *BENCHMARK, code=2)
    assert len(out.splitlines()) == 1
    assert "cannot load the config of nobody/nothing (on the hub): " in out


def test_a_benchmark_refuses_a_classifier(loraga: Loraga, saved_bases: dict[str, Path]) -> None:
    data = ["dataset=classification", "dataset.train_file=unread", "model=classifier"]
    for benchmark in (BENCHMARK, ["eval=mt_bench"], ["eval=lm_eval", "eval.tasks=[mmlu]"]):
        out = loraga("eval", str(saved_bases["bert"]), *data, *benchmark, code=2)
        assert "does not score models of model.task=sequence_classification" in out


def test_rows_need_a_data_set(loraga: Loraga) -> None:
    for options in ([], ["eval=exact_match"], ["eval.file=problems.jsonl"]):
        out = loraga("eval", "exported", *options, code=2)
        assert "no data set to score on (dataset=… or recipe=…, or a benchmark by eval=…)" in out


def test_a_recipe_says_what_kind_of_model_it_is(loraga: Loraga, saved_bases: dict[str, Path]) -> None:
    text = "defaults:\n  - override /model: seq2seq_lm\n  - override /dataset: quickstart\nmodel: {path: x}\n"
    Path("own/recipes").mkdir(parents=True)
    Path("own/recipes/mine.yaml").write_text(text)
    loraga("eval", str(saved_bases["t5"]), *BENCHMARK, "recipe=mine", "--config-dir", "own")
    assert len(results("runs/eval-t5")) == 1


@pytest.mark.parametrize("flags", [["-m"], ["--cfg", "job"]])
def test_hydras_flags_are_refused(loraga: Loraga, flags: list[str]) -> None:
    for name in ("exported", "runs/plain"):
        assert "goes with a recipe" in loraga("eval", name, *BENCHMARK, *flags, code=2)


def test_faults_of_a_command_line_are_reported_together(loraga: Loraga) -> None:
    out = loraga("eval", "moved", "eval=gsm8k", "sed=2", "modle.dtype=float32", code=2)
    assert [word for word in ("seed?", "model.dtype?", "which base") if word not in out] == []


def test_other_rows_are_scored_without_the_training_data(loraga: Loraga, home: Path, arguments: Arguments) -> None:
    """From any folder: paths of a run count from where it began."""
    rows = (home / "rows.jsonl").read_text()
    Path("data.jsonl").write_text(rows)
    Path("held.jsonl").write_text(rows[: rows.index("\n") + 1])
    files = ["dataset.train_file=data.jsonl", "dataset.validation_file=held.jsonl", "dataset.validation_fraction=0"]
    loraga("train", *arguments("llama", *files, "method=lora", "name=r"))
    Path("elsewhere").mkdir()
    with contextlib.chdir("elsewhere"):
        own = json.loads(Path("../runs/r/manifest.json").read_text())["validation_loss"]
        loraga("eval", "../runs/r")
        assert json.loads(Path("../runs/r/eval.json").read_text())["values"]["loss"] == pytest.approx(own, rel=1e-4)
    for file in ("data.jsonl", "held.jsonl"):
        Path(file).unlink()
    loraga("eval", "runs/r", *BENCHMARK)
    loraga("eval", "runs/r", f"eval.file={home / 'rows.jsonl'}")
    assert "held.jsonl" in loraga("eval", "runs/r", code=2)


@pytest.mark.parametrize("source", ["mix", "data_files"])
def test_the_sources_of_a_run_are_found_from_any_folder(
    loraga: Loraga, home: Path, arguments: Arguments, source: str
) -> None:
    Path("data").mkdir()
    shutil.copy(home / "rows.jsonl", "data/a.jsonl")
    options = {
        "mix": ["dataset.mix=[{train_file: data/a.jsonl, weight: 2}, {path: json, data_files: data/a.jsonl}]"],
        "data_files": ["dataset.path=json", "dataset.data_files={train: data/a.jsonl}"],
    }[source]
    words = [word for word in arguments("llama", "method=lora", "name=r") if "train_file" not in word]
    loraga("train", *words, *options, "dataset.validation_fraction=0.25")
    own = json.loads(Path("runs/r/manifest.json").read_text())["validation_loss"]
    Path("elsewhere").mkdir()
    with contextlib.chdir("elsewhere"):
        loraga("eval", "../runs/r")
    assert json.loads(Path("runs/r/eval.json").read_text())["values"]["loss"] == pytest.approx(own, rel=1e-4)


def test_a_run_on_a_stream_scores_a_file(loraga: Loraga, home: Path, arguments: Arguments) -> None:
    shutil.copy(home / "rows.jsonl", "a.jsonl")
    words = [word for word in arguments("llama", "method=lora", "name=r") if "train_file" not in word]
    stream = ["dataset.path=json", "dataset.data_files=a.jsonl", "dataset.streaming=true", "dataset.shuffle_buffer=8"]
    validation = ["dataset.validation_split=train", "dataset.max_validation_rows=4", "dataset.validation_fraction=0"]
    loraga("train", *words, *stream, *validation)
    loraga("eval", "runs/r", "eval.file=a.jsonl", "eval.limit=7")
    assert json.loads(Path("runs/r/eval.json").read_text())["rows"] == 7


def test_a_limit_counts_rows_where_one_becomes_several_examples(loraga: Loraga) -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "1"), ("assistant", "2"))]
    Path("chats.jsonl").write_text((json.dumps({"messages": turns * 2}) + "\n") * 3)
    Path("chat.jinja").write_text(FAMILIES["forgets reasoning"].template)
    data = ["dataset.train_file=chats.jsonl", "dataset.validation_file=chats.jsonl", "dataset.chat_template=chat.jinja"]
    loraga("train", "model=tiny", *data, "method=lora", "name=r", "rank=4", "trainer.max_steps=1", "device=cpu")
    for options in ([], ["eval.file=chats.jsonl"]):
        assert "4 examples of 2 rows" in loraga("eval", "runs/r", "eval.limit=2", *options)
        assert json.loads(Path("runs/r/eval.json").read_text())["rows"] == 4


def test_a_project_that_was_moved_finds_its_data(loraga: Loraga, home: Path, arguments: Arguments) -> None:
    Path("project").mkdir()
    shutil.copy(home / "rows.jsonl", "project/data.jsonl")
    with contextlib.chdir("project"):
        loraga("train", *arguments("llama", "dataset.train_file=data.jsonl", "method=lora", "name=r"))
    Path("project").rename("renamed")
    loraga("eval", "renamed/runs/r")


def test_a_classifier_needs_no_training_data_to_score_a_file(
    loraga: Loraga, arguments: Arguments, sums_file: Path
) -> None:
    loraga("train", *arguments("bert", "method=lora", "trainer.max_steps=2", "name=c"))
    sums_file.rename("other.jsonl")
    assert "accuracy" in loraga("eval", "runs/c", "eval=accuracy", "eval.file=other.jsonl")
