from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lora_ga_cli.data
from tests.test_layers import imported

ROOM = Path(lora_ga_cli.data.__file__).parent
FORMS = {f"lora_ga_cli.data.examples.{name}" for name in ("chat", "classification", "prompt_answer", "text_to_text")}


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = (
        "import lora_ga_cli.data, sys;"
        "import lora_ga_cli.data.load, lora_ga_cli.data.collate, lora_ga_cli.data.show;"
        "print(sorted({'torch', 'datasets', 'transformers', 'pandas', 'pyarrow', 'hydra', 'typer'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_looking_up_the_forms_of_a_row_loads_no_heavy_library() -> None:
    code = (
        "import sys; from lora_ga_cli.registry import EXAMPLES; print(EXAMPLES.names());"
        "print(sorted({'torch', 'datasets', 'transformers', 'rich', 'jinja2'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "['chat', 'classification', 'plain_text', 'prompt_answer', 'text_to_text']",
        "[]",
    ]


@pytest.mark.parametrize("file", [*ROOM.glob("*.py"), ROOM / "examples" / "base.py"], ids=lambda file: file.name)
def test_no_module_imports_a_form(file: Path) -> None:
    """Forms are found in the registry, so that a new one needs no edit elsewhere."""
    module = ".".join(file.relative_to(ROOM.parent.parent).with_suffix("").parts).removesuffix(".__init__")
    assert not imported(module) & FORMS


def test_every_public_name_is_what_it_says_after_all_are_loaded() -> None:
    """A module of the same name would hide a function once it is imported."""
    for _ in range(2):
        assert all(callable(getattr(lora_ga_cli.data, name)) for name in lora_ga_cli.data.__all__)
