"""Pretrains a Llama of 33 million parameters on the Python files of this environment: a base to compare methods on.

    python scripts/pretrain_small.py small_llama        # 4.5 minutes on an H100
    loraga reproduce methods model=causal_lm model.path=small_llama model.dtype=float32 ...

It has read code and no arithmetic word problem, so GSM8K is new to it, and every method has something to learn. Other
environments have other files, and so other weights: compare results only on one base.
"""

from __future__ import annotations

import argparse
import random
import sysconfig
from pathlib import Path
from typing import Any

import torch
from pretraining import Pretraining, build_llama, encode_documents, held_out_loss, pretrain, save_base, train_tokenizer

VOCABULARY = 16_384
TOKENIZER_BYTES = 30_000_000
HELD_OUT = 0.005  # share of the files
SMALLEST, LARGEST = 1_000, 200_000  # bytes of a file

MODEL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def python_sources(max_bytes: int, seed: int) -> list[str]:
    """Python files of the standard library and the installed packages, each once, drawn at random.

    Args:
        max_bytes: no more files are read after so many bytes.
    """
    folders = dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    files = sorted({file for folder in folders for file in Path(folder).rglob("*.py")})
    random.Random(seed).shuffle(files)
    texts: dict[str, None] = {}
    total = 0
    for file in files:
        if total >= max_bytes:
            break
        if not SMALLEST <= file.stat().st_size <= LARGEST:
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # an old encoding, declared in the file
            continue
        if text not in texts:
            texts[text] = None
            total += len(text)
    return list(texts)


def build(out: Path, steps: int, megabytes: int, seed: int) -> None:
    """Makes the base and writes it to `out`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    documents = python_sources(megabytes * 1_000_000, seed)
    held_out = max(1, int(HELD_OUT * len(documents)))
    share = min(1.0, TOKENIZER_BYTES / sum(map(len, documents)))
    tokenizer = train_tokenizer(documents[: int(share * len(documents))], VOCABULARY, MODEL["max_position_embeddings"])
    ids = encode_documents(tokenizer, documents[held_out:])
    plan = Pretraining(steps=steps, batch=64, length=512, learning_rate=1e-3, seed=seed)
    seen = steps * plan.batch * plan.length
    print(f"{len(documents)} files, {len(ids) / 1e6:.1f} M tokens, of which {seen / 1e6:.1f} M are drawn", flush=True)
    torch.manual_seed(seed)
    model = build_llama(tokenizer, **MODEL).to(device)
    pretrain(model, ids, plan, device, bf16=device.type == "cuda")
    loss = held_out_loss(model, encode_documents(tokenizer, documents[:held_out]), plan.length, device)
    save_base(model, tokenizer, out)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{out}: {parameters:.1f} M parameters, {loss:.3f} nats per token on {held_out} files held out")


def main() -> None:
    """Parses the command line and builds."""
    parser = argparse.ArgumentParser(description="Pretrain a small Llama on Python source.")
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--steps", type=int, default=4_000, help="optimizer steps, each on 64 windows of 512 tokens")
    parser.add_argument("--megabytes", type=int, default=300, help="the largest amount of source that is read")
    parser.add_argument("--seed", type=int, default=20, help="seed of the choice of files, the windows and the weights")
    arguments = parser.parse_args()
    build(arguments.out, arguments.steps, arguments.megabytes, arguments.seed)


if __name__ == "__main__":
    main()
