"""What was read and checked, where Hydra finds it: it opens no file of the configuration itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any
from unittest import mock

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import OmegaConf

from lora_ga_cli.config.documents import Document, merge, read_document
from lora_ga_cli.config.locations import PRIMARY, SCHEMA, Locations
from lora_ga_cli.config.options import default_values, defaults_of_type
from lora_ga_cli.config.schema import TYPED_SECTIONS
from lora_ga_cli.config.sources import content_of


@contextlib.contextmanager
def registered(locations: Locations, documents: Sequence[Document], *, hydras: bool = True) -> Iterator[None]:
    """Makes ``documents`` all that Hydra's store holds of the configuration.

    Args:
        hydras: with what the primary configuration sets of Hydra's own.
    """
    primary, _ = read_document(locations.primary, PRIMARY)
    repo = ConfigStore.instance().repo
    with mock.patch.dict(repo):
        for group in ("recipe", *locations.groups()):
            repo.pop(group, None)
        for node in (_schema(), _primary(primary, hydras)):
            repo[node.name] = node
        for document in documents:
            node = _typed_node(document, documents) if document.group in TYPED_SECTIONS else _node(document)
            repo.setdefault(document.group, {})[node.name] = node
        yield


@cache
def _schema() -> ConfigNode:
    return _stored(SCHEMA, default_values())


@lru_cache(maxsize=8)
def _primary(primary: Document, hydras: bool) -> ConfigNode:
    if hydras:
        return _stored(PRIMARY, {"defaults": primary.defaults, **primary.data})
    defaults = [entry for entry in primary.defaults if "hydra/" not in str(entry)]
    data = {name: value for name, value in primary.data.items() if name != "hydra"}
    return _stored(PRIMARY, {"defaults": defaults, **data})


@lru_cache(maxsize=512)
def _node(document: Document) -> ConfigNode:
    package = None if document.package else "_global_"
    return _stored(document.choice, {"defaults": document.order, **document.data}, document.group, package)


def _typed_node(document: Document, documents: Sequence[Document]) -> ConfigNode:
    """A choice of a section whose options depend on a type: the defaults of its type, then what the file and those it
    builds on say. Hydra shows and merges these as it does the defaults of all other options."""
    section = TYPED_SECTIONS[document.group]
    written = content_of(documents, document.group, document.choice)
    if section.name == "method":  # a method without a name is called as its file is
        name_path = ("method", "name")[len(document.package) :]
        merge(written, {"method": {"name": document.values.get(name_path, document.choice)}})
    options = written.setdefault(section.name, {})
    type_name = options.get(section.key, section.default) if isinstance(options, dict) else None
    content = {section.name: {section.key: type_name, **defaults_of_type(section, type_name)}}
    merge(content, written)
    return _stored(document.choice, content, document.group, "_global_")


def _stored(name: str, content: dict[str, Any], group: str | None = None, package: str | None = None) -> ConfigNode:
    node = OmegaConf.create(content)
    return ConfigNode(name=f"{name}.yaml", node=node, group=group, package=package, provider="loraga")
