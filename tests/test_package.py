"""What the wheel contains."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_wheel_contains_recipes_configuration_and_assets(tmp_path: Path) -> None:
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
