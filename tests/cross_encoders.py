"""Tiny random models that read two texts together, with tokenizers that join them as models of each family do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.models import make_classifier, write_json

# What stands around two texts, and the types that their tokens have.
JOINS = {
    "types": "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
    "two separators": "[CLS]:0 $A:0 [SEP]:0 [SEP]:0 $B:0 [SEP]:0",
    "one separator": "[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0",
    "nothing": "$A:0 $B:0",
}


def make_cross_encoder(
    path: Path,
    labels: Sequence[str] = ("LABEL_0",),
    *,
    kind: str = "Bert",
    join: str = "types",
    tokenizer: dict[str, Any] | None = None,
    **config: Any,
) -> str:
    """A sequence classifier of pairs.

    Args:
        path: Where it is made.
        labels: Of its head.
        kind: Of its configuration.
        join: One of `JOINS`; a model is given types where there are two.
        tokenizer: More that stands in tokenizer_config.json; None takes a key away.
        config: More that stands in config.json.
    """
    made = Path(make_classifier(path, labels, kind=kind, **config))
    _set_join(made, JOINS[join])
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if join == "types" else [])]
    told = {**json.loads((made / "tokenizer_config.json").read_text()), "model_input_names": names, **(tokenizer or {})}
    write_json(made / "tokenizer_config.json", {key: value for key, value in told.items() if value is not None})
    return str(made)


def _set_join(path: Path, pair: str) -> None:
    from tokenizers import Tokenizer, processors

    made = Tokenizer.from_file(str(path / "tokenizer.json"))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]" if "[CLS]" in pair else "$A",
        pair=pair,
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.save(str(path / "tokenizer.json"))
