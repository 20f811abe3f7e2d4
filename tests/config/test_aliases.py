"""A name of PEFT, transformers or an earlier version is answered with the name that the option has here."""

from __future__ import annotations

import pytest

from lora_ga_cli.config.aliases import RENAMED, REPLACED, hint_for
from lora_ga_cli.config.options import common_options
from lora_ga_cli.config.schema import TYPED_SECTIONS
from tests.config import refused


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("lora_alpha=16", "no option lora_alpha (did you mean alpha?)"),
        ("r=8", "no option r (did you mean rank?)"),
        ("trainer.num_train_epochs=3", "no option trainer.num_train_epochs (did you mean trainer.epochs?)"),
        ("trainer.schedule=linear", "no option trainer.schedule (did you mean trainer.lr_scheduler?)"),
        ("model.load_in_4bit=true", "no option model.load_in_4bit (write model.quantization=nf4)"),
        ("use_rslora=true", "no option use_rslora (did you mean method.use_rslora?)"),
        ("init_lora_weights=pissa", "no option init_lora_weights (method=NAME chooses how the adapter is initialized"),
        ("method.rank_stabilised=true", "no option method.rank_stabilised (did you mean method.use_rslora?)"),
    ],
)
def test_another_name_is_answered_with_the_name_here(argument: str, hint: str) -> None:
    (fault,) = refused("recipe=quickstart", argument)
    assert fault.startswith(f"command line: {hint}")


def test_options_of_a_former_section_are_found_in_the_new_one() -> None:
    assert hint_for("method.adalora.beta1") == "did you mean method.beta1?"


@pytest.mark.parametrize("name", ["alpha", "rank", "method.use_rslora", "nothing_like_it"])
def test_other_names_have_no_such_hint(name: str) -> None:
    assert hint_for(name) == ""


def test_what_is_named_exists_and_the_other_names_do_not() -> None:
    options = {".".join(path) for path in common_options()}
    assert {name for name in RENAMED.values() if name.split(".")[0] not in TYPED_SECTIONS} <= options
    assert options.isdisjoint({*RENAMED, *REPLACED})
