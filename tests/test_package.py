"""What travels in the wheel, and what the layers may import."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lora_ga_cli"
PARTS = {"gradient", "adapter", "methods", "data", "model", "training", "evaluation", "report"}


def imports(file: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_arrows_run_one_way(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0]
    used = imports(file)
    if room != "config":
        assert not {name for name in used if name.split(".")[0] in ("hydra", "omegaconf")}
    if room != "cli":
        assert not {name for name in used if name.split(".")[0] == "typer"}
        if room != "__main__.py":
            assert not {name for name in used if name.startswith("lora_ga_cli.cli")}
    if room in PARTS:
        assert not {name for name in used if name.startswith("lora_ga_cli.stages")}
    if room in ("gradient",) or file.name == "initialization.py":
        assert not {
            name for name in used if name.startswith(("lora_ga_cli.data", "lora_ga_cli.config", "lora_ga_cli.stages"))
        }


def test_a_wheel_carries_recipes_configuration_and_assets(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    command = [sys.executable, "-P", "-m", "lora_ga_cli"]
    environment = {
        "PYTHONPATH": str(tmp_path / "site"),
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
    }
    listed = subprocess.run(
        [*command, "recipes", "list"], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert "quickstart" in listed.stdout
    planned = subprocess.run(
        [*command, "train", "recipe=quickstart", "--dry-run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert planned.returncode == 0, planned.stderr
    assert "3,168 rows" in planned.stdout
