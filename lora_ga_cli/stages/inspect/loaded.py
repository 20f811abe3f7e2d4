"""An adapter that is inspected: that of a run, or one in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import RunError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.inspection.changes import Decomposed, Shares, shares_within
from lora_ga_cli.lora.links import LowRank
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.lora.saved import SavedAdapter, read_saved, refusal
from lora_ga_cli.methods.base import Link, method_of
from lora_ga_cli.model.loading import empty_model
from lora_ga_cli.stages.inspect.weights import base_of_adapter, base_of_run, empty_base, loaded_base
from lora_ga_cli.stages.trained import require_finished, stored_config
from lora_ga_cli.training.run_files import check_result, check_start
from lora_ga_cli.training.run_folder import RunFolder

ONLY_LINK = Link.only(1)


@dataclass(frozen=True)
class Inspected:
    """An adapter with what is known of how it was trained.

    Args:
        saved: what lies in its folder, which is what counts for the original base model.
        start: the initial factors, where a run of one link keeps them.
        base: loads the base with its weights.
        vectors: directions of the gradient that a rank of the run's method begins with.
    """

    saved: SavedAdapter
    start: LoraInit | None
    base: Callable[[], PreTrainedModel]
    vectors: int = 0

    @property
    def name(self) -> str:
        return self.saved.folder.resolve().name

    @cached_property
    def initial(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A0 (rank, d_in) and B0 (d_out, rank) by full name of the layer, one by one for experts."""
        if self.start is None:
            return {}
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for layer in self.saved.layers:
            a0, b0 = self.start.factors.get(layer.name, (None, None))
            if a0 is None or b0 is None:
                continue
            pairs = list(zip(a0, b0, strict=True)) if layer.is_experts else [(a0, b0)]
            found |= dict(zip(layer.named, pairs, strict=True))
        return found

    def within_start(self, name: str, change: Decomposed) -> Shares | None:
        """How much of a layer's change lies in the column space of B0 and the row space of A0."""
        if name not in self.initial:
            return None
        a0, b0 = self.initial[name]
        return shares_within(change, b0, a0.T)

    def within_gradient(self, name: str, change: Decomposed, artifact: GradientArtifact | None) -> Shares | None:
        """How much lies in the spaces of the gradient's directions that initialized the layer: as many left and right
        singular vectors as its trained rank takes."""
        if artifact is None or name not in artifact.factors or name not in self.initial or not self.vectors:
            return None
        factors, count = artifact.factors[name], self.vectors * self.initial[name][0].shape[0]
        return shares_within(change, factors.left[:, :count], factors.right[:, :count])

    def trained(self, name: str, change: LowRank) -> LowRank:
        """The factors B and A that trained, for an adapter that is saved in the difference form ``[ΔB, B0] [A; ΔA]``;
        of others, those that are saved."""
        if self.start is None or self.start.offset == "none" or name not in self.initial:
            return change
        rank = self.initial[name][0].shape[0]
        return LowRank(change.left[:, :rank] + change.left[:, rank:], change.right[:rank])


def load(folder: Path, base: str | None = None) -> Inspected:
    """The adapter in a folder, or of a run.

    Args:
        base: another place of its base model.

    Raises:
        RunError: the run has not finished, or holds something else than a LoRA adapter.
        DamagedFile: a file of the run's adapter, or the initial factors, are not what was written.
    """
    run = RunFolder(folder)
    if not run.manifest_file.exists():
        saved = read_saved(folder, empty_base(lambda: base_of_adapter(folder, base)))
        return Inspected(saved, None, lambda: loaded_base(base_of_adapter(folder, base)))
    require_finished(run)
    config = stored_config(run)
    if reason := why_not(run, config):
        raise RunError(f"{folder}: {reason}")
    check_result(run)
    link = run.link(ONLY_LINK)
    check_start(run, link)
    file = link.init_file
    model = config.model if base is None else config.model.model_copy(update={"path": base, "revision": None})
    return Inspected(
        read_saved(folder, lambda: empty_model(model)),
        LoraInit.load(file) if file.is_file() else None,
        lambda: base_of_run(run, base),
        method_of(config).gradient_vectors,
    )


def why_not(run: RunFolder, config: Config) -> str:
    """Why what a run trained cannot be inspected; empty if it can."""
    if not refusal(run.path):
        return ""
    return f"it holds {method_of(config).output.label}, and only LoRA adapters change weights by a product s·B A"
