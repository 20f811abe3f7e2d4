"""Names that options have in PEFT, transformers and other tools, or had in earlier versions, and what they are here."""

from __future__ import annotations

RENAMED = {
    # PEFT
    "r": "rank",
    "lora_r": "rank",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "adapter_dropout",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "use_rslora": "method.use_rslora",
    "modules_to_save": "method.modules_to_save",
    "lora_modules_to_save": "method.modules_to_save",
    "trainable_token_indices": "method.trainable_token_indices",
    "num_virtual_tokens": "method.prefix_length",
    "task_type": "model.task",
    # transformers: the model
    "model_name_or_path": "model.path",
    "model_name": "model.path",
    "base_model": "model.path",
    "model_revision": "model.revision",
    "tokenizer_name": "model.tokenizer",
    "tokenizer_name_or_path": "model.tokenizer",
    "torch_dtype": "model.dtype",
    "attn_implementation": "model.attention",
    # transformers: the training
    "num_train_epochs": "trainer.epochs",
    "num_epochs": "trainer.epochs",
    "per_device_train_batch_size": "trainer.micro_batch_size",
    "per_device_eval_batch_size": "eval.batch_size",
    "train_batch_size": "trainer.batch_size",
    "lr": "trainer.learning_rate",
    "learning_rate": "trainer.learning_rate",
    "lr_scheduler_type": "trainer.lr_scheduler",
    "optim": "trainer.optimizer",
    "load_best_model_at_end": "trainer.load_best",
    "dataloader_num_workers": "trainer.dataloader_workers",
    # data sets
    "dataset_name": "dataset.path",
    "dataset_config_name": "dataset.subset",
    "dataset_config": "dataset.subset",
    "max_seq_length": "dataset.max_length",
    "cutoff_len": "dataset.max_length",
    "max_train_samples": "dataset.max_rows",
    "max_eval_samples": "dataset.max_validation_rows",
    "num_fewshot": "eval.shots",
    # earlier versions
    "method.adapter": "method.type",
    "method.start": "method.init",
    "method.shift": "method.offset",
    "method.rank_stabilised": "method.use_rslora",
    "method.rank_stabilized": "method.use_rslora",
    "method.learning_rate_ratio": "method.loraplus_lr_ratio",
    "trainer.schedule": "trainer.lr_scheduler",
}
"""What an option is called here, by its other name alone, or with its section where only that one had it."""
REPLACED = {
    "bf16": "write trainer.precision=bf16",
    "fp16": "write trainer.precision=fp16",
    "load_in_4bit": "write model.quantization=nf4",
    "load_in_8bit": "write model.quantization=int8",
    "bnb_4bit_quant_type": "write model.quantization=nf4",
    "bnb_4bit_use_double_quant": "write model.double_quantization=true",
    "use_dora": "write method=dora",
    "init_lora_weights": "method=NAME chooses how the adapter is initialized: method=pissa, method=lora_ga, …",
    "gradient_accumulation_steps": "trainer.batch_size counts the rows of an optimizer step over all its micro-batches",
    "warmup_steps": "write trainer.warmup_ratio=0.03, a share of all steps",
    "eval_strategy": "write trainer.eval_steps=100; without it, each epoch is evaluated",
    "evaluation_strategy": "write trainer.eval_steps=100; without it, each epoch is evaluated",
    "save_strategy": "write trainer.save_steps=100; without it, each epoch is saved",
}
"""What to write instead of a name that has no single counterpart."""
MOVED_SECTIONS = {"method.adalora.": "method."}
"""Sections whose options have moved to another."""


def hint_for(name: str) -> str:
    """The hint for an unknown option with a name of another library or an earlier version; empty for other names."""
    for section, new_section in MOVED_SECTIONS.items():
        if name.startswith(section):
            return f"did you mean {new_section}{name.removeprefix(section)}?"
    last_part = name.rsplit(".", 1)[-1]
    for key in (name, last_part):
        if RENAMED.get(key, name) != name:
            return f"did you mean {RENAMED[key]}?"
        if key in REPLACED:
            return REPLACED[key]
    return ""
