"""Inputs as nobody would write them: words of a command line, recipes, files of data, adapters, gradients.

Each is a strategy of hypothesis. Most of the inputs are a real one with one or a few changes, so that they pass the
first checks and reach what comes after.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
import zstandard
from hypothesis import strategies as st

from lora_ga_cli.config.options import all_options

ROOT = Path(__file__).resolve().parent.parent.parent
DEEP = 3000
"""Levels of nesting that are too many for every reader that calls itself."""
TEXT = st.text(max_size=12) | st.text(st.characters(categories=["Cs", "Cc", "Co", "Mn", "Sm"]), max_size=4)
NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")])
SCALARS = st.none() | st.booleans() | NUMBERS | st.integers(-3, 70) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
"""Anything that JSON can say."""

# fmt: off
WORDS = [
    "nan", "inf", "-inf", "-1", "0", "1", "1.5", "-0.0", ".5", "1_000", "0x10", "1e999", "1e-400", "true", "null",
    "???", "[]", "{}", "[[]]", "[1,2]", "[null]", "{a:1}", "{a:{b:[c]}}", "''", "'\\''", "${rank}", "${nope}",
    "${oc.env:NOPE}", "${oc.env:HOME}", "${.rank}", "${..rank}", "${trainer}", "${method.name}", "${oc.decode:[}",
    "${", "${}", "1,2", "1,a", "range(3)", "range(1,3,0)", "range(1,99999999999)", "range(nan,inf)", "choice(1,2)",
    "choice()", "glob(*)", "glob([*,a],exclude=a)", "interval(0,1)", "sort(2,1)", "shuffle(1,2)", "tag(a,1)",
    "extend_list(1)", "int(x)", "float(nan)", "str(1)", "json_str({)", "bool(a)", "a=b", "=", "\\", "'", '"', "[",
    "]", "{", "}", "(", ")", ",", ":", "é", "𝔘", "~", "../x", "/nope", "a/b", "auto", "all-linear", "float32",
    "lora_ga", "causal_lm", "q_proj", ".*", "", "\x00", "\ud800", "\u202e",
]
# fmt: on
LONG = [
    "9" * 5000,
    "a" * 10_000,
    "[" * DEEP + "]" * DEEP,
    "{a:" * DEEP + "1" + "}" * DEEP,
    "(" * DEEP,
    "${" * DEEP,
    "1," * 3000,
]
EXPRESSIONS = ["(", "(a+)+$", "(\\w+\\.?)+!", "x{99999999999}", "(" * DEEP + ")" * DEEP, "(((a{100}){100}){100}){100}"]
GROUPS = ("recipe", "model", "dataset", "method", "eval", "trainer", "gradient")
# fmt: off
HYDRAS = [
    "hydra.job.name=x", "hydra.run.dir=x", "hydra.sweep.dir=x", "hydra.sweep.subdir=x", "hydra.verbose=true",
    "hydra.job.chdir=true", "hydra.nope=1", "hydra/launcher=nope", "hydra/sweeper=nope", "hydra/launcher=basic",
    "hydra.searchpath=[x]", "hydra=1", "hydra.mode=RUN", "~hydra.job", "hydra.job.env_set={a:b}",
    "hydra.output_subdir=x", "hydra/job_logging=nope", "hydra.launcher.n_jobs=2",
]
FLAGS = [
    "-m", "--multirun", "--cfg", "job", "--cfg=hydra", "-c", "--info", "--info=defaults", "-p", "--package=trainer",
    "--run", "--resolve", "--config-dir", "nope", "--config-dir", "--config-name=x", "--config-path=x",
    "--experimental-rerun=x", "--help", "--nope", "--shard", "1/2", "--", "-", "-mm",
]
# fmt: on


def one_of(last: int) -> st.SearchStrategy[int]:
    """A number from 0 to ``last``, each as often as the others; hypothesis's own integers are mostly 0."""
    return st.sampled_from(range(last + 1))


@cache
def choices(group: str) -> list[str]:
    """The names of the files of a group."""
    folder = ROOT / ("recipes" if group == "recipe" else f"conf/{group}")
    return sorted(file.stem for file in folder.glob("*.yaml"))


@cache
def option_names() -> list[str]:
    return sorted(".".join(path) for path in all_options())


@st.composite
def keys(draw: st.DrawFn) -> str:
    """The part of an override before ``=``: mostly an option or a group, sometimes with something at either end."""
    key = draw(st.sampled_from(option_names()) | st.sampled_from(GROUPS) | TEXT)
    if draw(one_of(4)) == 1:
        before = draw(st.sampled_from(["+", "++", "~", "/", ".", "override ", ""]))
        after = draw(st.sampled_from(["@x", ".x", ".", "..", "@hydra.job", ".0", " ", "[0]", ""]))
        key = f"{before}{key}{after}"
    return key


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """One word of a command line."""
    kind = draw(one_of(49))
    if kind == 49:
        return draw(st.sampled_from(FLAGS))
    if kind == 48:
        return draw(st.sampled_from(HYDRAS))
    if kind == 47:
        return f"{draw(keys())}={draw(st.sampled_from(LONG))}"
    if kind >= 45:
        return draw(TEXT)
    if kind >= 38:
        group = draw(st.sampled_from(GROUPS))
        return f"{group}={draw(st.sampled_from(choices(group)))}"
    value = draw(
        st.sampled_from(WORDS)
        | st.sampled_from(EXPRESSIONS)
        | TEXT
        | NUMBERS.map(str)
        | VALUES.map(lambda value: json.dumps(value, ensure_ascii=False))
    )
    if draw(one_of(9)) == 1:
        value = f"'{value}'"
    return f"{draw(keys())}={value}"


COMMANDS = st.lists(overrides(), min_size=1, max_size=4)


YAML_TEXTS = (
    "&a [*a]",
    "&a {b: *a}",
    "*nope",
    "<<: *a",
    "<<: {rank: 3}",
    "!!python/object/apply:os.system [x]",
    "!!binary aGk=",
    "!!set {a}",
    "!nope x",
    "? [a, b]\n: c",
    "? {a: b}\n: c",
    "1: 2\n1: 3",
    "null: 1",
    "true: 1",
    "%YAML 9.9",
    "--- a\n--- b",
    "- a\n- b",
    "just text",
    "\t- a",
    "a: b: c",
    "a: 'b",
    "# @package hydra",
    "# @package _global_",
    "defaults: [_self_, {override /model: tiny}]",
    "defaults: 3",
    "defaults: [[a], {a: {b: c}}, null, 1]",
    "defaults:\n  - recipe: fuzz",
    "defaults:\n  - {/method@x: lora, optional a: b}",
    "rank: 2001-12-14t21:59:43.10-05:00",
    "rank: 190:20:30",
    "rank: 0o14",
    "rank: .nan",
    "rank: ${rank}",
    "name: ${oc.env:HOME}",
    "alpha: ${trainer.${name}}",
    "hydra: {run: {dir: x}}",
    "_target_: os.system",
    "? " * 400,
    "[" * DEEP,
    "{a: " * 400,
    "- " * 400,
    "\x00",
    "\ufeff",
    "\u2028",
    "é: ☃",
)


@cache
def real_files() -> list[tuple[str, str]]:
    """The shipped files of recipes and groups: group and text."""
    found = [("recipe", file) for file in sorted((ROOT / "recipes").glob("*.yaml"))]
    found += [(group, file) for group in GROUPS[1:] for file in sorted((ROOT / "conf" / group).glob("*.yaml"))]
    return [(group, file.read_text(encoding="utf-8")) for group, file in found]


@st.composite
def yaml_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A group, and the bytes of a file of it."""
    group, text = draw(
        st.sampled_from([item for item in real_files() if item[0] == "recipe"]) | st.sampled_from(real_files())
    )
    kind = draw(one_of(9))
    if kind == 0:
        return group, draw(st.binary(max_size=60))
    if kind == 1:
        return group, draw(st.sampled_from(YAML_TEXTS)).encode()
    if kind <= 5:
        value = changed(draw, yaml.safe_load(text) or {})
        if draw(one_of(3)) == 1 and isinstance(value, dict):
            option = draw(st.sampled_from(option_names()))
            value |= {option.split(".")[0]: nested(option.split(".")[1:], draw(VALUES))}
        return group, yaml.safe_dump(value, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    pieces = st.sampled_from(YAML_TEXTS) | TEXT
    return group, spliced(draw, text, pieces).encode("utf-8", "surrogatepass")


def nested(path: Sequence[str], value: Any) -> Any:
    return {path[0]: nested(path[1:], value)} if path else value


def spliced(draw: st.DrawFn, text: str, pieces: st.SearchStrategy[str]) -> str:
    """The text with up to three places replaced: at the begin of a line, or anywhere."""
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            lines = text.split("\n")
            lines[draw(st.integers(0, len(lines) - 1))] = draw(pieces)
            text = "\n".join(lines)
        else:
            place = draw(st.integers(0, len(text)))
            text = text[:place] + draw(pieces) + text[place + draw(one_of(8)) :]
    return text


def changed(draw: st.DrawFn, value: Any, values: st.SearchStrategy[Any] = VALUES) -> Any:
    """JSON-like data with one to three values replaced, removed, added, or put under another name."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = [*_places(value)]
        if not places:
            return draw(values)
        parent, key = draw(st.sampled_from(places))
        match draw(one_of(4)):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[draw(TEXT)] = parent.pop(key)
            case 2 if isinstance(parent, dict):
                parent[draw(TEXT)] = copy.deepcopy(draw(values))
            case 3:
                parent[key] = [parent[key]]
            case _:
                parent[key] = copy.deepcopy(draw(values))
    return value


def reworded(draw: st.DrawFn, rows: list[Any]) -> list[Any]:
    """Rows in which other texts stand."""
    for parent, key in [*_places(rows)]:
        if isinstance(parent[key], str) and key not in ("role", "type", "from", "name", "arguments"):
            parent[key] = draw(TEXT.filter(str.strip))
    return rows


def _places(value: Any) -> list[tuple[Any, Any]]:
    items: list[tuple[Any, Any]] = []
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        items += [(value, key), *_places(value[key])]
    return items


MESSAGES = ["dataset.messages=messages"]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
ROWS: tuple[tuple[dict[str, Any], tuple[list[str], ...]], ...] = (
    ({"prompt": "1+1=", "answer": "2"}, ([], ["dataset.prompt='{prompt}'", "dataset.answer='{answer}'"])),
    (
        {"instruction": "add", "input": "1 1", "output": "2"},
        (
            ["dataset.format=alpaca"],
            ["dataset.prompt='{instruction}{?input} {input}{/input}'", "dataset.answer='{output}'"],
        ),
    ),
    ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}, ([], MESSAGES)),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}], "content": ""},
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
        (MESSAGES,),
    ),
    (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        (["dataset.format=sharegpt"], ["dataset.messages=conversations"]),
    ),
    (
        {"text": "all of it, and a_text_of.many.words_and_letters"},
        (["dataset.text='{text}'"],),
    ),
)
"""Rows, and the options with which each can be read."""
MORE: tuple[list[str], ...] = (
    [],
    ["dataset.on_bad_row=skip", "dataset.on_long_row=truncate", "dataset.allow_empty_answers=true"],
    ["dataset.packing=true", "dataset.on_bad_row=skip"],
    ["dataset.validation_fraction=0.5"],
    ["dataset.column_names=[a,b]"],
)
ENDINGS = ("jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "json.zst", "jsonl", "json", "csv", "xml")
PIECES = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xc3",
    b"\r",
    b"\n\n",
    b'"',
    b"{",
    b"[" * DEEP,
    b"a" * 70_000,
    b"\\ud800",
    b"NaN",
    b"-",
    b",",
)


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes, list[str]]:
    """The ending of a file's name, its bytes, and the options with which it is read."""
    ending, more = draw(st.sampled_from(ENDINGS)), draw(st.sampled_from(MORE))
    if draw(one_of(59)) == 59:
        more = ["dataset.keep={text: '(\\w+\\.?)+!'}"]
    row, ways = draw(st.sampled_from(ROWS))
    options = [*draw(st.sampled_from(ways)), *more]
    if draw(one_of(11)) == 1:
        return ending, draw(st.binary(max_size=80)), options
    rows: Any = [copy.deepcopy(row) for _ in range(draw(st.integers(1, 4)))]
    how = draw(one_of(9))
    if how <= 3:
        rows = changed(draw, rows)
    elif how >= 6:  # most of these are read
        rows = reworded(draw, rows)
    made = written(rows, ending.split(".")[0])
    if 3 <= how < 6:
        made = bitten(draw, made, PIECES)
    packed = {"gz": gzip.compress, "zst": zstandard.compress}.get(ending.rpartition(".")[2])
    if packed is not None:
        made = packed(made)
        if draw(one_of(2)) == 1:
            made = bitten(draw, made, PIECES)
    return ending, made, options


def written(rows: Any, ending: str) -> bytes:
    """Rows in the format of an ending, as far as it can hold them."""
    if ending == "json":
        return json.dumps(rows).encode()
    rows = rows if isinstance(rows, list) else [rows]
    if ending in ("csv", "tsv"):
        columns = dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)
        file = io.StringIO()
        writer = csv.writer(file, dialect="excel-tab" if ending == "tsv" else "excel")
        try:
            writer.writerow(columns)
            writer.writerows([row.get(key) for key in columns] for row in rows if isinstance(row, dict))
        except csv.Error:
            return b""
        return file.getvalue().encode("utf-8", "surrogatepass")
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet

        sink = pa.BufferOutputStream()
        try:
            table = pa.Table.from_pylist([row for row in rows if isinstance(row, dict)])
            pa.parquet.write_table(table, sink)
        except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
            return b""
        return sink.getvalue().to_pybytes()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def bitten(draw: st.DrawFn, data: bytes, pieces: Sequence[bytes]) -> bytes:
    """Bytes with up to three places cut, replaced or filled."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        new = draw(st.sampled_from(pieces) | st.binary(max_size=8))
        data = data[:place] + new + data[place + draw(one_of(12)) :]
    return data[: draw(st.integers(0, len(data)))] if draw(one_of(5)) == 1 else data


PATTERNS = {"(\\w+\\.?)+!": 4, "(": 4, "q_proj": 8, "x" * 5000: 1, "(a|": 2}
CONFIG_VALUES = VALUES | st.sampled_from(
    [*EXPRESSIONS, "LORA", "all-linear", PATTERNS, "pissa", "eva", [PATTERNS], "../x"]
)


def changed_json(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON file with other content, or with other bytes."""
    text = json.dumps(changed(draw, value, CONFIG_VALUES), indent=1).encode()
    return bitten(draw, text, PIECES) if draw(one_of(4)) == 1 else text


def changed_tensors(draw: st.DrawFn, data: bytes) -> bytes:
    """A safetensors file with another header, another length of the header, or other bytes."""
    if draw(one_of(3)) == 1:
        return bitten(draw, data, PIECES)
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    pick = st.sampled_from(
        ["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "NOPE", [2, 16], [0], [], [2**62, 4]]
    )
    text = json.dumps(changed(draw, header, VALUES | pick)).encode()
    count = draw(st.sampled_from([len(text)] * 6 + [0, 1, 2**40, 2**64 - 1]))
    return count.to_bytes(8, "little") + text + rest
