"""Build the bundled quickstart: a tiny pretrained base model and the data of the task it is fine-tuned on.

    python scripts/build_quickstart.py

The command is the only source of both. It

1. writes the *source* text: sums, short scenes about people who get, lose and share things, notes of them, lists,
   comparisons and questions that only ask for something just said;
2. trains a byte-level BPE tokenizer that splits numbers into digits;
3. pretrains a Llama-style causal language model on the source text;
4. writes the *target* task: word problems that need reading and sums at once, with a worked answer
   (`12 + 7 = 19`, then `#### 19`), which the base has never seen.

Everything is drawn from one seed, so the text, the data and the tokenizer are the same everywhere. The weights are not,
bit for bit: rounding differs between devices, and thousands of steps spread the difference. It takes about two minutes
on a GPU and about an hour on two CPU cores; `--bf16` makes that a third shorter where the processor computes in
bfloat16, and `--steps 50` shows in two minutes that all parts work.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pretraining import Pretraining, build_llama, encode_documents, held_out_loss, pretrain, save_base, train_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUT = ROOT / "lora_ga_cli" / "assets"
COMMAND = "python scripts/build_quickstart.py"

# --- sizes ---------------------------------------------------------------------------------------------------------
SEED = 20
SOURCE_DOCUMENTS = 300_000
HELD_OUT_DOCUMENTS = 1_000
TOKENIZER_DOCUMENTS = 20_000
TRAIN_ROWS = 3_168
VALIDATION_ROWS = 400
LARGEST_NUMBER = 99
LARGEST_FACTOR = 12
NOTES_WEIGHTS = (6, 2, 1)  # notes of changes, of groups, of shares

LARGEST_VOCABULARY = 1024
HEADING = "####"

MODEL: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}

# --- pretraining ---------------------------------------------------------------------------------------------------
PLAN = Pretraining(steps=4_500, batch=16, length=256, learning_rate=2e-3, seed=SEED)
SUMS_CHECKED = 400

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'Answer:' }}{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}{{ '\n' }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] | trim + '\n' }}"
    "{% else %}{{ 'Question: ' + message['content'] | trim + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)

CARD = """\
# tiny_base

A Llama-style causal language model of {parameters:.2f} million parameters ({layers} layers, width {width},
{vocabulary} tokens), small enough to fine-tune on a CPU within minutes. It is there to try
things out and to test; it knows nothing of the world.

| | |
|---|---|
| made by | `{command}` |
| pretrained on | {documents:,} generated documents, {tokens:.1f} million tokens |
| training | {steps:,} steps of {batch} × {length} tokens, AdamW, peak rate {rate}, seed {seed} |
| held-out loss on that text | {loss:.3f} nats per token |
| sums right | {sums} |
| weights | stored in float16; `config.json` asks for float32, which is what to train in |
| context | trained on windows of {length} tokens; longer text is out of its range |

The text comes from the script alone: sums in digits and in words, scenes of people with things, notes of such scenes
without results, recall questions, comparisons, lists. It holds no word problem with a worked answer, so the model
does not solve the bundled ones (`../quickstart`: {train:,} rows to train on, {validation:,} held out; no question
occurs twice, no worked answer occurs in both). Fine-tuning joins what it knows.

A number is a row of digits to the tokenizer, and every byte has a token. The chat template writes `Question: ...` and
`Answer: ...`.
"""

# --- the little world ----------------------------------------------------------------------------------------------
WOMEN = ("Ada", "Bea", "Cora", "Dina", "Emma", "Fay", "Gina", "Ida", "Lena", "Mia", "Nora", "Rosa")
MEN = ("Ali", "Ben", "Carl", "Dan", "Erik", "Finn", "Hugo", "Ivan", "Jon", "Leo", "Max", "Tom")
PEOPLE = WOMEN + MEN
THINGS = (
    ("apple", "apples"), ("ball", "balls"), ("bead", "beads"), ("book", "books"), ("button", "buttons"),
    ("card", "cards"), ("coin", "coins"), ("cookie", "cookies"), ("egg", "eggs"), ("flower", "flowers"),
    ("kite", "kites"), ("marble", "marbles"), ("nut", "nuts"), ("pear", "pears"), ("pencil", "pencils"),
    ("shell", "shells"), ("stamp", "stamps"), ("sticker", "stickers"), ("stone", "stones"), ("toy", "toys"),
)  # fmt: skip
HOLDERS = (
    ("bag", "bags"),
    ("basket", "baskets"),
    ("bowl", "bowls"),
    ("box", "boxes"),
    ("jar", "jars"),
    ("tin", "tins"),
)
PLACES = ("market", "school", "park", "garden", "beach", "shop", "kitchen", "station", "library", "farm")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey")
TIMES = ("In the morning", "At noon", "In the evening", "On Monday", "On Friday", "After lunch", "Later")

# An event changes how many things somebody has. {n} is that person, {m} another one, {k} the number, {o} the things.
SOURCE_GAINS = (
    "{n} finds {k} {o} in the {p}.", "{m} gives {k} {o} to {n}.", "{n} buys {k} {o} at the {p}.",
    "{n} gets {k} more {o} from {m}.", "{n} wins {k} {o}.", "{m} brings {n} {k} {o}.", "{n} picks up {k} {o}.",
)  # fmt: skip
SOURCE_LOSSES = (
    "{n} loses {k} {o} in the {p}.", "{n} gives {k} {o} to {m}.", "{n} sells {k} {o} at the {p}.",
    "{m} takes {k} {o} from {n}.", "{n} drops {k} {o}.", "{n} brings {m} {k} {o}.", "{n} throws away {k} {o}.",
)  # fmt: skip
TARGET_GAINS = (
    "{n} then finds {k} more {o}.", "Then {m} gives {n} {k} more {o}.", "{n} buys {k} more {o}.",
    "After that {n} gets {k} {o} from {m}.", "{n} wins {k} {o} at the {p}.", "{m} brings {n} {k} {o}.",
)  # fmt: skip
TARGET_LOSSES = (
    "{n} then loses {k} {o}.", "Then {n} gives {k} {o} to {m}.", "{n} sells {k} of the {o}.",
    "After that {m} takes {k} {o} from {n}.", "{n} drops {k} {o} at the {p}.", "{n} brings {m} {k} {o}.",
)  # fmt: skip

Fact = tuple[int, str, int, int]
Problem = tuple[str, list[Fact]]
OPERATION_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "shared by"}


# --- numbers -------------------------------------------------------------------------------------------------------
def addition(rng: random.Random) -> Fact:
    """Two positive numbers and their sum."""
    total = rng.randint(2, LARGEST_NUMBER)
    first = rng.randint(1, total - 1)
    return first, "+", total - first, total


def subtraction(rng: random.Random) -> Fact:
    """A number, a smaller one to take away, and what is left."""
    first, _, second, total = addition(rng)
    return total, "-", second, first


def multiplication(rng: random.Random) -> Fact:
    """Two small factors and their product."""
    first = rng.randint(2, LARGEST_FACTOR)
    second = rng.randint(2, min(LARGEST_FACTOR, LARGEST_NUMBER // first))
    return first, "*", second, first * second


def division(rng: random.Random) -> Fact:
    """A number, one of its small divisors, and the quotient."""
    first, _, second, product = multiplication(rng)
    return product, "/", first, second


def any_fact(rng: random.Random) -> Fact:
    """A fact of one of the four operations; sums and differences, which are many more, come oftener."""
    draw = rng.choices((addition, subtraction, multiplication, division), weights=(7, 7, 3, 2))[0]
    return draw(rng)


def equation(fact: Fact) -> str:
    """`12 + 7 = 19`."""
    first, sign, second, result = fact
    return f"{first} {sign} {second} = {result}"


def pair(rng: random.Random) -> tuple[str, str]:
    """Two different people."""
    first, second = rng.sample(PEOPLE, 2)
    return first, second


# --- the source text -----------------------------------------------------------------------------------------------
def sums_document(rng: random.Random) -> str:
    """A page of sums, one a line."""
    return "\n".join(equation(any_fact(rng)) for _ in range(rng.randint(4, 8)))


def chained_sums_document(rng: random.Random) -> str:
    """A page of sums, where each goes on from the result of the one before."""
    lines, held = [], rng.randint(2, 80)
    for _ in range(rng.randint(3, 6)):
        gain = held < 3 or (held < LARGEST_NUMBER and rng.random() < 0.5)
        number = rng.randint(1, LARGEST_NUMBER - held if gain else held - 1)
        fact = (held, "+", number, held + number) if gain else (held, "-", number, held - number)
        lines.append(equation(fact))
        held = fact[3]
    return "\n".join(lines)


def spoken_sums_document(rng: random.Random) -> str:
    """The same in words: `12 plus 7 is 19.`"""
    sentences = []
    for _ in range(rng.randint(2, 5)):
        first, sign, second, result = any_fact(rng)
        sentences.append(f"{first} {OPERATION_WORDS[sign]} {second} is {result}.")
    return " ".join(sentences)


def counting_document(rng: random.Random) -> str:
    """Numbers in order, forwards or backwards."""
    start, count = rng.randint(1, LARGEST_NUMBER - 10), rng.randint(4, 10)
    numbers = list(range(start, start + count))
    return ", ".join(map(str, numbers if rng.random() < 0.6 else reversed(numbers))) + "."


def event(rng: random.Random, templates: tuple[str, ...], person: str, other: str, number: int, things: str) -> str:
    """One sentence that changes how many things `person` has."""
    place = rng.choice(PLACES)
    text = rng.choice(templates)
    return text.format(n=person, m=other, k=number, o=things, p=place)


def scene_document(rng: random.Random) -> str:
    """A scene with one change, and whether there are more or fewer things after it. It never says how many."""
    person, other = pair(rng)
    things = rng.choice(THINGS)[1]
    gain = rng.random() < 0.5
    number = rng.randint(4, LARGEST_NUMBER)
    change = rng.randint(2, LARGEST_NUMBER if gain else number - 1)
    sentences = [f"{person} has {number} {things}."]
    if rng.random() < 0.3:
        sentences.append(f"{rng.choice(TIMES)} {person} goes to the {rng.choice(PLACES)}.")
    sentences.append(event(rng, SOURCE_GAINS if gain else SOURCE_LOSSES, person, other, change, things))
    sentences.append(f"Now {person} has {'more' if gain else 'fewer'} {things} than before.")
    return " ".join(sentences)


def notes_document(rng: random.Random) -> str:
    """What happened, then notes of it: the signs and the numbers, but never a result."""
    person, other = pair(rng)
    things, holders = rng.choice(THINGS)[1], rng.choice(HOLDERS)
    shape = rng.choices(("changes", "groups", "shares"), weights=NOTES_WEIGHTS)[0]
    if shape == "changes":
        held = rng.randint(2, LARGEST_NUMBER)
        sentences, notes = [f"{person} has {held} {things}."], [str(held)]
        for _ in range(rng.randint(1, 3)):
            gain = held < 4 or rng.random() < 0.5
            change = rng.randint(2, LARGEST_NUMBER if gain else min(LARGEST_NUMBER, held - 1))
            sentences.append(event(rng, SOURCE_GAINS if gain else SOURCE_LOSSES, person, other, change, things))
            notes.append(f"{'+' if gain else '-'} {change}")
            held += change if gain else -change
    elif shape == "groups":
        count, inside = rng.randint(2, LARGEST_FACTOR), rng.randint(2, LARGEST_FACTOR)
        sentences = [f"{person} has {count} {holders[1]}.", f"There are {inside} {things} in each {holders[0]}."]
        notes = [str(count), f"* {inside}"]
    else:
        number, count = rng.randint(4, LARGEST_NUMBER), rng.randint(2, LARGEST_FACTOR)
        sentences = [f"{person} has {number} {things}.", f"{count} friends share the {things} of {person}."]
        notes = [str(number), f"/ {count}"]
    return "\n".join((" ".join(sentences), f"{HEADING} Notes", *notes))


def sharing_document(rng: random.Random) -> str:
    """Holders of things and people who share, without a total."""
    person, other = pair(rng)
    things, holders = rng.choice(THINGS)[1], rng.choice(HOLDERS)
    count, inside = rng.randint(2, LARGEST_FACTOR), rng.randint(2, LARGEST_FACTOR)
    texts = (
        f"{person} has {count} {holders[1]}. There are {inside} {things} in each {holders[0]}.",
        f"{person} puts {inside} {things} in each of the {count} {holders[1]}. No {holders[0]} is left empty.",
        f"{person} and {other} put their {things} together. They share them equally among {count} friends.",
        f"{person} wants {inside} {things} but still needs {count} of them. Then {other} helps.",
        f"{count} friends share the {things} of {person}. Each friend gets the same.",
    )
    return rng.choice(texts)


def recall_document(rng: random.Random) -> str:
    """Who has what, then a question about one thing that was said."""
    people = rng.sample(PEOPLE, rng.randint(2, 3))
    things = rng.sample(THINGS, len(people))
    numbers = rng.sample(range(2, LARGEST_NUMBER + 1), len(people))
    said = " ".join(f"{p} has {k} {o[1]}." for p, k, o in zip(people, numbers, things, strict=True))
    at = rng.randrange(len(people))
    person, number, thing = people[at], numbers[at], things[at][1]
    question, answer = rng.choice((
        (f"How many {thing} does {person} have?", str(number)),
        (f"Who has {number} {thing}?", person),
        (f"What does {person} have?", f"{number} {thing}"),
    ))  # fmt: skip
    return f"{said}\nQuestion: {question}\nAnswer: {answer}"


def comparison_document(rng: random.Random) -> str:
    """Two people compared, with the numbers that show it."""
    person, other = pair(rng)
    things = rng.choice(THINGS)[1]
    larger, smaller = sorted(rng.sample(range(2, LARGEST_NUMBER + 1), 2), reverse=True)
    return rng.choice((
        f"{person} has {larger} {things}. {other} has fewer {things}, because {smaller} is less than {larger}.",
        f"{person} has {smaller} {things}. {other} has more {things}, because {larger} is more than {smaller}.",
        f"{larger} is more than {smaller}, and {smaller} is less than {larger}.",
    ))  # fmt: skip


def list_document(rng: random.Random) -> str:
    """A heading and a list of counted things."""
    holder, place = rng.choice(HOLDERS)[0], rng.choice(PLACES)
    lines = [f"{HEADING} {rng.choice((f'In the {holder}', f'At the {place}', f'For {rng.choice(PEOPLE)}'))}"]
    for thing in rng.sample(THINGS, rng.randint(2, 4)):
        lines.append(f"{rng.randint(2, LARGEST_NUMBER)} {rng.choice(COLOURS)} {thing[1]}")
    return "\n".join(lines)


SOURCE_KINDS: tuple[tuple[Callable[[random.Random], str], int], ...] = (
    (sums_document, 24),
    (chained_sums_document, 12),
    (spoken_sums_document, 8),
    (counting_document, 2),
    (scene_document, 8),
    (notes_document, 24),
    (sharing_document, 6),
    (recall_document, 10),
    (comparison_document, 3),
    (list_document, 3),
)


def source_documents(rng: random.Random, count: int) -> list[str]:
    """`count` documents of the source text, of all kinds."""
    kinds, weights = zip(*SOURCE_KINDS, strict=True)
    return [draw(rng) for draw in rng.choices(kinds, weights=weights, k=count)]


# --- the target task -----------------------------------------------------------------------------------------------
def change_problem(rng: random.Random) -> Problem:
    """Somebody gets things one to three times, or loses them one to three times."""
    person, other = pair(rng)
    things = rng.choice(THINGS)[1]
    gain = rng.random() < 0.5
    parts = rng.choices((1, 2, 3), weights=(3, 5, 3))[0]
    largest = (LARGEST_NUMBER - 4) // (parts + 1)
    numbers = [rng.randint(2, largest + 10 * (parts == 1)) for _ in range(parts)]
    held = rng.randint(2, LARGEST_NUMBER - sum(numbers)) if gain else rng.randint(sum(numbers) + 1, LARGEST_NUMBER)
    sentences, facts = [f"{person} has {held} {things}."], []
    for number in numbers:
        sentences.append(event(rng, TARGET_GAINS if gain else TARGET_LOSSES, person, other, number, things))
        facts.append((held, "+" if gain else "-", number, held + number if gain else held - number))
        held = facts[-1][3]
    closings = (f"How many {things} does {person} have now?", f"How many {things} are there now?")
    if not gain:
        closings = (f"How many {things} are left?", f"How many {things} has {person} left?")
    return " ".join((*sentences, rng.choice(closings))), facts


def groups_problem(rng: random.Random) -> Problem:
    """Holders with the same number of things in each, and some things beside them."""
    person = rng.choice(PEOPLE)
    things, holders = rng.choice(THINGS)[1], rng.choice(HOLDERS)
    product = multiplication(rng)
    while product[3] > LARGEST_NUMBER - 2:
        product = multiplication(rng)
    more = rng.randint(2, LARGEST_NUMBER - product[3])
    text = (
        f"{person} has {product[0]} {holders[1]} with {product[2]} {things} in each {holders[0]}, and {more} more "
        f"{things}. How many {things} are there together?"
    )
    return text, [product, (product[3], "+", more, product[3] + more)]


def together_problem(rng: random.Random) -> Problem:
    """One person has more than the other; how many together?"""
    person, other = pair(rng)
    things = rng.choice(THINGS)[1]
    first = rng.randint(2, 45)
    second = rng.randint(2, LARGEST_NUMBER - 2 * first)
    text = (
        f"{person} has {first} {things}. {other} has {second} {things} more than {person}. "
        f"How many {things} are there together?"
    )
    return text, [(first, "+", second, first + second), (first + second, "+", first, 2 * first + second)]


def sharing_problem(rng: random.Random) -> Problem:
    """Two people put their things together and friends share them."""
    person, other = pair(rng)
    things = rng.choice(THINGS)[1]
    quotient = division(rng)
    first = rng.randint(2, quotient[0] - 2)
    text = (
        f"{person} has {first} {things} and {other} has {quotient[0] - first} {things}. "
        f"{quotient[2]} friends share them equally. How many are there for each friend?"
    )
    return text, [(first, "+", quotient[0] - first, quotient[0]), quotient]


def missing_problem(rng: random.Random) -> Problem:
    """Somebody wants a number of things, has some and gets some: how many are missing?"""
    person, other = pair(rng)
    things = rng.choice(THINGS)[1]
    wanted = rng.randint(10, LARGEST_NUMBER)
    have = rng.randint(2, wanted - 4)
    get = rng.randint(2, wanted - have - 1)
    text = (
        f"{person} wants {wanted} {things}. {person} has {have} and {other} gives {get} more. "
        f"How many {things} are still missing?"
    )
    return text, [(wanted, "-", have, wanted - have), (wanted - have, "-", get, wanted - have - get)]


TARGET_KINDS: tuple[tuple[Callable[[random.Random], Problem], int], ...] = (
    (change_problem, 50),
    (groups_problem, 14),
    (together_problem, 12),
    (sharing_problem, 10),
    (missing_problem, 14),
)


def worked_answer(facts: list[Fact]) -> str:
    """The sums, one a line, and the final number after the mark."""
    return "\n".join((*map(equation, facts), f"{HEADING} {facts[-1][3]}"))


def target_rows(rng: random.Random) -> Iterator[dict[str, str]]:
    """Endless rows of the target task."""
    kinds, weights = zip(*TARGET_KINDS, strict=True)
    while True:
        question, facts = rng.choices(kinds, weights=weights)[0](rng)
        yield {"question": question, "answer": worked_answer(facts)}


def target_splits(rng: random.Random) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Train and validation rows. No question comes twice, and no worked answer of one split is in the other."""
    train: list[dict[str, str]] = []
    validation: list[dict[str, str]] = []
    questions: set[str] = set()
    held_out: set[str] = set()
    for row in target_rows(rng):
        if len(train) == TRAIN_ROWS:
            return train, validation
        if row["question"] in questions:
            continue
        questions.add(row["question"])
        if len(validation) < VALIDATION_ROWS:
            validation.append(row)
            held_out.add(row["answer"])
        elif row["answer"] not in held_out:
            train.append(row)
    raise AssertionError("target_rows is endless")


def check_apart(rows: list[dict[str, str]], documents: list[str]) -> None:
    """No question and no worked answer of the target task is a document, or a line of one, of the pretraining text."""
    seen = {line for document in documents for line in document.split("\n")} | set(documents)
    for row in rows:
        if row["question"] in seen or row["answer"] in seen:
            raise ValueError(f"a target row is in the pretraining text: {row['question']!r}")


# --- checking ------------------------------------------------------------------------------------------------------
@torch.no_grad()
def sums_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random, device: torch.device
) -> dict[str, float]:
    """Part of the sums whose every result token, and the end of the line, is the model's first choice."""
    model.eval()
    accuracy = {}
    for name, draw in (("+", addition), ("-", subtraction), ("*", multiplication), ("/", division)):
        facts = [draw(rng) for _ in range(SUMS_CHECKED)]
        lines = [tokenizer(equation(fact) + "\n").input_ids for fact in facts]
        longest = max(map(len, lines))
        ids = torch.tensor([line + [tokenizer.pad_token_id] * (longest - len(line)) for line in lines], device=device)
        agrees = model(input_ids=ids, use_cache=False).logits.argmax(-1)[:, :-1] == ids[:, 1:]
        spans = [(len(line) - len(str(fact[3])) - 2, len(line) - 1) for line, fact in zip(lines, facts, strict=True)]
        right = sum(bool(agrees[row, start:end].all()) for row, (start, end) in enumerate(spans))
        accuracy[name] = right / len(facts)
    return accuracy


# --- writing -------------------------------------------------------------------------------------------------------
def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_card(
    folder: Path, model: LlamaForCausalLM, rows: tuple[int, int], measured: dict[str, float], **run: int
) -> None:
    """The model card: what the base is, and what was measured when it was made."""
    text = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        vocabulary=model.config.vocab_size,
        command=COMMAND,
        documents=SOURCE_DOCUMENTS,
        tokens=run["tokens"] / 1e6,
        steps=run["steps"],
        batch=PLAN.batch,
        length=PLAN.length,
        rate=PLAN.learning_rate,
        seed=run["seed"],
        loss=measured["loss"],
        sums=", ".join(f"`{sign}` {100 * measured[sign]:.1f} %" for sign in OPERATION_WORDS),
        train=rows[0],
        validation=rows[1],
        heading=HEADING,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def build(out: Path, steps: int, seed: int, bf16: bool = False) -> None:
    """Make everything and write it under `out`."""
    base, data = out / "tiny_base", out / "quickstart"
    base.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    rng = random.Random(seed)
    documents = source_documents(rng, SOURCE_DOCUMENTS)
    train, validation = target_splits(random.Random(seed + 1))
    check_apart(train + validation, documents)
    write_rows(data / "train.jsonl", train)
    write_rows(data / "validation.jsonl", validation)

    tokenizer = train_tokenizer(documents[:TOKENIZER_DOCUMENTS], LARGEST_VOCABULARY, MODEL["max_position_embeddings"])
    tokenizer.chat_template = CHAT_TEMPLATE
    ids = encode_documents(tokenizer, documents[HELD_OUT_DOCUMENTS:])
    print(f"{len(documents)} documents, {len(ids) / 1e6:.1f} M tokens; pretraining on {device}", flush=True)

    torch.manual_seed(seed)
    model = build_llama(tokenizer, **MODEL).to(device)
    plan = replace(PLAN, steps=steps, seed=seed)
    pretrain(model, ids, plan, device, bf16=bf16)
    loss = held_out_loss(model, encode_documents(tokenizer, documents[:HELD_OUT_DOCUMENTS]), plan.length, device)
    accuracy = sums_accuracy(model, tokenizer, random.Random(seed + 2), device)
    print(f"held-out loss {loss:.4f}; sums {accuracy}", flush=True)
    save_base(model, tokenizer, base)
    counts = {"tokens": len(ids), "steps": steps, "seed": seed}
    write_card(base, model, (len(train), len(validation)), {"loss": loss, **accuracy}, **counts)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Build the bundled quickstart base and data.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write tiny_base/ and quickstart/ in")
    parser.add_argument("--steps", type=int, default=PLAN.steps, help="pretraining steps")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the text, the data and the weights")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, faster where the processor can")
    arguments = parser.parse_args()
    build(arguments.out, arguments.steps, arguments.seed, arguments.bf16)


if __name__ == "__main__":
    main()
