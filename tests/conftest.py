"""Small models of four families, a command line in this process, and data to train on."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
FAMILIES = ("llama", "gpt2", "t5", "bert")
TASKS = {"llama": "causal_lm", "gpt2": "causal_lm", "t5": "seq2seq_lm", "bert": "sequence_classification"}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: every text can be written, and nothing has to be trained."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL.values(), *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def build_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a family, with sizes that all differ so that no mix-up of dimensions goes unseen."""
    torch.manual_seed(seed)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    vocabulary = 3 + 256
    if family == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=48,
                intermediate_size=80,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                **ids,
            )
        )
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_embd=48,
                n_layer=2,
                n_head=4,
                n_positions=256,
                n_inner=80,
                attn_pdrop=0.1,
                resid_pdrop=0.1,
                embd_pdrop=0.1,
                **ids,
            )
        )
    if family == "t5":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=vocabulary,
                d_model=48,
                d_kv=12,
                d_ff=80,
                num_layers=2,
                num_heads=4,
                decoder_start_token_id=2,
                dropout_rate=0.1,
                **ids,
            )
        )
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            num_labels=3,
            **ids,
        )
    )


def build_batch(family: str, rows: int = 4, tokens: int = 12, seed: int = 1) -> dict[str, torch.Tensor]:
    """A random batch with labels; the second half of each row carries the loss, and the last row is padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 259, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    ids[-1, -3:], mask[-1, -3:] = 2, 0
    if family == "bert":
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 3, (rows,), generator=generator)}
    labels = ids.clone()
    labels[:, : tokens // 2] = -100
    labels[mask == 0] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny products are fastest, and sums always in one order, on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def few_objects_to_collect() -> None:
    """The Trainer collects garbage several times a run, and would look through the objects of all imported libraries
    each time, which takes longer than its steps. Objects that are frozen are not looked at."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def undrawn_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a tenth of a short run, so only tests marked ``figures`` draw; for others, figures are empty."""

    def save_empty(figure: object, file: Path, title: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    if request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr("lora_ga_cli.report.figures._save", save_empty)


@pytest.fixture(autouse=True)
def unwritten_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only in tests marked ``reports`` does a run write its report."""
    if request.node.get_closest_marker("reports") is None:
        monkeypatch.setattr("lora_ga_cli.report.html.page.write_beside", lambda run, make: None)


@pytest.fixture(autouse=True)
def separate_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own, with a cache of its own, offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAGA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def saved_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model of each family on disk, with its tokenizer; the classifier without its head."""
    folder = tmp_path_factory.mktemp("bases")
    for family in FAMILIES:
        model = build_model(family)
        (model.bert if family == "bert" else model).save_pretrained(folder / family)
        byte_tokenizer().save_pretrained(folder / family)
    return {family: folder / family for family in FAMILIES}


@pytest.fixture(scope="session")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose layers are as wide as blocks of 4-bit weights on a CPU must be."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3 + 256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def sums_file(tmp_path: Path) -> Path:
    """120 rows of additions, as prompt and answer."""
    draw = random.Random(0)
    rows = []
    for _ in range(120):
        a, b = draw.randrange(50), draw.randrange(50)
        rows.append({"prompt": f"{a}+{b}=", "answer": f"#### {a + b}", "text": f"{a}+{b}", "label": (a + b) % 3})
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def arguments(saved_bases: dict[str, Path], sums_file: Path) -> Callable[..., list[str]]:
    """The command line of a short run of a family, with more overrides."""

    def build(family: str = "llama", *overrides: str) -> list[str]:
        classifier = family == "bert"
        return [
            f"model={'classifier' if classifier else TASKS[family]}",
            f"dataset={'classification' if classifier else 'jsonl'}",
            f"model.path={saved_bases[family]}",
            "model.dtype=float32",
            f"dataset.train_file={sums_file}",
            "dataset.max_length=64",
            "rank=4",
            "gradient.samples=16",
            "trainer.max_steps=6",
            "trainer.batch_size=8",
            "trainer.micro_batch_size=4",
            "trainer.save_steps=2",
            "trainer.eval_steps=2",
            "trainer.logging_steps=1",
            "trainer.learning_rate=1e-2",
            "device=cpu",
            *([] if any(item.startswith("method=") for item in overrides) else ["method=lora_ga"]),
            *overrides,
        ]

    return build


@pytest.fixture
def loraga(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command line in this process; returns what it printed, and insists on its exit code."""
    from lora_ga_cli.cli.app import main

    def run(*command: str, code: int = 0) -> str:
        capsys.readouterr()
        found = main(command)
        printed = capsys.readouterr()
        assert found == code, f"exit {found}\n{printed.out}\n{printed.err}"
        return printed.out + printed.err

    return run
