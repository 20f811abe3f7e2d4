"""Output that may lose its reader, which must not end a training before it has saved.

A terminal that is closed, and ``tee`` that Ctrl-C ends together with the command, make every later line fail. What
would be printed then is dropped, and the command goes on to its end, or to the checkpoint that the signal asked for.
"""

from __future__ import annotations

import errno
import sys
from typing import Any

LOST = (errno.EIO, errno.EPIPE)


class Lasting:
    """A text stream that drops what can no longer be written."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not self._lost:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._drop(error)
        return len(text)

    def flush(self) -> None:
        if not self._lost:
            try:
                self._stream.flush()
            except OSError as error:
                self._drop(error)

    def _drop(self, error: OSError) -> None:
        if error.errno not in LOST:
            raise error
        self._lost = True


def outlive_terminal() -> None:
    """Has this process outlive the readers of its standard output and standard error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, Lasting(stream))
