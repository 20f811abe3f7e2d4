"""Chats: which tokens of a conversation are learned, by any template."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lora_ga_cli.config.row_forms import row_form
from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data.chat_template import with_chat_template
from lora_ga_cli.data.examples.base import Example, Form
from lora_ga_cli.data.faults import BadRow
from tests.data.chat_templates import FAMILIES, Family, bundled_tokenizer
from tests.data.examples import learned_tokens, make_form, one_example, tokens

CONFIG = DatasetConfig(train_file="d.jsonl", messages="m")
TWO_TURNS = ("user:What is 1+1?", "assistant:2", "user:And 2+2?", "assistant:4")


def chat_form(tokenizer: Any) -> Form:
    return make_form(CONFIG, "causal_lm", tokenizer)


def say(*turns: str) -> dict[str, Any]:
    """A row from ``user:text`` turns."""
    return {"m": [dict(zip(("role", "content"), turn.split(":", 1), strict=True)) for turn in turns]}


def test_each_turn_of_the_assistant_is_learned(chatty: Any) -> None:
    row = say("system:s", "user:a", "assistant:bc", "user:d", "assistant:e")
    example = one_example(chat_form(chatty), row)
    assert tokens(chatty, example) == (
        "<s> <|system|> s <|end|> <|user|> a <|end|> <|assistant|> b c <|end|> "
        "<|user|> d <|end|> <|assistant|> e <|end|>"
    )
    assert learned_tokens(chatty, example) == ". . . . . . . . b c <|end|> . . . . e <|end|>"
    assert example.row["prompt_length"] == 15
    assert example.row["prompt"].endswith("bc<|end|><|user|>d<|end|><|assistant|>")
    assert example.row["reference"] == "e"


def test_what_follows_the_last_answer_is_left_out(chatty: Any) -> None:
    example = one_example(chat_form(chatty), say("user:a", "assistant:b", "user:thanks"))
    assert tokens(chatty, example) == "<s> <|user|> a <|end|> <|assistant|> b <|end|>"


def test_the_prompts_tokens_are_those_of_generation_even_where_characters_merge(
    make_tokenizer: Callable[..., Any],
) -> None:
    """The template ends the prompt with a line end, the answer begins with one, and the tokenizer would join them."""
    template = (
        "{% for m in messages %}{{ m.role[0] }}\n{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}a\n{% endif %}"
    )
    tokenizer = make_tokenizer(chat=template, merges=[("Ċ", "Ċ")])
    example = one_example(chat_form(tokenizer), say("user:q", "assistant:\nx", "user:r", "assistant:y"))
    assert tokens(tokenizer, example) == "u Ċ q ; a Ċ Ċ x ; u Ċ r ; a Ċ y ;"
    assert learned_tokens(tokenizer, example) == ". . . . . . Ċ x ; . . . . . . y ;"


def test_a_truncated_row_is_prompted_for_the_last_answer_that_has_a_token_left(chatty: Any) -> None:
    form = chat_form(chatty)
    example = one_example(form, say("user:a", "assistant:bc", "user:d", "assistant:e"))
    truncated = form.truncate(example, 10)
    assert learned_tokens(chatty, truncated) == ". . . . . b c <|end|> . ."
    assert (truncated.row["prompt_length"], truncated.row["reference"]) == (5, "bc")
    assert form.learns(truncated)
    assert not form.learns(form.truncate(example, 5))


def test_the_template_may_use_other_keys_of_a_message(make_tokenizer: Callable[..., Any], chatty: Any) -> None:
    tokenizer = make_tokenizer(chat=chatty.chat_template.replace("<|{{ m.role }}|>", "<|{{ m.role }}|>{{ m.name }}"))
    row = {"m": [{"role": "user", "content": "a", "name": "N"}, {"role": "assistant", "content": "b", "name": None}]}
    example = one_example(chat_form(tokenizer), row)
    assert tokens(tokenizer, example) == "<s> <|user|> N a <|end|> <|assistant|> b <|end|>"


def test_messages_that_the_template_refuses_are_a_bad_row(make_tokenizer: Callable[..., Any], chatty: Any) -> None:
    refuses = "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + chatty.chat_template
    with pytest.raises(BadRow, match="the chat template refuses these messages: one turn"):
        chat_form(make_tokenizer(chat=refuses)).read(say("user:a", "assistant:b", "user:c", "assistant:d"))


def test_a_tokenizer_without_template_is_named_with_the_ways_out(tokenizer: Any) -> None:
    (fault,) = row_form(CONFIG, "causal_lm").faults(CONFIG, tokenizer)
    assert str(fault) == (
        "dataset.messages: the tokenizer has no chat template (take a chat model, or its tokenizer by "
        "model.tokenizer=NAME, or a template by dataset.chat_template=FILE, or give dataset.prompt and dataset.answer)"
    )


def examples_of(form: Form, row: dict[str, Any]) -> list[Example]:
    (examples,) = form.examples([form.read(row)])
    return examples


def learned_text(tokenizer: Any, example: Example) -> str:
    text: str = tokenizer.decode([label for label in example.row["labels"] if label != -100])
    return text


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param  # type: ignore[no-any-return]


class TestEveryTemplate:
    def test_learns_each_answer_with_its_end(self, family: Family) -> None:
        tokenizer = family.tokenizer()
        examples = examples_of(chat_form(tokenizer), say(*TWO_TURNS))
        learned = "|".join(learned_text(tokenizer, example) for example in examples)
        assert learned == family.learned

    def test_prompts_with_the_tokens_that_transformers_generates_from(self, family: Family) -> None:
        tokenizer = family.tokenizer()
        row = say(*TWO_TURNS)
        *_, last = examples_of(chat_form(tokenizer), row)
        prompt = tokenizer.apply_chat_template(row["m"][:-1], add_generation_prompt=True)["input_ids"]
        assert last.row["input_ids"][: last.row["prompt_length"]] == prompt
        assert last.row["prompt"] == tokenizer.decode(prompt)

    def test_trains_on_the_template_s_text_up_to_the_last_end(self, family: Family) -> None:
        """With one beginning-of-text token at most, and every character of the conversation."""
        tokenizer = family.tokenizer()
        row = say(*TWO_TURNS)
        *_, last = examples_of(chat_form(tokenizer), row)
        text = tokenizer.apply_chat_template(row["m"], tokenize=False)
        assert tokenizer.decode(last.row["input_ids"]) == text.rstrip()
        assert last.row["input_ids"].count(tokenizer.bos_token_id) == text.count(tokenizer.bos_token)

    def test_takes_a_system_s_text(self, family: Family) -> None:
        tokenizer = family.tokenizer()
        (example,) = examples_of(chat_form(tokenizer), say("system:Be brief.", "user:Hi", "assistant:Yo"))
        assert "Be brief." in tokenizer.decode(example.row["input_ids"])
        moved = "with the system's text in front of the first user's: the chat template has no system role"
        assert example.notes == (() if family.has_system else (moved,))
        assert ("Be brief.\n\nHi" in example.row["prompt"]) == (not family.has_system)

    def test_says_what_ends_an_answer(self, family: Family) -> None:
        tokenizer = family.tokenizer()
        form = row_form(CONFIG, "causal_lm")
        assert form.ends(CONFIG, tokenizer).tokens == (tokenizer.convert_tokens_to_ids(family.end),)
        assert form.warnings(CONFIG, tokenizer) == []


class TestReasoningThatIsForgotten:
    """A template that drops the reasoning of earlier turns, as Qwen3's does."""

    REASONED = "<think>\nadd\n</think>\n\n"

    @pytest.fixture
    def tokenizer(self) -> Any:
        return FAMILIES["forgets reasoning"].tokenizer()

    def test_every_turn_is_an_example_as_it_is_generated(self, tokenizer: Any) -> None:
        row = say("user:1+1", f"assistant:{self.REASONED}2", "user:2+2", f"assistant:{self.REASONED}4")
        one, two = examples_of(chat_form(tokenizer), row)
        assert learned_text(tokenizer, one) == f"{self.REASONED}2<|im_end|>"
        assert learned_text(tokenizer, two) == f"{self.REASONED}4<|im_end|>"
        assert self.REASONED not in two.row["prompt"]
        said = "trained turn by turn, as several examples: the chat template writes earlier turns differently"
        assert (one.notes, two.notes) == ((said,), ())

    def test_turns_that_the_template_does_not_rewrite_stay_together(self, tokenizer: Any) -> None:
        """After a call of a tool, the reasoning before it is still there."""
        call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
        messages = [
            {"role": "user", "content": "1+1"},
            {"role": "assistant", "content": f"{self.REASONED}", "tool_calls": [call]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "It is 2."},
        ]
        (example,) = examples_of(chat_form(tokenizer), {"m": messages})
        assert learned_text(tokenizer, example).count("<|im_end|>") == 2
        assert "add" in learned_text(tokenizer, example)
        assert example.notes == ()

    def test_the_last_turn_alone_is_one_example(self, tokenizer: Any) -> None:
        form = make_form(CONFIG.model_copy(update={"learn_turns": "last"}), "causal_lm", tokenizer)
        (example,) = examples_of(form, say("user:1+1", f"assistant:{self.REASONED}2", "user:2+2", "assistant:4"))
        assert learned_text(tokenizer, example) == "<think>\n\n</think>\n\n4<|im_end|>"
        assert example.notes == ()


def test_marks_of_the_template_say_what_is_learned() -> None:
    """The bundled template marks what the assistant generates; transformers finds the same tokens by its mask."""
    tokenizer = bundled_tokenizer()
    row = say("system:s", *TWO_TURNS)
    example = one_example(chat_form(tokenizer), row)
    options: dict[str, Any] = {"return_dict": True, "return_assistant_tokens_mask": True}
    of_transformers = tokenizer.apply_chat_template(row["m"], **options)
    length = example.row["length"]
    assert example.row["input_ids"] == of_transformers["input_ids"][:length]
    assert [int(label != -100) for label in example.row["labels"]] == of_transformers["assistant_masks"][:length]
    assert sum(of_transformers["assistant_masks"][length:]) == 0


def test_marks_without_the_end_of_the_turn_are_completed_by_it(make_tokenizer: Callable[..., Any]) -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{%- generation -%}{{ m.content }}"
        "{%- endgeneration -%}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
    )
    tokenizer = make_tokenizer(chat=template)
    example = one_example(chat_form(tokenizer), say("user:a", "assistant:b", "user:c", "assistant:d"))
    assert learned_tokens(tokenizer, example) == ". . . . b <|end|> . . . . d <|end|>"


def test_marks_that_leave_out_a_turn_are_not_followed(make_tokenizer: Callable[..., Any], chatty: Any) -> None:
    """Here calls of tools are outside of the marks; they are learned all the same."""
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}"
        "{% elif m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = make_tokenizer(chat=template)
    call = {"function": {"name": "f", "arguments": "{}"}}
    row = say("user:a", "assistant:", "tool:t", "assistant:d")
    row["m"][1] = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert learned_text(tokenizer, one_example(chat_form(tokenizer), row)) == "f<|end|>d<|end|>"


class TestTurnsThatAreNotLearned:
    @pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
    def test_have_no_loss(self, chatty: Any, mark: dict[str, Any]) -> None:
        row = say("user:a", "assistant:b", "user:c", "assistant:d")
        row["m"][1] |= mark
        example = one_example(chat_form(chatty), row)
        assert learned_tokens(chatty, example) == ". . . . . . . . . . . d <|end|>"

    def test_and_what_comes_after_the_last_learned_turn_is_left_out(self, chatty: Any) -> None:
        row = say("user:a", "assistant:b", "user:c", "assistant:d")
        row["m"][3]["weight"] = 0
        example = one_example(chat_form(chatty), row)
        assert learned_tokens(chatty, example) == ". . . . . b <|end|>"
        assert example.row["reference"] == "b"

    def test_a_row_of_only_such_turns_teaches_nothing(self, chatty: Any) -> None:
        row = say("user:a", "assistant:b")
        row["m"][1]["weight"] = 0
        form = chat_form(chatty)
        assert not form.learns(one_example(form, row))

    @pytest.mark.parametrize("family", ["chatml", "bundled"])
    def test_by_prefixes_and_by_marks(self, family: str) -> None:
        tokenizer = FAMILIES[family].tokenizer()
        row = say(*TWO_TURNS)
        row["m"][1]["weight"] = 0
        (example,) = examples_of(chat_form(tokenizer), row)
        assert learned_text(tokenizer, example).strip().removesuffix(FAMILIES[family].end) == "4"


class TestTools:
    TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {}}}  # noqa: RUF012
    TEMPLATE = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
        "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )

    def row(self, tools: object) -> dict[str, Any]:
        call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        said = say("user:q", "assistant:", "tool:3", "assistant:3")["m"]
        said[1] = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"m": said, "tools": tools}

    @pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]]])
    def test_are_shown_to_the_model(self, make_tokenizer: Callable[..., Any], tools: object) -> None:
        tokenizer = make_tokenizer(chat=self.TEMPLATE)
        example = one_example(chat_form(tokenizer), self.row(tools))
        assert example.row["prompt"].startswith(json.dumps([self.TOOL]))
        assert example.notes == ()

    def test_a_call_is_learned_without_a_text(self, make_tokenizer: Callable[..., Any]) -> None:
        tokenizer = make_tokenizer(chat=self.TEMPLATE)
        example = one_example(chat_form(tokenizer), self.row(None))
        assert learned_text(tokenizer, example) == 'add{"a": 1}<|end|>3<|end|>'

    def test_a_template_that_wants_a_text_gets_an_empty_one(self, make_tokenizer: Callable[..., Any]) -> None:
        tokenizer = make_tokenizer(chat=self.TEMPLATE.replace("{{ m.content }}", "{{ m.content + '' }}"))
        example = one_example(chat_form(tokenizer), self.row(None))
        assert learned_text(tokenizer, example) == 'add{"a": 1}<|end|>3<|end|>'

    def test_a_template_without_a_place_for_them_is_told_of(self, chatty: Any) -> None:
        row = self.row([self.TOOL])
        row["m"][1]["content"] = "The sum."
        example = one_example(chat_form(chatty), row)
        assert example.notes == (
            "with tools that the model is not shown: the chat template has no place for them",
            "of which the chat template leaves out a part (the call of add)",
        )

    @pytest.mark.parametrize(
        ("written", "arguments", "missing"),
        [
            ("{{ c.function.name }}({{ c.function.arguments.keys() | list }})", {"city": "Oslo"}, True),
            ("{{ c.function.name }}({{ c.function.arguments | tojson }})", {"city": 'Os"lo', "days": [2, 3.5]}, False),
            ("{{ c.function.name }}({{ c.function.arguments | tojson }})", {"city": "Øslo\n", "warm": True}, False),
        ],
    )
    def test_arguments_that_the_template_leaves_out_are_told_of(
        self, make_tokenizer: Callable[..., Any], written: str, arguments: dict[str, Any], missing: bool
    ) -> None:
        template = (
            "{% for m in messages %}{{ m.role }}:{{ m.content or '' }}"
            "{% for c in m.tool_calls or [] %}" + written + "{% endfor %};{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}"
        )
        row = say("user:q", "assistant:")
        row["m"][1] = {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": arguments}}]}
        notes = one_example(chat_form(make_tokenizer(chat=template)), row).notes
        told = ("of which the chat template leaves out a part (arguments of the call of find)",)
        assert notes == (told if missing else ())


def test_a_reasoning_or_a_name_that_the_template_leaves_out_is_told_of(chatty: Any) -> None:
    row = say("user:a", "assistant:b", "user:c", "assistant:d")
    row["m"][0]["name"] = "Zoe"
    row["m"][3]["reasoning_content"] = "since"
    assert one_example(chat_form(chatty), row).notes == (
        "of which the chat template leaves out a part (name of the user, reasoning_content of the assistant)",
    )
    row["m"][3]["weight"] = 0  # what is not learned may go
    del row["m"][0]["name"]
    assert one_example(chat_form(chatty), row).notes == ()


def test_a_message_that_the_template_leaves_out_is_told_of(make_tokenizer: Callable[..., Any]) -> None:
    template = (
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ m.role }}:{{ m.content }};{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    example = one_example(chat_form(make_tokenizer(chat=template)), say("user:a", "tool:xyz", "assistant:b"))
    assert example.notes == ("of which the chat template leaves out a part (of the tool)",)


def test_a_turn_that_is_no_continuation_of_its_prompt_is_a_bad_row(make_tokenizer: Callable[..., Any]) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}assistant:<think>{% endif %}"
    )
    with pytest.raises(BadRow) as error:
        chat_form(make_tokenizer(chat=template)).read(say("user:a", "assistant:b"))
    assert str(error.value) == (
        "the chat template writes turn 1 of the assistant differently from the prompt that generates it: '<think>' "
        "becomes 'b;' (dataset.chat_template=FILE takes another template)"
    )


class TestAnEndThatIsNoToken:
    TEMPLATE = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ end }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )

    def test_is_learned_and_told_of(self, make_tokenizer: Callable[..., Any]) -> None:
        tokenizer = make_tokenizer(chat=self.TEMPLATE.replace("{{ end }}", "[stop]"))
        example = one_example(chat_form(tokenizer), say("user:a", "assistant:b"))
        assert learned_text(tokenizer, example) == "b[stop]"
        form = row_form(CONFIG, "causal_lm")
        assert (form.ends(CONFIG, tokenizer).tokens, form.ends(CONFIG, tokenizer).text) == ((), "[stop]")
        (warning,) = form.warnings(CONFIG, tokenizer)
        assert "ends the assistant's turns with the text '[stop]', which is no token of this tokenizer" in warning

    def test_an_ordinary_token_is_no_end_token(self, make_tokenizer: Callable[..., Any]) -> None:
        """A model that stops at every full stop would be of no use."""
        tokenizer = make_tokenizer(chat=self.TEMPLATE.replace("{{ end }}", "."))
        ends = row_form(CONFIG, "causal_lm").ends(CONFIG, tokenizer)
        assert (ends.tokens, ends.text) == ((), ".")

    def test_a_token_that_was_added_to_the_vocabulary_is_one(self, make_tokenizer: Callable[..., Any]) -> None:
        tokenizer = make_tokenizer(chat=self.TEMPLATE.replace("{{ end }}", "[stop]"))
        tokenizer.add_tokens(["[stop]"])
        ends = row_form(CONFIG, "causal_lm").ends(CONFIG, tokenizer)
        assert (ends.tokens, ends.text) == ((tokenizer.convert_tokens_to_ids("[stop]"),), "")

    def test_none_at_all_is_told_of(self, make_tokenizer: Callable[..., Any]) -> None:
        tokenizer = make_tokenizer(chat=self.TEMPLATE.replace("{{ end }}", ""))
        (warning,) = row_form(CONFIG, "causal_lm").warnings(CONFIG, tokenizer)
        assert warning.startswith("the chat template writes nothing after the assistant's turns")


class TestWithoutAPromptForGeneration:
    """What stands before an answer and not in the prompt is learned, and served models have to write it."""

    HEADED = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"

    def test_a_header_that_is_learned_is_told_of(self, make_tokenizer: Callable[..., Any]) -> None:
        tokenizer = make_tokenizer(chat=self.HEADED)
        example = one_example(chat_form(tokenizer), say("user:a", "assistant:b"))
        assert learned_text(tokenizer, example) == "<assistant>b</s>"
        (warning,) = row_form(CONFIG, "causal_lm").warnings(CONFIG, tokenizer)
        assert "no prompt for generation, so the model learns to write '<assistant>' before its answers" in warning

    @pytest.mark.parametrize(
        "template",
        [
            HEADED + "{% if add_generation_prompt %}<assistant>{% endif %}",
            "{% for m in messages %}{{ '[INST]' + m.content + '[/INST]' if m.role == 'user' else ' ' + m.content + "
            "eos_token }}{% endfor %}",
        ],
    )
    def test_a_template_without_one_needs_no_line(self, make_tokenizer: Callable[..., Any], template: str) -> None:
        assert row_form(CONFIG, "causal_lm").warnings(CONFIG, make_tokenizer(chat=template)) == []


def test_padding_with_the_end_token_hides_no_learned_end(make_tokenizer: Callable[..., Any], chatty: Any) -> None:
    tokenizer = make_tokenizer(chat=chatty.chat_template.replace("<|end|>", "{{ eos_token }}"))
    assert tokenizer.pad_token is None  # so that batches are padded with the end-of-text token
    form = chat_form(tokenizer)
    rows = [one_example(form, say("user:a", f"assistant:{text}")).row for text in ("b", "bbb")]
    labels = form.collate(rows)["labels"]
    assert (labels == tokenizer.eos_token_id).sum(dim=1).tolist() == [1, 1]


class TestATemplateOfTheUsers:
    """``dataset.chat_template``."""

    def config(self, file: str) -> DatasetConfig:
        return CONFIG.model_copy(update={"chat_template": file})

    def test_replaces_the_tokenizers(self, chatty: Any, write: Callable[..., str]) -> None:
        config = self.config(write("mine.jinja", FAMILIES["llama 3"].template))
        changed = with_chat_template(config, chatty)
        assert changed.chat_template == FAMILIES["llama 3"].template
        assert chatty.chat_template != changed.chat_template

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("{% for m in messages %}", "Unexpected end of template"),
            (" ", "mine.jinja is empty"),
            (b"\xff", "mine.jinja cannot be read: it is not UTF-8"),
        ],
    )
    def test_that_cannot_be_used_is_a_fault(
        self, chatty: Any, write: Callable[..., str], content: str | bytes, reason: str
    ) -> None:
        (fault,) = row_form(CONFIG, "causal_lm").faults(self.config(write("mine.jinja", content)), chatty)
        assert str(fault).startswith("dataset.chat_template: ")
        assert reason in str(fault)

    def test_a_missing_file_is_named(self, chatty: Any) -> None:
        (fault,) = row_form(CONFIG, "causal_lm").faults(self.config("none.jinja"), chatty)
        assert "none.jinja cannot be read: No such file or directory" in str(fault)


def test_an_empty_answer_is_a_bad_row(chatty: Any) -> None:
    with pytest.raises(BadRow, match="message 2, of the assistant, is empty"):
        chat_form(chatty).read(say("user:a", "assistant: "))


def test_a_call_that_the_template_leaves_out_is_no_answer(make_tokenizer: Callable[..., Any], chatty: Any) -> None:
    """It would be learned as an answer of nothing but its end."""
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    row = {"m": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    with pytest.raises(BadRow, match="nothing but a call of a tool, which the chat template leaves out"):
        chat_form(chatty).read(row)
