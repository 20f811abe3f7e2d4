"""A recipe is data: what it may not do is refused with its line, before composition, however it is reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.config.check import check
from lora_ga_cli.config.compose import compose, reconfigured
from lora_ga_cli.config.safety import unsafe_options
from tests.config import BASE, lay_out, refused

REFUSED = {
    "code in a group": ("model:\n  _target_: os.system\n", 5, "_target_"),
    "code at the top": ("_target_: os.system\n", 4, "_target_"),
    "code deep inside": ("dataset:\n  columns:\n    _target_: os.system\n", 6, "_target_"),
    "a partial": ("model:\n  _partial_: true\n", 5, "_partial_"),
    "a hydra node": ("hydra:\n  run:\n    dir: /x\n", 4, "Hydra"),
    "an environment variable": ("name: ${oc.env:HOME}\n", 4, "oc.env"),
    "spaces in the resolver": ("name: '${ oc.env : HOME }'\n", 4, "oc.env"),
    "a resolver inside a resolver": ("name: ${oc.select:nope,${oc.env:HOME}}\n", 4, "oc.env"),
    "a resolver in a list": ("target_modules:\n  - ${oc.env:HOME}\n", 4, "oc.env"),
    "a resolver within text": ("name: run-${now:%Y}\n", 4, "now"),
    "hydra's resolver": ("name: ${hydra:runtime.cwd}\n", 4, "hydra"),
    "a decoder": ("rank: ${oc.decode:'8'}\n", 4, "oc.decode"),
    "a resolver whose name is interpolated": ("method: {name: env}\nname: ${oc.${method.name}:HOME}\n", 5, ""),
    "a resolver that is an interpolation": ("method: {name: oc.env}\nname: ${${method.name}:HOME}\n", 5, ""),
    "an absolute output folder": ("output_dir: /tmp/evil\n", 4, "output_dir"),
    "an output folder above": ("output_dir: a/../../evil\n", 4, "output_dir"),
    "an output folder at home": ("output_dir: ~/evil\n", 4, "output_dir"),
    "an output folder on another drive": ("output_dir: C:\\evil\n", 4, "output_dir"),
    "an output folder on another machine": ("output_dir: \\\\host\\evil\n", 4, "output_dir"),
    "an absolute name": ("name: /tmp/evil\n", 4, "name"),
    "a name above": ("name: ../evil\n", 4, "name"),
    "an absolute cache": ("cache_dir: /tmp/evil\n", 4, "cache_dir"),
    "an absolute data file": ("dataset:\n  train_file: /etc/passwd\n", 5, "dataset.train_file"),
    "a chat template elsewhere": ("dataset:\n  chat_template: /etc/passwd\n", 5, "dataset.chat_template"),
    "a data file in a list": ("dataset:\n  train_file: [a.jsonl, ../b.jsonl]\n", 5, "../b.jsonl"),
    "a data file as an address": ("dataset:\n  train_file: file:///etc/passwd\n", 5, "dataset.train_file"),
    "a model at home": ("model:\n  path: ~/model\n", 5, "model.path"),
    "a tokenizer above": ("model:\n  tokenizer: ../tokenizer\n", 5, "model.tokenizer"),
    "an absolute file to score": ("eval:\n  file: /etc/passwd\n", 5, "eval.file"),
    "an absolute path behind bundled:": ("dataset:\n  train_file: bundled:/etc/passwd\n", 5, "dataset.train_file"),
    "a path above behind bundled:": ("dataset:\n  train_file: bundled:../x.jsonl\n", 5, "dataset.train_file"),
    "an output folder behind bundled:": ("output_dir: bundled:/tmp/evil\n", 4, "output_dir"),
    "an output folder in another package": ("output_dir: package:yaml/evil\n", 4, "output_dir"),
    "a cache in another package": ("cache_dir: package:yaml/evil\n", 4, "cache_dir"),
    "an absolute path behind package:": ("dataset:\n  train_file: package:yaml//etc/passwd\n", 5, "dataset.train_file"),
    "a path above behind package:": ("dataset:\n  train_file: package:yaml/../x.jsonl\n", 5, "dataset.train_file"),
    "an output folder as a resolver's default": ("output_dir: ${oc.select:nope,'/tmp/evil'}\n", 4, "output_dir"),
    "an output folder by interpolation": ("method: {name: /tmp/evil}\noutput_dir: ${method.name}\n", 4, ""),
    "an output folder as an object": (
        "output_dir: !!python/object/apply:pathlib.Path [/tmp/evil]\n",
        4,
        "output_dir",
    ),
    "a resolver in a list in a list": ("dataset:\n  columns:\n    x: [['${oc.env:HOME}']]\n", 6, "oc.env"),
    "an output folder in base64": ("output_dir: !!binary L3RtcC9ldmls\n", 4, "output_dir"),
    "a method's name that leaves the folder": ("method:\n  name: ../../evil\n", 5, "method.name"),
    "a recipe's name that leaves the folder": ("recipe: ../../evil\n", 4, "recipe"),
    "a model's code": ("model:\n  trust_remote_code: true\n", 5, "model.trust_remote_code"),
    "overwriting": ("overwrite: true\n", 4, "overwrite"),
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("text", "line", "message"), REFUSED.values(), ids=REFUSED)
def test_a_recipe_is_refused_at_its_line_before_composition(text: str, line: int, message: str) -> None:
    lay_out(Path("mine"), {"recipes/evil.yaml": BASE + text})
    _, faults = check(["recipe=evil", "--config-dir", "mine"])
    assert any(fault.where == f"mine/recipes/evil.yaml:{line}" and message in fault.what for fault in faults), faults


@pytest.mark.parametrize("how", ["defaults: [evil]\n", "defaults:\n  - evil\n  - override /method: lora\n"])
def test_it_is_refused_through_another_recipe_too(how: str) -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": how, "recipes/evil.yaml": BASE + "name: ${oc.env:HOME}\n"})
    (fault,) = refused("recipe=mine", "--config-dir", "mine")
    assert fault.startswith("mine/recipes/evil.yaml:4: ")


def test_it_is_refused_through_two_other_recipes_too() -> None:
    files = {
        "recipes/a.yaml": "defaults: [b]\n",
        "recipes/b.yaml": "defaults: [c]\n",
        "recipes/c.yaml": "_target_: x\n",
    }
    lay_out(Path("mine"), files)
    (fault,) = refused("recipe=a", "--config-dir", "mine")
    assert fault.startswith("mine/recipes/c.yaml:1: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: x\n_target_: os.system\n", 2),
        ("name: ${oc.env:HOME}\n", 1),
        ("hydra:\n  run: {dir: /x}\n", 1),
        ("# @package hydra\nname: x\n", 1),
        (" # @package model\nname: x\n", 1),
        ("#   @package   trainer\nname: x\n", 1),
        ("name: x\ndefaults:\n  - /hydra/launcher: joblib\n", 2),
        ("name: x\ndefaults:\n  - override /hydra/launcher: joblib\n", 2),
        ("name: x\ndefaults:\n  - /model@hydra: tiny\n", 2),
    ],
)
@pytest.mark.parametrize("how", ["from a recipe", "from the command line"])
def test_a_group_file_may_not_do_it_either(text: str, line: int, how: str) -> None:
    recipe = BASE + "  - override /method: evil\n"
    lay_out(Path("mine"), {"recipes/mine.yaml": recipe, "method/evil.yaml": text})
    chosen = ["recipe=mine"] if how == "from a recipe" else ["recipe=quickstart", "method=evil"]
    _, faults = check([*chosen, "--config-dir", "mine"])
    assert any(
        fault.where in {f"mine/method/evil.yaml:{line}", f"mine/method/evil.yaml:{line + 1}"} for fault in faults
    )


def test_only_a_method_may_set_options_beside_its_own() -> None:
    """A recipe may, and so may a method that needs them; what it may not set stays what a recipe may not."""
    files = {
        "method/mine.yaml": "# @package _global_\nmethod: {name: mine}\nmodel: {double_quantization: false}\n",
        "method/evil.yaml": "# @package _global_\nmethod: {name: evil}\ndataset:\n  train_file: /etc/passwd\n",
        "trainer/evil.yaml": "# @package _global_\ntrainer: {epochs: 2}\n",
    }
    lay_out(Path("mine"), files)
    _, faults = check(["recipe=quickstart", "method=mine", "--config-dir", "mine"])
    assert faults == []
    (fault,) = refused("recipe=quickstart", "method=evil", "--config-dir", "mine")
    assert fault.startswith("mine/method/evil.yaml:4: dataset.train_file=/etc/passwd leaves the working folder")
    _, (first, *_) = check(["recipe=quickstart", "trainer=evil", "--config-dir", "mine"])
    assert first.where == "mine/trainer/evil.yaml:1"


def test_running_code_and_sending_a_key_are_for_the_command_line() -> None:
    for option, value in (
        ("execute_code", "true"),
        ("judge: {base_url", "http://evil}"),
        ("judge: {key_variable", "X}"),
    ):
        lay_out(Path("mine"), {"recipes/evil.yaml": BASE + f"eval:\n  {option}: {value}\n"})
        (fault,) = refused("recipe=evil", "--config-dir", "mine")
        assert "is refused in a file (that is for the command line)" in fault


def test_a_group_file_may_not_turn_on_a_models_code() -> None:
    recipe = "defaults:\n  - override /model: evil\n  - override /dataset: quickstart\n"
    lay_out(Path("mine"), {"recipes/mine.yaml": recipe, "model/evil.yaml": "path: a/b\ntrust_remote_code: true\n"})
    (fault,) = refused("recipe=mine", "--config-dir", "mine")
    assert fault.startswith("mine/model/evil.yaml:2: model.trust_remote_code is refused in a file")


def test_a_package_header_may_not_move_a_recipe() -> None:
    lay_out(Path("mine"), {"recipes/evil.yaml": "# @package hydra\n" + BASE})
    (fault,) = refused("recipe=evil", "--config-dir", "mine")
    assert fault.startswith("mine/recipes/evil.yaml:1: ")


@pytest.mark.parametrize(
    "entry", ["override /hydra/launcher: joblib", "/hydra/sweeper: basic", "/model@hydra.job: tiny"]
)
def test_a_recipes_defaults_may_not_choose_hydras_parts(entry: str) -> None:
    lay_out(Path("mine"), {"recipes/evil.yaml": BASE + f"  - {entry}\n"})
    (fault,) = refused("recipe=evil", "--config-dir", "mine")
    assert fault.startswith("mine/recipes/evil.yaml:")
    assert "cannot configure Hydra" in fault


@pytest.mark.parametrize(
    "name", ["loraga.yaml", "schema.yaml", "hydra/job_logging/none.yaml", "recipe/quickstart.yaml"]
)
def test_a_folder_may_not_replace_the_files_of_the_application(name: str) -> None:
    lay_out(Path("mine"), {name: "x: 1\n"})
    (fault,) = refused("recipe=quickstart", "--config-dir", "mine")
    assert fault.startswith(f"mine/{Path(name).parts[0]}: ")


def test_a_harmless_file_elsewhere_does_not_cover_for_the_one_that_hydra_reads() -> None:
    """Within ``method/x.yaml``, ``- sub: evil`` is ``method/sub/evil``, not ``sub/evil``."""
    files = {
        "method/x.yaml": "defaults:\n  - sub: evil\nname: x\n",
        "sub/evil.yaml": "gamma: 3\n",
        "method/sub/evil.yaml": "# @package method\nname: ${oc.env:HOME}\n",
    }
    lay_out(Path("mine"), files)
    faults = refused("recipe=quickstart", "method=x", "--config-dir", "mine")
    assert any(fault.startswith("mine/method/") for fault in faults)


def test_the_shipped_files_are_safe() -> None:
    for arguments in (["recipe=quickstart"], ["recipe=llama2_metamath"]):
        assert check(arguments)[1] == []


def test_what_an_interpolation_gives_is_not_read_as_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """An escaped interpolation is text when it is composed, and when a stored configuration is read again."""
    monkeypatch.setenv("SECRET", "leaked")
    parts = {
        "x": '"\\\\${oc.env:SECRET}"',
        "a": '"$"',
        "b": '"{oc.env:SECRET}"',
        "c": "${dataset.columns.a}${dataset.columns.b}",
        "d": "${oc.select:dataset.columns.x}",
        "e": "${dataset.columns.${dataset.columns.f}}",
        "f": "c",
    }
    text = "dataset:\n  columns:\n" + "".join(f"    {name}: {value}\n" for name, value in parts.items())
    lay_out(Path("mine"), {"recipes/mine.yaml": BASE + text})
    config = compose(["recipe=mine", "--config-dir", "mine"])
    assert config.dataset.columns["c"] == "${oc.env:SECRET}"
    assert "leaked" not in str(config)
    assert "leaked" not in str(reconfigured(config.model_dump(mode="json"), ["eval.limit=3"]))


def test_anchors_that_multiply_are_refused_before_they_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)]
    lay_out(Path("mine"), {"recipes/evil.yaml": "".join(lines)})
    (fault,) = refused("recipe=evil", "--config-dir", "mine")
    assert "too long" in fault


def test_safe_interpolations_work() -> None:
    text = "rank: 4\nalpha: ${rank}\ntrainer:\n  batch_size: ${oc.select:rank,8}\n  micro_batch_size: ${.batch_size}\n"
    lay_out(Path("mine"), {"recipes/mine.yaml": BASE + text})
    config = compose(["recipe=mine", "--config-dir", "mine"])
    assert (config.alpha, config.trainer.batch_size, config.trainer.micro_batch_size) == (4, 4, 4)


def test_an_interpolation_follows_the_command_line() -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": BASE + "alpha: ${oc.select:rank,8}\n"})
    assert compose(["recipe=mine", "rank=32", "--config-dir", "mine"]).alpha == 32


def test_relative_paths_are_allowed_in_a_recipe() -> None:
    lay_out(
        Path("mine"), {"recipes/mine.yaml": BASE + "output_dir: results/mine\ndataset:\n  train_file: data/x.jsonl\n"}
    )
    config = compose(["recipe=mine", "--config-dir", "mine"])
    assert (config.output_dir, config.dataset.train_file) == ("results/mine", "data/x.jsonl")


def test_the_command_line_may_do_what_a_recipe_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", "mine")
    arguments = ["name=${oc.env:RUN}", f"output_dir={tmp_path}", "model.trust_remote_code=true", "overwrite=true"]
    config = compose(["recipe=quickstart", *arguments])
    assert (config.name, config.output_dir) == ("mine", str(tmp_path))
    assert config.model.trust_remote_code
    assert config.overwrite


class TestOptionsInAFile:
    """Overrides as one types them, but in a file that may come from a stranger."""

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("eval.judge.base_url=http://evil", "eval.judge.base_url is refused in a file"),
            ("eval.judge={base_url: 'http://evil'}", "eval.judge.base_url is refused in a file"),
            ("++eval={judge: {key_variable: X}}", "eval.judge.key_variable is refused in a file"),
            ("eval.execute_code=true", "eval.execute_code is refused in a file"),
            ("overwrite=true", "overwrite is refused in a file"),
            ("name=${oc.env:HOME}", "${oc.env:…} is refused in a file"),
            ("name='a-${oc.env:HOME}'", "${oc.env:…} is refused in a file"),
            ("target_modules=[a,${oc.env:HOME}]", "${oc.env:…} is refused in a file"),
            ("dataset.columns={a: ${oc.env:HOME}}", "${oc.env:…} is refused in a file"),
            ("dataset.train_file=[{a: '${oc.env:HOME}'}]", "${oc.env:…} is refused in a file"),
            ("cache_dir=/etc/x", "cache_dir=/etc/x leaves the working folder"),
            ("+output_dir='~/x'", "output_dir=~/x leaves the working folder"),
            ("output_dir='../x'", "output_dir=../x leaves the working folder"),
            ("output_dir=package:yaml/x", "output_dir=package:yaml/x leaves the working folder"),
            ("output_dir=a/${method.name}", "a path in a file is written out"),
            ("output_dir=a,/etc/x", "output_dir=a,/etc/x: several values"),
            ("output_dir=choice(a,/etc/x)", "several values"),
            ("hydra/launcher=joblib", "a file cannot configure Hydra"),
            ("hydra.sweep.dir=/x", "a file cannot configure Hydra"),
            ("+hydra={run: {dir: /x}}", "a file cannot configure Hydra"),
            ("~hydra.run", "a file cannot configure Hydra"),
            ("model@hydra.x=tiny", "a file cannot configure Hydra"),
            ("--config-dir=/x", "--config-dir=/x is refused in a file"),
            ("-m", "-m is refused in a file"),
            ("rank: 3", "cannot read 'rank: 3'"),
            ("model._target_=os.system", "_target_ names code to run"),
            ("dataset.train_file=/etc/passwd", "dataset.train_file=/etc/passwd leaves the working folder"),
            ("model={path: '~/model'}", "model.path=~/model leaves the working folder"),
        ],
    )
    def test_what_a_recipe_may_not_do_is_refused(self, option: str, message: str) -> None:
        faults = unsafe_options([option], "mine.yaml: rows")
        assert {fault.where for fault in faults} == {"mine.yaml: rows"}
        assert any(message in fault.what for fault in faults)

    def test_what_a_recipe_may_do_is_allowed(self) -> None:
        options = ["recipe=quickstart", "method=lora", "rank=3", "output_dir=mine/runs", "cache_dir=null"]
        options += ["eval.prompt='Q: {question}\nA: '", "eval.judge={model: x}", "dataset.train_file=bundled:a/b.jsonl"]
        options += ["overwrite=false", "name=${method.name}", "dataset.train_file=[a.jsonl,b.jsonl]"]
        assert unsafe_options(options, "mine.yaml") == []

    def test_reading_elsewhere_can_be_allowed_and_writing_cannot(self) -> None:
        reading = ["dataset.train_file=../shared/data/x.jsonl", "eval.file=/data/x", "dataset={validation_file: '~/x'}"]
        assert len(unsafe_options(reading, "mine.yaml")) == 3
        assert unsafe_options(reading, "mine.yaml", reads_anywhere=True) == []
        assert unsafe_options(["output_dir=../x"], "mine.yaml", reads_anywhere=True)
        assert unsafe_options(["dataset.train_file=${oc.env:X}"], "mine.yaml", reads_anywhere=True)
