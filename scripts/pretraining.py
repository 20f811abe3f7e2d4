"""Pretraining a small Llama from nothing: a tokenizer, a training loop, and a folder to load it from.

What `build_quickstart.py` and `pretrain_small.py` have in common.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Pretraining:
    """AdamW with a linear warm-up and a cosine.

    Args:
        batch: windows in a step.
        length: tokens in a window.
        final_rate: the last learning rate, as a share of the peak's.
    """

    steps: int
    batch: int
    length: int
    learning_rate: float
    seed: int
    final_rate: float = 0.05
    warmup_steps: int = 200
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 1.0

    def rate_at(self, step: int) -> float:
        """The part of the learning rate that applies at a step."""
        warmup = min(self.warmup_steps, max(1, self.steps // 10))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def train_tokenizer(texts: Sequence[str], vocabulary: int, longest: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text can be encoded, and a number is a row of digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )


def encode_documents(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """All documents in one row of token ids (tokens,), each between its start and its end token."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(documents)
    parts = [np.asarray([*row.ids, tokenizer.eos_token_id], dtype=np.int32) for row in encoded]
    return torch.from_numpy(np.concatenate(parts))


def build_llama(tokenizer: PreTrainedTokenizerFast, **sizes: Any) -> LlamaForCausalLM:
    """An untrained model of those sizes, with the tokenizer's vocabulary."""
    config = LlamaConfig(
        **sizes,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(
    model: LlamaForCausalLM, ids: torch.Tensor, plan: Pretraining, device: torch.device, *, bf16: bool
) -> None:
    """Trains on random windows of the text.

    Args:
        ids: (tokens,).
        bf16: compute in bfloat16; weights and moments stay in float32.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    offsets = torch.arange(plan.length + 1)
    ids = ids.to(device)
    optimizer = _optimizer(model, plan, device)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, plan.rate_at)
    model.train()
    began = time.time()
    for step in range(plan.steps):
        starts = torch.randint(len(ids) - plan.length - 1, (plan.batch, 1), generator=generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = _next_token_loss(model, ids[(starts + offsets).to(device)].long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.gradient_clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0 or step == plan.steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.time() - began:6.0f} s", flush=True)


def _optimizer(model: LlamaForCausalLM, plan: Pretraining, device: torch.device) -> torch.optim.AdamW:
    """AdamW; the weight decay is for matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.betas, fused=device.type == "cuda")


def _next_token_loss(model: LlamaForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each token after the first. `windows`: (batch, length + 1) ids."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, ids: torch.Tensor, length: int, device: torch.device) -> float:
    """Nats per token on text `ids` (tokens,) that was not trained on."""
    model.eval()
    windows = ids[: (len(ids) - 1) // length * length].view(-1, length).long().to(device)
    losses = [_next_token_loss(model, part).item() * len(part) for part in windows.split(EVALUATION_BATCH)]
    return sum(losses) / len(windows)


def save_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights as float16 in safetensors; the configuration asks for float32, so that training starts in it."""
    model.to("cpu", torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    ).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
