"""The end of a training: the saved model is compared with the trained one, documented, and said to be there."""

from __future__ import annotations

import contextlib

from lora_ga_cli.config.schema import Config
from lora_ga_cli.lora.export import adapts_parameters
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.generation import base_ends
from lora_ga_cli.model.loading import find_source
from lora_ga_cli.model.probe import check_equal, probe_logits, relative_difference, rounding_type
from lora_ga_cli.model.stored import dequantized_kind
from lora_ga_cli.model.unsupported import Unsupported
from lora_ga_cli.report import training_loss
from lora_ga_cli.report.card import described_ends, own_parts, served_rank, serving_obstacle, write_card
from lora_ga_cli.report.console import duration, step
from lora_ga_cli.report.figures import loss_curves
from lora_ga_cli.report.provenance import now
from lora_ga_cli.stages.costs import training_memory
from lora_ga_cli.stages.fit import limits_of_run
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.stages.report import write_run_report
from lora_ga_cli.stages.saved_tokenizer import save_tokenizer
from lora_ga_cli.stages.speed import expected_speed
from lora_ga_cli.stages.trained import load_trained
from lora_ga_cli.stages.training_result import Result
from lora_ga_cli.training import metrics
from lora_ga_cli.training.run_files import result_entries
from lora_ga_cli.training.run_folder import RunFolder


def check_saved(inputs: Inputs, run: RunFolder, result: Result) -> float:
    """The relative difference between the logits of the saved model, loaded again, and those of the trained one."""
    actual = probe_logits(load_trained(inputs, run), inputs.probe_batch())
    if result.truncation_error > 0:  # the truncation was asked for, and its error is printed
        return relative_difference(actual, result.logits)
    what = f"the model saved in {run.path} and the trained one"
    return check_equal(actual, result.logits, rounding_type(inputs.config.model), what)


def finish(inputs: Inputs, run: RunFolder, result: Result, difference: float) -> None:
    config = inputs.config
    if not method_of(config).output.is_adapter or own_parts(config):
        save_tokenizer(inputs, run)
    source = find_source(config.model)
    known = base_ends(source.path, inputs.model_config, source.arguments)
    points = metrics.read(run.metrics_file)
    loss_curves({config.method.name: points}, run.figure_file, title=run.path.name)
    run.update_manifest(
        **result.losses,
        **{training_loss.STEPS: training_loss.steps_of(points)},
        adapter_rank=result.size,
        saved_difference=difference,
        adapts_parameters=adapts_parameters(run.path),
        **({"truncation_error": result.truncation_error} if result.truncation_error else {}),
        base=source.path,
        ends=described_ends(inputs.ends, known, inputs.tokenizer),
        embedding_rows=inputs.grown_rows,
        dequantized=dequantized_kind(inputs.model_config),
        **result_entries(run),
        finished=now(),
    )
    run.update_manifest(card_sha256=write_card(run.card_file, run.path.name, config, run.manifest))
    _say_result(run, config, result, difference)
    if config.trainer.report:
        write_run_report(run, inputs, before=lambda: _note_forecast(inputs, run))


def _note_forecast(inputs: Inputs, run: RunFolder) -> None:
    """Writes into the manifest the forecast of the peak of memory, on devices where the peak was measured."""
    if run.manifest.get("peak_memory_bytes") is None:
        return
    with contextlib.suppress(Unsupported):
        limits = limits_of_run(inputs, run, flatten=expected_speed(inputs.config, inputs.device).flatten)
        run.update_manifest(forecast_peak_memory_bytes=training_memory(inputs, limits).total)


def _say_result(run: RunFolder, config: Config, result: Result, difference: float) -> None:
    of = {"training_loss": training_loss.mean_of(run.manifest.get(training_loss.STEPS))}
    values = [
        f"{name.replace('_', ' ')} {value:.4f}{of.get(name, '')}"
        for name, value in result.losses.items()
        if value is not None
    ]
    step("train", f"finished in {duration(run.manifest['training_seconds'])}: {', '.join(values)}")
    if result.note:
        step("train", result.note)
    step("saved", f"{run.path}: {_described(config, result.size, run)}")
    output = method_of(config).output
    if output.vllm and not serving_obstacle(config, output) and (own := own_parts(config)):
        verb = "is" if len(own) == 1 else "are"
        step("saved", f"its {' and '.join(own)} {verb} beside it: vLLM with --tokenizer {run.path}")
    if result.truncation_error:
        step(
            "saved",
            f"truncated to rank {result.size}: {result.truncation_error:.2%} of the change is lost (Frobenius norm)",
        )
    step("saved", f"reloaded, its logits equal the trained model's (relative difference {difference:.0e})")
    step("saved", f"loss curve: {run.figure_file}")


def _described(config: Config, size: int | None, run: RunFolder) -> str:
    method = method_of(config)
    output = method.output
    if not output.is_adapter:
        return output.label
    text = output.label
    if size is not None:
        detail = method.describe_saved(size)
        text += f" of {output.size} {size}" + (f" ({detail})" if detail else "")
    text += f" for {config.model.path}; {output.loads_in} loads it"
    if run.manifest["adapts_parameters"]:
        text += "; merge it to serve it, because servers such as vLLM may ignore what it adds to experts"
    elif output.loads_in == "PEFT" and (obstacle := serving_obstacle(config, output)):
        text += f". {obstacle}"
    elif output.vllm and size is not None:
        served = served_rank(size)
        text += (
            f", vLLM with --max-lora-rank {served}"
            if served
            else "; vLLM does not serve a rank this large, so merge the adapter"
        )
    return text
