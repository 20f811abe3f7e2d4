"""Programs' way to a configuration, without Hydra's application: from overrides, or from a finished run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from lora_ga_cli.config.check import REQUIRED, check
from lora_ga_cli.config.documents import merge, nested
from lora_ga_cli.config.launch import launch
from lora_ga_cli.config.origins import Sources
from lora_ga_cli.config.overrides import COMMAND_LINE
from lora_ga_cli.config.safety import COMMAND_LINE_ONLY
from lora_ga_cli.config.schema import Config
from lora_ga_cli.config.validation import configuration, validated
from lora_ga_cli.errors import Fault, InvalidInput

PLACEHOLDER = "dataset=quickstart"
"""The data set of a configuration for a benchmark, which needs none: the schema requires one."""


def reconfigured(stored: dict[str, Any], overrides: Sequence[str]) -> Config:
    """A stored configuration with some ``eval`` options changed: ``eval=CHOICE`` or ``eval.option=value``.

    ``model.path`` names another place of the same base model.

    Raises:
        InvalidInput: an override of anything else, or one that does not fit.
    """
    sources, faults = check(overrides, complete=False)
    if sources.flags:
        faults.append(Fault(COMMAND_LINE, f"{' '.join(sources.flags)} goes with a recipe, not with run folders"))
    faults = faults or [fault for override in sources.overrides for fault in _fixed(override, sources)]
    if faults:
        raise InvalidInput(faults)
    changes = copy.deepcopy(stored)
    for path in COMMAND_LINE_ONLY:  # a folder may come from a stranger
        if path[0] in ("eval", "model"):
            _forget(changes, path)
    for override in sorted(sources.overrides, key=lambda override: override.key_or_group != "eval"):
        key, value = override.key_or_group, override.value()
        if key == "eval":
            changes["eval"] = sources.options_of("eval", str(value))
        else:
            merge(changes, nested(tuple(key.split(".")), value))
        if key == "model.path":
            changes["model"]["revision"] = None  # of the place before
    return validated(changes, sources)


def fits_run(option: str) -> bool:
    """Whether an option given as ``name=value`` can change what a finished run is scored with."""
    return _is_changeable(option.lstrip("+~").partition("=")[0])


def _is_changeable(key: str) -> bool:
    return key in ("eval", "device", "model.path", "model.trust_remote_code") or key.startswith("eval.")


def _fixed(override: Override, sources: Sources) -> Iterator[Fault]:
    """Faults for an override that a finished run does not take."""
    key, value = override.key_or_group, override.value()
    if not _is_changeable(key):
        hint = "here: eval=…, eval.…, device=…, model.trust_remote_code=…, and model.path=… for a base that was moved"
        yield Fault(COMMAND_LINE, f"{key} belongs to the run, whose settings are fixed", hint)
    elif "${" in str(sources.options_of("eval", str(value)) if key == "eval" else value):
        yield Fault(COMMAND_LINE, f"{key}={value}: interpolations go with a recipe, not with run folders")


def compose(overrides: Sequence[str], *, one_of_many: bool = False) -> Config:
    """The configuration that a command line would give, for programs; no sweeps.

    Args:
        one_of_many: see `lora_ga_cli.config.validation.validated`.

    Raises:
        InvalidInput
    """
    sources, faults = check(overrides)
    if faults:
        raise InvalidInput(faults)
    if not sources.needs_hydra:
        return configuration(sources, one_of_many=one_of_many)
    composed: list[Config] = []
    launch(overrides, lambda config, _: composed.append(config), one_of_many=one_of_many)
    return composed[0]


def compose_around(options: Sequence[str], base: str | None) -> tuple[Config, bool]:
    """The configuration of a model that is no run: the options given, the model it is, and no method.

    Args:
        base: the model, where no option names it.

    Returns:
        The configuration, and whether the options choose its data set; if they do not, it has `PLACEHOLDER`.

    Raises:
        InvalidInput
    """
    sources, faults = check(options, complete=False)
    if sources.flags:
        faults.append(Fault(COMMAND_LINE, f"{' '.join(sources.flags)} goes with a recipe, not with what is scored"))
    chosen = {override.key_or_group for override in sources.overrides}
    given = list(options)
    if not chosen & {"model", "recipe"}:
        given.insert(0, "model=causal_lm")
    if "model.path" not in chosen:
        if not base or "${" in base:  # Hydra would fill that in, and the folder may come from a stranger
            faults.append(Fault(COMMAND_LINE, "which base is this adapter for?", "model.path=ORG/MODEL"))
        given.append(f"model.path={base!r}")
    if faults:
        raise InvalidInput(faults)
    has_data = bool(chosen & {"dataset", "recipe", *REQUIRED["dataset"]})
    return compose(given if has_data else [*given, PLACEHOLDER]), has_data


def _forget(values: dict[str, Any], path: Sequence[str]) -> None:
    *around, last = path
    for name in around:
        values = values.get(name, {})
    values.pop(last, None)
