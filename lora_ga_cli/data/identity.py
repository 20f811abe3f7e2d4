"""The identity of rows by content: tokenized ones, and what they are made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.remote import local_path
from lora_ga_cli.files import sha256_file
from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.remembered_digests import remembered_sha256

if TYPE_CHECKING:
    from lora_ga_cli.data.examples.base import Form
    from lora_ga_cli.data.row_formats.base import RowFormat

LENGTHS = {"length", "prompt_length"}
"""Columns of a row that follow from the others."""
SMALL = 2**24
"""Files of fewer bytes are hashed and read every time; of larger ones the hashes are remembered and the rows kept."""
KEY_LENGTH = 16
"""Characters of a key."""
LEFT_OUT = {
    "_tokenizer",
    "_in_target_context_manager",
    "deprecation_warnings",
    "files_loaded",
    "init_inputs",
    "init_kwargs",
    "name_or_path",
    "verbose",
    "vocab_file",
}
"""Attributes of a tokenizer that do not change what it computes, or whose content is in others."""


def rows_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hexadecimal SHA-256 over the model's inputs and labels of tokenized rows, in order.

    Every column counts, whatever form the rows have, except lengths and texts: a model reads no text.
    """
    digest = hashlib.sha256()
    for row in rows:
        read = {name: value for name, value in row.items() if name not in LENGTHS and not isinstance(value, str)}
        digest.update(sha256_json(read).encode())
    return digest.hexdigest()


def files_identity(files: Sequence[str], memo: Path) -> list[list[str]] | None:
    """Format and content of files, in order; None if one cannot be read.

    Args:
        memo: where the hashes of large files are remembered.

    Raises:
        DataError: a file on the hub cannot be fetched.
    """
    try:
        return [["".join(Path(file).suffixes[-2:]), _file_hash(local_path(file), memo)] for file in files]
    except OSError:
        return None


def _file_hash(file: Path, memo: Path) -> str:
    return sha256_file(file) if file.stat().st_size < SMALL else remembered_sha256(file, memo)


def tokenizer_identity(tokenizer: Any) -> str | None:
    """A hash of everything that a tokenizer of transformers computes with: vocabulary, rules, special tokens, template.

    None for a tokenizer that is (partly) Python code of a model's repository, or not of the library `tokenizers`: what
    such a tokenizer computes cannot be told from its content.
    """
    import tokenizers
    import transformers

    ours = type(tokenizer).__module__.partition(".")[0] == "transformers"
    if not ours or not getattr(tokenizer, "is_fast", False):
        return None
    written = tokenizer.backend_tokenizer.to_str()
    rules = written[written.index('"added_tokens"') :]  # before it stand the padding and truncation of the last call
    settings = {name: value for name, value in vars(tokenizer).items() if name not in LEFT_OUT}
    versions = [transformers.__version__, tokenizers.__version__, type(tokenizer).__qualname__]
    try:
        text = json.dumps([versions, settings], sort_keys=True, default=_token)
    except TypeError:
        return None
    return hashlib.sha256(f"{text}\n{rules}".encode()).hexdigest()


def _token(value: Any) -> str:
    if type(value).__name__ != "AddedToken":
        raise TypeError(f"{type(value).__name__} has no content")
    return repr(value)


def code_identity(form: type[Form] | type[RowFormat]) -> list[str] | None:
    """The name of a form or format of a row, and a hash of the code that reads rows; None for one that is not shipped,
    whose code may be anywhere."""
    if not form.__module__.startswith("lora_ga_cli."):
        return None
    return [f"{form.__module__}.{form.__qualname__}", code_hash()]


@cache
def code_hash() -> str:
    """A hash of the code that reads rows and makes examples of them."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
