"""``-m``: one validated configuration for each job, whatever becomes of the others."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor

from lora_ga_cli.config.launch import launch
from lora_ga_cli.config.schema import Config
from lora_ga_cli.config.shard import Shard
from lora_ga_cli.errors import InvalidInput, SweepError, TrainingError
from tests.config import BASE, jobs, lay_out, refused

QUICKSTART = "recipe=quickstart"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_single_run_has_no_title() -> None:
    ((title, config),) = jobs(QUICKSTART)
    assert title == ""
    assert config.recipe == "quickstart"


def test_each_job_has_its_configuration_and_a_title_of_what_tells_it_from_the_others() -> None:
    composed = jobs(QUICKSTART, "alpha=4", "rank=2,4,8", "-m")
    assert [(title, config.rank, config.alpha) for title, config in composed] == [
        ("1: rank=2", 2, 4),
        ("2: rank=4", 4, 4),
        ("3: rank=8", 8, 4),
    ]


@pytest.mark.parametrize(
    "arguments",
    [["-m", QUICKSTART, "rank=1,2"], [QUICKSTART, "--multirun", "rank=1,2"]],
)
def test_the_flag_may_stand_anywhere(arguments: list[str]) -> None:
    assert [config.rank for _, config in jobs(*arguments)] == [1, 2]


@pytest.mark.parametrize("sweep", ["rank=range(1,3)", "++rank=choice(1,2)"])
def test_hydras_ways_to_write_a_sweep_work(sweep: str) -> None:
    assert [config.rank for _, config in jobs(QUICKSTART, sweep, "-m")] == [1, 2]


def test_two_sweeps_multiply() -> None:
    composed = jobs(QUICKSTART, "rank=2,4", "method=lora,lora_ga", "-m")
    assert [(config.rank, config.method.name) for _, config in composed] == [
        (2, "lora"),
        (2, "lora_ga"),
        (4, "lora"),
        (4, "lora_ga"),
    ]
    assert composed[3][0] == "4: rank=4 method=lora_ga"


def test_recipes_can_be_swept() -> None:
    composed = jobs("recipe=quickstart,llama2_metamath", "-m")
    assert [config.recipe for _, config in composed] == ["quickstart", "llama2_metamath"]
    assert [config.trainer.learning_rate for _, config in composed] == [1e-3, 2e-5]


def test_a_glob_sweeps_over_all_choices() -> None:
    composed = jobs(QUICKSTART, "method=glob(*lora, exclude=[ada*, q*, re*, so*, gl*, ol*, *_lora])", "-m")
    assert [config.method.name for _, config in composed] == ["lora", "rslora"]


@pytest.mark.parametrize("sweep", ["rank=2,0", "rank=2,x", "method=lora,nope", "rnk=2,4"])
def test_a_wrong_value_anywhere_in_a_sweep_is_found_before_the_first_job(sweep: str) -> None:
    (fault,) = refused(QUICKSTART, sweep, "-m")
    assert fault.startswith("command line: ")


@pytest.mark.parametrize("sweep", ["rank=2,4", "rank=range(1,4)", "recipe=quickstart,llama2_metamath"])
def test_several_values_without_the_flag_of_a_sweep_are_refused_with_the_flag(sweep: str) -> None:
    arguments = [sweep] if sweep.startswith("recipe=") else [QUICKSTART, sweep]
    (fault,) = refused(*arguments)
    assert fault.startswith("command line: ")
    assert "-m" in fault


@pytest.mark.parametrize("sweep", ["rank=glob(*)", "method=glob(zz*)"])
def test_a_pattern_that_matches_nothing_is_refused(sweep: str) -> None:
    (fault,) = refused(QUICKSTART, sweep, "-m")
    assert fault.startswith(f"command line: {sweep}")


def test_a_sweep_that_the_sweeper_cannot_do_is_refused() -> None:
    (fault,) = refused(QUICKSTART, "rank=interval(1,4)", "-m")
    assert "INTERVAL_SWEEP" in fault


def test_a_failing_job_does_not_stop_the_others() -> None:
    done: list[int] = []

    def task(config: Config, title: str) -> None:
        if config.rank == 2:
            raise TrainingError("diverged")
        done.append(config.rank)

    with pytest.raises(SweepError, match="1 of 3 jobs failed") as caught:
        launch([QUICKSTART, "rank=2,4,8", "-m"], task)
    assert done == [4, 8]
    assert [str(failure) for failure in caught.value.failures] == ["diverged"]


def test_a_job_whose_options_do_not_go_together_does_not_stop_the_others() -> None:
    done: list[int | None] = []
    with pytest.raises(SweepError, match="1 of 2 jobs failed") as caught:
        launch([QUICKSTART, "gradient.capacity=8,64", "-m"], lambda config, _: done.append(config.gradient.capacity))
    assert done == [64]
    assert "gradient.capacity=8" in str(caught.value.failures[0])


def test_a_single_runs_error_is_raised_as_it_is() -> None:
    def task(config: Config, title: str) -> None:
        raise TrainingError("diverged")

    with pytest.raises(TrainingError, match="diverged"):
        launch([QUICKSTART], task)


def test_a_sweeps_record_lies_in_the_output_folder_and_nothing_else_is_written() -> None:
    jobs(QUICKSTART, "rank=2,4", "output_dir=results", "-m")
    assert [item.name for item in Path().iterdir()] == ["results"]
    assert list(Path("results/.sweeps").rglob("multirun.yaml"))


def test_a_single_run_writes_nothing() -> None:
    jobs(QUICKSTART)
    assert list(Path().iterdir()) == []


def leave_a_file(config: Config, title: str) -> None:
    """A job for the joblib launcher: it must be importable in another process."""
    if config.rank == 2:
        raise TrainingError("diverged")
    (Path(config.output_dir) / f"rank_{config.rank}").write_text(f"{title}\n{os.getpid()}", encoding="utf-8")


def test_the_joblib_launcher_runs_jobs_in_other_processes(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    launch([QUICKSTART, "rank=3,4", f"output_dir={tmp_path}", *launcher, "-m"], leave_a_file)
    written = {file.name: file.read_text(encoding="utf-8").splitlines() for file in tmp_path.glob("rank_*")}
    assert {name: lines[0] for name, lines in written.items()} == {"rank_3": "1: rank=3", "rank_4": "2: rank=4"}
    assert all(int(lines[1]) != os.getpid() for lines in written.values())


def test_a_failing_job_of_the_joblib_launcher_does_not_stop_the_others(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with pytest.raises((SweepError, TrainingError)) as caught:
        launch([QUICKSTART, "rank=2,3,4", f"output_dir={tmp_path}", *launcher, "-m"], leave_a_file)
    assert {file.name for file in tmp_path.glob("rank_*")} == {"rank_3", "rank_4"}
    assert caught.value.exit_code == 1


def test_a_users_recipes_can_be_swept() -> None:
    lay_out(Path("mine"), {"recipes/a.yaml": BASE + "rank: 3\n", "recipes/b.yaml": BASE + "rank: 5\n"})
    assert [config.rank for _, config in jobs("recipe=a,b", "-m", "--config-dir", "mine")] == [3, 5]


def ranks_of_part(shard: str, *launcher: str) -> list[int]:
    """The ranks of a part's jobs, in a sweep over five ranks."""
    folder = Path("part_" + shard.replace("/", "_of_")).resolve()  # a launcher may use its processes again
    folder.mkdir()
    swept = [QUICKSTART, "rank=1,3,4,5,6", f"output_dir={folder}", *launcher, "-m"]
    launch(swept, leave_a_file, shard=Shard.parse(shard))
    return sorted(int(file.name.removeprefix("rank_")) for file in folder.glob("rank_*"))


def test_the_parts_of_a_sweep_together_do_each_job_once() -> None:
    assert [ranks_of_part(f"{number}/3") for number in (1, 2, 3)] == [[1, 5], [3, 6], [4]]


def test_a_part_without_a_job_does_nothing() -> None:
    assert ranks_of_part("6/6") == []


@pytest.mark.parametrize(
    ("swept", "part", "said"),
    [
        (["rank=3,4"], Shard(3, 3), "part 3/3: 0 of 2 jobs"),
        (["rank=3,4", "seed=range(0,2)"], Shard(1, 3), "part 1/3: 2 of 4 jobs"),
        (["rank=3,4", "method=glob(pis*)"], Shard(1, 2), "part 1/2 of the jobs"),
    ],
)
def test_a_part_says_how_many_jobs_it_has(swept: list[str], part: Shard, said: str, tmp_path: Path) -> None:
    told: list[str] = []
    done: list[str] = []
    options = [QUICKSTART, *swept, f"output_dir={tmp_path}", "-m"]
    launch(options, lambda config, title: done.append(title), shard=part, tell=told.append)
    assert told == [said]
    assert "glob" in str(swept) or f": {len(done)} of " in said


def test_a_launcher_does_a_part_of_a_sweep() -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert ranks_of_part("2/3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2") == [3, 6]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"])
def test_what_is_no_part_of_a_sweep_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="names no part"):
        Shard.parse(text)


def test_a_single_run_has_no_parts() -> None:
    with pytest.raises(InvalidInput, match="--shard 1/2 is a part of a sweep"):
        launch([QUICKSTART], lambda config, title: None, shard=Shard(1, 2))


def leave_its_gpus(config: Config, title: str) -> None:
    """A job that leaves a file which says when it ran, and on which GPUs."""
    began = time.monotonic()
    time.sleep(0.3)
    seen = [os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid(), began, time.monotonic()]
    (Path(config.output_dir) / f"rank_{config.rank}.json").write_text(json.dumps(seen), encoding="utf-8")


@pytest.fixture
def _processes_of_its_own() -> Iterator[None]:
    """Those of joblib are not used by later tests, since they see GPUs that are not there."""
    yield
    get_reusable_executor().shutdown(wait=True)


@pytest.mark.usefixtures("_processes_of_its_own")
@pytest.mark.parametrize(("processes", "on_each"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_joblibs_processes_take_turns_on_the_gpus_that_the_user_chose(
    processes: int, on_each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={processes}"]
    launch([QUICKSTART, "rank=1,2,3,4,5", f"output_dir={tmp_path}", *launcher, "-m"], leave_its_gpus)
    left = [json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("rank_*.json")]
    assert {gpu for gpu, *_ in left} == {"5", "7"}
    for name, _, began, _ in left:
        assert sum(gpu == name and start <= began < end for gpu, _, start, end in left) <= on_each
    assert len({(gpu, process) for gpu, process, *_ in left}) == len({process for _, process, *_ in left})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"


@pytest.mark.slow
def test_without_gpus_joblibs_processes_see_what_the_command_line_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    launch([QUICKSTART, "rank=1,2", f"output_dir={tmp_path}", *launcher, "-m"], leave_its_gpus)
    assert [json.loads(file.read_text(encoding="utf-8"))[0] for file in tmp_path.glob("rank_*.json")] == ["", ""]
