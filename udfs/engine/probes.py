"""Items of real texts, as the task's own tokenizer makes them: what a model is tried with before it is used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.tasks.task import Task
from udfs.text.pairs import join_pair
from udfs.text.tokenizing import load_backend
from udfs.wire.items import Items, join_items

# Sentences in the scripts that most texts are in, with what texts have beside words.
_SENTENCES = (
    "The kettle boils within three minutes, and keeps the tea warm for an hour.",
    "Delivery took 12 days; the parcel (no. 4471-B) arrived damaged, so I returned it on 3 May 2024.",
    "Der Schlüssel liegt unter dem Blumentopf neben der größten Tür.",
    "Mañana iremos al mercado: ¿quieres que compre pan, queso o aceitunas?",
    "Поезд опоздал на сорок минут, поэтому мы пропустили начало концерта.",
    "这家餐厅的面条很好吃,但是周末要排队很长时间。",
    "駅から歩いて五分ほどの静かなホテルに泊まりました。",
    "وصلت الرسالة صباح اليوم وكانت قصيرة جدا.",
    "यह किताब बच्चों के लिए लिखी गई है।",
    "def area(width, height): return width * height  # in square metres",
)
_TRIES, _NEAR = 5, 0.9  # to come near a length
_GROWTH = 8.0  # of a text from one try to the next
_TEXTS = 8  # of one length
_MIXED = (20, 1, 33, 7)  # tokens; a short one after a long one, as nowhere in a sorted micro-batch
_VOCABULARY = 200  # tokens of a vocabulary that stand in for texts of which its tokenizer makes nothing


class Probes:
    """What a task's model is tried with.

    Args:
        task: Its texts become items as in use: with prompt, labels and special tokens.
        files: The model's.
        max_tokens: The longest item.
        vocabulary: How many tokens the model knows, of which alone items are made; 0 for any number.
        pairs: Its texts are pairs.
    """

    def __init__(
        self, task: Task, files: ModelFiles, *, max_tokens: int, vocabulary: int = 0, pairs: bool = False
    ) -> None:
        self._task, self._files, self._max_tokens, self._vocabulary = task, files, max_tokens, vocabulary
        self._pairs = pairs
        self._count = max(1, _TEXTS // task.units_per_text)
        self._sentences: Sequence[str] = _SENTENCES
        self._found: dict[int, Items] = {}

    def mixed(self) -> Items:
        """Four items or fewer, of different lengths and scripts.

        Raises:
            ModelError: The tokenizer makes nothing of any text.
        """
        parts = [self.of_length(length) for length in _MIXED]
        return join_items([part.take(np.array([i % len(part)])) for i, part in enumerate(parts)])

    def of_length(self, tokens: int) -> Items:
        """Some items of about so many tokens, or of the fewest that an item has; the longest first.

        Raises:
            ModelError: The tokenizer makes nothing of any text.
        """
        tokens = min(tokens, self._max_tokens)
        if tokens not in self._found:
            self._found[tokens] = self._make(tokens)
        return self._found[tokens]

    def fill(self, tokens: int, *, length: int) -> Items:
        """Items of about `length` tokens, so many that they have about `tokens` together; the longest first."""
        items = self.of_length(length)
        count = max(1, round(tokens / items.lengths.mean()))
        return items.take(np.arange(count) * len(items) // count)

    def _make(self, tokens: int) -> Items:
        found = [self._come_near(number, tokens) for number in range(self._count)]
        parts = [items for items in found if items is not None]
        if not parts and self._sentences is _SENTENCES:
            vocabulary = load_backend(self._files).get_vocab(with_added_tokens=False)
            self._sentences = sorted(vocabulary, key=vocabulary.__getitem__)[:_VOCABULARY] or _SENTENCES[:1]
            return self._make(tokens)
        if not parts:
            raise ModelError(
                f"model {self._files.name!r}: its tokenizer makes no tokens of any text that the model knows; is it "
                "another model's?"
            )
        items = join_items(parts)
        return items.take(np.argsort(-items.lengths, kind="stable"))

    def _come_near(self, number: int, tokens: int) -> Items | None:
        """One text's items, of `tokens` or a little fewer where that can be; None where no text has any."""
        characters, best = 4.0 * tokens, None
        for _ in range(_TRIES):
            tokenized = self._task.tokenize([self._text(number, round(characters))])
            longest = int(tokenized.items.lengths.max(initial=0))
            if longest and (not best or _is_nearer(longest, int(best.lengths.max()), tokens)):
                best = self._keep_known(tokenized.items)
            if _NEAR * tokens <= longest <= tokens:
                break
            growth = 0.5 if tokenized.truncated.any() else tokens / longest if longest else _GROWTH
            characters = max(1.0, characters * min(growth, _GROWTH))
        return best or None

    def _keep_known(self, items: Items) -> Items:
        """Some of them, without those that have a token which the model does not know."""
        strange = np.add.reduceat(items.ids >= (self._vocabulary or np.inf), items.offsets[:-1], dtype=np.int64)
        return items.take(np.flatnonzero(strange == 0)[:_TEXTS])

    def _text(self, number: int, characters: int) -> str:
        start = number % len(self._sentences)
        text = " ".join([*self._sentences[start:], *self._sentences[:start]])
        text = " ".join([text] * (1 + characters // len(text)))[:characters]
        return join_pair(text[: characters // 2], text[characters // 2 :]) if self._pairs else text


def _is_nearer(length: int, other: int, wanted: int) -> bool:
    """Of two lengths, the one that is not above what is wanted, and the longer of such."""
    return (length > wanted, abs(length - wanted)) < (other > wanted, abs(other - wanted))
