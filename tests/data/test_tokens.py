"""The border between a prompt and an answer, for tokenizers that mark a text's start and for those that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data.tokens import answer_tokens, continuation_tokens, marks_start, prompt_tokens
from tests.data.examples import make_form, one_example

PAIRS = [
    ("def f(x):\n", "    return x\n"),
    ("今天", "天气"),
    ("Q: 1\nA:", " 4"),
    ("Q: 1\nA: ", "4"),
    ("ab", "cd"),
    ("a ", " b"),
    ("x\n", "\ny"),
    ("", "a"),
]


def sentencepiece_like(merges: Sequence[tuple[str, str]] = ()) -> Any:
    """Puts a mark of a space before every text, as the tokenizers of Llama 2 and Mistral 7B do."""
    import string

    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = [*string.printable[:95], "\u2581", "\n", *"今天气", *(a + b for a, b in merges)]
    tokens = dict.fromkeys([*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(special)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


MERGES = [("b", "c"), ("天", "天"), ("\u2581", "\u2581"), ("\n", "\n"), ("\u2581", "4")]


def with_metaspace() -> Any:
    """Marks the start as the newer tokenizers of Llama 2 do: before words are separated, not in the normalizer."""
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = sentencepiece_like(MERGES)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def with_prefix_space(make_tokenizer: Callable[..., Any]) -> Any:
    from tokenizers import pre_tokenizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    return tokenizer


@pytest.fixture(params=["marked", "marked, merged", "metaspace", "bytes", "bytes, merged", "bytes after a space"])
def any_tokenizer(request: pytest.FixtureRequest, make_tokenizer: Callable[..., Any]) -> Any:
    """With merges, some answers begin with characters that would become one token with the prompt's last."""
    return {
        "marked": lambda: sentencepiece_like(),
        "marked, merged": lambda: sentencepiece_like(MERGES),
        "metaspace": with_metaspace,
        "bytes": lambda: make_tokenizer(),
        "bytes after a space": lambda: with_prefix_space(make_tokenizer),
        "bytes, merged": lambda: make_tokenizer(merges=[("b", "c"), ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("Ġ", "4")]),
    }[request.param]()


@pytest.mark.parametrize(("prompt", "answer"), PAIRS)
def test_a_row_decodes_to_prompt_and_answer(any_tokenizer: Any, prompt: str, answer: str) -> None:
    config = DatasetConfig(train_file="d.jsonl", prompt="{p}", answer="{a}")
    example = one_example(make_form(config, "causal_lm", any_tokenizer), {"p": prompt, "a": answer})
    ids, length = example.row["input_ids"], example.row["prompt_length"]
    # the mark of the text's start is no character of it: the decoder takes it away where it begins the text
    decoded = any_tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded.removeprefix(" ") == (prompt + answer).removeprefix(" ")
    assert ids[:length] == any_tokenizer(prompt)["input_ids"]  # as transformers gives it to generation
    assert ids[-1] == any_tokenizer.eos_token_id
    # and so does a metric that compares words as answers
    assert answer_tokens(any_tokenizer, ids[:length], prompt, answer) == ids[length:-1]


def test_the_mark_of_a_start_is_found(make_tokenizer: Callable[..., Any]) -> None:
    assert marks_start(sentencepiece_like())
    assert marks_start(sentencepiece_like(MERGES))
    assert not marks_start(make_tokenizer())
    assert not marks_start(make_tokenizer(merges=[("Ċ", "a")]))


def test_a_continuation_has_no_mark_but_keeps_its_own_spaces() -> None:
    tokenizer = sentencepiece_like()
    assert tokenizer.convert_ids_to_tokens(continuation_tokens(tokenizer, "ab")) == ["a", "b"]
    assert tokenizer.convert_ids_to_tokens(continuation_tokens(tokenizer, " a")) == ["\u2581", "a"]


def test_a_continuation_is_tokenized_after_a_text_that_does_not_join_it() -> None:
    tokenizer = sentencepiece_like(MERGES)
    assert tokenizer.convert_ids_to_tokens(continuation_tokens(tokenizer, "\na")) == ["\n", "a"]


def test_the_beginning_of_text_token_is_never_doubled(tokenizer: Any) -> None:
    plain, written = prompt_tokens(tokenizer, ["a", "<s>a"])
    assert plain == written == tokenizer("a")["input_ids"]
