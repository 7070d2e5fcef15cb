"""Texts to ragged token ids, in batches, by the fast tokenizer alone (neither torch nor transformers is imported)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from udfs.batching import Items
from udfs.errors import ModelError
from udfs.executor import task_cores
from udfs.models import ModelFiles
from udfs.spec import Overflow

# Position tables of these begin at padding_idx + 1, so that they hold that many tokens fewer.
_OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "longformer",
    "roberta-prelayernorm",
    "mpnet",
}
_SENTENCE_CONFIGS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_VOCABULARIES = ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_NO_LIMIT = 1_000_000  # transformers writes about 1e30 for "none"


@dataclass(frozen=True)
class Tokenized:
    """What became of a list of texts.

    Args:
        items: Their tokens.
        units: (U + 1,) int64; unit u, a text or a text with one label, is items units[u]:units[u + 1]. A unit that
            failed has none, a long text that is read in chunks has several.
        truncated: (U,) bool, the text has more tokens than one item may have.
    """

    items: Items
    units: np.ndarray
    truncated: np.ndarray


class Tokenizer:
    """A model's fast tokenizer, set to one maximum length and one way to treat longer texts.

    Args:
        files: The model.
        max_tokens: Longest item, special tokens included; None takes the model's own limit.
        overflow: `fail` and `chunk` are told apart from `truncate` here; all three set `truncated`.
        lowercase: Lower-case texts first, as some sentence-transformers models ask for.

    Raises:
        ModelError: No tokenizer among the files, or max_tokens above what the model can read.
    """

    def __init__(
        self, files: ModelFiles, *, max_tokens: int | None, overflow: Overflow, lowercase: bool = False
    ) -> None:
        self.max_tokens = resolve_max_tokens(files, max_tokens)
        self._overflow = overflow
        self._lowercase = lowercase
        self._direction = files.read_json("tokenizer_config.json").get("truncation_side") or "right"
        self._backend = _load_backend(files)
        self._backend.no_padding()

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokenized:
        """Tokenize texts, each alone or with the second text of its pair; only the first is ever cut.

        Returns:
            One unit a text. It has no item where nothing is left of it: no token at all, or too long under `fail`.
        """
        strategy = "longest_first" if pairs is None else "only_first"
        self._backend.enable_truncation(self.max_tokens, strategy=strategy, direction=self._direction)
        if self._lowercase:
            texts = [text.lower() for text in texts]
        encodings = self._backend.encode_batch_fast(texts if pairs is None else list(zip(texts, pairs, strict=True)))
        truncated = np.fromiter((bool(e.overflowing) for e in encodings), dtype=bool, count=len(encodings))
        kept = [self._keep(encoding) for encoding in encodings]
        units = np.concatenate([[0], np.cumsum([len(k) for k in kept], dtype=np.int64)])
        return Tokenized(_make_items(kept, with_types=pairs is not None), units, truncated)

    def count_pairs(self, text: str, pairs: Sequence[str]) -> np.ndarray:
        """(N,) tokens of one text with each second text, nothing cut."""
        self._backend.no_truncation()
        return np.array([len(e.ids) for e in self._backend.encode_batch([(text, pair) for pair in pairs])])

    def _keep(self, encoding: Any) -> list[Any]:
        if not encoding.ids or (encoding.overflowing and self._overflow == "fail"):
            return []
        return [encoding, *encoding.overflowing] if self._overflow == "chunk" else [encoding]


def resolve_max_tokens(files: ModelFiles, asked: int | None) -> int:
    """The longest item: what was asked for, or what the model's files say, never above its position table.

    Raises:
        ModelError: More was asked for than the model can read.
    """
    limit = _position_limit(files)
    if asked is not None:
        if asked > limit:
            raise ModelError(f"max_tokens is {asked}, but model {files.name!r} reads at most {limit} tokens")
        return asked
    sentence = read_sentence_config(files).get("max_seq_length")
    told = sentence or files.read_json("tokenizer_config.json").get("model_max_length") or limit
    return int(min(told, limit)) if min(told, limit) < _NO_LIMIT else 512


def read_sentence_config(files: ModelFiles) -> dict[str, Any]:
    """What sentence-transformers keeps about the transformer; older models name the file after its kind."""
    found = (files.read_json(f"sentence_{kind}_config.json") for kind in _SENTENCE_CONFIGS)
    return next((config for config in found if config), {})


def _position_limit(files: ModelFiles) -> int:
    config = files.config.get("text_config") or files.config
    positions = config.get("max_position_embeddings") or config.get("n_positions") or _NO_LIMIT
    if config.get("model_type") in _OFFSET_POSITIONS:
        pad_id = config.get("pad_token_id")
        positions -= (1 if pad_id is None else pad_id) + 1
    return int(positions) if positions > 0 else _NO_LIMIT


def _load_backend(files: ModelFiles) -> Any:
    os.environ.setdefault("RAYON_NUM_THREADS", str(task_cores()))
    from tokenizers import Tokenizer as Backend

    for folder in (files.transformer, files.root):
        if (folder / "tokenizer.json").is_file():
            return Backend.from_file(str(folder / "tokenizer.json"))
    return _convert_backend(files)


def _convert_backend(files: ModelFiles) -> Any:
    """An older model without tokenizer.json: transformers makes the fast tokenizer from its vocabulary."""
    if not any((folder / name).is_file() for folder in (files.transformer, files.root) for name in _VOCABULARIES):
        # transformers would make an empty one, to which every word is unknown
        raise ModelError(f"model {files.name!r} has no tokenizer: no tokenizer.json, no {', '.join(_VOCABULARIES)}")
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(files.transformer, local_files_only=True, trust_remote_code=False)
        return made.backend_tokenizer
    except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
        raise ModelError(
            f"model {files.name!r} has no tokenizer.json, and none can be made of its other files: {error}"
        ) from error


def _make_items(kept: list[list[Any]], *, with_types: bool) -> Items:
    ids = [encoding.ids for encodings in kept for encoding in encodings]
    offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids], dtype=np.int64)])
    types = None
    if with_types:
        types = _flatten([e.type_ids for encodings in kept for e in encodings], offsets)
        types = types if types.any() else None
    return Items(_flatten(ids, offsets), offsets, types)


def _flatten(lists: list[list[int]], offsets: np.ndarray) -> np.ndarray:
    flat = np.empty(int(offsets[-1]), dtype=np.int32)
    for values, start, stop in zip(lists, offsets[:-1], offsets[1:], strict=True):
        flat[start:stop] = values
    return flat
