"""Uploads a run's result to the Hugging Face hub, with a model card, and with nothing of the machine it was made on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lora_ga_cli.config.safety import READ_PATHS, WRITE_PATHS
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import Fault, InvalidInput, UserError
from lora_ga_cli.json_files import read_json
from lora_ga_cli.lora.export import CONFIG_FILE
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.methods.loading import ADAPTER_FILES
from lora_ga_cli.model.written import MERGE_AGAIN, MERGED_MARK, check_model
from lora_ga_cli.paths import resolve_path
from lora_ga_cli.report.card import Published, card
from lora_ga_cli.report.console import say, size, step, warn
from lora_ga_cli.report.front_matter import hub_base
from lora_ga_cli.report.tables import print_table
from lora_ga_cli.stages.trained import identity_of_run
from lora_ga_cli.training.result_files import MODEL_FILES, TOKENIZER_FILES
from lora_ga_cli.training.run_files import check_result
from lora_ga_cli.training.run_folder import RunFolder

MERGED_FILES = (*MODEL_FILES, "*.safetensors")
"""A method may merge into more than the model, such as a file of quantized weights."""
TEXTS = (".json", ".jinja", ".md", ".txt")
LARGEST_TEXT = 50 * 2**20
"""Bytes of a file above which no path is looked for in it: it is a vocabulary."""
NO_NAME_GOES_ON = r"(?![\w-]|\.\w)"
"""What follows a path that is complete: another folder or file may begin with the same letters."""
CARD, FIGURE = "README.md", "loss.png"
SCORE_AGAIN = "score the run again (loraga eval), or remove this file"


class Hub(Protocol):
    """The part of `huggingface_hub.HfApi` that is used."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any: ...

    def create_commit(self, repo_id: str, operations: Any, *, commit_message: str) -> Any: ...


@dataclass(frozen=True)
class PushOptions:
    """What is uploaded, and how.

    Args:
        merged: the folder of a merged model, which is uploaded in place of the adapter.
        base_model: the base's name on the hub, where the run does not know it.
        public: everyone may read a repository that is created now.
        dry_run: show what would be uploaded, and upload nothing.
    """

    merged: Path | None = None
    base_model: str | None = None
    public: bool = False
    dry_run: bool = False


def push(
    run: RunFolder, config: Config, repository: str, options: PushOptions, make_hub: Callable[[], Hub] | None = None
) -> dict[str, Any]:
    """Uploads a finished run's adapter or model in one commit.

    Args:
        repository: ``ORG/NAME``, which is created if there is none.
        make_hub: makes the connection to the hub; None takes the user's own.

    Returns:
        The repository, its address, the files with their sizes in bytes, and the card.

    Raises:
        InvalidInput: all that is wrong with names and files.
        UserError: the hub cannot be reached, or refuses.
    """
    files, text = _prepared(run, config, repository, options)
    sizes = {name: len(item) if isinstance(item, bytes) else item.stat().st_size for name, item in files.items()}
    visibility = "public" if options.public else "private"
    found = {"repository": repository, "visibility": visibility, "files": sizes, "card": text}
    if options.dry_run:
        print_table(["file", "size"], [[name, size(count)] for name, count in sizes.items()], ["size"])
        say()
        say(text)
        step("push", f"nothing was uploaded; {repository} would get {size(sum(sizes.values()))}, {visibility} if new")
        return found | {"uploaded": False}
    step("push", f"{len(files)} files, {size(sum(sizes.values()))}, to {repository} ({visibility} if it is new)")
    address = _upload(repository, files, f"Upload {run.path.name} with loraga", options, make_hub or _own_hub)
    step("push", f"uploaded: {address}")
    return found | {"uploaded": True, "address": address}


def _own_hub() -> Hub:
    from huggingface_hub import HfApi

    return HfApi(library_name="loraga")


def _upload(
    repository: str,
    files: Mapping[str, bytes | Path],
    message: str,
    options: PushOptions,
    make_hub: Callable[[], Hub],
) -> str:
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=item) for name, item in files.items()]
    try:
        hub = make_hub()
        hub.create_repo(repository, private=not options.public, exist_ok=True)
        hub.create_commit(repository, operations, commit_message=message)
    except Exception as error:
        if not isinstance(error, OSError | ValueError) and "httpx" not in type(error).__module__:
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"the hub did not take {repository}: {reason} (hf auth login, or the variable HF_TOKEN, names you; the "
            "token needs the right to write)"
        ) from error
    return f"https://huggingface.co/{repository}"


def _prepared(
    run: RunFolder, config: Config, repository: str, options: PushOptions
) -> tuple[dict[str, bytes | Path], str]:
    """Every file by its name in the repository, and the text of the card."""
    faults = [*_name_faults("ORG/NAME", repository)]
    base = options.base_model or hub_base(run.manifest)
    if options.base_model is not None:
        faults += _name_faults("--base-model", options.base_model)
    if base is None:
        what = f"{run.path} was trained on {config.model.path}, which has no name on the hub"
        faults.append(Fault("base model", what, "--base-model ORG/NAME names what readers have to load"))
    if options.merged is None:
        check_result(run)
    else:
        check_model(options.merged, weights=False)
        check_model(options.merged, weights=True)
    folder = options.merged or run.path
    adapter = options.merged is None and method_of(config).output.is_adapter
    own = ADAPTER_FILES if adapter else MODEL_FILES if options.merged is None else MERGED_FILES
    patterns = (*own, *TOKENIZER_FILES)
    chosen = {file.name: file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()}
    if not any(name.endswith(".safetensors") for name in chosen):
        what = "holds no adapter" if adapter else "holds no model"
        hint = "loraga merge RUN --output FOLDER writes one" if options.merged is not None else ""
        faults.append(Fault(str(folder), what, hint))
    elif options.merged is not None and not _is_of(run, folder):
        what = f"does not tell that it is the merged model of {run.path}, whose card would go up with it"
        faults.append(Fault(str(folder), what, f"loraga merge {run.path} --output FOLDER writes one that does"))
    if faults or base is None:
        raise InvalidInput(faults)
    files: dict[str, bytes | Path] = {name: _published(file, base) for name, file in sorted(chosen.items())}
    text = _card(run, config, repository, Published(base, options.merged is not None, _results(run)))
    files[CARD] = text.encode()
    if run.figure_file.is_file() and run.figure_file.stat().st_size:
        files[FIGURE] = run.figure_file
    if found := _paths_in(files, run, config):
        raise InvalidInput(found)
    return files, text


def _is_of(run: RunFolder, folder: Path) -> bool:
    """Whether a folder is a merged model of a run."""
    mark = folder / MERGED_MARK
    return mark.is_file() and read_json(mark, MERGE_AGAIN).get("run") == identity_of_run(run)


def _name_faults(where: str, name: str) -> list[Fault]:
    """What is wrong with the name of a repository."""
    hint = "an organization or user, a slash, and a name of letters, digits and - _ ."
    try:
        validate_repo_id(name)
    except HFValidationError:
        return [Fault(where, f"{name} cannot be the name of a repository", hint)]
    return [] if name.count("/") == 1 else [Fault(where, f"{name} names no organization or user", hint)]


def _published(file: Path, base: str) -> bytes | Path:
    """A file as it is uploaded: descriptions of adapters and models name the base as others can load it."""
    changes = {CONFIG_FILE: "base_model_name_or_path", "config.json": "_name_or_path"}
    if file.name not in changes:
        return file
    content = read_json(file)
    if changes[file.name] in content:
        content[changes[file.name]] = base
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _results(run: RunFolder) -> list[dict[str, Any]]:
    """The stored results of the run's evaluations."""
    files = [run.path / "eval.json", *sorted((run.path / "eval").glob("*.json"))]
    return [content for file in files if file.is_file() and "values" in (content := read_json(file, SCORE_AGAIN))]


def _card(run: RunFolder, config: Config, repository: str, published: Published) -> str:
    """The card for the hub; or the text that a person made of the run's card, if somebody did."""
    written = run.manifest.get("card_sha256")
    if run.card_file.is_file() and written is not None and not published.merged:
        own = run.card_file.read_bytes()
        if hashlib.sha256(own).hexdigest() != written:
            warn(f"{run.card_file} was changed by hand, and is uploaded as it is")
            return own.decode("utf-8")
    return card(repository, config, run.manifest, published)


def _paths_in(files: Mapping[str, bytes | Path], run: RunFolder, config: Config) -> list[Fault]:
    """A fault for every text file that names a folder of this machine, or a file that the configuration names."""
    here = {Path.home(), Path.cwd(), run.began_in, run.path.resolve(), Path(str(run.manifest["base"]))}
    here |= set(_configured_paths(config))
    folders = sorted(str(folder) for folder in here if folder.is_absolute() and len(folder.parts) > 1)
    patterns = {folder: re.compile(re.escape(folder) + NO_NAME_GOES_ON) for folder in folders}
    faults = []
    for name, item in files.items():
        if Path(name).suffix not in TEXTS:
            continue
        if isinstance(item, Path) and item.stat().st_size > LARGEST_TEXT:
            continue
        text = (item if isinstance(item, bytes) else item.read_bytes()).decode("utf-8", errors="replace")
        found = next((folder for folder, pattern in patterns.items() if pattern.search(text)), None)
        if found is not None:
            what = "file" if Path(found).is_file() else "folder"
            faults.append(Fault(name, f"names {found}, a {what} of this machine", "remove it from the file"))
    return faults


def _configured_paths(config: Config) -> Iterator[Path]:
    """The paths of what a configuration reads and writes; of a pattern of files, the folder before it."""
    stored = config.model_dump(mode="json")
    for option in (*READ_PATHS, *WRITE_PATHS):
        value: Any = stored
        for name in option:
            value = value.get(name) if isinstance(value, Mapping) else None
        for text in _texts(value):
            path = resolve_path(text)
            yield next((folder for folder in (path, *path.parents) if not has_magic(str(folder))), path)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
