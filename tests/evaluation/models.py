"""Models whose answers are known, or depend on the complete input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.conftest import build_model, byte_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def restless(family: str) -> PreTrainedModel:
    """A random model of a family with weights so large that what it writes depends on all that it reads."""
    model = build_model(family).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.6)
    return model


def going_on(
    tokenizer: PreTrainedTokenizerFast, following: Mapping[str, str], otherwise: str, *, positions: int = 256
) -> LlamaForCausalLM:
    """A model that writes after a token the one that follows it, whatever stood before.

    Its one block adds nothing, embeddings are one-hot, and the head holds a 2 where a token follows and a 1 for the
    token that comes after any other.
    """
    size = len(tokenizer) + len(tokenizer) % 2
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    number_of = tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), size))
        model.lm_head.weight.zero_()
        model.lm_head.weight[number_of(otherwise)] = 1
        for token, follower in following.items():
            model.lm_head.weight[number_of(follower), number_of(token)] = 2
    return model


def alphabet() -> LlamaForCausalLM:
    """A model that goes on with the alphabet from the last letter, and ends after z and anything else.

    After the end it would begin again.
    """
    following = dict(zip(["</s>", *LETTERS], LETTERS, strict=False))
    return going_on(byte_tokenizer(), following, "</s>")


def save_alphabet(folder: Path) -> Path:
    """Saves `alphabet` with its tokenizer, and returns the folder."""
    alphabet().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
