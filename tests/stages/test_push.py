"""`loraga push`: what is uploaded, what the card says, and that nothing names this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import PeftConfig

from lora_ga_cli.config.compose import compose
from lora_ga_cli.stages import push as stage
from tests.helpers import Arguments, Loraga

REPOSITORY = "me/mine"


class FakeHub:
    """Keeps what it is given in a folder, as the hub would."""

    def __init__(self, folder: Path, error: Exception | None = None):
        self.folder, self.error = folder, error
        self.created: list[tuple[str, bool]] = []

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        if self.error is not None:
            raise self.error
        assert exist_ok
        self.created.append((repo_id, private))

    def create_commit(self, repo_id: str, operations: Any, *, commit_message: str) -> None:
        for operation in operations:
            file = self.folder / operation.path_in_repo
            file.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as content:
                file.write_bytes(content.read())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(stage, "_own_hub", lambda: fake)
    return fake


@pytest.fixture
def run(loraga: Loraga, arguments: Arguments) -> str:
    loraga("train", *arguments("llama", "name=r"))
    loraga("eval", "runs/r")
    return "runs/r"


def front(text: str) -> dict[str, Any]:
    loaded = yaml.safe_load(text.split("---")[1])
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.figures
def test_an_adapter_goes_up_with_a_card_and_no_path(loraga: Loraga, run: str, hub: FakeHub, tmp_path: Path) -> None:
    out = loraga("push", run, REPOSITORY, "--base-model", "org/base")
    assert "https://huggingface.co/me/mine" in out
    assert hub.created == [(REPOSITORY, True)]
    names = {str(file.relative_to(hub.folder)) for file in hub.folder.rglob("*") if file.is_file()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "loss.png"}
    assert PeftConfig.from_pretrained(str(hub.folder)).base_model_name_or_path == "org/base"
    text = (hub.folder / "README.md").read_text()
    loss = json.loads(Path(run, "eval.json").read_text())["values"]["loss"]
    (entry,) = front(text)["model-index"][0]["results"]
    assert {item["type"]: item["value"] for item in entry["metrics"]}["loss"] == loss
    assert (front(text)["base_model"], front(text)["base_model_relation"]) == ("org/base", "adapter")
    for file in hub.folder.rglob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes()
    uploaded = (hub.folder / "adapter_model.safetensors").read_bytes()
    assert uploaded == Path(run, "adapter_model.safetensors").read_bytes()


def test_a_dry_run_shows_files_and_card(loraga: Loraga, run: str, hub: FakeHub) -> None:
    out = loraga("push", run, REPOSITORY, "--base-model", "org/base", "--dry-run")
    assert "adapter_model.safetensors" in out
    assert "base_model: org/base" in out
    assert hub.created == []


def test_a_merged_model_goes_up_as_a_model(loraga: Loraga, run: str, hub: FakeHub) -> None:
    loraga("merge", run, "--output", "plain")
    loraga("push", run, REPOSITORY, "--base-model", "org/base", "--merged", "plain", "--public")
    assert hub.created == [(REPOSITORY, False)]
    assert (hub.folder / "model.safetensors").read_bytes() == Path("plain/model.safetensors").read_bytes()
    assert (hub.folder / "tokenizer.json").is_file()
    assert not (hub.folder / "adapter_config.json").exists()
    assert front((hub.folder / "README.md").read_text())["base_model_relation"] == "finetune"


def test_all_faults_are_said_at_once(loraga: Loraga, run: str, hub: FakeHub) -> None:
    out = loraga("push", run, "mine", "--merged", "nowhere", code=2)
    assert "mine names no organization or user" in out
    assert "which has no name on the hub (--base-model ORG/NAME" in out
    assert "nowhere: holds no model (loraga merge RUN --output FOLDER writes one)" in out
    assert hub.created == []


def test_a_card_that_a_person_changed_is_kept(loraga: Loraga, run: str, hub: FakeHub) -> None:
    card = Path(run, "README.md")
    card.write_text(card.read_text() + "\nTo be used with care.\n")
    out = loraga("push", run, REPOSITORY, "--base-model", "org/base")
    assert "was changed by hand, and is uploaded as it is" in out
    assert (hub.folder / "README.md").read_text() == card.read_text()
    card.write_text(card.read_text() + f"\nIt lies in {Path.cwd()}/runs.\n")
    out = loraga("push", run, REPOSITORY, "--base-model", "org/base", code=2)
    assert f"README.md: names {Path.cwd()}, a folder of this machine" in out


def test_a_refusal_of_the_hub_says_what_to_do(loraga: Loraga, run: str, hub: FakeHub) -> None:
    hub.error = OSError("401 Client Error\nmore")
    out = loraga("push", run, REPOSITORY, "--base-model", "org/base", code=1)
    assert "the hub did not take me/mine: 401 Client Error (hf auth login, or the variable HF_TOKEN" in out


def test_the_data_and_the_base_need_not_be_there(loraga: Loraga, run: str, hub: FakeHub, sums_file: Path) -> None:
    sums_file.unlink()
    shutil.move(run, "elsewhere")
    loraga("push", "elsewhere", REPOSITORY, "--base-model", "org/base")
    assert (hub.folder / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("around", ["\n{}\n", "`{}`", "({})", "'{}'", '"{}"', "{}/a", "see {}."])
def test_a_path_that_the_configuration_names_is_found(
    loraga: Loraga, arguments: Arguments, hub: FakeHub, tmp_path_factory: pytest.TempPathFactory, around: str
) -> None:
    elsewhere = tmp_path_factory.mktemp("cache")
    run = stage.RunFolder(Path("r"))
    run.path.mkdir()
    (run.path / "manifest.json").write_text('{"base": "org/base"}')
    config = compose([*arguments("llama"), f"cache_dir={elsewhere}"])
    (fault,) = stage._paths_in({"README.md": around.format(elsewhere).encode()}, run, config)
    assert f"names {elsewhere}, a folder of this machine" in str(fault)
    assert stage._paths_in({"README.md": f"{elsewhere}_other and {elsewhere}.old".encode()}, run, config) == []


def test_a_merged_model_of_another_run_is_refused(loraga: Loraga, run: str, arguments: Arguments, hub: FakeHub) -> None:
    loraga("train", *arguments("llama", "name=other", "seed=5", "trainer.max_steps=1"))
    loraga("merge", "runs/other", "--output", "plain")
    out = loraga("push", run, REPOSITORY, "--base-model", "org/base", "--merged", "plain", code=2)
    assert "plain: does not tell that it is the merged model of runs/r" in out
    assert hub.created == []


def test_all_that_a_method_merges_into_goes_up(loraga: Loraga, arguments: Arguments, hub: FakeHub) -> None:
    options = ["method=qa_lora", "method.group_size=8", "rank=2", "trainer.max_steps=1"]
    loraga("train", *arguments("llama", "name=q", *options))
    loraga("merge", "runs/q", "--output", "plain")
    loraga("push", "runs/q", REPOSITORY, "--base-model", "org/base", "--merged", "plain")
    assert {file.name for file in hub.folder.glob("*.safetensors")} == {"model.safetensors", "quantized.safetensors"}
