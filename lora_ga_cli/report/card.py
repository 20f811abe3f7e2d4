"""The model card of a run folder."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ga_cli.config.schema import Config
from lora_ga_cli.data.ends import Ends
from lora_ga_cli.files import atomic_file
from lora_ga_cli.methods.base import AdapterOutput, method_of
from lora_ga_cli.model.stored import DEQUANTIZED
from lora_ga_cli.report import training_loss
from lora_ga_cli.report.front_matter import front_matter, hub_base, results_table, shown_base

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's --max-lora-rank takes (vLLM documentation, LoRA adapters)."""
FILES = """`config.yaml` is the resolved configuration, `manifest.json` lists the base, the data and the software
versions, and `metrics.jsonl` holds every logged point.
"""
AUTO_NAME = {
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "sequence_classification": "AutoModelForSequenceClassification",
}


def served_rank(rank: int) -> int | None:
    """The smallest ``--max-lora-rank`` with which vLLM serves an adapter of this rank; None if it serves none."""
    return next((allowed for allowed in SERVED_RANKS if allowed >= rank), None)


@dataclass(frozen=True)
class Published:
    """How a card that goes to the hub differs from that of the run's folder.

    Args:
        base: the base's name on the hub.
        merged: it is the card of base and adapter in one model.
        results: contents of result files of evaluations.
    """

    base: str
    merged: bool = False
    results: Sequence[Mapping[str, Any]] = ()


def write_card(file: Path, name: str, config: Config, manifest: dict[str, Any]) -> str:
    """Writes the card of a run with a name, from its configuration and manifest; returns the SHA-256 of its text."""
    text = card(name, config, manifest)
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def card(name: str, config: Config, manifest: dict[str, Any], published: Published | None = None) -> str:
    """The text of the card, in Markdown.

    Args:
        name: the folder of the run; on the hub, the name of the repository.
    """
    base, rank = published.base if published else shown_base(manifest), manifest["adapter_rank"]
    output, merged = method_of(config).output, published is not None and published.merged
    adapter, results = output.is_adapter and not merged, published.results if published else ()
    hub = published.base if published else hub_base(manifest)
    front = [front_matter(name, config, manifest, output, base=hub, merged=merged, results=results), ""]
    if merged:
        output = dataclasses.replace(output, is_adapter=False, loads_in="transformers", vllm=False)
    what = f"{output.label[0].upper()}{output.label[1:]}" + (f" ({output.size} {rank})" if rank is not None else "")
    what = what if adapter else "A fine-tuned model"
    files = [] if published else [FILES]
    lines = [
        *front,
        f"# {name}",
        "",
        f"{what} for `{base}`, trained with `{config.method.name}` by loraga {manifest['provenance']['loraga']}.",
        "",
        *_table(config, manifest),
        "",
        "![Loss curve](loss.png)",
        "",
        *results_table(results),
        *_classes(manifest["label_names"] or ()),
        "## Use",
        "",
        *_use(name, config, {**manifest, "base": base}, output),
        "",
        *_ends(manifest.get("ends") or {}, adapter=adapter),
        "",
        *files,
    ]
    return "\n".join(lines)


def _table(config: Config, manifest: dict[str, Any]) -> list[str]:
    rows = {
        "training rows": f"{manifest['data']['train']['rows']:,}",
        "steps": f"{manifest['steps']:,} of {config.trainer.batch_size} rows",
        "learning rate": f"{manifest['learning_rate']:g} ({config.trainer.lr_scheduler})",
        "seed": str(config.seed),
        f"training loss{training_loss.mean_of(manifest.get(training_loss.STEPS))}": _loss(manifest["training_loss"]),
        "validation loss": _loss(manifest["validation_loss"]),
    }
    if manifest["adapter_rank"] is not None and "rank" in config.shared_uses:
        rows["rank while training"] = f"{config.rank} (alpha {config.alpha:g})"
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _use(folder: str, config: Config, manifest: dict[str, Any], output: AdapterOutput) -> list[str]:
    base, rank, names = manifest["base"], manifest["adapter_rank"], manifest["label_names"]
    auto = AUTO_NAME[config.model.task]
    if output.loads_in == "loraga":
        loader = "lora_ga_cli.methods.loading.load_adapter"
        return [f"`loraga eval {folder}` loads it on its base; in a program, `{loader}` does."]
    if output.loads_in == "transformers":
        return [
            "```python",
            f"from transformers import {auto}",
            "",
            f'model = {auto}.from_pretrained("{folder}")',
            "```",
        ]
    options = f", num_labels={len(names)}" if names else ""
    if config.model.revision and manifest["base_identity"].get("hub") == base:  # it may be published with another base
        options += f', revision="{config.model.revision}"'
    own = own_parts(config)
    rows, kind = manifest.get("embedding_rows"), manifest.get("dequantized")
    how = DEQUANTIZED[kind] if kind is not None else ""
    options += f", quantization_config={how}(dequantize=True)" if how else ""
    lines = [
        "```python",
        "from peft import PeftModel",
        f"from transformers import {auto}" + (", AutoTokenizer" if own else "") + (f", {how}" if how else ""),
        "",
        f'base = {auto}.from_pretrained("{base}"{options})',
        *([f"base.resize_token_embeddings({rows})  # for the new tokens"] if rows is not None else []),
        f'model = PeftModel.from_pretrained(base, "{folder}")',
        *([f'tokenizer = AutoTokenizer.from_pretrained("{folder}")'] if own else []),
        "```",
    ]
    if config.model.new_tokens:
        tokens = ", ".join(f"`{token}`" for token in config.model.new_tokens)
        lines += ["", f"The tokenizer in this folder has the new tokens {tokens}: load it instead of the base's."]
    ignored = manifest.get("adapts_parameters", False)  # servers may ignore adapters of experts
    obstacle = serving_obstacle(config, output)
    served = served_rank(rank) if not obstacle and rank is not None and not ignored else None
    if obstacle:
        lines += ["", f"{obstacle}."]
    if served:
        serve = f"vllm serve {base} --enable-lora --max-lora-rank {served} --lora-modules tuned={folder}"
        lines += ["", f"vLLM: `{serve}{f' --tokenizer {folder}' if own else ''}`"]
    if own:
        lines += ["", f"It was trained with the {' and the '.join(own)} beside it, not with the base's."]
    return lines


def serving_obstacle(config: Config, output: AdapterOutput) -> str:
    """Why vLLM does not serve an adapter that PEFT loads, as a sentence; empty if it does."""
    if config.model.task == "sequence_classification":
        return "vLLM does not serve this adapter, because a classifier's head is trained and saved with it"
    if config.model.task != "causal_lm":
        return "vLLM does not serve this adapter, because its base is no causal model"
    if not output.vllm:
        return f"vLLM does not serve this adapter, because it is not a standard LoRA adapter, but {output.label}"
    return ""


def _classes(names: Sequence[str]) -> list[str]:
    """What each number of a classifier means."""
    if not names:
        return []
    rows = (f"| {number} | {name} |" for number, name in enumerate(names))
    return ["## Classes", "", "| number | class |", "|---|---|", *rows, ""]


def own_parts(config: Config) -> list[str]:
    """What a result needs beside it, because its base has another one: the tokenizer, the chat template; in words."""
    tokenizer = bool(config.model.tokenizer or config.model.new_tokens)
    return ["tokenizer"] * tokenizer + ["chat template"] * bool(config.dataset.chat_template)


def described_ends(ends: Ends, base_ends: Sequence[int], tokenizer: Any) -> dict[str, Any]:
    """What ends an answer where the base does not stop by itself: an entry of the manifest; empty if there is nothing.

    Args:
        base_ends: the tokens at which the base stops.
    """
    new = [token for token in ends.tokens if token not in base_ends]
    names = tokenizer.convert_ids_to_tokens(new)
    tokens = {"tokens": new, "names": names, "base": list(base_ends)} if new else {}
    return {**tokens, **({"text": ends.text} if ends.text else {})}


def _ends(ends: Mapping[str, Any], *, adapter: bool) -> list[str]:
    lines = []
    if "tokens" in ends and adapter:
        named = ", ".join(
            f"`{name}` (number {token})" for name, token in zip(ends["names"], ends["tokens"], strict=True)
        )
        lines += [
            f"An answer ends with {named}, at which the base does not stop by itself:",
            f"`model.generation_config.eos_token_id = {[*ends['base'], *ends['tokens']]}` in transformers,",
            f'`"stop_token_ids": {ends["tokens"]}` in a request to vLLM. A merged model stops there by itself.',
            "",
        ]
    if "text" in ends:
        lines += [f"An answer ends with the text `{ends['text']}`, which is no token: give it as a stop string.", ""]
    return lines


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
