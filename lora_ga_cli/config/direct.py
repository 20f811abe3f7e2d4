"""One configuration by Hydra's own steps, without the configuration of Hydra itself, which takes most of the time."""

from __future__ import annotations

import copy
from functools import lru_cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from lora_ga_cli.config.command_line import parse_override
from lora_ga_cli.config.documents import Document
from lora_ga_cli.config.locations import PRIMARY, Locations
from lora_ga_cli.config.registry import registered
from lora_ga_cli.config.sources import Sources


class _Repository(ConfigRepository):
    """Hydra's, which reads every configuration once. Its own one that does so copies all that is stored first."""

    def __init__(self, path: ConfigSearchPathImpl):
        super().__init__(path)
        self._read: dict[str, ConfigResult | None] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self._read:
            self._read[config_path] = super().load_config(config_path)
        return self._read[config_path]


def composable(sources: Sources) -> bool:
    """Whether nothing of a command line concerns Hydra itself: no flags, sweeps, options or interpolations of it."""
    texts = [str(override.input_line) for override in sources.overrides]
    return not sources.flags and not sources.sweeps and not any("hydra" in text or "${" in text for text in texts)


def composed(sources: Sources) -> DictConfig:
    """What Hydra gives its application for a `composable` command line.

    Raises:
        HydraException, OmegaConfBaseException
    """
    choices: list[str] = []
    values: list[str] = []
    for override, text in zip(sources.overrides, sources.arguments, strict=True):
        (choices if sources.is_choice(override.key_or_group) else values).append(text)
    node = copy.deepcopy(_of_choices(sources.locations, tuple(sources.documents), tuple(choices)))
    ConfigLoaderImpl._apply_overrides_to_config([parse_override(text) for text in values], node)
    return node


@lru_cache(maxsize=64)
def _of_choices(locations: Locations, documents: tuple[Document, ...], choices: tuple[str, ...]) -> DictConfig:
    """What the chosen files give, before the command line sets any value."""
    Plugins.instance()  # registers where Hydra may read
    path = ConfigSearchPathImpl()
    path.append("schema", "structured://")
    overrides = [parse_override(text) for text in choices]
    with registered(locations, documents, hydras=False):
        repository = _Repository(path)
        found = create_defaults_list(repository, PRIMARY, overrides, prepend_hydra=False, skip_missing=False)
        node = ConfigLoaderImpl(path)._compose_config_from_defaults_list(found.defaults, repository)
    node.recipe = found.overrides.known_choices["recipe"]
    OmegaConf.set_struct(node, True)
    return node
