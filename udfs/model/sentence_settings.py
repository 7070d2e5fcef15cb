"""What sentence-transformers' settings of a transformer ask for, beside its config.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from udfs.errors import ModelError
from udfs.model.files import ModelFiles

# Older models name the file after their kind.
_FILES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_TOKENIZER = ("processor_kwargs", "tokenizer_args")
_LOADED = (*_TOKENIZER, "model_kwargs", "model_args", "config_kwargs", "config_args")
_LONGEST = "model_max_length"
# What says where a model is read from, on which device and how fast it runs, and not what it answers.
_HARMLESS = frozenset(
    (
        *("trust_remote_code", "local_files_only", "cache_dir", "token", "revision", "code_revision", "subfolder"),
        *("dtype", "torch_dtype", "device_map", "low_cpu_mem_usage", "use_safetensors", "attn_implementation"),
        *("backend", "export", "file_name", "provider", "add_pooling_layer", "reference_compile", "use_cache"),
        *("unpad_inputs", "use_memory_efficient_attention", "output_attentions", "output_hidden_states"),
        *("use_fast", "padding", "padding_side", "pad_to_multiple_of", "return_tensors", "return_attention_mask"),
        *("verbose", "clean_up_tokenization_spaces"),
    )
)


def read_sentence_config(files: ModelFiles) -> dict[str, Any]:
    """What sentence-transformers keeps about the transformer; {} of most other models."""
    found = (files.read_json(f"sentence_{kind}_config.json") for kind in _FILES)
    return next((config for config in found if config), {})


def find_longest(files: ModelFiles) -> Any:
    """The longest text that these settings name, whatever it is; None for none.

    Source: sentence-transformers, `Transformer`: what its tokenizer is called with, what it is loaded with, then
    `max_seq_length`.
    """
    told = read_sentence_config(files)
    called = _read_object(_read_object(told, "processing_kwargs"), "text").get("max_length")
    loaded = next((value for key in _TOKENIZER if (value := _read_object(told, key).get(_LONGEST))), None)
    return called or loaded or told.get("max_seq_length")


def check_settings(files: ModelFiles) -> None:
    """Refuse settings by which a model would answer otherwise, and which gristmill does not follow.

    Raises:
        ModelError: There is one; with its name.
    """
    told = read_sentence_config(files)
    if unread := next(_find_unread(told), None):
        raise ModelError(
            f"model {files.name!r}: its sentence-transformers settings ask for {unread}, which gristmill does not "
            "follow; in a copy of the model, write it into config.json or tokenizer_config.json, or take it away"
        )
    ways = told.get("modality_config") or {}
    if not isinstance(ways, dict) or not isinstance(ways.get("text") or {}, dict):
        raise ModelError(f"model {files.name!r}: modality_config of its sentence-transformers settings is no object")
    if ways and "text" not in ways:
        raise ModelError(f"model {files.name!r} takes {', '.join(map(str, ways))} and no plain texts; take another")


def _find_unread(told: dict[str, Any]) -> Iterator[str]:
    """Settings with values that are not followed, as their file nests them."""
    called = _read_object(told, "processing_kwargs")
    parts = {key: _read_object(told, key) for key in _LOADED}
    parts |= {f"processing_kwargs.{key}": _read_object(called, key) for key in ("text", "common")}
    followed = {*(f"{key}.{_LONGEST}" for key in _TOKENIZER), "processing_kwargs.text.max_length"}
    for part, settings in parts.items():
        for key, value in settings.items():
            cuts = key == "truncation" and value is True
            if value is not None and not cuts and key not in _HARMLESS and f"{part}.{key}" not in followed:
                yield f"{part}.{key} {value!r:.60}"


def _read_object(told: dict[str, Any], key: str) -> dict[str, Any]:
    value = told.get(key)
    return value if isinstance(value, dict) else {}
