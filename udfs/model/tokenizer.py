"""transformers' own tokenizer, for models without a tokenizer.json, and for grammars."""

from __future__ import annotations

from typing import Any

from udfs.errors import ModelError, first_line
from udfs.model.files import ModelFiles
from udfs.model.quiet import quiet_transformers


def load_tokenizer(files: ModelFiles) -> Any:
    """transformers' tokenizer of a checked model, without a network and without code of the model's own.

    Raises:
        ModelError: It does not load.
    """
    quiet_transformers()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(files.tokenizer, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"model {files.name!r}: its tokenizer does not load: {first_line(error)}") from error
