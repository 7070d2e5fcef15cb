"""Encoder-decoder models: a micro-batch is read once and written together; what has ended is taken out of it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.generation.picking import Picker
from udfs.generation.sequences import Sequence
from udfs.wire.items import Items, pad
from udfs.wire.written import Written

if TYPE_CHECKING:
    from torch import Tensor


class EncoderDecoder:
    """Writes answers to micro-batches; what `udfs.engine.runner` calls a model.

    An item's tokens with type 0 are the encoder's; those with type 1 are what the answer begins with, after the model's
    own start token.

    Args:
        model: A transformers model for sequence-to-sequence language modelling.
        picker: Picks tokens.
        name: The engine's.
        device: torch's name.
        max_new_tokens: Longest answer.
        num_beams: Above 1, transformers' own beam search writes.
    """

    per_token = False
    width = 0

    def __init__(
        self, model: Any, picker: Picker, *, name: str, device: str, max_new_tokens: int, num_beams: int = 1
    ) -> None:
        self.name, self.pad_multiple = name, 8 if device.startswith("cuda") else 1
        self._model, self._picker, self._device = model, picker, device
        self._max_new_tokens, self._num_beams = max_new_tokens, num_beams
        self._start = find_start(model)
        padding = model.generation_config.pad_token_id
        self._pad = padding if padding is not None else self._start
        self._cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self._processors: dict[int, Any] = {}  # by the longest answer, at whose end some models force a token

    def run(self, items: Items, indices: np.ndarray) -> tuple[list[Written], np.ndarray]:
        """Write the answers to some items.

        Returns:
            An answer an item, in the order of `indices`, and (B,) what each item was padded to, with its answer.
        """
        import torch

        sources, begun = zip(*(split_forced(items, i) for i in indices.tolist()), strict=True)
        ids, real = _pad(sources, fill=self._pad, multiple=self.pad_multiple)
        answers: list[Written] = [Written(np.zeros(0, dtype=np.int32))] * len(indices)
        told = [None] * len(indices) if items.options is None else items.options[indices].tolist()
        longest = [self._max_new_tokens if t is None else self._picker.max_new_tokens(t) for t in told]
        counts = np.array([(len(tokens), most) for tokens, most in zip(begun, longest, strict=True)])
        with torch.inference_mode():
            for count, most in np.unique(counts, axis=0).tolist():
                rows = np.flatnonzero((counts == (count, most)).all(axis=1))
                start = np.array([[self._start, *begun[row]] for row in rows], dtype=np.int64)
                write = self._write if self._num_beams == 1 else self._search
                found = write(
                    *(self._send(part) for part in (ids[rows], real[rows].astype(np.int64), start)),
                    sources=[sources[row] for row in rows],
                    told=[told[row] for row in rows],
                    longest=most,
                )
                for row, written in zip(rows.tolist(), found, strict=True):
                    answers[row] = written
        return answers, ids.shape[1] + np.array([len(answer.ids) for answer in answers], dtype=np.int64)

    def _send(self, array: np.ndarray) -> Tensor:
        import torch

        return torch.from_numpy(array).to(self._device)

    def _write(
        self,
        ids: Tensor,
        mask: Tensor,
        begun: Tensor,
        *,
        sources: list[np.ndarray],
        told: list[str | None],
        longest: int,
    ) -> list[Written]:
        """Token by token; what has ended leaves the batch."""
        import torch
        from transformers import DynamicCache, EncoderDecoderCache

        sequences = [begin_or_raise(self._picker, *both) for both in zip(sources, told, strict=True)]
        if longest not in self._processors:
            self._processors[longest] = _own_processors(self._model, self._start, longest)
        states = self._model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        alive, last = list(sequences), begun
        while alive:
            output = self._model(
                encoder_outputs=(states,),
                attention_mask=mask,
                decoder_input_ids=last,
                use_cache=True,
                **{self._cache: cache},
            )
            logits = self._processors[longest](begun, output.logits[:, -1].float())
            self._picker.pick(logits, alive)
            stay = [row for row, sequence in enumerate(alive) if sequence.finish is None]
            if len(stay) < len(alive):
                kept = torch.tensor(stay, dtype=torch.long, device=ids.device)
                cache.batch_select_indices(kept)
                states, mask, begun = states[kept], mask[kept], begun[kept]
                alive = [alive[row] for row in stay]
            last = torch.tensor([[sequence.ids[-1]] for sequence in alive], dtype=torch.long, device=ids.device)
            begun = torch.cat([begun, last.reshape(-1, 1)], dim=1)
        return [sequence.written() for sequence in sequences]

    def _search(self, ids: Tensor, mask: Tensor, begun: Tensor, **_: Any) -> list[Written]:
        """Beam search, by transformers."""
        found = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            decoder_input_ids=begun,
            num_beams=self._num_beams,
            do_sample=False,
            max_new_tokens=self._max_new_tokens,
        )
        return [self._picker.cut(row[begun.shape[1] :].tolist()) for row in found]


def begin_or_raise(picker: Picker, source: np.ndarray, told: str | None) -> Sequence:
    """A sequence of a micro-batch, which fails as a whole until an item with options that are refused is alone.

    Raises:
        ValueError: Its options cannot be followed.
    """
    sequence = picker.begin(None, source, told)
    if sequence.error is not None:
        raise ValueError(f"options of a row cannot be followed: {sequence.error}")
    return sequence


def split_forced(items: Items, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The encoder's tokens of an item, and those that its answer begins with."""
    where = slice(*items.offsets[index : index + 2].tolist())
    ids = items.ids[where]
    if items.type_ids is None:
        return ids, ids[:0]
    own = items.type_ids[where] == 0
    return ids[own], ids[~own]


def _pad(rows: tuple[np.ndarray, ...], *, fill: int, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return pad(np.concatenate(rows), offsets, np.arange(len(rows)), pad_multiple=multiple, fill=fill)


def find_start(model: Any) -> int:
    """The token that each answer of an encoder-decoder begins with."""
    own = model.generation_config
    told = getattr(model.config, "decoder_start_token_id", None)
    found = own.decoder_start_token_id, told, own.bos_token_id, 0
    return next(int(token) for token in found if token is not None)


def _own_processors(model: Any, start: int, max_new_tokens: int) -> Any:
    """What the model's own generation settings do to logits: forced and forbidden tokens, least lengths, repetitions.

    transformers hands them to whoever writes in its place, and that is all that is done here.
    """
    import torch

    taken: list[Any] = []

    def take(_: Any, input_ids: Tensor, logits_processor: Any, **__: Any) -> Tensor:
        taken.append(logits_processor)
        return input_ids

    ids = torch.tensor([[3]], device=model.device)
    model.generate(
        input_ids=ids,
        decoder_input_ids=torch.tensor([[start]], device=model.device),
        max_new_tokens=max_new_tokens,
        num_beams=1,
        do_sample=False,
        custom_generate=take,
    )
    return taken[0]
