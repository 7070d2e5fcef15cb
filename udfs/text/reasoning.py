"""What a model thinks before it answers, parted from the answer by the marks that its family writes."""

from __future__ import annotations

import bisect

import numpy as np

from udfs.text.codec import Codec

_MARKS = (
    ("<think>", "</think>"),  # Qwen, DeepSeek, SmolLM, Granite and most others
    ("[THINK]", "[/THINK]"),  # Mistral
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),  # gpt-oss
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<thinking>", "</thinking>"),
)
_TAIL = 16  # tokens of a prompt that may hold a mark


def find_marks(codec: Codec) -> tuple[int, int] | None:
    """The tokens that begin and end thoughts; None where the tokenizer has no single ones."""
    for marks in _MARKS:
        opening, closing = codec.encode(marks, special=False)
        if len(opening) == len(closing) == 1 and codec.show(np.array(closing)).strip() == marks[1]:
            return opening[0], closing[0]
    return None


def part_thoughts(codec: Codec, ids: np.ndarray, prompt: np.ndarray) -> tuple[str | None, str]:
    """The thoughts of an answer, None where there are none, and what comes after them.

    Thoughts that have no end are all that there is.

    Args:
        codec: The model's.
        ids: What was written.
        prompt: What it was written to, which may end in a mark that begins the thoughts.
    """
    shown, asked = codec.show(ids), codec.show(prompt[-_TAIL:]).rstrip()
    for opening, closing in _MARKS:
        if closing in shown:
            end = bisect.bisect_left(range(len(ids) + 1), True, key=lambda n: closing in codec.show(ids[:n]))
            thoughts, _, rest = codec.show(ids[:end]).partition(closing)
            return _strip(thoughts, opening), (rest + codec.decode([ids[end:]])[0]).lstrip()
        if shown.lstrip().startswith(opening) or asked.endswith(opening):
            return _strip(shown, opening), ""
    return None, codec.decode([ids])[0]


def part_text(text: str) -> tuple[str | None, str]:
    """As `part_thoughts`, of an answer that came as text."""
    for opening, closing in _MARKS:
        if closing in text:
            thoughts, _, rest = text.partition(closing)
            return _strip(thoughts, opening), rest.lstrip()
        if text.lstrip().startswith(opening):
            return _strip(text, opening), ""
    return None, text


def _strip(thoughts: str, opening: str) -> str:
    return thoughts.strip().removeprefix(opening).strip()
