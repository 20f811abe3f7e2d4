"""Inputs as nobody would write them: each works, or is refused in a line with exit code 2.

The small version of ``python scripts/soak.py fuzz``. What larger runs have found stands here as examples.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lora_ga_cli import expressions
from lora_ga_cli.errors import ArtifactDamaged, InvalidInput, RunError, SweepError, TrainingError, UserError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.description import check_expressions, read_lora_description
from lora_ga_cli.paths import resolve_path

ROOT = Path(__file__).resolve().parent.parent
CASES = 40
DEEP = 3000
ENDLESS = r"(\w+\.?)+!"


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(expressions, "LIMIT", 0.1)
    monkeypatch.setenv("LORAGA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("soaks.fuzz")


def test_a_few_inputs_of_each_kind(fuzz: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    figures = list(fuzz.run(argparse.Namespace(cases=CASES, seed=7, only="", verbose=False)))
    missed = [figure.name for figure in figures if not figure.reached]
    assert missed == [], capsys.readouterr().out
    assert len(figures) == 6 * len(fuzz.KINDS)


@pytest.mark.parametrize(
    ("call", "failure"),
    [
        (lambda: {}["x"], "KeyError at "),
        (lambda: int("x"), "ValueError at "),
        (lambda: _raise(TrainingError("stopped")), "TrainingError at "),
        (lambda: _raise(SystemExit(3)), "exit code 3"),
    ],
)
def test_what_should_not_come_out_is_counted(fuzz: ModuleType, call: Callable[[], Any], failure: str) -> None:
    found = fuzz.Found()
    found.add("case", call)
    assert found.failed == 1
    assert next(iter(found.failures)).startswith(failure)


def test_an_input_that_computes_for_too_long_is_counted(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "LIMIT", 0.05)
    found = fuzz.Found()
    found.add("case", lambda: all(True for _ in iter(int, 1)))
    assert found.hung == 1


def test_a_sweep_is_what_its_jobs_are(fuzz: ModuleType) -> None:
    found = fuzz.Found()
    found.add("case", lambda: _raise(SweepError([RunError("x"), RunError("y")], 2)))
    assert found.failed == 0
    found.add("case", lambda: _raise(SweepError([RunError("x"), KeyError("y")], 2)))
    assert found.failed == 1


@pytest.mark.parametrize("error", [None, UserError, RunError])
def test_what_works_or_is_refused_is_no_failure(fuzz: ModuleType, error: type[UserError] | None) -> None:
    found = fuzz.Found()
    found.add("case", lambda: None if error is None else _raise(error("refused")))
    assert found.failed == (error is UserError)  # its exit code is 1


class TestFound:
    """Inputs that once ended in an unexpected error."""

    @pytest.mark.parametrize(
        "word",
        [
            "rank=" + "[" * 1000 + "]" * 1000,
            "rank=" + "9" * 5000,
            "method={a:" * DEEP,
            "recipe=" + "[" * 400,
            "rank=range(1,3,0)",
            "method.max_rank=range(nan,inf)",
            "rank=range(1,99999999999)",
        ],
    )
    def test_words_that_are_too_deep_or_too_long(self, word: str) -> None:
        from lora_ga_cli.config.compose import compose

        with pytest.raises(InvalidInput) as refused:
            compose(["recipe=quickstart", word])
        assert refused.value.faults[0].where == "command line"

    @pytest.mark.parametrize("folder", ["\udc24", "~nobody-of-this-name/x", "a" * 5000])
    def test_folders_that_cannot_be(self, folder: str) -> None:
        from lora_ga_cli.config.compose import compose

        with pytest.raises(InvalidInput, match="no such folder"):
            compose(["recipe=quickstart", "--config-dir", folder])
        config = compose(["recipe=quickstart", f"output_dir='{folder}'"])
        assert resolve_path(config.output_dir) == Path(folder)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"bias": ["none"]}, "bias is ['none'], and a text is wanted"),
            ({"r": "8"}, "r is '8', and a positive whole number is wanted"),
            ({"rank_pattern": {"q_proj": -1}}, "positive whole numbers by name"),
            ({"lora_alpha": True}, "lora_alpha is True, and a number is wanted"),
            ({"exclude_modules": [["a"]]}, "a text or a list of texts is wanted"),
            ({"task_type": ["CAUSAL_LM"]}, "PEFT cannot read its description (ValueError: Invalid task type"),
            ({"layers_pattern": "layers"}, "PEFT cannot read its description (ValueError: When `layers_pattern`"),
            ({"peft_type": "IA3"}, "an adapter of the kind IA3, and not LoRA"),
        ],
    )
    def test_descriptions_of_adapters(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        content = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "target_modules": ["q_proj"], **changes}
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
        with pytest.raises(RunError) as refused:
            read_lora_description(tmp_path)
        assert message in str(refused.value)

    @pytest.mark.parametrize(
        ("changes", "option", "message"),
        [
            ({"target_modules": ENDLESS}, "target_modules", "longer than"),
            ({"rank_pattern": {ENDLESS: 4}}, "rank_pattern", "longer than"),
            ({"alpha_pattern": {"(": 4}}, "alpha_pattern", "no regular expression"),
            ({"modules_to_save": ["*"]}, "modules_to_save", "no regular expression"),
            ({"layers_to_transform": [0], "layers_pattern": "(a"}, "layers_pattern", "no regular expression"),
        ],
    )
    def test_expressions_in_descriptions_of_adapters(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], option: str, message: str
    ) -> None:
        monkeypatch.setattr(expressions, "LIMIT", 0.05)
        content = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], **changes}
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
        config = read_lora_description(tmp_path)
        with pytest.raises(InvalidInput) as refused:
            check_expressions(config, tmp_path, ["model.layers.0.self_attn.query_projection.of_long_names"])
        (fault,) = refused.value.faults
        assert fault.where == f"{tmp_path / 'adapter_config.json'}: {option}"
        assert message in fault.what

    def test_many_expressions_have_one_limit_together(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(expressions, "LIMIT", 0.05)
        slow = {rf"(\w+)+!{number}": 8 for number in range(1000)}  # some milliseconds each on this name
        content = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], "rank_pattern": slow}
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
        began = time.process_time()
        with pytest.raises(InvalidInput, match="regular expressions compute for longer"):
            check_expressions(read_lora_description(tmp_path), tmp_path, ["abcdefghijklmn"])
        assert time.process_time() - began < 2

    @pytest.mark.parametrize(
        "changes",
        [
            {"norms": []},
            {"norms": [["x", 1.0]]},
            {"norms": {"x": "1"}},
            {"norms": None},
            {"info": {"provenance": [1]}},
            {"info": {"provenance": {"command": "loraga"}}},
            {"info": {"unreached": [[]]}},
        ],
    )
    def test_manifests_of_gradients(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        content = {"format": 2, "key": "k", "capacity": 4, "sha256": "0" * 64, "info": {}, "norms": {}, **changes}
        (tmp_path / "artifact.json").write_text(json.dumps(content))
        with pytest.raises(ArtifactDamaged, match="not a complete gradient artifact"):
            GradientArtifact.load(tmp_path)


def _raise(error: BaseException) -> None:
    raise error
