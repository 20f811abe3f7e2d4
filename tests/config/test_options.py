"""The schema is the one spelling of every option: documented, typed, with defaults that fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from lora_ga_cli.config.listing import cached_options, collect_options, list_options, options_at_hand
from lora_ga_cli.config.options import (
    all_options,
    common_options,
    default_of,
    default_values,
    misfit,
    unknown,
)
from lora_ga_cli.config.schema import TYPED_SECTIONS, Config
from tests.config import refused

MINIMAL = {"model": {"path": "x"}, "dataset": {"train_file": "x.jsonl", "prompt": "{q}", "answer": "{a}"}}


def test_every_option_says_what_it_means_what_it_takes_and_what_it_is_otherwise() -> None:
    for option in collect_options():
        assert option.doc.endswith("."), option
        assert option.kind, option
        assert option.default, option
        assert "\n" not in option.doc, option


def test_every_default_fits_its_option() -> None:
    for path, field in all_options().items():
        if not field.is_required():
            default = default_of(field)
            assert misfit(path, default) is None or path == ("method", "name"), path


def test_only_what_cannot_be_guessed_is_required() -> None:
    assert [path for path, field in all_options().items() if field.is_required()] == [("model", "path")]


def test_default_values_cover_every_option_that_needs_no_type() -> None:
    values = default_values()
    for path in common_options():
        if path[0] in TYPED_SECTIONS:
            continue
        section = values
        for name in path:
            assert name in section
            section = section[name]


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("overwrite", ("true", "false")),
        ("model.dtype", ("float32", "bfloat16", "float16")),
        ("rank", ()),
    ],
)
def test_values_are_listed_where_they_can_be(path: str, values: tuple[str, ...]) -> None:
    (option,) = [option for option in collect_options() if option.path == path]
    assert option.values == values


class TestCache:
    """The list of all options is kept in the cache folder, so that completion imports no method."""

    @pytest.fixture(autouse=True)
    def _empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LORAGA_CACHE", str(tmp_path))

    def test_the_options_come_back_from_the_cache_as_they_were_written(self, tmp_path: Path) -> None:
        written = list_options()
        assert (tmp_path / "options.json").exists()
        assert options_at_hand() == written == list(collect_options())

    def test_without_a_cache_the_options_that_need_no_type_are_at_hand(self) -> None:
        paths = {option.path for option in options_at_hand()}
        assert "trainer.epochs" in paths
        assert paths < {option.path for option in collect_options()}

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"stamp": "other", "options": []}'])
    def test_a_damaged_or_outdated_cache_is_not_used(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "options.json").write_text(text, encoding="utf-8")
        assert list_options() == list(collect_options())

    def test_a_changed_method_file_makes_the_cache_outdated(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = tmp_path / "code.py"
        code.write_text("", encoding="utf-8")
        monkeypatch.setenv("LORAGA_CODE", str(code))
        list_options()
        assert cached_options() is not None
        os.utime(code, (1, 1))
        assert cached_options() is None

    def test_a_cache_folder_that_cannot_be_written_is_no_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("LORAGA_CACHE", str(tmp_path / "file"))
        assert list_options() == list(collect_options())


@pytest.mark.parametrize("path", [("rank",), ("trainer",), ("trainer", "epochs"), ("dataset", "columns", "anything")])
def test_options_groups_and_what_is_inside_a_mapping_are_known(path: tuple[str, ...]) -> None:
    assert unknown(path) is None


@pytest.mark.parametrize("path", [("rnk",), ("rank", "x"), ("trainer", "nope"), ("trainer", "epochs", "x")])
def test_anything_else_is_unknown(path: tuple[str, ...]) -> None:
    assert unknown(path)


def test_an_interpolated_value_is_not_checked_before_it_is_filled_in() -> None:
    assert misfit(("rank",), "${alpha}") is None


def test_a_configuration_cannot_be_changed_and_is_closed_to_unknown_names() -> None:
    config = Config.model_validate(MINIMAL)
    with pytest.raises(ValidationError):
        config.rank = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Config.model_validate({**MINIMAL, "rnk": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": {"prompt": "q", "answer": "a"}}, "exactly one"),
        ({"dataset": {"path": "a/b", "train_file": "x", "prompt": "q", "answer": "a"}}, "exactly one"),
        ({"dataset": {"train_file": "x", "format": "alpacca"}}, "did you mean alpaca"),
        ({"dataset": {"train_file": "x", "prompt": "q", "answer": "a", "messages": "m"}}, "how a row is read"),
        ({"dataset": {"train_file": "x", "text": "t", "label": "l"}}, "model.task"),
        ({"model": {"path": "x", "task": "sequence_classification"}}, "model.task"),
        ({"trainer": {"gradient_checkpointing_every": 2}}, "gradient_checkpointing"),
        ({"trainer": {"early_stopping_patience": 2}}, "validation"),
        ({"method": {"adapter": "none", "start": "gradient"}}, "adapter"),
        ({"method": {"type": "lora_ga"}, "gradient": {"capacity": 15}}, "serves ranks up to 7"),
        ({"eval": {"metrics": ["accuracy"]}}, "accuracy"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate({**MINIMAL, **changes})


def test_earlier_names_of_a_methods_options_are_reported_with_all_other_faults() -> None:
    """Without the classes of methods, which take seconds to import."""
    overrides = ["method.start=gradient", "method.adalora.warmup=0.2", "lora_alpha=3"]
    assert refused("recipe=quickstart", *overrides) == [
        "command line: no option method.start (did you mean method.init?)",
        "command line: no option method.adalora.warmup (did you mean method.warmup?)",
        "command line: no option lora_alpha (did you mean alpha?)",
    ]


@pytest.mark.parametrize("value", ["many", 0, True])
def test_an_option_of_numbers_and_words_says_both(value: object) -> None:
    fault = misfit(("trainer", "max_tokens"), value)
    assert fault is not None
    assert fault.endswith("should be integer | auto | null")
    assert all(misfit(("trainer", "max_tokens"), good) is None for good in (1, "auto", None))
