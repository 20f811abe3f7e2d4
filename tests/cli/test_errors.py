"""Errors on the screen: one or two lines, no traceback, and an exit code that a script can use."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_ga_cli.cli.app import main
from lora_ga_cli.cli.arguments import State, split_folders
from lora_ga_cli.cli.errors import report_error
from lora_ga_cli.errors import Fault, GradientError, InvalidInput, RunError, SweepError, TrainingError, suggest
from lora_ga_cli.stages import train as train_stage
from lora_ga_cli.training.run_folder import RunFolder

QUICKSTART = "recipe=quickstart"
Training = Callable[[Any], None]


@pytest.fixture(autouse=True)
def _without_debugging() -> None:
    State.debug = False


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Training], None]:
    """Puts a function in the place of the training stage: these tests are about what is message of its errors."""

    def replace(function: Training) -> None:
        def train(config: Any) -> RunFolder:
            function(config)
            return RunFolder(Path("none"))

        monkeypatch.setattr(train_stage, "train", train)

    return replace


def failing(error: Exception) -> Training:
    def train(config: Any) -> None:
        raise error

    return train


def test_all_faults_are_printed_at_once_each_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", QUICKSTART, "rnk=4", "model.dtype=float31", "method=loraga"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second, third = printed.err.splitlines()
    assert first == "error  command line: no option rnk (did you mean rank?)"
    assert "did you mean float32?" in second
    assert "did you mean lora_ga?" in third


@pytest.mark.parametrize("command", ["train", "eval", "init", "estimate-grad", "merge"])
def test_every_command_refuses_wrong_input_with_exit_code_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, QUICKSTART, "rnk=3"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error  command line: ")
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (TrainingError("the loss is not finite"), 1, "error  the loss is not finite\n"),
        (GradientError("no gradient for [layer]"), 1, "error  no gradient for [layer]\n"),
        (RunError("another's folder"), 2, "error  another's folder\n"),
        (InvalidInput([Fault("data.jsonl:12", "no column 'a'", "columns: b")]), 2, "data.jsonl:12: no column 'a'"),
        (ZeroDivisionError("division by zero\nmore"), 1, "unexpected ZeroDivisionError: division by zero"),
        (RuntimeError(""), 1, "unexpected RuntimeError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_a_run_is_one_line_with_its_exit_code(
    error: Exception, code: int, message: str, training: Callable[[Training], None], capsys: pytest.CaptureFixture[str]
) -> None:
    training(failing(error))
    assert main(["train", QUICKSTART]) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert "Traceback" not in printed


def test_debug_shows_a_traceback(training: Callable[[Training], None]) -> None:
    training(failing(TrainingError("here")))
    with pytest.raises(TrainingError, match="here"):
        main(["train", QUICKSTART, "--debug"])


def test_the_debug_flag_does_not_last_beyond_its_command(training: Callable[[Training], None]) -> None:
    training(failing(TrainingError("here")))
    with pytest.raises(TrainingError):
        main(["train", "--debug", QUICKSTART])
    assert main(["train", QUICKSTART]) == 1


def test_an_interruption_says_how_to_continue(
    training: Callable[[Training], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(config: Any) -> None:
        raise KeyboardInterrupt

    training(interrupt)
    assert main(["train", QUICKSTART]) == 130
    assert capsys.readouterr().err == (
        "stopped  Ctrl-C: no result was complete, so none is kept; earlier results are unchanged. "
        "To start from the beginning: loraga train recipe=quickstart\n"
    )


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("output_dir={file}/x", "output_dir: {file}/x: not a directory (a part of this path is a file: give another"),
        ("cache_dir={file}/x", "cache_dir: {file}/x: not a directory (a part of this path is a file: give another"),
        ("output_dir=" + "x" * 300, "output_dir: " + "x" * 300 + ": file name too long (a shorter name: give another"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    option: str,
    hint: str,
    more: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    for stage in ("initialize", "forecast"):
        monkeypatch.setattr(f"lora_ga_cli.stages.{stage}.prepare_inputs", failing(AssertionError("it was loaded")))
    assert main(["train", QUICKSTART, option.format(file=tmp_path / "file"), *more]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error  {hint.format(file=tmp_path / 'file')}")
    assert len(printed.splitlines()) == 1


def test_all_folders_that_cannot_be_written_are_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    where = tmp_path / "file" / "x"
    assert main(["train", QUICKSTART, f"output_dir={where}", f"cache_dir={where}"]) == 2
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "error  output_dir",
        "error  cache_dir",
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "{folder}/runs/mine/README.md"),
            "output_dir: {folder}/runs/mine/README.md: permission denied (allow it, or give another output_dir)",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "{folder}/cache/rows"),
            "cache_dir: {folder}/cache/rows: read-only file system (nothing can be written there: give another",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "cache_dir: {folder}/cache: no space left on device, 0 B are free now (free some space there, or give",
        ),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "cache_dir: {folder}/cache: no space left on device, 0 B are free now (free some space there, or give",
        ),
        (
            RuntimeError("basic_ios::clear: iostream error"),
            "cache_dir: {folder}/cache: no space left on device, 0 B are free now (free some space there, or give",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 320 vs 214"),
            "cache_dir: {folder}/cache: no space left on device, 0 B are free now (free some space there, or give",
        ),
        (
            RuntimeError("Error while serializing: I/O error: File too large (os error 27)"),
            "cache_dir: {folder}/cache: file too large (a limit on the size of files (ulimit -f) stops it: raise it,",
        ),
        (
            OSError(errno.EFBIG, "File too large"),
            "cache_dir: {folder}/cache: file too large (a limit on the size of files (ulimit -f) stops it: raise it,",
        ),
    ],
    ids=[
        "permission",
        "read-only",
        "full",
        "full, said by a library",
        "full, said by a stream of C++",
        "full, said by torch",
        "limit",
        "limit, open file",
    ],
)
def test_an_error_of_the_system_during_a_run_names_the_option(
    error: Exception,
    message: str,
    tmp_path: Path,
    training: Callable[[Training], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The disk of the cache has the least room here."""
    if isinstance(error, OSError) and error.filename:
        error.filename = error.filename.format(folder=tmp_path)
    (tmp_path / "cache").mkdir()
    room = {tmp_path / "cache": 0}
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=room.get(Path(path), 10**9)))
    training(failing(error))
    folders = [f"output_dir={tmp_path}/runs", f"cache_dir={tmp_path}/cache"]
    assert main(["train", QUICKSTART, *folders]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error  {message.format(folder=tmp_path)}")
    assert len(printed.splitlines()) == 1


def test_a_limit_on_files_is_named_where_a_library_gives_no_reason(
    training: Callable[[Training], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (10_000, -1))
    training(failing(RuntimeError("basic_ios::clear: iostream error")))
    assert main(["train", QUICKSTART]) == 2
    assert "file too large (a limit on the size of files (ulimit -f) stops it: raise it, or" in capsys.readouterr().err


def test_an_error_about_a_path_that_no_option_names_is_one_line_too(
    training: Callable[[Training], None], capsys: pytest.CaptureFixture[str]
) -> None:
    training(failing(PermissionError(errno.EACCES, "Permission denied", "/elsewhere/x")))
    assert main(["train", QUICKSTART]) == 2
    assert capsys.readouterr().err == (
        "error  system: /elsewhere/x: permission denied (allow it, or give another place)\n"
    )


@pytest.mark.parametrize(("value", "kind"), [("20240101", "a number"), ("1e3", "a number"), ("true", "true or false")])
def test_a_text_that_looks_like_another_value_says_how_it_is_written(
    value: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", QUICKSTART, f"name={value}"]) == 2
    printed = capsys.readouterr().err
    assert f"is read as {kind}; as a text it is written 'name=\"" in printed


def test_the_advice_for_a_text_works(training: Callable[[Training], None]) -> None:
    names = []
    training(lambda config: names.append(config.name))
    assert main(["train", QUICKSTART, 'name="20240101"']) == 0
    assert names == ["20240101"]


def test_a_name_that_is_too_long_is_refused_with_the_other_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", QUICKSTART, f"name={'x' * 250}", "rank=0"]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 2
    assert "is too long: 250 bytes, and a folder's name may have 200" in printed[0]
    assert len(printed[0]) < 200


def test_full_memory_names_the_options_to_lower(capsys: pytest.CaptureFixture[str]) -> None:
    class OutOfMemoryError(RuntimeError):
        """Known by its name, so that torch need not be imported to say so."""

    assert report_error(OutOfMemoryError("CUDA out of memory")) == 1
    assert "trainer.max_tokens" in capsys.readouterr().err


def test_a_sweep_goes_on_after_a_failing_job_and_says_which_failed(
    training: Callable[[Training], None], capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def train(config: Any) -> None:
        if config.rank == 2:
            raise RunError("rank 2 is in use")
        done.append(config.rank)

    training(train)
    assert main(["train", QUICKSTART, "rank=2,4,8", "-m"]) == 1
    printed = capsys.readouterr()
    assert done == [4, 8]
    assert printed.out.split("\n\n")[-1].count("━━ 3: rank=8 ━━") == 1
    assert [line.partition("  ")[2] for line in printed.err.splitlines()] == [
        "rank 2 is in use",
        "1 of 3 jobs failed; run the same command again to repeat only those",
    ]


def test_an_invalid_job_of_a_sweep_is_reported_under_its_title(
    training: Callable[[Training], None], capsys: pytest.CaptureFixture[str]
) -> None:
    training(lambda config: None)
    assert main(["train", QUICKSTART, "gradient.capacity=8,64", "-m"]) == 1
    printed = capsys.readouterr()
    assert "gradient.capacity=8 serves ranks up to 4" in printed.err
    assert "1: gradient.capacity=8" in printed.out


def test_the_error_of_a_sweep_of_one_job_is_printed_once(
    training: Callable[[Training], None], capsys: pytest.CaptureFixture[str]
) -> None:
    training(failing(TrainingError("diverged")))
    assert main(["train", QUICKSTART, "rank=4", "-m"]) == 1
    assert capsys.readouterr().err.count("diverged") == 1


def test_the_sweep_flag_may_stand_before_the_swept_options(training: Callable[[Training], None]) -> None:
    done: list[int] = []
    training(lambda config: done.append(config.rank))
    assert main(["train", QUICKSTART, "-m", "rank=2,4"]) == 0
    assert done == [2, 4]


def test_cfg_job_prints_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", QUICKSTART, "rank=3", "--cfg", "job"]) == 0
    assert "\nrank: 3\n" in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge", "run", "--dtype", "int3"], "--dtype int3 is not one of float32, bfloat16, float16"),
        (["merge", "one", "two", "--output", "x"], "--output names one folder"),
        (["merge", "run", "rank=3"], "rank=3 goes with a recipe"),
        (["merge", "run", "--ouput", "m"], "no option --ouput (did you mean --output?)"),
        (["merge", "run", "--gguf", "rank=3"], "no option --gguf"),
        (["merge", "run", "model.path=x"], "the place of a run's base is another option (--base)"),
        (["eval", "missing"], "missing: no such run folder"),
        (["eval", "empty"], "empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_folders_and_options_that_do_not_go_with_run_folders_are_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "folders"),
    [
        (["runs/a", "runs/b", "eval.limit=3"], ["runs/a", "runs/b"]),
        (["recipe=quickstart", "-m", "rank=2,4"], []),
        (["a=b"], ["a=b"]),
        (["recipe=quickstart", "--config-dir", "mine"], []),
        (["recipe=quickstart", "-cd", "mine"], []),
        (["recipe=quickstart", "--cfg", "job"], []),
        (["~eval"], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_run_folders_and_options_are_kept_apart(
    given: list[str], folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "a=b", "mine"):
        Path(name).mkdir(parents=True)
    assert split_folders(given) == (folders, [item for item in given if item not in folders])


@pytest.mark.parametrize(
    "error",
    [InvalidInput([Fault("x.yaml:3", "wrong", "right")]), SweepError([TrainingError("a")], 3), RunError("in use")],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_pickled(error: Exception) -> None:
    """A launcher's worker sends them to the process that prints them."""
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))
    assert getattr(copy, "faults", None) == getattr(error, "faults", None)


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("rnk", ["rank", "alpha"], "did you mean rank?"),
        ("learning_rate", ["trainer.learning_rate", "rank"], "did you mean trainer.learning_rate?"),
        ("zzz", ["b", "a"], "known: a, b"),
        ("zzz", [f"{number}" * 9 for number in range(17)], ""),
        ("zzz", [], ""),
    ],
)
def test_the_nearest_spelling_or_all_of_a_few(word: str, known: list[str], hint: str) -> None:
    assert suggest(word, known) == hint
