"""Messages between the candidate program and the grader, and the verdict that the grader gives."""

from __future__ import annotations

import io
import json
import math
import random
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from typing import Any

import pytest

from lora_ga_cli.evaluation.sandbox import grader, protocol

PROMPT = "def add_two(x):\n    '''Adds two.'''\n"
TEST = "def check(candidate):\n    for x in (1, 20, -5):\n        assert candidate(x) == x + 2\n"


class Color(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


class Name(str):
    def __str__(self) -> str:
        return "other"


Point = namedtuple("Point", ["x", "y"])
PLAIN: list[Any] = [
    None,
    True,
    False,
    0,
    -(10**400),
    2**63,
    1.5,
    -0.0,
    math.inf,
    1 + 2j,
    "",
    "naïve \ud800 \n",
    b"\x00\xff",
    [],
    [[1], (2, [3])],
    (),
    (1,),
    {1, 2},
    {},
    {(1, 2): {"a": None}, 3: [True]},
    range(1, 9, 2),
    Decimal("1.10"),
    Fraction(1, 3),
]


def sent_and_read(value: Any) -> Any:
    file = io.BytesIO()
    protocol.write(file, value)
    file.seek(0)
    return protocol.read(file)


class TestMessages:
    @pytest.mark.parametrize("value", PLAIN, ids=lambda value: str(value)[:20].encode("ascii", "replace").decode())
    def test_plain_values_arrive_as_they_are(self, value: Any) -> None:
        found = sent_and_read(value)
        assert found == value
        assert type(found) is type(value)
        assert repr(found) == repr(value)

    def test_nan_arrives(self) -> None:
        assert math.isnan(sent_and_read(math.nan))

    def test_nested_values_of_all_kinds_arrive(self) -> None:
        draw = random.Random(0)

        def build(depth: int) -> Any:
            kind = draw.randrange(4) if depth else 4
            items = [build(depth - 1) for _ in range(draw.randrange(4))] if depth else []
            return [items, tuple(items), {draw.random(): item for item in items}, {"k": items}, draw.choice(PLAIN)][
                kind
            ]

        for _ in range(200):
            value = build(draw.randrange(5))
            assert repr(sent_and_read(value)) == repr(value)

    @pytest.mark.parametrize(
        ("value", "plain"),
        [
            (Size.SMALL, 1),
            (Name("own"), "own"),
            (Point(1, 2), (1, 2)),
            (Counter("aab"), {"a": 2, "b": 1}),
            (OrderedDict(a=1), {"a": 1}),
            ({1: 2}.keys(), {1}),
            (frozenset({1}), {1}),
            (bytearray(b"x"), b"x"),
        ],
    )
    def test_a_subclass_arrives_as_what_it_equals(self, value: Any, plain: Any) -> None:
        assert value == plain
        assert sent_and_read(value) == plain
        assert type(sent_and_read(value)) is type(plain)

    @pytest.mark.parametrize("value", [deque([1, 2]), iter([1, 2]), map(int, "12"), {1: 1, 2: 2}.values()])
    def test_other_iterables_equal_nothing_and_can_be_iterated(self, value: Any) -> None:
        found = sent_and_read(value)
        assert found != [1, 2]
        assert tuple(found) == (1, 2)
        assert len(found) == 2

    @pytest.mark.parametrize("value", [object(), Color.RED, len, lambda: 1, ValueError("x")])
    def test_anything_else_equals_nothing(self, value: Any) -> None:
        found = sent_and_read(value)
        assert isinstance(found, protocol.Foreign)
        assert all(found != other for other in PLAIN)

    @pytest.mark.parametrize(
        "line",
        [
            b"",
            b"[1",
            b"[1]",
            b"nothing\n",
            b"\xff\xfe\n",
            b'{"unknown": 1}\n',
            b"{}\n",
            b'{"int": "1", "tuple": []}\n',
            b'{"int": 1}\n',
            b'{"int": "zz"}\n',
            b'{"dict": [1]}\n',
            b'{"dict": [[[], 1]]}\n',
            b'{"set": [[]]}\n',
            b'{"set": 3}\n',
            b'{"complex": ["a"]}\n',
            b'{"range": [1.5]}\n',
            b'{"range": [1, 2, 0]}\n',
            b'{"Decimal": "x"}\n',
            b'{"Decimal": [1]}\n',
            b'{"Fraction": "1/0"}\n',
            b'{"bytes": "0"}\n',
            b"[" * 100_000 + b"]" * 100_000 + b"\n",
            b'{"tuple": [' * 20_000 + b"]}" * 20_000 + b"\n",
            b"1" * 5000 + b"\n",
            b" " * (protocol.MAX_BYTES + 10) + b"\n",
        ],
        ids=lambda line: line[:12].decode(errors="replace"),
    )
    def test_a_line_that_is_not_a_message_is_refused(self, line: bytes) -> None:
        with pytest.raises(protocol.BadMessage):
            protocol.read(io.BytesIO(line))

    def test_random_bytes_are_a_value_or_are_refused(self) -> None:
        draw = random.Random(1)
        whole = json.dumps(protocol.pack(list(PLAIN))).encode()
        for _ in range(2000):
            damaged = bytearray(whole)
            for _ in range(draw.randrange(1, 6)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            try:
                protocol.read(io.BytesIO(bytes(damaged) + b"\n"))
            except protocol.BadMessage:
                continue

    def test_values_too_long_or_deep_are_not_sent(self) -> None:
        deep: list[Any] = []
        deep.append(deep)
        for value in (deep, "x" * protocol.MAX_BYTES):
            with pytest.raises(protocol.BadMessage, match="too"):
                protocol.write(io.BytesIO(), value)


class TestGrader:
    @pytest.mark.parametrize(
        ("lines", "verdict"),
        [
            (['["ready"]', '["value", 3]', '["value", 22]', '["value", -3]'], "passed"),
            (['["ready"]', '["value", 3]', '["value", 22]'], "gone"),
            ([], "gone"),
            (['["ready"]', '["value", true]'], "wrong answer"),
            (['["ready"]', '["ready"]'], "exception"),
            (['["ready"]', '["raised", "MemoryError", ""]'], "memory"),
            (['["raised", "AssertionError", ""]'], "exception"),
            (['["raised", 1, 2]'], "exception"),
            (['["value"]', "[[]]", "{}"], "exception"),
            (["passed"], "exception"),
            (['["ready"]', '["value", {"foreign": "Equal"}]'], "wrong answer"),
            (['["ready"]', '["value", {"items": [3]}]'], "wrong answer"),
        ],
    )
    def test_only_right_answers_pass(self, lines: list[str], verdict: str) -> None:
        answers = io.BytesIO("".join(line + "\n" for line in lines).encode())
        task = {"prompt": PROMPT, "test": TEST, "entry_point": "add_two"}
        assert grader.run_tests(task, grader.CandidateFunction(answers, io.BytesIO()))["verdict"] == verdict
