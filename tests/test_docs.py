"""The documentation is true: its commands parse, its links and files exist, its examples are the tested ones."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from lora_ga_cli.cli.app import app
from lora_ga_cli.cli.arguments import split_folders, unknown_flags
from lora_ga_cli.cli.reproduce import _names_and_options
from lora_ga_cli.config.check import check
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data.recognize import with_row_format
from lora_ga_cli.errors import Fault
from lora_ga_cli.registry import CODE_VARIABLE, ESTIMATORS, EXAMPLES, MEASURES, METHODS, ROW_FORMATS, TASKS, import_code
from lora_ga_cli.reproduce.cells import check_extra_overrides, measures_of
from lora_ga_cli.reproduce.table_files import all_tables, read_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTENDING = ROOT / "docs" / "extending.md"
DOCS = [page for page in PAGES if page.parent == ROOT / "docs"]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
RUNTIME_FOLDERS = {"FOLDER", "runs", "links", "reproduced", "tables", "my-model", "section"}
"""Folders that a command makes, or that a user has."""
FILE = re.compile(r"`(?:python )?([\w./-]+\.(?:py|yaml|md|txt|jsonl|tsv|csv|safetensors|json))(?: [^`]*)?`")
FOLDER = re.compile(r"`((?:[\w.]+/)+|\./scripts/\w+|\.ci/\w+)`")
"""Names of files and folders in backticks."""
OPENINGS = ("loraga ", "python ", "./scripts/", "pip ")
PLACEHOLDERS = {"NAME", "TABLE", "…"}
"""Words of a command that stand for others, so that it cannot be looked up."""
MADE_ELSEWHERE = {"data.jsonl", "recipes/mine.yaml"}
"""Files that a reader has or makes."""
RUN_FILES = re.compile(
    r"(init|start|inserted|custom_adapter|adapter_model|quantized|generation_config|merged_from|inspection)"
    r"\.(safetensors|json)|(complete|link|manifest|cost|table)\.json|(metrics|predictions)\.jsonl|config\.yaml"
)
"""Files of a run's folder and of merged models, and of folders that earlier versions wrote."""


def ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words after ``loraga`` of every command on a page: in blocks of shell lines, and in backticks."""
    lines = [line.strip() for block in blocks(page, "sh") for line in block.splitlines()]
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    lines += [" ".join(inline.split()) for inline in re.findall(r"`(loraga [^`]+)`", text)]
    for line in lines:
        words = shlex.split(line, comments=True)
        if "lora_ga_cli" in words:  # torchrun … -m lora_ga_cli COMMAND
            words = ["loraga", *words[words.index("lora_ga_cli") + 1 :]]
        if words[:1] == ["loraga"] and words[1:] != ["--help"] and not PLACEHOLDERS & set(words):
            yield words[1:]


ALL_COMMANDS = [
    pytest.param(words, id=f"{ids(page)}: {' '.join(words)}")
    for page in PAGES
    if page.name != "CHANGELOG.md"  # which names old ones
    for words in commands_of(page)
]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
DATA_OPTIONS = re.findall(r"^\| [^|`]+ \| `('?dataset\.[^`]+)` \|$", CONFIGURATION, re.MULTILINE)
"""The options for kinds of data, in a table of their own."""
ROWS = re.findall(r"^\| `(\w+)` \| `({[^`]+})`[^|]* \|", CONFIGURATION, re.MULTILINE)
"""Row formats, each with its example."""


@pytest.fixture(autouse=True)
def _where_a_reader_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with what the pages tell a reader to make; code of a test is forgotten afterwards."""
    for registry in (METHODS, TASKS, EXAMPLES, MEASURES, ESTIMATORS):
        registry.names()
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setenv(CODE_VARIABLE, "")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text((ROOT / "recipes" / "quickstart.yaml").read_text())
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "plugins").symlink_to(ROOT / "tests" / "plugins")
    yield
    for name in [name for name in sys.modules if name.startswith("loraga_code_")]:
        del sys.modules[name]


def parsed(words: list[str]) -> tuple[str, dict[str, Any], list[str], Any]:
    """A command's name, its options, the words that follow them, as the command line reads them, and its context."""
    command: Any = typer.main.get_command(app)
    name = ""
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            break
        name, words = f"{name} {words[0]}".strip(), words[1:]
        command = command.commands[name.rsplit(" ", 1)[-1]]
    assert name, f"no command {words[:1]}"
    context = command.make_context(name, list(words), resilient_parsing=True)
    options = dict(context.params)
    rest = [word for key in ("options", "arguments") for word in options.pop(key, None) or []]
    return name, options, [*rest, *context.args], context


def faults_of(words: list[str]) -> list[Fault]:
    """What is wrong with a command, as far as it can be known without files and network."""
    name, options, rest, context = parsed(words)
    if words == name.split():
        return []  # it is only named
    for file in options.get("code") or []:
        import_code(Path(file))
    if name == "reproduce":
        user_dir = options.get("config_dir")
        tables, overrides = _names_and_options(rest)
        assert not unknown_flags(context, rest)
        known = all_tables(Path(user_dir).resolve() if user_dir else None)
        assert set(tables) <= set(known)
        measures = [measure for table in tables for measure in measures_of(read_table(known[table]).full)]
        overrides = [option for option in overrides if not option.startswith("hydra")]
        check_extra_overrides(overrides, None, measures)
        return []
    if name in ("train", "init", "estimate-grad", "eval", "merge", "inspect"):
        folders, overrides = split_folders(rest) if name in ("eval", "merge", "inspect") else ([], rest)
        sources, faults = check(overrides, complete=not folders)
        if not (faults or folders or sources.flags or sources.sweeps or "--cfg" in overrides):
            compose(overrides)  # raises what is wrong with options together
        return faults
    assert not [word for word in rest if word.startswith("-")]
    return []


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_every_command_is_one_that_loraga_takes(words: list[str]) -> None:
    assert faults_of(words) == []


@pytest.mark.parametrize("text", DATA_OPTIONS)
def test_options_for_data_are_taken(text: str) -> None:
    words = ["model=causal_lm", "model.path=ORG/MODEL", "dataset.train_file=data.jsonl", *shlex.split(text)]
    assert compose(words).model.path == "ORG/MODEL"


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_the_example_of_a_row_format_is_recognized_as_this_format(name: str, row: str) -> None:
    Path("data.jsonl").write_text(f"{row}\n", encoding="utf-8")
    found, _ = with_row_format(DatasetConfig(train_file="data.jsonl"), ROW_FORMATS[name].tasks[0])
    assert found.format == name


def test_every_row_format_has_an_example_and_the_more_specific_ones_come_first() -> None:
    names = [name for name, _ in ROWS]
    assert names == sorted(ROW_FORMATS.names(), key=lambda name: -ROW_FORMATS[name].precedence)


def test_the_commands_are_found() -> None:
    """So that a change of the pages' layout does not leave the test above without any."""
    assert len(ALL_COMMANDS) > 50
    assert len(DATA_OPTIONS) == 6


@pytest.mark.parametrize(
    "words",
    ["trian recipe=quickstart", "train recipe=quickstrt", "train recipe=quickstart rnak=8", "reproduce abltion"],
)
def test_a_wrong_command_would_be_noticed(words: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - of several kinds
        assert faults_of(words.split()) == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", DOCS, ids=ids)
def test_a_page_opens_with_the_command_it_is_about(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert any(line.startswith(OPENINGS) for line in lines[:5])


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """In the repository, or in the package, where a page may leave out ``lora_ga_cli/``."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"^\| .*bench_shift.*$", "", text, flags=re.MULTILINE)  # an old name
    names = FILE.findall(text) + FOLDER.findall(text)
    for name in names:
        known = name.removeprefix("./") in MADE_ELSEWHERE or RUN_FILES.fullmatch(name)
        inside = any((folder / name).exists() for folder in (ROOT, ROOT / "lora_ga_cli", page.parent))
        assert known or inside or "NAME" in name or name.split("/")[0] in RUNTIME_FOLDERS, name


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_on_a_page_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


def test_the_readme_is_short_and_names_the_tests() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "./scripts/test" in text


EXAMPLE_FILES = [
    "toy_method.py",
    "method/clipped_lora.yaml",
    "toy_task.py",
    "toy_form.py",
    "toy_measure.py",
    "toy_estimator.py",
    "toy_optimizer.py",
    "tables/toy.yaml",
]


@pytest.mark.parametrize("name", EXAMPLE_FILES)
def test_an_example_on_the_page_is_the_one_that_is_tested(name: str) -> None:
    file = ROOT / "tests" / "plugins" / name
    assert file.read_text(encoding="utf-8") in blocks(EXTENDING, "yaml" if file.suffix == ".yaml" else "python")
