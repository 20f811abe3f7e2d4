"""Output that loses its reader: a closed terminal, and a program behind a pipe that ended."""

from __future__ import annotations

import errno
import io

import pytest

from lora_ga_cli.cli.lost_terminal import Lasting


class Failing(io.StringIO):
    """A stream that fails with an error of the system when it is written."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, "")

    def flush(self) -> None:
        raise OSError(self.number, "")


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE])
def test_what_nobody_reads_is_dropped(number: int) -> None:
    stream = Lasting(Failing(number))
    assert stream.write("line") == 4
    stream.flush()
    assert stream.write("another") == 7


def test_a_full_disk_is_still_an_error() -> None:
    with pytest.raises(OSError, match="28"):
        Lasting(Failing(errno.ENOSPC)).write("line")


def test_what_is_read_is_the_stream_itself() -> None:
    inner = io.StringIO()
    stream = Lasting(inner)
    stream.write("line")
    stream.flush()
    assert inner.getvalue() == "line"
    assert stream.getvalue() == "line"
    assert not stream.isatty()
