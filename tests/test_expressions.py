"""Regular expressions of users: those of Python, with a limit on the time of matching."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from torch import nn

from lora_ga_cli import expressions
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data.patterns import Patterns
from lora_ga_cli.errors import InvalidInput, TargetError
from lora_ga_cli.evaluation.metrics import extract
from lora_ga_cli.expressions import Expression, expression_faults
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.stages.inspect.options import InspectOptions

ENDLESS = r"(\w+\.?)+!"
"""An expression that tries about 2^n ways on a text of n letters in which it does not match."""
TEXT = "model.layers.0.self_attention.query_projection.of_a_model_with_long_names"


@pytest.fixture(autouse=True)
def _short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "LIMIT", 0.05)


@pytest.mark.parametrize("pattern", [r"\w+", r"(?P<a>l.)(?P=a)?", r"$", r"(?i)MODEL", r"न\w", "{e}", "x*"])
@pytest.mark.parametrize("text", [TEXT, "", "नमस्ते {e}"])
def test_the_matches_are_those_of_python(pattern: str, text: str) -> None:
    expression, python = Expression("option", pattern), re.compile(pattern)
    found, wanted = expression.search(text), python.search(text)
    assert (found and found.span()) == (wanted and wanted.span())
    matches = [match.span() for match in python.finditer(text)]
    last = expression.last_match(text)
    assert (last and last.span()) == (matches[-1] if matches else None)
    assert expression.found_in([text]) == ([text] if wanted else [])
    assert expression.matching([text]) == ([text] if python.fullmatch(text) else [])


def test_a_match_that_takes_too_long_is_refused_with_option_expression_and_limit() -> None:
    began = time.process_time()
    with pytest.raises(InvalidInput) as refused:
        Expression("dataset.keep.text", ENDLESS).search(TEXT)
    assert time.process_time() - began < 1
    (fault,) = refused.value.faults
    assert fault.where == "dataset.keep.text"
    assert fault.what == f"the regular expression {ENDLESS!r} computes for longer than 0.05 s"
    assert "write a+" in fault.hint


@pytest.mark.parametrize("use", ["search", "last_match", "matching", "found_in"])
def test_every_use_has_the_limit(use: str) -> None:
    with pytest.raises(InvalidInput, match="longer than"):
        getattr(Expression("option", ENDLESS), use)([TEXT] if use in ("matching", "found_in") else TEXT)


def test_the_timer_and_its_handler_are_gone_afterwards() -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    for pattern in ("a", ENDLESS):
        with contextlib.suppress(InvalidInput):
            Expression("option", pattern).search(TEXT)
        assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGVTALRM) == before


def test_other_threads_match_without_a_limit() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(Expression("option", "layers").search(TEXT)))
    thread.start()
    thread.join()
    assert found[0] is not None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "'(' is no regular expression: missing ), unterminated subpattern at position 0"),
        ("x{99999999999}", "no regular expression: the repetition number is too large"),
        ("(" * 5000 + ")" * 5000, "… of 10,000 characters is nested too deep"),
    ],
)
def test_what_cannot_be_compiled_is_a_fault(pattern: str, message: str) -> None:
    (fault,) = expression_faults("option", pattern)
    assert message in str(fault)


class TestOptions:
    """Each option that takes an expression has the limit, and its name is in the message."""

    def test_rows_that_are_kept_and_texts_that_are_shortened(self) -> None:
        for option, pattern in (("keep", ENDLESS), ("extract", f"({ENDLESS})")):
            config = DatasetConfig.model_validate({"train_file": "x.jsonl", option: {"text": pattern}})
            with pytest.raises(InvalidInput, match=rf"dataset\.{option}\.text: .* longer than"):
                Patterns(config)({"text": TEXT})

    def test_layers_that_are_adapted(self) -> None:
        model = nn.ModuleDict({"layers_of_a_model_with_long_names_" * 2: nn.Linear(2, 2)})
        with pytest.raises(TargetError, match=r"target_modules: .* longer than"):
            find_targets(model, ENDLESS)

    def test_layers_that_are_inspected(self) -> None:
        with pytest.raises(InvalidInput, match=r"--layers: .* longer than"):
            InspectOptions(layers=ENDLESS).selected([TEXT])

    def test_answers(self) -> None:
        with pytest.raises(InvalidInput, match=r"eval\.answer_pattern: .* longer than"):
            extract(TEXT, ENDLESS)

    def test_an_answer_pattern_is_checked_with_the_other_options(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"eval\.answer_pattern.*no regular expression"):
            compose(["recipe=quickstart", "eval.answer_pattern='('"])
