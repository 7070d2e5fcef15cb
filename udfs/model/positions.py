"""Rotary positions whose frequencies go by the length of a text: by that of each text, not by the longest of a call.

transformers chooses the frequencies of "longrope" and "dynamic" by the longest position of a call, and keeps them in
the module. So a text would have other answers beside a longer one, or after one, or while another lane runs one.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from udfs.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

# These read a text again from its beginning as it grows into the other frequencies; others keep the keys they have.
_READ_AGAIN = {"phi3", "phi4_multimodal", "phimoe"}

_running = threading.local()  # of a lane, the lengths of the texts that its model is called with


@dataclass(frozen=True)
class Turn:
    """Where a decoder's frequencies change while it writes.

    Args:
        above: Texts of more tokens have the other frequencies; None if none has.
        reads_again: A text that grows beyond is read again as a whole, as transformers' `generate` does for the model.
    """

    above: int | None = None
    reads_again: bool = False

    def is_passed(self, tokens: int) -> bool:
        """A text of so many tokens has the other frequencies."""
        return self.above is not None and tokens > self.above


NO_TURN = Turn()


def settle_positions(model: Any) -> None:
    """Have a model turn the tokens of each text as if it were alone, whatever else is in the call.

    A call tells the lengths of its texts by an attention mask, or by a `layout` or `step` that has `text_lengths`.

    Raises:
        ModelError: An encoder-decoder has two sets of frequencies; whose texts a call's tokens belong to is not known.
    """
    changing = False
    for rope in _ropes(model):
        limits = {name: _limits(rope, name) for name in _layer_types(rope)}
        if any(above is not None or longest is not None for above, longest in limits.values()):
            changing |= any(above is not None for above, _ in limits.values())
            rope.forward = _by_text(rope, limits)
    if not changing:
        return
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"a {model.config.model_type} with longrope positions is not known to gristmill; take another model"
        )
    model.base_model.register_forward_pre_hook(_note_lengths, with_kwargs=True)


def find_turn(model: Any) -> Turn:
    """Where the frequencies of a decoder change.

    Raises:
        ModelError: They do so at several lengths, by the layer.
    """
    found = {_limits(rope, name)[0] for rope in _ropes(model) for name in _layer_types(rope)} - {None}
    if len(found) > 1:
        raise ModelError(f"a {model.config.model_type} with longrope positions of several lengths does not write here")
    return Turn(next(iter(found), None), reads_again=model.config.model_type in _READ_AGAIN)


def _ropes(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "rope_type") and hasattr(module, "config")]


def _layer_types(rope: nn.Module) -> list[str | None]:
    return list(rope.rope_type) if isinstance(rope.rope_type, dict) else [None]


def _limits(rope: Any, layer_type: str | None) -> tuple[int | None, int | None]:
    """The length above which there are other frequencies, and that above which they go on to change; None for neither.

    A model reads no text above the latter: `udfs.model.limits`.
    """
    kind = rope.rope_type if layer_type is None else rope.rope_type[layer_type]
    told = rope.config.rope_parameters if layer_type is None else rope.config.rope_parameters[layer_type]
    if kind == "longrope" or "long_mscale" in told:
        return int(told["original_max_position_embeddings"]), None
    return None, int(rope.config.max_position_embeddings) if "dynamic" in kind else None


def _by_text(rope: Any, limits: dict[str | None, tuple[int | None, int | None]]) -> Callable[..., Any]:
    """A rotary module's forward that chooses the frequencies of each token by the length of its text.

    It calls transformers' own for either set, each with a module of its own, told by a last position.
    """
    import torch

    short, long = rope.forward, copy.deepcopy(rope).forward

    def forward(x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        options = {} if layer_type is None else {"layer_type": layer_type}
        above, longest = limits.get(layer_type, (None, None))
        if above is None:
            return short(x, position_ids if longest is None else position_ids.clamp(max=longest - 1), **options)
        lengths = getattr(_running, "lengths", None)
        is_long = (position_ids.max() + 1 if lengths is None else lengths) > above
        last = torch.nn.functional.pad(position_ids, (0, 1), value=above)
        return _choose(
            is_long.unsqueeze(-1) if is_long.dim() else is_long,
            _without_last(long(x, last, **options)),
            short(x, position_ids.clamp(max=above - 1), **options),
        )

    return forward


def _without_last(turned: Any) -> Any:
    return tuple(part[..., :-1, :] for part in turned) if isinstance(turned, tuple) else turned[..., :-1, :]


def _choose(is_long: Tensor, long: Any, short: Any) -> Any:
    """Token by token; cosines and sines, or complex numbers."""
    if isinstance(long, tuple):
        return tuple(_choose(is_long, a, b) for a, b in zip(long, short, strict=True))
    return long.where(is_long, short)


def _note_lengths(_: Any, __: Any, options: dict[str, Any]) -> None:
    """The length of each token's text, (1, T) or (B, 1); None where all have the width of the call."""
    layout = options.get("layout") or options.get("step")
    mask = options.get("attention_mask")
    _running.lengths = layout.text_lengths if layout else None if mask is None else mask.sum(-1, keepdim=True)
