"""transformers' Trainer, changed in what a checkpoint holds, how it is declared complete, and how it is read.

A training that reached its last step is restored and not resumed. What a method saves it says itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import nested_gather

from lora_ga_cli import distributed
from lora_ga_cli.errors import DamagedFile, TrainingError
from lora_ga_cli.files import follow_umask
from lora_ga_cli.json_files import read_json, write_json
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.methods.base import Link, Method
from lora_ga_cli.training import metrics
from lora_ga_cli.training.checkpoints import MARK, damage_of, last_complete, mark_complete

LOSS_FILE = "loss.json"
"""A checkpoint's sum of the losses that were not logged yet, so that the next line of the log is that of a run that was
not stopped."""


class CheckpointTrainer(Trainer):
    """A Trainer whose checkpoints hold what the method saves, for the original base model, and are marked when they are
    complete.

    Args:
        method: the fine-tuning method.
        link: the part of the run that this Trainer does.
        init: the initial factors that the method gave the model; None where it gave none.
        metrics_file: the run's metrics, of which each checkpoint keeps a digest.
    """

    def __init__(
        self,
        *,
        args: TrainingArguments,
        method: Method,
        link: Link,
        init: LoraInit | None = None,
        metrics_file: Path | None = None,
        **options: Any,
    ):
        # the Trainer refuses to save the optimizer beside a sharded base, but what trains here is complete everywhere
        save_only_model, args.save_only_model = args.save_only_model, True
        super().__init__(args=args, **options)
        self.args.save_only_model = save_only_model
        self.method, self.link, self.init, self.metrics_file = method, link, init, metrics_file
        self._unwrapped: tuple[Any, Any] = (None, None)

    @property
    def _model(self) -> PreTrainedModel | PeftModel:
        """The model itself, without the wrappers of several processes."""
        wrapped, model = self._unwrapped
        if wrapped is not self.model:  # unwrapping visits all modules, which takes milliseconds
            model = self.accelerator.unwrap_model(self.model)
            assert isinstance(model, PreTrainedModel | PeftModel)
            self._unwrapped = self.model, model
        return model

    def _checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after so many steps of this link."""
        return Path(str(self.args.output_dir)) / f"checkpoint-{step}"

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return  # the Trainer calls this in every process when the base is sharded
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.method.save(self._model, folder, self.init, state_dict)
        for file in folder.glob("*.safetensors"):
            follow_umask(file)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self._checkpoint(self.state.global_step)
        if self.args.should_save:
            # a checkpoint that is written again is not complete until it is finished
            (folder / MARK).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)
        loss = float(nested_gather(self._tr_loss, self.args.parallel_mode).mean())
        distributed.wait()  # every process writes the state of its random numbers
        if self.args.should_save and folder.is_dir():
            write_json(folder / LOSS_FILE, {"sum": loss, "logged": self._globalstep_last_logged})
            self.method.save_state(self._model, folder)
            follow_umask(folder)
            mark_complete(folder, metrics.state(self.metrics_file) if self.metrics_file is not None else None)

    def _restore_losses(self, checkpoint: Path) -> None:
        """Restores the sum of the losses that were not logged yet."""
        if (checkpoint / LOSS_FILE).exists():
            stored = read_json(checkpoint / LOSS_FILE)
            self._tr_loss.fill_(stored["sum"])
            self._globalstep_last_logged = stored["logged"]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.read_weights(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads them as the Trainer does.

        Raises:
            TrainingError: the checkpoint has another optimizer, with other groups of parameters.
        """
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise TrainingError(
                f"{checkpoint} cannot be resumed, its optimizer was another ({error}): overwrite=true starts the run "
                "again and sets this one aside"
            ) from error

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        # by name: the state holds a path relative to the folder where the run was started
        folder = Path(str(self.args.output_dir)) / Path(self.state.best_model_checkpoint).name
        if what := damage_of(folder):
            hint = "it held the best weights, so start the run again with overwrite=true, which renames the old folder"
            raise DamagedFile(folder, f"is damaged ({what})", hint)
        self.read_weights(folder)

    def restore_finished(self, checkpoint: Path) -> bool:
        """Restores the end of a training that reached its last step but did not write its result.

        (Resuming such a checkpoint the usual way would train one step more.)

        Returns:
            Whether ``checkpoint`` is the end of such a training.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        control = state.stateful_callbacks.get("TrainerControl", {})
        stopped = isinstance(control, dict) and control.get("args", {}).get("should_training_stop", False)
        if state.global_step < state.max_steps and not stopped:
            return False
        self.state = state
        if control.get("args", {}).get("should_evaluate", False):  # a signal left it undone
            self.read_weights(checkpoint)
            self._determine_best_metric(metrics=self.evaluate(), trial=None)
            if state.best_global_step:
                state.best_model_checkpoint = str(self._checkpoint(state.best_global_step))
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        else:
            self.read_weights(checkpoint)
        return True

    def read_weights(self, folder: Path) -> None:
        """Reads the trained weights of a checkpoint into the model."""
        if not self.method.output.is_adapter and not (folder / "model.safetensors").exists():
            super()._load_from_checkpoint(str(folder))  # in several files
            return
        self.method.restore(self._model, folder, self.init)
        self.method.restore_state(self._model, folder)

    def _stop(self, why: str) -> NoReturn:
        kept = last_complete(Path(str(self.args.output_dir)))
        resume = f"; the last complete checkpoint is {kept}" if kept else ""
        raise TrainingError(
            f"{why}{resume}. A lower trainer.learning_rate often helps, and bf16 instead of fp16 in trainer.precision"
        )
