"""New tokens of a tokenizer, and the rows that a model has for them in its embeddings and its output head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_ga_cli.errors import Fault, InvalidInput, TargetError


@dataclass(frozen=True)
class Vocabulary:
    """What a model has to know of its tokenizer.

    Args:
        ids: the number of every token.
        new: the numbers of ``model.new_tokens``, in their order.
    """

    ids: Mapping[str, int] = field(default_factory=dict)
    new: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Rows that the embeddings need."""
        return max(self.ids.values(), default=-1) + 1


def add_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], rows: int, *, saved_beside_adapter: bool = False
) -> None:
    """Adds tokens to a tokenizer, in place. Each is found in a text wherever it stands, and is never divided.

    (They are no special tokens: a text that is decoded without special tokens still has them.) A token that the
    tokenizer has, and the model has no row for, needs only the row.

    Args:
        rows: of the model's embeddings.
        saved_beside_adapter: the tokenizer was saved with an adapter, so it has the tokens that it was trained with.

    Raises:
        InvalidInput: the tokenizer has one of them already, and the model its row.
    """
    known = tokenizer.get_vocab()
    if saved_beside_adapter:
        tokens = [token for token in tokens if token not in known]
    faults = [
        Fault(
            "model.new_tokens",
            f"{token!r} is a token already, number {known[token]}",
            f"to train its row: method.trainable_token_indices=[{known[token]}]",
        )
        for token in tokens
        if known.get(token, rows) < rows
    ]
    if faults:
        raise InvalidInput(faults)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens if token not in known])


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, new_tokens: Sequence[str]) -> Vocabulary:
    """The vocabulary of a tokenizer that has the new tokens."""
    ids = tokenizer.get_vocab()
    return Vocabulary(ids, tuple(ids[token] for token in new_tokens))


@torch.no_grad()
def add_rows(model: PreTrainedModel, vocabulary: Vocabulary) -> None:
    """Gives the new tokens their rows, in place: the embeddings grow if they are too small, and each new row of the
    embeddings and of the head becomes the mean of the rows of all older tokens.

    (Many embeddings have more rows than the tokenizer has tokens. Such a row was never trained, so a new token that
    gets it begins at the mean too.)

    Raises:
        TargetError: the model's embeddings cannot grow.
    """
    if not vocabulary.new:
        return
    if embedding_rows(model) < vocabulary.size:
        try:
            model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
        except (NotImplementedError, AttributeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise TargetError(
                f"model.new_tokens: the embeddings of {type(model).__name__} cannot grow ({reason})"
            ) from error
    if next(model.parameters()).device.type == "meta":
        return
    rows = list(vocabulary.new)
    older = torch.tensor(sorted(set(vocabulary.ids.values()) - set(rows)))
    for tensor in {id(item): item for item in _by_token(model)}.values():
        tensor[rows] = tensor[older.to(tensor.device)].float().mean(dim=0).to(tensor.dtype)


def embedding_rows(model: PreTrainedModel) -> int:
    """How many rows the model's input embeddings have."""
    weight: Any = model.get_input_embeddings().weight
    return int(weight.shape[0])


def _by_token(model: PreTrainedModel) -> list[nn.Parameter]:
    """The tensors with one row for each token: embeddings, and the head's weight and bias."""
    head: Any = model.get_output_embeddings()
    found: list[Any] = [model.get_input_embeddings().weight]
    if head is not None:
        found += [head.weight, getattr(head, "bias", None)]
    return [item for item in found if item is not None]
