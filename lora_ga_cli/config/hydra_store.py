"""Hydra's store of configurations, from which it composes those of a sweep. Nothing of ours stays in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from lora_ga_cli.config.documents import Document, merge
from lora_ga_cli.config.locations import PRIMARY, SCHEMA
from lora_ga_cli.config.options import default_values, defaults_of_type
from lora_ga_cli.config.origins import Sources
from lora_ga_cli.config.schema import TYPED_SECTIONS


@contextlib.contextmanager
def restored_store() -> Iterator[ConfigStore]:
    """Hydra's store of configurations; afterwards it is as it was before."""
    store = ConfigStore.instance()
    before = dict(store.repo)
    try:
        yield store
    finally:
        store.repo.clear()
        store.repo.update(before)


@contextlib.contextmanager
def stored(sources: Sources) -> Iterator[None]:
    """Puts what was read into Hydra's store, which then holds nothing else of the configuration."""
    with restored_store() as store:
        for group in ("recipe", *sources.locations.groups()):
            store.repo.pop(group, None)
        _put(store, SCHEMA, default_values())
        _put(store, PRIMARY, {"defaults": sources.primary.defaults, **sources.primary.data})
        types = {} if sources.sweeps else sources.types
        for document in sources.documents:
            if document.group in TYPED_SECTIONS:
                content = _with_type(document, sources, types.get(document.group))
                _put(store, document.choice, content, document.group, "_global_")
            else:
                package = None if document.package else "_global_"
                _put(store, document.choice, {"defaults": document.order, **document.data}, document.group, package)
        yield


def _put(
    store: ConfigStore, name: str, content: dict[str, Any], group: str | None = None, package: str | None = None
) -> None:
    store.store(name, OmegaConf.create(content), group, package, provider="loraga")


def _with_type(document: Document, sources: Sources, type_name: object) -> dict[str, Any]:
    """A choice of a section whose options depend on a type: the defaults of its type, then what the file and those it
    builds on set.

    Args:
        type_name: the type that the configuration has; None for the file's own.
    """
    section = TYPED_SECTIONS[document.group]
    written = sources.content_of_choice(document.group, document.choice)
    options = written.get(section.name, {})
    if type_name is None:
        type_name = options.get(section.key, section.default) if isinstance(options, dict) else None
    content = {section.name: {section.key: type_name, **defaults_of_type(section, type_name)}}
    merge(content, written)
    return content
