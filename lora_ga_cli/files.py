"""Paths, atomic writes and checksums. No file or folder is ever seen half written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

from lora_ga_cli.errors import DamagedFile, UserError

BUNDLED = "bundled:"
PACKAGE = "package:"
ASSETS = Path(__file__).parent / "assets"
CACHE_VARIABLES = (
    "XDG_CACHE_HOME",
    "LORAGA_CACHE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ASSETS_CACHE",
    "HF_XET_CACHE",
    "HF_DATASETS_CACHE",
    "HF_MODULES_CACHE",
    "TORCH_HOME",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "MPLCONFIGDIR",
)
"""Environment variables of loraga and its libraries that name a folder of a cache."""
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system says where writing is not allowed."""
LEAST_ROOM = 2**20
"""Bytes that have to be free on a disk before a run begins."""
LONGEST_NAME = 200
"""Bytes of a name. File systems take 255, and temporary and replaced folders add to the name."""
DIGEST = "content_sha256"
"""The first key of a JSON file that `write_json` wrote with a digest: the SHA-256 of all bytes after its line."""
_DIGEST_KEY = b'{\n  "' + DIGEST.encode() + b'": "'
_HEXADECIMAL = re.compile(rb"[0-9a-f]{64}")
CLOCK_RESOLUTION = 2.0
"""Seconds within which a file system may give two changes of a file the same time."""


def resolve_path(path: str | Path) -> Path:
    """The file or folder that ``path`` names.

    ``bundled:X`` is X in loraga's assets, ``package:NAME/X`` is X in another Python package (which is not imported),
    and ``~`` is the home folder.

    Raises:
        UserError: X is outside the assets.
    """
    text = str(path)
    if text.startswith(PACKAGE):
        name, _, inside_package = text.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or spec.origin is None:
            return Path(f"no-package-{name}") / inside_package
        return Path(spec.origin).parent / inside_package
    if text.startswith(BUNDLED):
        inside = ASSETS / text.removeprefix(BUNDLED)
        if not Path(os.path.normpath(inside)).is_relative_to(ASSETS):
            raise UserError(f"{text} leaves the files that come with loraga")
        return inside
    try:
        return Path(text).expanduser()
    except RuntimeError:  # `~name` of a user that there is not
        return Path(text)


def one_name(text: str) -> str:
    """Checks that ``text`` can be the name of a file or folder in any folder, and returns it.

    Raises:
        ValueError: it is empty, hidden, contains a separator, or is too long.
    """
    if (length := len(text.encode("utf-8", "surrogatepass"))) > LONGEST_NAME:
        raise ValueError(f"is too long: {length} bytes, and a folder's name may have {LONGEST_NAME}")
    if not text or text.startswith((".", "~")) or any(sign in text for sign in "/\\:\0"):
        raise ValueError("must be one plain name: no / \\ : and no dot in front")
    return text


def cache_root(configured: str | None) -> Path:
    """The folder of the cache that is written: as configured, else ``$LORAGA_CACHE``, else ``~/.cache/loraga``.

    If the first of these may only be read (see `shared_cache`), it is the next one that can be written.
    """
    first, *others = _cache_places(configured)
    if not may_only_be_read(first):
        return first
    return next((place for place in others if folder_problem(place) is None), first)


def shared_cache(configured: str | None) -> Path | None:
    """The folder of the cache that is read besides: the first choice, if it may only be read, such as a team's."""
    first = _cache_places(configured)[0]
    return first if first != cache_root(configured) else None


def _cache_places(configured: str | None) -> list[Path]:
    """The folders that may be the cache, those that are preferred first."""
    chosen = [resolve_path(text) for text in (configured, os.environ.get("LORAGA_CACHE")) if text]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # the XDG specification: what is empty or relative counts as not set
    return [*chosen, (folder if folder.is_absolute() else Path.home() / ".cache") / "loraga"]


def may_only_be_read(folder: Path) -> bool:
    """Whether a folder exists and can be read, and the system forbids to write into it."""
    if not os.access(folder, os.R_OK | os.X_OK) or not folder.is_dir():
        return False
    problem = folder_problem(folder)
    return problem is not None and problem.errno in FORBIDDEN


def forget_empty_variables() -> None:
    """Removes environment variables that name a cache folder and are empty, so that they count as not set.

    Libraries would otherwise read an empty one as the current folder, and write their caches into it.
    """
    for name in CACHE_VARIABLES:
        if os.environ.get(name) == "":
            del os.environ[name]


def folder_problem(folder: Path) -> OSError | None:
    """Why nothing can be written into a folder, which need not exist yet; None if nothing speaks against it.

    Nothing is created.
    """
    for path in (folder.absolute(), *folder.absolute().parents):
        try:
            if not path.is_dir():
                if path.exists():
                    return OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                path.stat()
        except NotADirectoryError:
            continue  # a part of the path is a file, which is looked at next
        except FileNotFoundError:
            continue
        except OSError as error:
            return error
        if not os.access(path, os.W_OK | os.X_OK):
            code = errno.EROFS if _is_on_read_only_disk(path) else errno.EACCES
            return OSError(code, os.strerror(code))
        return with_room(errno.ENOSPC, path) if shutil.disk_usage(path).free < LEAST_ROOM else None
    return None


def _is_on_read_only_disk(path: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def with_room(code: int, folder: Path) -> OSError:
    """The system's error about a full disk, with the bytes that are free.

    Args:
        code: of the error.
        folder: a folder on the disk, which need not exist yet.
    """
    return OSError(code, f"{os.strerror(code)}, {size(disk_room(folder))} are free now")


def size(count: float) -> str:
    """A number of bytes in binary units: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


TEMPORARY = re.compile(r"\.(.+)\.loraga-[a-z0-9_]{8}\.(tmp|old)")
"""Names of the temporary files and folders that are made here, and of no others: what was left is removed."""


def final_path(path: str | Path) -> Path:
    """The path without the names of temporary files and folders, which mean nothing to a user."""
    found = ((part, TEMPORARY.fullmatch(part)) for part in Path(path).parts)
    return Path(*(match.group(1) if match else part for part, match in found))


def disk_room(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which need not exist yet."""
    place = folder.absolute()
    return shutil.disk_usage(next(item for item in (place, *place.parents) if item.exists())).free


@contextlib.contextmanager
def _temporary(path: Path, *, folder: bool) -> Iterator[Path]:
    """Yields a new file or folder next to ``path``, and removes it at the end if it is still there.

    What killed processes left in this folder is removed too. The kernel lets go of a process's locks when it ends, so
    what is not locked belongs to nobody.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path.parent)
    prefix, suffix = f".{path.name}.loraga-", ".tmp"
    with contextlib.ExitStack() as stack:
        while True:
            if folder:
                temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=path.parent))
                lock = os.open(temporary, os.O_RDONLY) if fcntl is not None else None
            else:
                lock, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
                temporary = Path(name)
            if lock is not None:
                stack.callback(os.close, lock)
            # until it is locked, another thread or process may take it for what a killed one left, and remove it
            if (lock is None or _locked(lock) is not False) and temporary.exists():
                break
            _remove(temporary)
        try:
            yield temporary
        finally:
            _remove(temporary)


def _locked(file: int) -> bool | None:
    """Locks an open file or folder. Returns whether it could, and None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_left(folder: Path) -> None:
    """Removes temporary files and folders of processes that were killed, where it is allowed."""
    with contextlib.suppress(OSError), os.scandir(folder) as items:
        left = [item for item in items if (match := TEMPORARY.fullmatch(item.name)) and _is_unused(item, match)]
    for item in left:
        with contextlib.suppress(OSError):
            file = os.open(item.path, os.O_RDONLY)
            try:
                if _locked(file):
                    _remove(Path(item.path))
            finally:
                os.close(file)


def _is_unused(item: os.DirEntry[str], match: re.Match[str]) -> bool:
    """Whether a file or folder with the name of a temporary one is not the only copy of something."""
    replaced = match.group(2) == "old"
    return fcntl is not None and (not replaced or Path(item.path).with_name(match.group(1)).exists())


def _remove(item: Path) -> None:
    if item.is_dir():
        shutil.rmtree(item)
    else:
        item.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to ``path``; on success it is renamed to ``path``, on any error it is removed."""
    with _temporary(path, folder=False) as temporary:
        yield temporary
        _sync(temporary)
        follow_umask(temporary)
        temporary.replace(path)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder next to ``path``; on success it replaces ``path``, on any error it is removed."""
    with _temporary(path, folder=True) as temporary:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        follow_umask(temporary)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.loraga-", suffix=".old", dir=path.parent))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)


def follow_umask(path: Path) -> None:
    """Makes a file, or a folder with all that is in it, as readable as the user's umask says.

    (tempfile makes private files, and so do some versions of safetensors, whatever the umask is.)
    """
    umask = os.umask(0)  # there is no way to read it without setting it
    os.umask(umask)
    for item in (path, *(path.rglob("*") if path.is_dir() else ())):
        if not item.is_symlink():
            item.chmod((0o777 if item.is_dir() else 0o666) & ~umask)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:  # Windows syncs only files that are open for writing
        os.fsync(file.fileno())


def write_json(path: Path, value: Any, *, digest: bool = False) -> None:
    """Writes ``value`` as indented JSON, atomically.

    Args:
        digest: put a digest of the content before it, which `read_json` checks. The value is an object then.
    """
    data = text_of_json(value, digest=digest).encode("utf-8")
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def text_of_json(value: Any, *, digest: bool = False) -> str:
    """The text that `write_json` writes."""
    text = json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) + "\n"
    return _with_digest(text.encode().removeprefix(b"{").removeprefix(b"\n")).decode() if digest else text


def read_json(path: Path, mend: str = "") -> Any:
    """The value in a JSON file. The digest that `write_json` may have written is checked, and is no part of the value.

    Args:
        mend: what makes the file anew, for the message.

    Raises:
        FileNotFoundError
        DamagedFile: it is no JSON, or does not have the bytes that were written.
    """
    data = path.read_bytes()
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, f"is damaged (no complete JSON: {json_problem(error)})", mend) from error
    begin = len(_DIGEST_KEY)
    # 64 digits behind another key are a digest whose key is damaged
    if not data.startswith(_DIGEST_KEY) and not _HEXADECIMAL.fullmatch(data[begin : begin + 64]):
        return value
    rest = data[begin + 64 :].removeprefix(b'"').removeprefix(b",").removeprefix(b"\n")
    if data != _with_digest(rest):
        raise DamagedFile(path, "is damaged (its content is not what its digest says)", mend)
    del value[DIGEST]
    return value


JSON_PROBLEMS = {
    "Expecting ',' delimiter": "a comma is missing",
    "Expecting ':' delimiter": "a colon is missing",
    "Expecting property name": "a name in double quotes is missing",
    "Illegal trailing comma": "a comma stands before the end",
    "Expecting value": "a value is missing",
    "Unterminated string": "a text has no closing quote; it begins",
    "Invalid control character": "a text holds a line break or a control character, which JSON writes as \\n or \\u…,",
    "Invalid \\": "a backslash begins no escape of JSON",
    "Extra data": "the text goes on after the end",
    "Unexpected UTF-8 BOM": "a byte order mark stands",
}
"""What is wrong with a text, by how Python's message begins, in words that a place follows."""


def json_problem(error: ValueError | RecursionError, *, line: bool = True) -> str:
    """Why a text is no JSON.

    Args:
        error: of `json.loads`, or of decoding its text.
        line: name the line too, and not only the column.
    """
    if isinstance(error, json.JSONDecodeError):
        words = next((words for begin, words in JSON_PROBLEMS.items() if error.msg.startswith(begin)), error.msg)
        return f"{words} at " + (f"line {error.lineno}, " if line else "") + f"column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _with_digest(rest: bytes) -> bytes:
    """The bytes of a JSON object, from those after its first line."""
    comma = b"" if rest == b"}\n" else b","
    return _DIGEST_KEY + hashlib.sha256(rest).hexdigest().encode() + b'"' + comma + b"\n" + rest


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(file: Path, memo: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, remembered in ``memo`` (JSON) by path, size and time of change.

    A damaged memo is begun again. A file that has just changed is not remembered, since it may change once more within
    the resolution of the file system's clock.
    """
    stat = file.stat()
    entry = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    digests = _remembered(memo)
    if entry in digests:
        return digests[entry]
    digest = sha256_file(file)
    if time.time() - stat.st_mtime > CLOCK_RESOLUTION:
        from filelock import FileLock

        memo.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(memo.with_name(f".{memo.name}.lock")):  # another process may have added to it meanwhile
            write_json(memo, _remembered(memo) | {entry: digest}, digest=True)
    return digest


def _remembered(memo: Path) -> dict[str, str]:
    with contextlib.suppress(FileNotFoundError, DamagedFile):
        found = read_json(memo)
        return found if isinstance(found, dict) else {}
    return {}


def drop_damaged(memo: Path, notify: Callable[[str], None]) -> None:
    """Removes what `remembered_sha256` remembers if it is damaged, with a message."""
    try:
        read_json(memo)
    except FileNotFoundError:
        return
    except DamagedFile as error:
        notify(f"{error}; the digests in it are computed again")
        with contextlib.suppress(OSError):  # a cache that cannot be written
            memo.unlink()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def set_aside(path: Path, why: str) -> Path:
    """Renames ``path`` to ``path.why``, ``path.why-2``, …; returns the new name."""
    for number in range(1, 10_000):
        new = path.with_name(f"{path.name}.{why}" + (f"-{number}" if number > 1 else ""))
        if not new.exists():
            path.replace(new)
            return new
    raise OSError(f"too many folders named {path.name}.{why}-N in {path.parent}")


def file_sizes(folder: Path) -> dict[str, int]:
    """Name and size in bytes of every file below ``folder``."""
    return {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
