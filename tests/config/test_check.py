"""What is wrong with a command line and its files is message before anything is composed, all of it, with its place."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.overrides import parse_override
from tests.config import BASE, lay_out, refused

QUICKSTART = "recipe=quickstart"
pytestmark = pytest.mark.usefixtures("empty_folder")


def only_fault(*arguments: str) -> str:
    """The fault of a command line that has one."""
    (fault,) = refused(*arguments)
    assert fault.startswith("command line: ")
    return fault


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rnk=4", ["no option rnk", "did you mean rank?"]),
        ("Rank=4", ["no option Rank", "did you mean rank?"]),
        ("+x=1", ["no option x"]),
        ("++x=1", ["no option x"]),
        ("=3", ["no option"]),
        ("method@foo=lora", ["no option method@foo"]),
        ("learning_rate=1e-4", ["no option learning_rate", "did you mean trainer.learning_rate?"]),
        ("trainer.lerning_rate=1e-4", ["did you mean trainer.learning_rate?"]),
        ("gradient.sample=8", ["did you mean gradient.samples?"]),
        ("rank.x=3", ["no option rank.x"]),
        ("eval.metrics.0=loss", ["no option eval.metrics.0", "eval.metrics"]),
        ("~nonsense", ["nonsense"]),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest_right_one(argument: str, message: list[str]) -> None:
    (fault,) = refused(QUICKSTART, argument)
    assert all(text in fault for text in message), fault


def test_the_hint_for_an_abbreviated_option_is_an_option_and_not_its_group() -> None:
    (fault,) = refused(QUICKSTART, "trainer.lr=3")
    assert "did you mean trainer?" not in fault


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rank=abc", "a whole number"),
        ("rank=2.5", "a whole number"),
        ("rank=0", "greater than or equal to 1"),
        ("rank=-1", "greater than or equal to 1"),
        ("rank=", "a whole number"),
        ("rank=null", "a whole number"),
        ("rank=[2,4]", "a whole number"),
        ("rank={a: 1}", "a whole number"),
        ("rank=true", "rank=true"),
        ("trainer.learning_rate=true", "trainer.learning_rate=true"),
        ("trainer.learning_rate=nan", "trainer.learning_rate=nan"),
        ("trainer.learning_rate=inf", "finite"),
        ("adapter_dropout=1", "less than 1"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=4294967296", "less than 4294967296"),
        ("dataset.shuffle=maybe", "true or false"),
        ("trainer.save_total_limit=1", "greater than or equal to 2"),
        ("model.dtype=float31", "did you mean float32?"),
        ("trainer.lr_scheduler=cosin", "did you mean cosine?"),
        ("method.direction=ArB2R", "did you mean ArB2r?"),
        ("device=tpu", "auto, cpu, cuda, mps"),
        ("eval.metrics=[loss,exact_mach]", "exact_match"),
        ("eval.metrics=[]", "at least 1"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_fit(argument: str, message: str) -> None:
    fault = only_fault(QUICKSTART, argument)
    assert argument.partition("=")[0] in fault
    assert message in fault


def test_a_single_value_for_a_list_is_answered_with_how_to_write_a_list() -> None:
    (fault,) = refused(QUICKSTART, "eval.metrics=loss")
    assert "did you mean loss?" not in fault
    assert "list" in fault


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("recipe=quickstrt", ["no recipe 'quickstrt'", "did you mean quickstart?"]),
        ("recipe=quickstart.yaml", ["did you mean quickstart?"]),
        ("recipe=../quickstart", ["did you mean quickstart?"]),
        ("recipe=/etc/passwd", ["no recipe '/etc/passwd'"]),
        ("recipe=.", ["no recipe '.'"]),
        ("recipe=", ["no recipe ''"]),
        ("recipe=[quickstart]", ["no recipe"]),
    ],
)
def test_an_unknown_recipe_is_an_error_that_names_the_nearest(argument: str, message: list[str]) -> None:
    fault = only_fault(argument)
    assert all(text in fault for text in message), fault


@pytest.mark.parametrize(
    "other",
    [["recipe=quickstrt"], [QUICKSTART, "rank=0"], [QUICKSTART, "rnk=4"], ["rank=4"]],
)
def test_an_unknown_option_of_a_method_is_reported_together_with_every_other_fault(other: list[str]) -> None:
    faults = refused(*other, "method.gama=1")
    assert len(faults) == 2
    assert any("no option method.gama" in fault and "did you mean method.gamma?" in fault for fault in faults)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("method=loraga", "did you mean lora_ga?"),
        ("eval=nope", "accuracy, exact_match, glue"),
        ("model=t5", "tiny"),
        ("method={name: x}", "no method"),
        ("method=qqqq", "no method 'qqqq' (loraga recipes --methods lists them)"),
        ("trainer=[default]", "no trainer"),
        ("eval=null", "accuracy, exact_match, glue"),
    ],
)
def test_an_unknown_choice_of_a_group_is_an_error(argument: str, message: str) -> None:
    fault = only_fault(QUICKSTART, argument)
    assert message in fault


@pytest.mark.parametrize("arguments", [[], ["rank=4"], ["recipe=null"]])
def test_without_a_recipe_the_recipes_are_listed(arguments: list[str]) -> None:
    assert any("no recipe chosen" in fault and "quickstart" in fault for fault in refused(*arguments))


@pytest.mark.parametrize(
    ("given", "missing"),
    [("model=tiny", "no data set chosen (dataset.train_file=FILE"), ("dataset.train_file=a.jsonl", "no model chosen")],
)
def test_of_model_and_data_set_the_one_that_is_missing_is_named(given: str, missing: str) -> None:
    (fault,) = refused(given)
    assert missing in fault


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rank=abc", "rank=abc should be a whole number"),
        ("rank=2.5", "rank=2.5 should be a whole number"),
        ("trainer.weight_decay=much", "trainer.weight_decay=much should be a number"),
        ("trainer.compile=perhaps", "trainer.compile=perhaps should be true or false"),
        ("rank_pattern=4", "rank_pattern=4 should be a mapping, {name: value}"),
    ],
)
def test_what_a_value_should_be_is_said_in_plain_words(given: str, message: str) -> None:
    (fault,) = refused(QUICKSTART, given)
    assert fault == f"command line: {message}"


def test_model_and_dataset_do_without_a_recipe() -> None:
    assert compose(["model=tiny", "dataset=quickstart"]).recipe is None


@pytest.mark.parametrize("rows", ["train_file=a.jsonl", "path=a/b", "mix=[{train_file: a.jsonl},{path: a/b}]"])
def test_a_source_of_rows_needs_no_choice_of_a_dataset(rows: str) -> None:
    assert compose(["model=tiny", f"dataset.{rows}"]).dataset.train_file != "???"


def test_recipe_null_is_the_same_as_no_recipe() -> None:
    assert compose(["recipe=null", "model=tiny", "dataset=quickstart"]).recipe is None


@pytest.mark.parametrize(
    "text", ["rank", "", " ", "rank==3", "'rank'=3", "/model=tiny", "rank=8,", "name={", "x" * 300]
)
def test_what_cannot_be_parsed_is_quoted_with_how_to_write_it(text: str) -> None:
    (fault,) = refused(QUICKSTART, text)
    assert fault.startswith("command line: cannot read ")
    assert text in fault
    assert "(" in fault


@pytest.mark.parametrize(
    ("text", "value"),
    [("model.new_tokens=[<think>,</think>]", ["<think>", "</think>"]), ("eval.answer_pattern=(.+)", "(.+)")],
)
def test_what_needs_quotes_is_answered_with_a_line_for_the_shell(text: str, value: object) -> None:
    (fault,) = refused(QUICKSTART, text)
    (typed,) = shlex.split(fault.partition("quote it: ")[2].removesuffix(")"))
    assert parse_override(typed).value() == value


@pytest.mark.parametrize("flag", ["--nope", "-x", "--rnk=3"])
def test_an_unknown_flag_is_refused(flag: str) -> None:
    (fault,) = refused(QUICKSTART, flag)
    assert fault.startswith(f"command line: no option {flag.partition('=')[0]}")


def test_a_flag_of_another_tool_is_answered_with_the_option() -> None:
    (fault,) = refused(QUICKSTART, "--learning-rate=1e-3")
    assert fault == "command line: no option --learning-rate=1e-3 (write trainer.learning_rate=…)"


@pytest.mark.parametrize("arguments", [["--cfg", "jobs"], ["--cfg"], ["--config-dir"]])
def test_a_flag_with_a_wrong_or_missing_value_is_a_fault_like_any_other(arguments: list[str]) -> None:
    (fault,) = refused(QUICKSTART, *arguments)
    assert fault.startswith("command line: ")
    assert arguments[0] in fault


def test_flags_that_exclude_each_other_are_refused() -> None:
    (fault,) = refused(QUICKSTART, "rank=1,2", "-m", "--cfg", "job")
    assert fault == "command line: --multirun and --cfg do not go together (give one of them)"


@pytest.mark.parametrize(
    "arguments",
    [["--config-path", "x"], ["--config-name", "x"], ["--experimental-rerun", "x"], ["hydra.searchpath=[x]"]],
    ids=lambda value: value[0],
)
def test_what_would_have_hydra_read_unchecked_files_is_refused(arguments: list[str]) -> None:
    (fault,) = refused(QUICKSTART, *arguments)
    assert arguments[0].partition("=")[0] in fault
    assert "--config-dir" in fault


@pytest.mark.parametrize("folder", ["missing", "a_file"])
def test_a_missing_configuration_folder_is_refused(folder: str) -> None:
    Path("a_file").touch()
    (fault,) = refused(QUICKSTART, "--config-dir", folder)
    assert fault == f"command line: --config-dir {folder}: no such folder"


@pytest.mark.parametrize(
    ("argument", "value"), [("name='a b'", "a b"), ('name="x,y"', "x,y"), ("name='ünï'", "ünï"), ("name=a b", "a b")]
)
def test_quoted_values_arrive_as_they_are(argument: str, value: str) -> None:
    assert compose([QUICKSTART, argument]).name == value


@pytest.mark.parametrize("argument", ["~method", "~rank", "~trainer.learning_rate"])
def test_removing_an_option_never_puts_another_silently_in_its_place(argument: str) -> None:
    """`~method` would leave a method called lora_ga that starts as plain LoRA does."""
    only_fault(QUICKSTART, argument)


def test_an_interpolation_to_nothing_is_wrong_input_with_its_place() -> None:
    (fault,) = refused(QUICKSTART, "rank=${nope}")
    assert fault.startswith("command line: ")
    assert "nope" in fault


def test_the_command_line_may_interpolate() -> None:
    assert compose([QUICKSTART, "rank=${oc.select:nope,5}", "alpha=${rank}"]).alpha == 5


def test_a_missing_required_option_is_named() -> None:
    assert any("model.path is required" in fault for fault in refused("model=causal_lm", "dataset=quickstart"))


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (
            ["trainer.gradient_checkpointing_every=2"],
            ["trainer.gradient_checkpointing_every", "trainer.gradient_checkpointing=true"],
        ),
        (
            ["trainer.gradient_checkpointing_offload=true"],
            ["trainer.gradient_checkpointing_offload", "trainer.gradient_checkpointing=true"],
        ),
        (["trainer.compile=true", "trainer.kernels=liger"], ["trainer.compile=true", "trainer.kernels=liger"]),
        (["gradient.capacity=8"], ["gradient.capacity=8", "rank=8"]),
        (["trainer.load_best=true", "trainer.eval_steps=10"], ["trainer.save_steps", "trainer.eval_steps"]),
        (["eval=accuracy"], ["eval.metrics", "model.task"]),
    ],
)
def test_options_that_do_not_go_together_are_both_named(arguments: list[str], options: list[str]) -> None:
    faults = refused(QUICKSTART, *arguments)
    assert all(any(option in fault for fault in faults) for option in options)


def test_an_option_that_does_not_go_with_another_is_placed_where_it_was_written() -> None:
    (fault,) = refused(QUICKSTART, "trainer.gradient_checkpointing_every=2")
    assert fault.startswith("command line: ")


def test_columns_can_be_renamed_as_the_comments_of_the_groups_say() -> None:
    config = compose(
        ["model=tiny", "dataset=jsonl", "dataset.train_file=x.jsonl", "dataset.columns={prompt: question}"]
    )
    assert config.dataset.columns == {"prompt": "question"}


def test_faults_of_the_command_line_and_of_files_are_reported_together_in_file_and_line() -> None:
    text = BASE + "rnk: 4\nrank: 0\ntrainer:\n  learning_rat: 3\n  lr_scheduler: cosin\nmodl: {path: x}\n"
    lay_out(Path("mine"), {"recipes/mine.yaml": text})
    faults = refused("recipe=mine", "alpha=big", "method=loraga", "--config-dir", "mine")
    expected = [
        ("mine/recipes/mine.yaml:4", "rnk", "did you mean rank?"),
        ("mine/recipes/mine.yaml:5", "rank=0", "greater than or equal to 1"),
        ("mine/recipes/mine.yaml:7", "trainer.learning_rat", "did you mean trainer.learning_rate?"),
        ("mine/recipes/mine.yaml:8", "trainer.lr_scheduler=cosin", "did you mean cosine?"),
        ("mine/recipes/mine.yaml:9", "modl", "did you mean model?"),
        ("command line", "alpha=big", "number"),
        ("command line", "loraga", "did you mean lora_ga?"),
    ]
    assert len(faults) == len(expected)
    for where, what, hint in expected:
        assert any(fault.startswith(f"{where}: ") and what in fault and hint in fault for fault in faults), where


def test_a_group_file_that_a_recipe_chooses_is_checked_and_its_lines_are_reported() -> None:
    recipe = "defaults:\n  - override /model: tiny\n  - override /dataset: quickstart\n  - override /method: mine\n"
    files = {"recipes/mine.yaml": recipe, "method/mine.yaml": "name: mine\n# a comment\ngama: 3\nscale: 'off'\n"}
    lay_out(Path("mine"), files)
    first, second = refused("recipe=mine", "--config-dir", "mine")
    assert first.startswith("mine/method/mine.yaml:3: no option method.gama")
    assert "method.gamma" in first
    assert second.startswith("mine/method/mine.yaml:4: method.scale=off")


@pytest.mark.parametrize(
    "text", ["defaults: [nonexistent]\n", "defaults:\n  - /method: nonexistent\n", "defaults: nonexistent\n"]
)
def test_an_unknown_choice_in_a_defaults_list_is_placed_in_its_file(text: str) -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": text})
    (fault,) = refused("recipe=mine", "--config-dir", "mine")
    assert fault.startswith("mine/recipes/mine.yaml:")
    assert "'nonexistent'" in fault


@pytest.mark.parametrize(
    "text",
    [
        "defaults:\n",
        "defaults: [3]\n",
        "defaults:\n  - override /model: [tiny]\n  - override /dataset: quickstart\n",
        "defaults:\n  - override model: tiny\n  - override dataset: quickstart\n",
        "defaults:\n  - model: tiny\n  - dataset: quickstart\n",
        "defaults:\n  - /model: tiny\n  - /dataset: quickstart\n",
        "defaults: [mine]\n",
        "",
        "# only a comment\n",
    ],
    ids=[
        "null",
        "number",
        "list of choices",
        "no slash",
        "no override",
        "no override but a slash",
        "itself",
        "empty",
        "comment",
    ],
)
def test_a_defaults_list_that_cannot_compose_is_placed_in_its_file(text: str) -> None:
    """Hydra's own words for these name neither the file nor the line, or are a traceback."""
    lay_out(Path("mine"), {"recipes/mine.yaml": text})
    faults = refused("recipe=mine", "--config-dir", "mine")
    assert all(fault.startswith(("mine/recipes/mine.yaml", "command line: no ")) for fault in faults), faults
