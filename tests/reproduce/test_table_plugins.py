"""Tables of installed distributions: an entry point names a package with YAML files, or a folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.reproduce.table_files import all_tables, find_table
from tests.config import TABLE, lay_out

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a distribution with the package ``plugin_tables``, whose entry point has a target."""

    def install(target: str, name: str = "theirs") -> Path:
        site = tmp_path / "site"
        files = {
            "plugin_tables/__init__.py": "from pathlib import Path\nFOLDER = Path(__file__).parent / 'more'\n",
            f"plugin_tables/{name}.yaml": TABLE.replace("Mine", "Theirs"),
            "plugin_tables/more/another.yaml": TABLE.replace("Mine", "Another"),
            "plugin_tables-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: plugin-tables\nVersion: 1\n",
            "plugin_tables-1.dist-info/entry_points.txt": f"[loraga.tables]\nplugin = {target}\n",
        }
        lay_out(site, files)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, "plugin_tables", raising=False)
        return site

    return install


def test_a_package_with_yaml_files_adds_tables(install: Install) -> None:
    install("plugin_tables")
    assert find_table("theirs").title == "Theirs"
    assert "another" not in all_tables()


def test_a_variable_with_a_folder_adds_tables(install: Install) -> None:
    install("plugin_tables:FOLDER")
    assert find_table("another").title == "Another"


def test_the_user_replaces_a_table_of_a_distribution(install: Install, tmp_path: Path) -> None:
    install("plugin_tables")
    lay_out(tmp_path / "user", {"tables/theirs.yaml": TABLE})
    assert find_table("theirs", tmp_path / "user").title == "Mine"


def test_a_distribution_cannot_replace_a_shipped_table(install: Install) -> None:
    install("plugin_tables", name="glue")
    with pytest.raises(InvalidInput, match="the table 'glue' exists already"):
        all_tables()


def test_an_entry_point_that_cannot_be_loaded_is_named(install: Install) -> None:
    install("plugin_tables:NOTHING")
    with pytest.raises(InvalidInput, match=r"entry point loraga\.tables: plugin: cannot load plugin_tables:NOTHING"):
        all_tables()


def test_listing_tables_imports_nothing_heavy() -> None:
    """Measures are looked up by name, and their modules must not import torch at once."""
    code = (
        "import sys; from lora_ga_cli.cli.app import main; main(['reproduce']); "
        "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
