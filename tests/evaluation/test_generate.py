"""Generated answers: batches change nothing, an interruption changes nothing, and answers end where they should."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import BartConfig, BartForConditionalGeneration

from lora_ga_cli.config.compose import compose
from lora_ga_cli.errors import InvalidInput, ModelError
from lora_ga_cli.evaluation.completions import append_completions, read_completions
from lora_ga_cli.evaluation.generate import Generator
from lora_ga_cli.evaluation.inputs import ModelInputs
from lora_ga_cli.evaluation.prompt import check_conversation
from lora_ga_cli.evaluation.tasks.base import Progress, Score
from lora_ga_cli.evaluation.tasks.benchmark import Benchmark, Completion, GenerationOptions, Problem
from lora_ga_cli.methods.prefix import insert
from lora_ga_cli.report.progress import counting
from tests.conftest import TASKS, byte_tokenizer
from tests.evaluation.models import alphabet, restless

PROMPTS = ["What is it?", "7+5=", "a", "Say something longer about nothing at all.", "é\n", "7+6=", "Well, well, well"]
TEMPLATE = "{% for item in messages %}<{{ item['role'] }}>{{ item['content'] }}\n{% endfor %}<assistant>w"


class Bench(Benchmark):
    """A benchmark of some questions, which are not scored."""

    def __init__(self, questions: Sequence[str | tuple[str, ...]], stops: tuple[str, ...] = (), chat: bool = False):
        super().__init__(GenerationOptions(task="bench"))
        self.questions, self.stops = questions, stops
        self.chat = chat  # type: ignore[misc]

    def problems(self) -> list[Problem]:
        turns = [(question,) if isinstance(question, str) else question for question in self.questions]
        return [Problem(f"bench/{number}", turn) for number, turn in enumerate(turns)]

    def score(self, completions: Sequence[Completion], progress: Progress) -> Score:
        raise AssertionError("nobody asked")


@pytest.fixture
def answer(tmp_path: Path) -> Callable[..., list[Completion]]:
    """What a model answers to a benchmark, with options by name. A file of the test's folder stores the completions."""

    def run(model: Any, bench: Bench, *, seed: int = 0, tokenizer: Any = None, file: str = "x", **fields: Any) -> Any:
        task = (TASKS | {"bart": "seq2seq_lm"})[model.config.model_type]
        options = GenerationOptions(task="bench", **({"max_new_tokens": 8, "batch_size": 3} | fields))
        generator = Generator(model, tokenizer or byte_tokenizer(), task, options, seed)
        return generator.completions(bench, tmp_path / f"{file}.jsonl", counting)

    return run


Answer = Callable[..., list[Completion]]


class Killed(Exception):
    pass


def killed_after(model: Any, batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a model generate some batches, and no more."""
    generate, done = model.generate, []

    def few(*args: Any, **kwargs: Any) -> Any:
        if len(done) == batches:
            raise Killed
        done.append(None)
        return generate(*args, **kwargs)

    monkeypatch.setattr(model, "generate", few)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_batch_answers_as_transformers_alone_does_one_by_one(answer: Answer, family: str) -> None:
    """Padding, batches and their order change no token."""
    model, tokenizer = restless(family), byte_tokenizer()
    completions = answer(model, Bench(PROMPTS), max_new_tokens=12)
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            found = model.generate(input_ids=ids, do_sample=False, max_new_tokens=12)
        new = found[0, 1 if family == "t5" else ids.shape[1] :]
        expected.append((tokenizer.decode(new, skip_special_tokens=True), 1 not in new))
    assert [(completion.texts[0], completion.truncated) for completion in completions] == expected
    assert [completion.prompts for completion in completions] == [(prompt,) for prompt in PROMPTS]
    assert len({text for text, _ in expected}) > len(PROMPTS) / 2


def test_an_answer_ends_where_the_chat_template_ends_a_turn(answer: Answer) -> None:
    """Here with a text that is no token; the model writes the alphabet after the prompt's last letter."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{{ 'fg' if m.role == 'assistant' else ' a' }}{% endfor %}"
    )
    (completion,) = answer(alphabet(), Bench(["x"], chat=True), tokenizer=tokenizer, max_new_tokens=20)
    assert (completion.texts, completion.truncated) == (("bcde",), False)


def test_a_conversation_is_read_as_its_template_writes_it() -> None:
    """And so it is trained: a beginning-of-text token that the template does not write is not put before it."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.chat_template = TEMPLATE
    inputs = ModelInputs(restless("llama"), tokenizer, "causal_lm", GenerationOptions(task="bench"), 0)
    messages = [{"role": "user", "content": "q"}]
    of_transformers = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    (chat,) = inputs.first_rows(Bench(["q"], chat=True))
    (plain,) = inputs.first_rows(Bench(["q"]))
    assert chat["input_ids"] == of_transformers
    assert (
        plain["input_ids"] == tokenizer("q")["input_ids"] == [0, *tokenizer("q", add_special_tokens=False)["input_ids"]]
    )


def test_a_trained_prefix_stays_beside_its_prompt(answer: Answer) -> None:
    """Against the base alone, which is given the prefix's embeddings before each prompt's, a token at a time."""
    base, tokenizer = restless("llama"), byte_tokenizer()
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    model.prompt_encoder["default"].embedding.weight.data.normal_(std=0.6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        completions = answer(model, Bench(PROMPTS), max_new_tokens=4)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids, new = tokenizer(prompt)["input_ids"], []
        for _ in range(4):
            with torch.no_grad():
                embeddings = base.get_input_embeddings()(torch.tensor([ids + new]))
                read = torch.cat([model.get_prompt(1), embeddings], dim=1)
                new.append(int(base(inputs_embeds=read, use_cache=False).logits[0, -1].argmax()))
        assert completion.texts[0] == tokenizer.decode(new, skip_special_tokens=True)


def test_a_seed_gives_the_same_samples(answer: Answer) -> None:
    model, options = restless("llama"), {"samples": 2, "temperature": 1.5, "top_p": 0.9}
    first = answer(model, Bench(PROMPTS), file="a", **options)
    torch.manual_seed(5)
    assert answer(model, Bench(PROMPTS), file="b", **options) == first
    assert answer(model, Bench(PROMPTS), file="c", seed=1, **options) != first
    assert [(completion.problem.id, completion.sample) for completion in first[:3]] == [
        ("bench/0", 0),
        ("bench/0", 1),
        ("bench/1", 0),
    ]
    assert all(one.texts != other.texts for one, other in zip(first[::2], first[1::2], strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("batches", [1, 2])
def test_an_interruption_changes_no_answer(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float, batches: int
) -> None:
    """Two turns, so that an interruption can be within a batch; stored answers are not generated again."""
    bench = Bench([(prompt, "And?") for prompt in PROMPTS], chat=True)
    options = {"prompt": "{question}", "temperature": temperature, "max_new_tokens": 5}
    model = restless("llama")
    whole = answer(model, bench, file="whole", **options)
    with monkeypatch.context() as patch:
        killed_after(model, 2 * batches + 1, patch)
        with pytest.raises(Killed):
            answer(model, bench, file="again", **options)
    kept = (tmp_path / "again.jsonl").read_bytes()
    assert kept.count(b"\n") == 3 * batches
    with monkeypatch.context() as patch:
        killed_after(model, 2 * (3 - batches), patch)
        assert answer(model, bench, file="again", **options) == whole
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert (tmp_path / "again.jsonl").read_bytes().startswith(kept)


def test_an_incomplete_stored_answer_is_generated_again(answer: Answer, tmp_path: Path) -> None:
    model, options = restless("llama"), {"temperature": 1.0}
    whole = answer(model, Bench(PROMPTS), file="x", **options)
    partial = tmp_path / "x.jsonl"
    partial.write_bytes(partial.read_bytes()[:-20])
    assert answer(model, Bench(PROMPTS), file="x", **options) == whole


def test_a_file_of_completions_gives_its_complete_lines_wherever_it_ends(tmp_path: Path) -> None:
    """Every length of a file whose texts contain all characters that some readers take for the end of a line."""
    problems = {name: Problem(name, ("?",)) for name in ("a", "b")}
    texts = ["é\u2028\u2029\x85", "\n\r\x0b\x0c\x1c\x1e", "plain"]
    completions = [
        Completion(problems[name], 0, ("?",), (text,), True) for name, text in zip("abb", texts, strict=True)
    ]
    completions[2] = Completion(problems["b"], 1, ("?",), ("plain",), False)
    file = tmp_path / "partial.jsonl"
    append_completions(file, completions)
    written = file.read_bytes()
    for length in range(len(written) + 1):
        file.write_bytes(written[:length])
        count = written[:length].count(b"\n")
        assert list(read_completions(file, list(problems.values())).values()) == completions[:count]
        assert file.read_bytes() == b"".join(written.splitlines(keepends=True)[:count])
    assert list(read_completions(file, [problems["b"]])) == [("b", 0), ("b", 1)]
    assert read_completions(tmp_path / "none.jsonl", []) == {}


def test_a_damaged_line_of_completions_is_left_out_and_counted(tmp_path: Path) -> None:
    """Every byte of the line before the last one."""
    problem, file, said = Problem("a", ("?",)), tmp_path / "partial.jsonl", []
    completions = [Completion(problem, number, ("?",), ("plain é",), False) for number in range(3)]
    append_completions(file, completions)
    written = file.read_bytes()
    begin, end = (sum(len(line) for line in written.splitlines(keepends=True)[:number]) for number in (1, 2))
    for place in range(begin, end - 1):
        flipped = bytearray(written)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        said.clear()
        assert list(read_completions(file, [problem], said.append)) == [("a", 0), ("a", 2)]
        assert "1 of 3 stored answers are damaged" in said[0]


def test_a_stop_ends_an_answer_and_not_its_neighbours(answer: Answer) -> None:
    completions = answer(alphabet(), Bench(["a", "t", "ae"], stops=("ef", "zz")), max_new_tokens=20)
    assert [(completion.texts, completion.truncated) for completion in completions] == [
        (("bcdef",), False),
        (("uvwxyz",), False),
        (("f",), False),  # the stop began in the prompt
    ]


@pytest.mark.parametrize(
    ("prompt", "text", "truncated"),
    [("v", "wxyz", False), ("t", "uvwxyz", False), ("s", "tuvwxyz", False), ("r", "stuvwxyz", True), ("1", "", False)],
)
def test_an_answer_that_the_limit_ended_is_truncated(answer: Answer, prompt: str, text: str, truncated: bool) -> None:
    """Eight tokens hold seven letters and the end, or eight letters."""
    completions = answer(alphabet(), Bench([prompt, "a"]))
    assert [(completion.texts, completion.truncated) for completion in completions] == [
        ((text,), truncated),
        (("bcdefghi",), True),
    ]


def test_an_answer_ends_with_any_token_that_the_model_or_the_tokenizer_ends_with(answer: Answer) -> None:
    model = alphabet()
    model.generation_config.eos_token_id = byte_tokenizer().convert_tokens_to_ids(["m", "f"])
    completions = answer(model, Bench(["a", "j", "v", "n"]))
    assert [(completion.texts[0], completion.truncated) for completion in completions] == [
        ("bcdef", False),
        ("klm", False),
        ("wxyz", False),
        ("opqrstuv", True),
    ]


@pytest.mark.parametrize("way", ["template", "prompt"])
def test_a_second_question_comes_after_the_first_answer(answer: Answer, way: str) -> None:
    tokenizer = byte_tokenizer()
    if way == "template":
        tokenizer.chat_template = TEMPLATE
        options = {}
        first, second = "<user>One?\n<assistant>w", "<user>One?\n<assistant>xyz\n<user>Two {x}?\n<assistant>w"
    else:
        options = {"prompt": "Q: {question}\nA: w"}
        first, second = "Q: One?\nA: w", "Q: One?\nA: wxyz\n\nQ: Two {x}?\nA: w"
    bench = Bench([("One?", "Two {x}?"), ("One?",)], chat=True)
    completions = answer(alphabet(), bench, tokenizer=tokenizer, **options)
    assert [(completion.prompts, completion.texts) for completion in completions] == [
        ((first, second), ("xyz", "xyz")),
        ((first,), ("xyz",)),
    ]


def test_a_completion_with_a_truncated_turn_is_truncated(answer: Answer) -> None:
    completions = answer(alphabet(), Bench([("a", "w"), ("w", "a"), ("w", "v")], chat=True), prompt="{question}")
    assert [completion.texts for completion in completions] == [
        ("bcdefghi", "xyz"),
        ("xyz", "bcdefghi"),
        ("xyz", "wxyz"),
    ]
    assert [completion.truncated for completion in completions] == [True, True, False]


@pytest.mark.parametrize("chat", [True, False])
def test_the_first_token_of_a_text_is_there_once(answer: Answer, monkeypatch: pytest.MonkeyPatch, chat: bool) -> None:
    """The token that a tokenizer puts before every text is not repeated if a chat template has written it."""
    tokenizer, model = byte_tokenizer(), alphabet()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.chat_template = "<s>" + TEMPLATE
    generate, seen = model.generate, []

    def watched(**inputs: Any) -> torch.Tensor:
        seen.extend(inputs["input_ids"].tolist())
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", watched)
    (completion,) = answer(model, Bench(["w"], chat=chat), tokenizer=tokenizer)
    assert [tokenizer.decode(row) for row in seen] == ["<s><user>w\n<assistant>w" if chat else "<s>w"]
    assert completion.texts == ("xyz",)


def test_a_conversation_needs_a_chat_template_or_a_prompt() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(InvalidInput, match=r"no chat template.*eval\.prompt=") as caught:
        check_conversation(None, tokenizer)
    assert "\n" not in str(caught.value)
    check_conversation("{question} {{x}}", tokenizer)
    tokenizer.chat_template = TEMPLATE
    check_conversation(None, tokenizer)


def test_mt_bench_is_answered_with_the_options_of_fastchat() -> None:
    """FastChat's ``gen_model_answer.py`` generates at most 1024 tokens, greedily for most questions."""
    options = compose(["model=causal_lm", "model.path=x", "dataset=quickstart", "eval=mt_bench"]).eval
    assert (options.task, options.max_new_tokens, options.temperature) == ("mt_bench", 1024, 0.0)
    assert (options.samples, options.prompt) == (1, None)


@pytest.mark.parametrize("prompt", ["{query}", "Tell me.", "{question} {answer}", "{question", "{question.x}"])
def test_a_prompt_without_the_question_is_refused(prompt: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_conversation(prompt, byte_tokenizer())
    assert [fault.where for fault in caught.value.faults] == ["eval.prompt"]


def test_partial_completions_are_stored_as_json_lines(answer: Answer, tmp_path: Path) -> None:
    answer(alphabet(), Bench(["w"]))
    (line,) = (tmp_path / "x.jsonl").read_text().splitlines()
    stored = json.loads(line)
    assert len(stored.pop("sha256")) == 64
    assert stored == {"id": "bench/0", "sample": 0, "prompts": ["w"], "texts": ["xyz"], "truncated": False}


def test_an_answer_ends_at_the_models_last_position_and_others_do_not(answer: Answer) -> None:
    """The model has 256 positions; the prompts leave room for 3 tokens, for 1, and for all."""
    completions = answer(alphabet(), Bench(["t" * 253, "a" * 255, "t"]))
    assert [(completion.texts[0], completion.truncated) for completion in completions] == [
        ("uvw", True),
        ("b", True),
        ("uvwxyz", False),
    ]


def test_every_learned_position_is_used(answer: Answer) -> None:
    """Against transformers alone, where one more token would be an IndexError."""
    model, tokenizer = restless("gpt2"), byte_tokenizer()
    questions = ["a" * 253, "c", "b" * 255]
    completions = answer(model, Bench(questions), max_new_tokens=12)
    for question, most, completion in zip(questions, (3, 12, 1), completions, strict=True):
        ids = torch.tensor([tokenizer(question)["input_ids"]])
        found = model.generate(input_ids=ids, do_sample=False, max_new_tokens=most)
        assert completion.texts[0] == tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prompt_that_fills_all_positions_is_refused_with_its_name(answer: Answer, family: str) -> None:
    """Before anything is generated."""
    model = restless(family)
    model.generate = lambda **_: pytest.fail("it ran")
    with pytest.raises(ModelError) as caught:
        answer(model, Bench(["a", "b" * 256, "c" * 1300]))
    first, second = str(caught.value).splitlines()
    assert first == "problem bench/1: its prompt has 256 tokens, and the model 256 positions"
    assert second.startswith("problem bench/2: its prompt has 1,300 tokens, and the model 256 positions (leave it out")


def test_a_second_turn_without_a_position_left_has_an_empty_answer(answer: Answer) -> None:
    bench = Bench([("w", "w"), ("w", "w" * 254)], chat=True)
    completions = answer(alphabet(), bench, prompt="{question}")
    assert [(completion.texts, completion.truncated) for completion in completions] == [
        (("xyz", "xyz"), False),
        (("xyz", ""), True),
    ]


def bart() -> BartForConditionalGeneration:
    """An encoder and decoder with learned positions."""
    torch.manual_seed(0)
    sizes = {"d_model": 48, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 80, "decoder_ffn_dim": 80}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 256}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 2}
    return BartForConditionalGeneration(BartConfig(vocab_size=259, **sizes, **heads, **ids)).eval()


@pytest.mark.parametrize(
    ("family", "method"), [("gpt2", "prefix_embedding"), ("gpt2", "prefix_layer"), ("bart", "prefix_embedding")]
)
def test_vectors_before_a_prompt_take_positions(answer: Answer, family: str, method: str) -> None:
    base = bart() if family == "bart" else restless(family)
    if method == "prefix_layer":
        insert(base, 3)
        model: Any = base.eval()
    else:
        kind = "SEQ_2_SEQ_LM" if family == "bart" else "CAUSAL_LM"
        options = PromptTuningConfig(task_type=kind, num_virtual_tokens=3, num_transformer_submodules=1)
        model = get_peft_model(base, options).eval()
    most = 253 if family == "bart" else 252  # an encoder needs no position for the answer
    (completion,) = answer(model, Bench(["a" * most]))
    assert family == "bart" or len(completion.texts[0]) <= 1
    with pytest.raises(ModelError, match=f"its prompt has {most + 1} tokens"):
        answer(model, Bench(["a" * (most + 1)]), file="y")
