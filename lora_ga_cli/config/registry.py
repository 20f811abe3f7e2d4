"""What was read and checked, where Hydra finds it: it opens no file of the configuration itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Any
from unittest import mock

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import OmegaConf

from lora_ga_cli.config.documents import Document, merge, nested, read_document
from lora_ga_cli.config.locations import PRIMARY, SCHEMA, Locations
from lora_ga_cli.config.options import default_values


@contextlib.contextmanager
def registered(locations: Locations, documents: Iterable[Document], *, hydras: bool = True) -> Iterator[None]:
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
            node = _node(document)
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
    # a method may be what one of the whole configuration builds on, and still sets its own group
    of_group = "_global_.method" if document.group == "method" else None
    package = of_group if document.package else "_global_"
    return _stored(document.choice, {"defaults": document.order, **_named(document)}, document.group, package)


def _named(document: Document) -> dict[str, Any]:
    """A file's content; a method without a name is called as its file is."""
    if document.group != "method":
        return document.data
    content: dict[str, Any] = nested(("method", "name")[len(document.package) :], document.choice)
    merge(content, document.data)
    return content


def _stored(name: str, content: dict[str, Any], group: str | None = None, package: str | None = None) -> ConfigNode:
    node = OmegaConf.create(content)
    return ConfigNode(name=f"{name}.yaml", node=node, group=group, package=package, provider="loraga")
