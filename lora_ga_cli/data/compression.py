"""Opens files as bytes in UTF-8: compressed files are decompressed, and UTF-16 is converted, chunk by chunk."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

CHUNK = 2**16
"""Bytes that are read at once."""
UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
"""Encodings by the byte order mark that a file begins with. PowerShell's ``>`` and ``Out-File`` write the first."""


class DamagedFile(Exception):
    """A compressed file that is incomplete or changed, or a file that is not in the encoding of its mark.

    Args:
        what: what is wrong with it.
        hint: the next step.
    """

    def __init__(self, what: str, hint: str = "fetch it again"):
        super().__init__(what)
        self.hint = hint


def _gunzipped(raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.open(raw, "rb"))


def _unzstd(raw: BinaryIO) -> BinaryIO:
    return _buffered(_frames(raw))


def _buffered(chunks: Iterator[bytes]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Converted(chunks)))


OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": _gunzipped, ".zst": _unzstd}
"""What decompresses a file, by its last extension."""


def compression_of(name: str) -> str:
    """``.gz``, ``.zst``, or nothing for a file that is not compressed."""
    return next((suffix for suffix in OPENERS if name.lower().endswith(suffix)), "")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """A file, decompressed and without a byte order mark; and the name of the encoding that it is converted from, which
    is empty for bytes that stay as they are.

    Raises:
        DamagedFile: while it is read; see there.
        OSError: it cannot be read.
    """
    suffix = compression_of(path.name)
    with path.open("rb") as raw:
        try:
            file: Any = OPENERS[suffix](raw) if suffix else raw
            head = file.peek(4)[:4]
            encoding = "" if head == codecs.BOM_UTF32_LE else UTF_16.get(head[:2], "")
            file.read(2 if encoding else len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
            yield (_buffered(_recoded(file, encoding)), "UTF-16") if encoding else (file, "")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DamagedFile(f"damaged gzip file: {error}") from error


class _Converted(io.RawIOBase):
    """Bytes that are made of other bytes, chunk by chunk."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks = chunks
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._pending = chunk
        part, self._pending = self._pending[: len(buffer)], self._pending[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _frames(raw: BinaryIO) -> Iterator[bytes]:
    """The decompressed bytes of a Zstandard file, which consists of one frame or several.

    The library's own reader of streams ends without an error where a file is cut off.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame, begun = decompressor.decompressobj(), False
    while chunk := raw.read(CHUNK):
        while chunk:
            try:
                yield frame.decompress(chunk)
            except zstandard.ZstdError as error:
                what = str(error).rpartition("error: ")[2]
                raise DamagedFile(f"damaged Zstandard file: {what}") from error
            begun = not frame.eof
            chunk = frame.unused_data if frame.eof else b""
            frame = decompressor.decompressobj() if frame.eof else frame
    if begun:
        raise DamagedFile("damaged Zstandard file: it ends in the middle")


def _recoded(file: BinaryIO, encoding: str) -> Iterator[bytes]:
    """The bytes of a text file in UTF-8."""
    decoder = codecs.getincrementaldecoder(encoding)()
    while True:
        chunk = file.read(CHUNK)
        try:
            yield decoder.decode(chunk, final=not chunk).encode()
        except UnicodeDecodeError as error:
            what = f"its byte order mark says {encoding.upper()}, but it is not: {error.reason}"
            raise DamagedFile(what, "save it as UTF-8") from error
        if not chunk:
            return
