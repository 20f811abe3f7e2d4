"""`loraga recipes --methods`: every method, for one model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.config.schema import Config
from lora_ga_cli.model.loading import guess_task
from lora_ga_cli.registry import OPTIMIZERS
from lora_ga_cli.stages.catalogue import Entry, methods, optimizers
from tests.conftest import FAMILIES, TASKS
from tests.helpers import Loraga


def found(model: str | Path, own: Path | None = None) -> dict[str, Entry]:
    return {entry.name: entry for entry in methods(str(model), 4, own)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_counted_for_what_its_model_does(saved_bases: dict[str, Path], family: str) -> None:
    assert guess_task(str(saved_bases[family])) == TASKS[family]
    entries = found(saved_bases[family])
    assert entries["lora"].parameters
    assert entries["lora_ga"].result.startswith("a standard LoRA adapter")
    assert (entries["prefix_layer"].parameters is not None) == (family in ("llama", "gpt2"))


@pytest.mark.parametrize(("given", "rank"), [([], Config.model_fields["rank"].default), (["--rank", "3"], 3)])
def test_parameters_are_counted_at_the_rank_of_a_run(
    loraga: Loraga, monkeypatch: pytest.MonkeyPatch, given: list[str], rank: int
) -> None:
    def all_methods(model: str, rank: int, user_dir: Path | None) -> list[Entry]:
        return [Entry("lora", "LoRA", [], rank, "", "an adapter")]

    monkeypatch.setattr("lora_ga_cli.stages.catalogue.methods", all_methods)
    assert f"(tiny, rank {rank})" in " ".join(loraga("recipes", "--methods", *given).split())


def test_what_does_not_fit_says_why() -> None:
    assert found("tiny")["bitfit"].result.startswith("not for this model: method.train=biases: ")


def test_a_typo_in_a_file_of_ones_own_is_shown(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# Mine.\ntipe: lora\n")
    entry = found("tiny", tmp_path)["mine"]
    assert entry.parameters is None
    assert "tipe" in entry.result
    assert "type" in entry.result


@pytest.mark.slow
def test_the_task_of_ones_own_model_is_read_and_not_searched_for(tmp_path: Path, saved_bases: dict[str, Path]) -> None:
    (tmp_path / "model").mkdir()
    text = f"# Not a task: sequence_classification.\npath: {saved_bases['t5']}\ntask:   'seq2seq_lm'\ndtype: float32\n"
    (tmp_path / "model" / "mine.yaml").write_text(text)
    assert found("mine", tmp_path)["lora"].parameters == found(saved_bases["t5"])["lora"].parameters


def test_every_optimizer_cites_its_paper_and_explains_its_options() -> None:
    entries = {entry.name: entry for entry in optimizers()}
    assert set(entries) == set(OPTIMIZERS.names())
    for entry in entries.values():
        assert entry.papers
        assert "arXiv" not in entry.summary
        assert all(option.doc.endswith(".") and option.default for option in entry.options)
    assert entries["paged_adamw"].summary.endswith("(QLoRA)")
    assert [option.name for option in entries["lora_pro"].options] == ["variant", "damping"]
