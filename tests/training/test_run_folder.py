"""The same settings are the same run, in the same folder; another run's folder is never written into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import RunError
from lora_ga_cli.training.manifest import FORMAT
from lora_ga_cli.training.run_folder import RunFolder, check_run_folder, find_run, run_name, settings


def configure(**changes: Any) -> Config:
    base: dict[str, Any] = {
        "recipe": "mine",
        "model": {"path": "some/model"},
        "dataset": {"train_file": "x.jsonl", "prompt": "{q}", "answer": "{a}"},
        "method": {"name": "lora_ga", "type": "lora_ga", "use_rslora": True},
    }
    for name, value in changes.items():
        if name == "method" and "type" in value:
            base[name] = value  # options of another type would not be known
        else:
            base[name] = {**base.get(name, {}), **value} if isinstance(value, dict) else value
    return Config.model_validate(base)


@pytest.mark.parametrize(
    "changes",
    [
        {"output_dir": "elsewhere"},
        {"cache_dir": "elsewhere"},
        {"device": "cpu"},
        {"overwrite": True},
        {"trainer": {"logging_steps": 3}},
        {"trainer": {"save_total_limit": 5}},
        {"trainer": {"dataloader_workers": 2}},
        {"eval": {"limit": 5}},
        {"eval": {"metrics": ["exact_match"], "batch_size": 2, "max_new_tokens": 8}},
    ],
    ids=str,
)
def test_what_does_not_matter_to_the_result_is_the_same_run(changes: dict[str, Any]) -> None:
    assert run_name(configure(**changes)) == run_name(configure())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"rank": 4},
        {"alpha": 8},
        {"adapter_dropout": 0.1},
        {"target_modules": ["q"]},
        {"model": {"path": "another/model"}},
        {"model": {"dtype": "bfloat16"}},
        {"dataset": {"train_file": "y.jsonl"}},
        {"dataset": {"max_rows": 10}},
        {"method": {"gamma": 64}},
        {"gradient": {"samples": 32}},
        {"trainer": {"learning_rate": 1e-4}},
        {"trainer": {"batch_size": 64}},
        {"trainer": {"max_steps": 10}},
        {"trainer": {"lr_scheduler": "linear"}},
    ],
    ids=str,
)
def test_what_matters_to_the_result_is_another_run(changes: dict[str, Any]) -> None:
    assert run_name(configure(**changes)) != run_name(configure())


def test_the_name_states_recipe_method_and_rank() -> None:
    assert run_name(configure(rank=4)).startswith("mine-lora_ga-r4-")


def test_without_a_recipe_the_name_begins_with_the_model() -> None:
    assert run_name(configure(recipe=None)).startswith("model-lora_ga-r64-")


def test_the_name_that_is_made_for_a_bundled_model_can_be_given() -> None:
    name = run_name(configure(recipe=None, model={"path": "bundled:tiny_base"}))
    assert name.startswith("bundled-tiny_base-")
    assert run_name(configure(name=name)) == name


def test_full_fine_tuning_has_no_rank_in_its_name() -> None:
    full = configure(method={"name": "full", "type": "full"}, rank=8)
    assert run_name(full).startswith("mine-full-")
    assert "-r8" not in run_name(full)


def test_a_name_that_was_given_is_the_name() -> None:
    assert run_name(configure(name="my run")) == "my run"
    assert find_run(configure(name="my run", output_dir="results")).path == Path("results/my run")


def test_gradient_options_do_not_matter_where_no_gradient_is_needed() -> None:
    lora = {"name": "lora", "type": "lora"}
    assert run_name(configure(method=lora, gradient={"samples": 8})) == run_name(configure(method=lora))


class TestAFolderThatHoldsARun:
    @pytest.fixture
    def run(self, tmp_path: Path) -> RunFolder:
        run = RunFolder(tmp_path / "run")
        run.path.mkdir()
        run.update_manifest(format=FORMAT, settings=settings(configure()))
        return run

    def test_the_same_settings_keep_it(self, run: RunFolder) -> None:
        before = run.manifest
        check_run_folder(configure(eval={"limit": 3}), run)
        assert run.manifest == before

    def test_a_folder_that_does_not_exist_yet_is_free(self, tmp_path: Path) -> None:
        check_run_folder(configure(), RunFolder(tmp_path / "new"))

    def test_other_settings_are_refused_and_the_difference_is_named(self, run: RunFolder) -> None:
        with pytest.raises(RunError, match=r"trainer\.learning_rate was None, is 0\.0001"):
            check_run_folder(configure(trainer={"learning_rate": 1e-4}), run)
        assert run.path.is_dir()

    def test_overwrite_sets_it_aside(self, run: RunFolder) -> None:
        check_run_folder(configure(rank=4, overwrite=True), run)
        assert not run.path.exists()
        assert (run.path.parent / "run.old" / "manifest.json").exists()

    def test_a_run_of_an_earlier_version_is_refused_even_with_the_same_settings(self, run: RunFolder) -> None:
        run.update_manifest(format=FORMAT - 1)
        with pytest.raises(RunError, match=r"made by an earlier version.*loraga convert.*overwrite=true"):
            check_run_folder(configure(), run)
        check_run_folder(configure(overwrite=True), run)
        assert not run.path.exists()

    @pytest.mark.parametrize("finished", [False, True])
    def test_overwrite_starts_again_whatever_is_there(self, run: RunFolder, finished: bool) -> None:
        run.update_manifest(finished=finished)
        check_run_folder(configure(overwrite=True), run)
        assert not run.path.exists()


def test_the_stored_configuration_is_the_configuration(tmp_path: Path) -> None:
    run, config = (
        RunFolder(tmp_path),
        configure(dataset={"prompt": "Frage: {größe}\n: # "}, trainer={"learning_rate": 1e-5}),
    )
    run.write_config(config)
    assert Config.model_validate(run.read_config()) == config
    assert "größe" in run.config_file.read_text(encoding="utf-8")


def test_a_folder_without_a_configuration_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder(tmp_path).read_config()


def test_the_manifest_grows(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.manifest == {}
    assert not run.finished
    run.update_manifest(steps=3)
    run.update_manifest(finished=True)
    assert run.manifest == {"steps": 3, "finished": True}
    assert run.finished


def test_a_run_that_another_process_works_on_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "new" / "run")
    with run.locked(), pytest.raises(RunError, match="another process"), RunFolder(run.path).locked():
        pass
    with run.locked():
        pass


@pytest.mark.parametrize("changes", [{"max_steps": 4}, {"epochs": 3}, {"max_steps": 4, "epochs": 3}])
def test_a_finished_run_says_how_its_result_is_trained_further(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = RunFolder(tmp_path / "r")
    folder.update_manifest(format=FORMAT, settings=settings(configure(trainer={"max_steps": 2})), finished="now")
    with pytest.raises(RunError, match=r"cannot go on to more steps .*loraga merge .* --output DIR"):
        check_run_folder(configure(trainer={"max_steps": 2, **changes}), folder)
    with pytest.raises(RunError, match="holds a run with other settings"):
        check_run_folder(configure(trainer={"max_steps": 2, **changes}, rank=2), folder)
