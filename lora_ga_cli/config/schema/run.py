"""A complete run: the options without a section, and all sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, WrapValidator, model_validator

from lora_ga_cli.config.rules import problems, unused_shared
from lora_ga_cli.config.schema.dataset import DatasetConfig
from lora_ga_cli.config.schema.evaluation import EvalOptions
from lora_ga_cli.config.schema.gradient import GradientConfig
from lora_ga_cli.config.schema.method import MethodOptions
from lora_ga_cli.config.schema.model import ModelConfig
from lora_ga_cli.config.schema.section import Section, unless
from lora_ga_cli.config.schema.trainer import TrainerConfig
from lora_ga_cli.config.schema.typed import EVAL, METHOD, TYPED_SECTIONS, WITHOUT_RULES, WITHOUT_TYPES
from lora_ga_cli.config.schema.values import Fraction, Name, Positive
from lora_ga_cli.config.wording import what_is_wrong
from lora_ga_cli.errors import suggest
from lora_ga_cli.registry import METHODS, OPTIMIZERS


class Config(Section):
    """A complete run."""

    recipe: Name | None = None
    """The recipe that this run was composed from; set by ``recipe=NAME``."""
    name: Name | None = None
    """Name of the run's folder inside ``output_dir``. Null makes one from recipe, method, rank and a hash of the
    settings."""
    output_dir: str = "runs"
    """Folder that run folders are written to."""
    cache_dir: str | None = None
    """Folder that gradients and tokenized rows are stored in. Null means ``$LORAGA_CACHE`` or ``~/.cache/loraga``. From
    one that may only be read, such as a team's, what is there is used, and what is new is stored in ``$LORAGA_CACHE``
    or ``~/.cache/loraga``."""
    overwrite: bool = False
    """Replace a run with other settings in the same folder. The old run folder is renamed and kept."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of shuffling, sampling, and everything else that is drawn at random."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the model. ``auto`` uses an accelerator if there is one."""
    rank: Positive = 64
    """Rank of the adapter during training."""
    rank_pattern: dict[str, Positive] = Field(default_factory=dict)
    """Ranks of layers that differ from ``rank``, by name or ending: ``{q_proj: 16, v_proj: 4}``."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The adapter's output is multiplied by ``alpha / rank``, with ``method.use_rslora`` by ``alpha / sqrt(rank)``."""
    adapter_dropout: Fraction = 0.0
    """Probability of dropout on the adapter's input."""
    target_modules: str | list[str] = "all-linear"
    """The layers that get an adapter: ``all-linear`` (all linear layers but the output head), a list of module names or
    endings of names, or a regular expression."""
    target_parameters: list[str] | None = None
    """Weights that are no linear layers of their own and get an adapter, as in PEFT: full names or endings of names,
    such as ``experts.down_proj``. Of experts, each one has an adapter of rank ``rank``. Null: with
    ``target_modules=all-linear`` all experts, where the method can adapt them, else none. ``[]`` leaves them out."""
    model: ModelConfig
    dataset: DatasetConfig
    method: Annotated[SerializeAsAny[MethodOptions], WrapValidator(METHOD.validate)] = Field({}, validate_default=True)  # type: ignore[assignment]
    gradient: GradientConfig = GradientConfig()
    trainer: TrainerConfig = TrainerConfig()
    eval: Annotated[SerializeAsAny[EvalOptions], WrapValidator(EVAL.validate)] = Field({}, validate_default=True)  # type: ignore[assignment]

    @property
    def shared_uses(self) -> frozenset[str]:
        """The options for all adapters (``rank``, ``alpha``, ``target_modules``, …) that the method uses."""
        uses: frozenset[str] = METHODS[self.method.type].shared_options(self)
        return uses

    @property
    def largest_rank(self) -> int:
        """The largest rank that a layer may have."""
        return max([self.rank, *self.rank_pattern.values()])

    @model_validator(mode="after")
    def _parts_fit(self, info: ValidationInfo) -> Config:
        if info.context == WITHOUT_RULES:
            return self
        if info.context == WITHOUT_TYPES:
            return unless(problems(self), self)
        by_type = [
            problem
            for section in TYPED_SECTIONS.values()
            for problem in section.registry[getattr(getattr(self, section.name), section.key)].check(self)
        ]
        return unless([*problems(self), *unused_shared(self, self.shared_uses), *by_type, *_of_optimizer(self)], self)


def _of_optimizer(config: Config) -> list[str]:
    """Everything that is wrong with the choice of the optimizer and with its options."""
    name, given = config.trainer.optimizer, config.trainer.optimizer_options
    optimizer = OPTIMIZERS.find(name)
    if optimizer is None:
        return [f"trainer.optimizer={name} names no optimizer; {OPTIMIZERS.hint_for(name)}"]
    known: dict[str, Any] = optimizer.Options.model_fields
    unknown = [option for option in given if option not in known]
    where = "trainer.optimizer_options"
    if unknown:
        has = f"{name} has {', '.join(known)}" if known else f"{name} has no options"
        return [f"{where}: no option {option!r}; {suggest(option, known) or has}" for option in unknown]
    try:
        optimizer.Options.model_validate(given)
    except ValidationError as error:
        return [
            f"{where}.{'.'.join(map(str, item['loc']))}={item['input']} {what_is_wrong(item)}"
            if item["loc"]
            else f"{where}: {what_is_wrong(item)}"
            for item in error.errors()
        ]
    return list(optimizer.check(config))
