"""Loading a base model, its configuration and its tokenizer, with errors that say what to do."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from lora_ga_cli.errors import ModelError, suggest
from lora_ga_cli.json_files import read_json, sha256_json
from lora_ga_cli.model.identity import hub_identity, local_identity, stored_names
from lora_ga_cli.model.quantization import compute_in, disable_cpu_repacking, loading_arguments
from lora_ga_cli.model.stored import check_stored, dequantized_kind, stored_arguments
from lora_ga_cli.model.targets import classifier_heads
from lora_ga_cli.model.vocabulary import Vocabulary, add_rows, add_tokens
from lora_ga_cli.model.written import check_model
from lora_ga_cli.paths import BUNDLED, PACKAGE, resolve_path
from lora_ga_cli.reachable import ask_hub_once

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import ModelConfig, Task

AUTO_CLASS = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "seq2seq_lm": transformers.AutoModelForSeq2SeqLM,
    "sequence_classification": transformers.AutoModelForSequenceClassification,
}

CUSTOM_ADAPTER_FILE = "custom_adapter.json"
"""What describes an adapter that PEFT does not load."""


@dataclass(frozen=True)
class Source:
    """The place that a model is loaded from: a name on the hub, or an absolute path of a folder."""

    path: str
    local: bool
    revision: str | None
    trust_remote_code: bool

    @property
    def arguments(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def find_source(config: ModelConfig, path: str | None = None) -> Source:
    """Resolves ``config.path`` (or another ``path``).

    Raises:
        ModelError: the path looks like a folder, and there is none.
    """
    given = path or config.path
    folder = resolve_path(given)
    if folder.is_dir():
        if path is None and (refusal := adapter_refusal(folder)):
            raise ModelError(refusal)
        return Source(str(folder.resolve()), True, None, config.trust_remote_code)
    if given.startswith((BUNDLED, PACKAGE, "/", "./", "../", "~")) or given.count("/") > 1:
        siblings = [item.name for item in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = suggest(folder.name, siblings)
        raise ModelError(f"model.path={given}: no such folder" + (f" ({hint})" if hint else ""))
    if folder.is_file():
        raise ModelError(f"model.path={given}: a file; give the folder of a model, or ORG/MODEL on the hub")
    ask_hub_once()
    return Source(given, False, config.revision if path is None else None, config.trust_remote_code)


def adapter_refusal(folder: Path) -> str:
    """Why a folder cannot be a base model, where it holds an adapter; else empty."""
    files = _adapter_descriptions(folder)
    if not files or (folder / "config.json").is_file():
        return ""
    base = read_json(files[0]).get("base_model_name_or_path")
    merge = f"loraga merge {folder} --output DIR, then model.path=DIR"
    way = (
        merge if (folder / "manifest.json").is_file() else "merge it into its base first, with PEFT's merge_and_unload"
    )
    return f"model.path={folder} holds an adapter" + (f" for {base}" if base else "") + f", and no model: {way}"


def _adapter_descriptions(folder: Path) -> list[Path]:
    return [folder / name for name in ("adapter_config.json", CUSTOM_ADAPTER_FILE) if (folder / name).is_file()]


def load_config(config: ModelConfig) -> PreTrainedConfig:
    """The model's configuration in transformers; downloads no weights."""
    source = find_source(config)
    with _as_model_error(source, "config"):
        return AutoConfig.from_pretrained(source.path, **source.arguments)


def guess_task(path: str) -> Task:
    """The task of the model at this path, according to its configuration."""
    from lora_ga_cli.config.schema import ModelConfig

    settings = load_config(ModelConfig(path=path))
    classes = " ".join(settings.architectures or [])
    if settings.is_encoder_decoder:
        return "seq2seq_lm"
    encoder = settings.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and "CausalLM" not in classes
    return "sequence_classification" if encoder or "SequenceClassification" in classes else "causal_lm"


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, or the one that ``config.tokenizer`` names, with ``config.new_tokens``.

    Raises:
        ModelError: it cannot be loaded.
        InvalidInput: it has one of the new tokens already.
    """
    source = find_source(config, config.tokenizer)
    with _as_model_error(source, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.path, **source.arguments)
    if config.new_tokens:
        rows = load_config(config).get_text_config().vocab_size
        beside = source.local and bool(_adapter_descriptions(Path(source.path)))
        add_tokens(tokenizer, config.new_tokens, rows, saved_beside_adapter=beside)
    return tokenizer


def load_model(
    config: ModelConfig,
    device: torch.device,
    num_labels: int | None = None,
    *,
    label_names: Sequence[str] | None = None,
    pad_token_id: int | None = None,
    shards: int = 1,
    vocabulary: Vocabulary | None = None,
) -> PreTrainedModel:
    """The base model on ``device``, in ``config.dtype``, in evaluation mode.

    A sequence classifier may get a new head, drawn from torch's global generator, and new tokens get rows. Every other
    weight must be in the files. The model's attribute ``newly_initialized`` lists the new modules, and ``vocabulary``
    is the one that was given.

    Args:
        num_labels: the number of classes of a sequence classifier.
        label_names: the names of the classes, in order.
        pad_token_id: the padding of batches; decoders that classify look for it.
        shards: the number of processes that share the weights (FSDP2); each of them calls this function.
        vocabulary: of the tokenizer, whose new tokens get rows; None where the model has all its rows.

    Raises:
        ModelError: it cannot be loaded, or weights are missing in the files.
        DamagedFile: loraga wrote it, and its weights are not what was written.
        InvalidInput: as `check_stored`.
        TargetError: the embeddings cannot grow.
    """
    source, settings = find_source(config), load_config(config)
    check_stored(config, settings, to_train=False)
    if source.local:
        check_model(Path(source.path), weights=True)
    arguments = dict(source.arguments, dtype=getattr(torch, config.dtype), attn_implementation=config.attention)
    arguments |= _labels(num_labels, label_names)
    with _as_model_error(source, "model"):
        arguments |= loading_arguments(config, device) | stored_arguments(settings)
        if shards > 1:
            arguments["distributed_config"] = _sharding(shards)
        model, info = AUTO_CLASS[config.task].from_pretrained(source.path, output_loading_info=True, **arguments)
    if config.task == "sequence_classification" and model.config.pad_token_id is None:
        model.config.pad_token_id = pad_token_id
    model.newly_initialized = sorted({_new_module(model, key) for key in info["missing_keys"]})
    _refuse_random_weights(config, model, info["missing_keys"])
    if config.quantization is None and shards == 1:
        model.to(device)
    if shards > 1:
        model.requires_grad_(False)  # FSDP2 decides when it first gathers weights which of them have gradients
    if dequantized_kind(settings) is not None:
        # transformers would quantize the weights again to save them, and write no weights (5.23, FP8)
        model._weight_conversions = None
    if config.quantization is not None:
        compute_in(model, getattr(torch, config.dtype))
    disable_cpu_repacking(model)
    if vocabulary is not None:
        model.vocabulary = vocabulary
        add_rows(model, vocabulary)
    return model.eval()


def _labels(num_labels: int | None, label_names: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that describe the classes of a classifier."""
    arguments: dict[str, Any] = {}
    if num_labels is not None:
        arguments["num_labels"] = num_labels
    if label_names is not None:
        arguments["id2label"] = dict(enumerate(label_names))
        arguments["label2id"] = {name: number for number, name in enumerate(label_names)}
    return arguments


def _refuse_random_weights(config: ModelConfig, model: PreTrainedModel, missing_keys: Iterable[str]) -> None:
    """Refuses a model of which other weights than those of a new head are missing in the files.

    Raises:
        ModelError
    """
    missing = [key for key in missing_keys if not _in_new_head(model, key)]
    if missing:
        raise ModelError(
            f"{config.path}: {len(missing)} weights are not in its files ({missing[0]}, …), and would be random; is "
            f"model.task={config.task} what this model was trained for?"
        )


def _new_module(model: PreTrainedModel, key: str) -> str:
    """The module that a new weight belongs to; for a head the outermost one, which trains and is saved in full."""
    first = key.split(".")[0]
    return first if first in classifier_heads(model) else key.rpartition(".")[0]


def _sharding(shards: int) -> Any:
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        return DistributedConfig(fsdp_size=shards)
    except (ImportError, TypeError):
        raise ModelError(
            f"model.shard needs a newer transformers than {transformers.__version__}: 5.23 loads models in shards"
        ) from None


def empty_model(
    config: ModelConfig, num_labels: int | None = None, vocabulary: Vocabulary | None = None
) -> PreTrainedModel:
    """The model on the meta device, without its weights; lists the same new modules as `load_model`, and has rows for
    the same new tokens."""
    source = find_source(config)
    settings = load_config(config)
    if num_labels is not None:
        settings.num_labels = num_labels
    with _as_model_error(source, "model"), torch.device("meta"):
        model: PreTrainedModel = AUTO_CLASS[config.task].from_config(
            settings, trust_remote_code=config.trust_remote_code, dtype=getattr(torch, config.dtype)
        )
    stored = stored_names(Path(source.path)) if source.local else None
    if stored is None:  # files on the hub are not read: a head is new unless the model was saved with one
        missing = [] if type(model).__name__ in (settings.architectures or []) else _head_keys(model)
    else:
        bare = f"{model.base_model_prefix}."
        missing = [key for key in model.state_dict() if not {key, key.removeprefix(bare)} & stored]
    new = {_new_module(model, key) for key in missing if _in_new_head(model, key)}
    model.newly_initialized = sorted(new)  # type: ignore[assignment]
    if vocabulary is not None:
        model.vocabulary = vocabulary  # type: ignore[assignment]
        add_rows(model, vocabulary)
    return model


def _head_keys(model: PreTrainedModel) -> list[str]:
    return [key for key in model.state_dict() if not key.startswith(f"{model.base_model_prefix}.")]


def identify(config: ModelConfig, memo: Path) -> dict[str, str]:
    """The identity of the base model by content (`lora_ga_cli.model.identity`), and how it is quantized."""
    source = find_source(config)
    if source.local:
        identity = local_identity(Path(source.path), memo)
    else:
        identity = hub_identity(source.path, getattr(load_config(config), "_commit_hash", None))
    if config.quantization is not None:
        identity |= {"quantization": config.quantization + (", double" if config.double_quantization else "")}
    if config.new_tokens:
        identity |= {"new_tokens": sha256_json(config.new_tokens)}
    return identity


def max_positions(settings: PreTrainedConfig) -> int | None:
    """The longest input, in tokens, that the model has positions for; None if positions are relative (T5, XLNet)."""
    limit = getattr(settings, "max_position_embeddings", None)
    if limit is None or limit <= 0 or settings.model_type in ("t5", "mt5", "umt5", "longt5"):
        return None  # XLNet states -1
    if settings.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl"):
        return int(limit) - 1 - settings.pad_token_id  # positions begin after the padding index
    return int(limit)


def vocabulary_size(settings: PreTrainedConfig) -> int | None:
    """The number of tokens that the model's embedding has rows for; None if the configuration does not say."""
    try:
        rows = getattr(settings.get_text_config(), "vocab_size", None)
    except ValueError:  # an encoder and a decoder with configurations of their own
        return None
    return rows if isinstance(rows, int) else None


def pick_device(wanted: str) -> torch.device:
    """The device that ``device=`` names; ``auto`` prefers an accelerator.

    Raises:
        ModelError: there is no such device.
    """
    if wanted == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator if accelerator is not None else torch.device("cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("device=cuda: torch sees no CUDA device (device=auto takes what there is)")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device=mps: torch sees no Apple GPU (device=auto takes what there is)")
    return torch.device(wanted)


def quiet() -> None:
    """Hides the progress bars and warnings of transformers; loraga reports what matters itself."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # these are about renamed functions inside transformers, whose old names still work
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # how a base that is quantized in its files is loaded
    warnings.filterwarnings("ignore", message="You passed `quantization_config`", module="transformers")
    # PEFT warns of tied weights in an adapter, which stay tied here
    warnings.filterwarnings("ignore", message=".*`ensure_weight_tying`|.*embeddings are no longer tied", module="peft")


def _in_new_head(model: PreTrainedModel, key: str) -> bool:
    heads = classifier_heads(model)
    return key.split(".")[0] in heads or bool(heads and ".pooler." in f".{key}")


class _as_model_error:
    """Turns the errors that transformers raises while loading into a `ModelError` of one line."""

    def __init__(self, source: Source, what: str):
        self.source, self.what = source, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if not isinstance(error, OSError | ValueError | ImportError | KeyError | RuntimeError | SafetensorError):
            return
        if isinstance(error, torch.OutOfMemoryError):
            return
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        place = self.source.path if self.source.local else f"{self.source.path} (on the hub)"
        reason = lines[0] if lines else type(error).__name__
        if "scaled_dot_product_attention" in reason:
            reason = f"{reason.split()[0]} has no attention of this kind; leave model.attention out"
        elif "Flash" in str(error):
            reason += "; leave model.attention out"
        raise ModelError(f"cannot load the {self.what} of {place}: {reason}") from error
