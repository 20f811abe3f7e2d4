"""Chat templates that write conversations as those of well-known families do, on the bundled tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_ga_cli.paths import ASSETS


@dataclass(frozen=True)
class Family:
    """A kind of chat template.

    Args:
        template: the template; an empty one stands for the tokenizer's own.
        special: the special tokens that it needs.
        end: the token that ends a turn of the assistant.
        learned: what is learned of a conversation whose answers are 2 and 4; ``|`` separates examples.
        has_system: whether it has a system role.
    """

    template: str
    special: tuple[str, ...]
    end: str
    learned: str
    has_system: bool = True

    def tokenizer(self) -> Any:
        """The bundled tokenizer with the template and its special tokens."""
        tokenizer = bundled_tokenizer()
        tokenizer.add_tokens(list(self.special), special_tokens=True)
        if self.template:
            tokenizer.chat_template = self.template
        return tokenizer


def bundled_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSETS / "tiny_base")


IM = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    "bundled": Family("", (), "</s>", " 2</s> 4</s>"),
    "chatml": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        IM,
        "<|im_end|>",
        "2<|im_end|>4<|im_end|>",
    ),
    "llama 2": Family(
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
        (),
        "</s>",
        " 2 </s> 4 </s>",
        has_system=False,
    ),
    "llama 3": Family(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        "2<|eot_id|>4<|eot_id|>",
    ),
    "mistral": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
        "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]"),
        "</s>",
        " 2</s> 4</s>",
        has_system=False,
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        "2<end_of_turn>4<end_of_turn>",
        has_system=False,
    ),
    "forgets reasoning": Family(
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% set parts = (m.content or '').split('</think>') %}"
        "{% if loop.index0 > ns.last %}<think>\n"
        "{{ parts[0].split('<think>')[-1].strip() if parts | length > 1 else '' }}\n</think>\n\n{% endif %}"
        "{{ parts[-1].strip() }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        IM,
        "<|im_end|>",
        "<think>\n\n</think>\n\n2<|im_end|>|<think>\n\n</think>\n\n4<|im_end|>",
    ),
}
