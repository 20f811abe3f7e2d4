"""The space on a disk that a long step will need, checked before it begins."""

from __future__ import annotations

import errno
import math
from pathlib import Path

from torch import nn

from lora_ga_cli.config.schema import Config
from lora_ga_cli.disk import disk_room, folder_problem
from lora_ga_cli.errors import Fault, InvalidInput, system_fault
from lora_ga_cli.files import file_sizes
from lora_ga_cli.methods.base import Link
from lora_ga_cli.optimizers.base import optimizer_of
from lora_ga_cli.report.console import size
from lora_ga_cli.training.run_folder import LinkFolder


def require_room(option: str, folder: Path, needed: int, what: str, hint: str = "") -> None:
    """Refuses a step that would fill the disk, or whose result could not be written.

    Args:
        option: the option that names the folder.
        needed: bytes.
        what: what needs them, for people.
        hint: how fewer would be needed; empty if there is no way.

    Raises:
        InvalidInput
    """
    problem = folder_problem(folder)
    if problem is not None and problem.errno != errno.ENOSPC:  # a full disk is reported below
        raise InvalidInput([system_fault(option, folder, problem)])
    free = disk_room(folder)
    if free < needed:
        ways = [f"free {size(needed - free)}", hint, f"give another {option}"]
        says = f"{folder}: {size(free)} are free on its disk, and about {size(needed)} are needed ({what})"
        raise InvalidInput([Fault(option, says, ", or ".join(way for way in ways if way))])


def require_room_to_train(config: Config, folder: LinkFolder, model: nn.Module, link: Link, epoch: int) -> None:
    """Checks that the checkpoints of a training and its result fit on the disk.

    A checkpoint holds the trained weights and the optimizer's state, and the result the weights.

    Args:
        model: with the parameters that train.
        epoch: steps of an epoch.

    Raises:
        InvalidInput
    """
    options = config.trainer
    weights = sum(item.numel() * item.element_size() for item in model.parameters() if item.requires_grad)
    # `state_bytes` includes the gradients, which no checkpoint holds, but which are as large as the weights in it
    of_one = max(optimizer_of(config).state_bytes(model), weights)
    count = max(1, math.ceil(link.steps / (options.save_steps or epoch)))
    if options.save_total_limit is not None:
        # the next one is written before the oldest is removed, and the best one may be kept beside the newest
        count = min(count, options.save_total_limit + 1)
    stored = sum(file_sizes(folder.checkpoints).values()) if folder.checkpoints.is_dir() else 0
    needed = max(count * of_one - stored, of_one) + weights
    what = f"{count} checkpoint{'s' if count > 1 else ''} of {size(of_one)}, and the result of {size(weights)}"
    hint = "keep fewer with trainer.save_total_limit" if count > 1 else ""
    require_room("output_dir", folder.path, needed, what, hint)


def require_room_for_gradient(folder: Path, shapes: list[tuple[int, int]], capacity: int) -> None:
    """Checks that a gradient artifact fits on the disk of the cache.

    Args:
        shapes: of all layers, (d_out, d_in).
        capacity: singular vectors that are kept of each.

    Raises:
        InvalidInput
    """
    needed = sum(4 * min(capacity, *shape) * (sum(shape) + 2) for shape in shapes)  # factors are in float32
    require_room("cache_dir", folder, needed, "the gradient artifact", "lower gradient.capacity")
