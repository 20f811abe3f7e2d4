from __future__ import annotations

import subprocess
import sys


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = (
        "import lora_ga_cli.data, sys;"
        "import lora_ga_cli.data.load, lora_ga_cli.data.collate, lora_ga_cli.data.show;"
        "print(sorted({'torch', 'datasets', 'transformers', 'pandas', 'pyarrow', 'hydra', 'typer'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_what_it_says_after_all_are_loaded() -> None:
    """A module of the same name would hide a function once it is imported."""
    import lora_ga_cli.data as data

    assert all(callable(getattr(data, name)) for name in data.__all__)
    assert all(callable(getattr(data, name)) for name in data.__all__)
