"""Heads of classifiers, run on the states that they read: of decoders, the state of each text's last token."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from udfs.model.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor, nn

_ROWS, _LENGTH = 4, 3  # states that a head is tried with
_ALIKE, _DIFFERENT = 0.02, 0.05  # of the largest output


def find_last_token_head(model: Any) -> Callable[[Tensor], Tensor] | None:
    """The head of a classifier that reads one token a text, its last, as transformers' own code computes it.

    transformers finds that token by the padding token, and takes one text alone where a model has none. Given its
    states, the head needs neither.

    Args:
        model: A transformers model for sequence classification.

    Returns:
        A function from (B, H) states to (B, L) logits; None where the head reads something else.
    """
    import torch

    if model.base_model is model:
        return None
    try:
        run = _without_base(model)
        weight = next(model.parameters())
        width = model.config.get_text_config().hidden_size
        made = torch.randn(_ROWS, _LENGTH, width, generator=torch.Generator().manual_seed(5))
        states = made.to(weight.device, weight.dtype)
        with torch.inference_mode():
            whole, last, first = (run(part).float() for part in (states, states[:, -1:], states[:, :1]))
        size = whole.abs().max()
        is_last = (whole - last).abs().max() <= _ALIKE * size and (whole - first).abs().max() > _DIFFERENT * size
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return None
    return (lambda states: run(states.unsqueeze(1))) if is_last else None


def skipped_token(model: Any) -> int | None:
    """The token that such a head does not take for a text's last one: the padding token, where it has one."""
    found: int | None = model.config.get_text_config().pad_token_id
    return found


def _without_base(model: Any) -> Callable[[Tensor], Tensor]:
    """From (B, S, H) states of a base model to its classifier's (B, L) logits."""
    head = copy.copy(model)  # a shallow one: the weights are the model's
    head._modules = {**model._modules, model.base_model_prefix: _make_given()}
    head.config = copy.deepcopy(model.config)
    head.config.get_text_config().pad_token_id = 0  # it wants one for a batch

    def run(states: Tensor) -> Tensor:
        logits: Tensor = head.forward(inputs_embeds=states).logits
        return logits

    return run


def _make_given() -> nn.Module:
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Given(torch.nn.Module):
        """In the place of a base model: its states are those that it is given."""

        def forward(self, _: Any = None, *, inputs_embeds: Tensor, **__: Any) -> Any:
            return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)

    return Given()
