"""A tokenizer whose tokens are written by hand: a character is a token, ``Ġ`` is a space, ``Ċ`` a line end."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SPECIAL = ["<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(
    *,
    template: str | None = "<s> $A",
    pair: str | None = None,
    merges: Sequence[tuple[str, str]] = (),
    chat: str | None = None,
    pad: bool = False,
    eos: bool = True,
    type_ids: bool = False,
) -> Any:
    """A byte-level tokenizer of transformers.

    Args:
        template: what is added around a text, in the notation of `tokenizers`.
        pair: the same for a pair.
        merges: characters that become one token side by side.
        chat: a chat template.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *characters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if template is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, pair=pair, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * type_ids
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>" if eos else None,
        pad_token="<pad>" if pad else None,
        model_input_names=names,
    )
    made.chat_template = chat
    return made


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    return build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Adds ``<s>`` before a text and nothing after it; has no padding token and no chat template."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def ended() -> Any:
    """Adds ``</s>`` after a text, as an encoder-decoder's tokenizer does."""
    return build_tokenizer(template="$A </s>", pad=True)


@pytest.fixture(scope="session")
def paired() -> Any:
    """Joins two texts as an encoder's tokenizer does, with type ids 0 and 1."""
    return build_tokenizer(template="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", pad=True, type_ids=True)


@pytest.fixture(scope="session")
def chatty() -> Any:
    return build_tokenizer(chat=CHAT)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a file into the test's folder, gzipped if its name says so; returns its path as a user would give it."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write


@pytest.fixture
def jsonl(write: Callable[..., str]) -> Callable[..., str]:
    """Writes rows as JSON lines."""

    def jsonl(name: str, rows: Sequence[Any]) -> str:
        return write(name, "".join(json.dumps(row) + "\n" for row in rows))

    return jsonl
