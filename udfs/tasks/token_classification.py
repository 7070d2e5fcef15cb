"""A text to the entities that are named in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.spec import Options, ScoreSpec, option
from udfs.tasks.scores import softmax
from udfs.tasks.text_classification import read_labels
from udfs.text.tokenizing import Spans, Tokenized, Tokenizer, make_tokenizer

Aggregation = Literal["none", "simple", "first", "average", "max"]
_ENTITY = pa.struct(
    [
        pa.field("entity", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("word", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class TokenClassificationOptions(Options):
    """What token-classification takes."""

    task: ClassVar[str] = "token-classification"
    chunks: ClassVar[Literal["joined"]] = "joined"

    aggregation_strategy: Aggregation | None = option(
        None,
        "How tokens become entities, as Hugging Face's: `none` (each token), `simple` (neighbours of one label; the "
        "default), or by words: `first`, `average`, `max`.",
        for_engine=False,
    )


@dataclass(frozen=True)
class _Units:
    """Tokens, or the words that they make, of all texts.

    Args:
        first: (U,) the first token of each.
        last: (U,) its last token.
        label: (U,) int64.
        score: (U,) float32.
    """

    first: np.ndarray
    last: np.ndarray
    label: np.ndarray
    score: np.ndarray


class TokenClassification:
    """A label for each token; tokens become words, and words entities, as `aggregation_strategy` says.

    `none`: each token by itself. `simple`: neighbours of one label are an entity. `first`, `average`, `max`: a word has
    the label of its first token, of the mean of its tokens' scores, or of its surest token, before neighbours join.
    A text that is read in chunks has the entities of all its chunks. Places are in characters of the text.

    Source: transformers, `TokenClassificationPipeline`.
    """

    fields: tuple[pa.Field, ...] = (pa.field("entities", pa.list_(_ENTITY)),)
    units_per_text = 1
    per_token = True
    generates = False

    def __init__(self, spec: ScoreSpec[TokenClassificationOptions], files: ModelFiles) -> None:
        kinds = files.config.get("architectures") or ["an unnamed architecture"]
        if not any(kind.endswith("ForTokenClassification") for kind in kinds):
            raise ModelError(
                f"model {files.name!r} is {', '.join(kinds)}, which labels no tokens; "
                f"{spec.task} needs a …ForTokenClassification"
            )
        self._spec, self._files = spec, files
        self._strategy = spec.options.aggregation_strategy or "simple"
        self.labels = read_labels(files)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return make_tokenizer(self._spec, self._files, with_spans=True)

    def tokenize(self, texts: list[str]) -> Tokenized:
        return self.tokenizer(texts)

    def columns(self, outputs: np.ndarray, tokenized: Tokenized) -> list[pa.Array]:
        if (spans := tokenized.spans) is None:
            raise ValueError("the places of tokens are missing: tokenize with this task's own tokenizer")
        kept = np.flatnonzero(~spans.special)
        scores = softmax(outputs[kept])
        if self._strategy in ("none", "simple"):
            units = _Units(kept, kept, scores.argmax(axis=1), scores.max(axis=1, initial=0))
        else:
            units = self._words(kept, scores, spans)
        groups = np.arange(len(kept)) if self._strategy == "none" else self._join(units, spans)
        return [self._entities(units, groups, spans)]

    def _words(self, kept: np.ndarray, scores: np.ndarray, spans: Spans) -> _Units:
        """Tokens to words; a word ends with its text, or its chunk."""
        inside = self.tokenizer.continues(spans)[kept]
        inside &= np.diff(spans.item[kept], prepend=-1) == 0
        starts = np.flatnonzero(~inside)
        ends = np.append(starts[1:], len(kept))
        if self._strategy == "average":
            sums = np.add.reduceat(scores, starts, axis=0) if len(starts) else scores
            picked = sums / (ends - starts)[:, None].astype(np.float32)
        elif self._strategy == "first":
            picked = scores[starts]
        else:
            picked = scores[_surest(scores.max(axis=1, initial=0), starts)]
        return _Units(kept[starts], kept[ends - 1], picked.argmax(axis=1), picked.max(axis=1, initial=0))

    def _join(self, units: _Units, spans: Spans) -> np.ndarray:
        """(G,) the first unit of each group: neighbours of one tag, unless the later one begins anew (`B-`)."""
        tags, begins = self._tags
        tag = tags[units.label]
        new = np.diff(tag, prepend=-1) != 0
        new |= begins[units.label] | (np.diff(spans.item[units.first], prepend=-1) != 0)
        return np.flatnonzero(new)

    @cached_property
    def _tags(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each label: a number for what follows `B-` or `I-`, and whether it is a `B-`."""
        names = [label[2:] if label.startswith(("B-", "I-")) else label for label in self.labels]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return np.array([numbers[n] for n in names]), np.array([label.startswith("B-") for label in self.labels])

    def _entities(self, units: _Units, groups: np.ndarray, spans: Spans) -> pa.ListArray:
        """Groups of units whose name is not `O`, as one list a text."""
        single = self._strategy == "none"
        names = [label if single else label.split("-", 1)[-1] for label in self.labels]
        ends = np.append(groups[1:], len(units.first)) if len(groups) else groups
        shown = np.array([name != "O" for name in names])[units.label[groups]]
        groups, ends = groups[shown], ends[shown]
        first, last = units.first[groups], units.last[ends - 1]
        sums = np.concatenate([[0.0], np.cumsum(units.score, dtype=np.float64)])
        words = [self._word(units, g, e, spans) for g, e in zip(groups.tolist(), ends.tolist(), strict=True)]
        columns = [
            pa.array([names[label] for label in units.label[groups]], pa.string()),
            pa.array(((sums[ends] - sums[groups]) / np.maximum(ends - groups, 1)).astype(np.float32)),
            pa.array(spans.start[first]),
            pa.array(spans.end[last]),
            pa.array(words, pa.string()),
        ]
        counts = np.bincount(spans.text[first], minlength=len(spans.texts))
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=list(_ENTITY)))

    def _word(self, units: _Units, group: int, end: int, spans: Spans) -> str:
        parts = [
            [self.tokenizer.piece(spans, token) for token in range(units.first[unit], units.last[unit] + 1)]
            for unit in range(group, end)
        ]
        if self._strategy == "none":
            return parts[0][0]
        if self._strategy == "simple":
            return self.tokenizer.join_pieces([part[0] for part in parts])
        return self.tokenizer.join_pieces([self.tokenizer.join_pieces(part) for part in parts])


def _surest(best: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(W,) of each group of `best`, the first index of its largest value."""
    if not len(starts):
        return starts
    groups = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(best))))
    order = np.lexsort((np.arange(len(best)), -best, groups))
    return order[starts]
