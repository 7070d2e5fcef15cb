"""A model that writes as transformers' own `generate` has it, one item at a time: for what fits no batch of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.generation.encoder_decoder import begin_or_raise, find_start, split_forced
from udfs.generation.picking import Picker
from udfs.generation.sequences import Sequence
from udfs.wire.items import Items
from udfs.wire.written import Written

if TYPE_CHECKING:
    from torch import Tensor


class PlainWriter:
    """Writes answers one after the other; what `udfs.engine.runner` calls a model.

    Whatever a model keeps of its past, `generate` knows it; only tokens are picked here. Some models keep it in
    themselves, so that no two items may be written at once: it is for one lane.

    Args:
        model: A transformers model for language modelling.
        picker: Picks tokens.
        name: The engine's.
        max_new_tokens: Longest answer.
    """

    per_token = False
    width = 0
    pad_multiple = 1

    def __init__(self, model: Any, picker: Picker, *, name: str, max_new_tokens: int) -> None:
        self.name = name
        self._model, self._picker, self._max_new_tokens = model, picker, max_new_tokens

    def run(self, items: Items, indices: np.ndarray) -> tuple[list[Written], np.ndarray]:
        """Write the answers to some items.

        Returns:
            An answer an item, in the order of `indices`, and (B,) the tokens that each took, its answer's among them.
        """
        import torch

        with torch.inference_mode():
            written = [self._write(items, index) for index in indices.tolist()]
        return written, items.lengths[indices] + np.array([len(one.ids) for one in written], dtype=np.int64)

    def _write(self, items: Items, index: int) -> Written:
        source, begun = split_forced(items, index)
        told = None if items.options is None else items.options[index]
        sequence = begin_or_raise(self._picker, source, told)
        asked = {"input_ids": self._send(source)}
        asked["attention_mask"] = asked["input_ids"].new_ones(asked["input_ids"].shape)
        if self._model.config.is_encoder_decoder:
            asked["decoder_input_ids"] = self._send(np.array([find_start(self._model), *begun]))
        self._model.generate(
            **asked,
            max_new_tokens=self._max_new_tokens if told is None else sequence.way.options.max_new_tokens,
            num_beams=1,
            do_sample=False,
            logits_processor=[self._make_processor(sequence)],
            stopping_criteria=[_stop_with(sequence)],
        )
        return sequence.written()

    def _make_processor(self, sequence: Sequence) -> Any:
        """The last of transformers' processors: it leaves the token alone that the picker takes."""
        import torch

        def pick(input_ids: Tensor, logits: Tensor) -> Tensor:
            self._picker.pick(logits, [sequence])
            only = torch.full_like(logits, float("-inf"))
            only[:, sequence.ids[-1] if sequence.ids else 0] = 0.0
            return only

        return pick

    def _send(self, ids: np.ndarray) -> Tensor:
        import torch

        return torch.from_numpy(ids[None].astype(np.int64)).to(self._model.device)


def _stop_with(sequence: Sequence) -> Any:
    import torch

    def is_over(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((1,), sequence.finish is not None, device=input_ids.device)

    return is_over
