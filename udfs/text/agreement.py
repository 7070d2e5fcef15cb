"""Whether a model's files say the same of its tokens: transformers reads more of them than tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from udfs.model.files import ModelFiles

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
# Of BERT's kin: what tokenizer_config.json calls a setting of tokenizer.json's normalizer, and what it is if not told.
_NORMALIZER = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
_AS_IT_IS = {"PreTrainedTokenizerFast", "TokenizersBackend"}  # transformers' classes that take tokenizer.json's rules
_BY_MODEL = ("qwen",)  # kinds of models whose own class is taken all the same
# Its other classes have rules of their own; these are what their tokenizer.json says too: normalizers, pre-tokenizers.
_USUAL = {
    (("BertNormalizer",), ("BertPreTokenizer",)),
    *((before, after) for before in ((), ("NFC",)) for after in (("ByteLevel",), ("Split", "ByteLevel"))),
    *((before, ("WhitespaceSplit", "Metaspace")) for before in ((), ("Precompiled",))),
    ((), ("Metaspace",)),
    (("Replace",), ("Split",)),
}


def find_disagreement(files: ModelFiles, backend: Any) -> str | None:
    """What transformers would do otherwise than tokenizer.json alone says, by the files beside it; None for nothing.

    Args:
        files: The model.
        backend: What tokenizer.json makes.

    Source: transformers, `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend`.
    """
    told = files.read_json("tokenizer_config.json")
    if not isinstance(told.get("added_tokens_decoder"), dict | None):
        return "tokenizer_config.json has added_tokens_decoder that are no tokens by their numbers"
    # older models name them elsewhere, which is looked at where tokenizer_config.json has no list of them
    is_listed = "added_tokens_decoder" in told
    older = {} if is_listed else files.read_json("special_tokens_map.json")
    numbers = {} if is_listed else files.read_json("added_tokens.json")
    known = {token.content: (number, token) for number, token in backend.get_added_tokens_decoder().items()}
    found = (
        *(["special tokens are read as texts (split_special_tokens)"] if told.get("split_special_tokens") else ()),
        *(_find_listed(told["added_tokens_decoder"] or {}, known) if is_listed else ()),
        *(f"{token!r} is a token of its own" for token in (*_names({**told, **older}), *numbers) if token not in known),
        *_find_ends({**told, **older}, backend),
    )
    return found[0] if found else None


def may_have_other_rules(files: ModelFiles, backend: Any) -> bool:
    """Whether transformers might cut a text otherwise than tokenizer.json says: most of its classes have own rules.

    Args:
        files: The model.
        backend: What tokenizer.json makes.

    Source: transformers, `TokenizersBackend.convert_to_native_format`.
    """
    told = files.read_json("tokenizer_config.json")
    if told.get("tokenizer_class") in _AS_IT_IS and not str(files.config.get("model_type")).startswith(_BY_MODEL):
        return False
    normalizers, before = _parts(backend.normalizer, "normalizers"), _parts(backend.pre_tokenizer, "pretokenizers")
    kinds = tuple(tuple(str(part.get("type")) for part in parts) for parts in (normalizers, before))
    if kinds not in _USUAL or backend.post_processor is None:
        return True
    if kinds[0] == ("BertNormalizer",):
        return any(told.get(key, usual) != normalizers[0].get(name) for key, (name, usual) in _NORMALIZER.items())
    prefix = before[-1].get("add_prefix_space", before[-1].get("prepend_scheme") != "never")
    return told.get("add_prefix_space") not in (None, prefix)


def _parts(rule: Any, name: str) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer is made of, as tokenizer.json has it."""
    found = json.loads(rule.__getstate__()) if rule is not None else {}
    return found.get(name) or ([found] if found else [])


def _find_listed(listed: dict[str, Any], known: dict[str, tuple[int, Any]]) -> Iterator[str]:
    """Tokens of one file that are none in the other, or are read otherwise."""
    for number, token in listed.items():
        content = token.get("content") if isinstance(token, dict) else None
        if content not in known:
            yield f"{content!r} is a token of its own"
            continue
        own_number, own = known[content]
        flags = {flag: token.get(flag, getattr(own, flag)) for flag in _FLAGS}
        if str(number) != str(own_number) or any(getattr(own, flag) != value for flag, value in flags.items()):
            yield f"{content!r} has another number, or is read otherwise"
    named = {token.get("content") for token in listed.values() if isinstance(token, dict)}
    yield from (f"{content!r} is no token of its own" for content in known if content not in named)


def _names(told: dict[str, Any]) -> Iterator[str]:
    """Special tokens that a file names."""
    for key, value in told.items():
        values = [value] if key in _NAMED or key.endswith("_token") else value if key in _LISTS else []
        for token in values.values() if isinstance(values, dict) else values or ():
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str) and content:
                yield content


def _find_ends(told: dict[str, Any], backend: Any) -> Iterator[str]:
    """What is put around a text, where a file says so."""
    keys = ("add_bos_token", "add_eos_token")
    if all(key not in told for key in keys):
        return
    ids = [list(_names({key: told.get(key.removeprefix("add_"))})) for key in keys]
    around = [
        [backend.token_to_id(token) for token in tokens] if told.get(key) else []
        for key, tokens in zip(keys, ids, strict=True)
    ]
    backend.no_padding()
    backend.no_truncation()
    plain = backend.encode("a", add_special_tokens=False).ids
    if backend.encode("a").ids != [*around[0], *plain, *around[1]]:
        yield " and ".join(f"{key} is {bool(told.get(key))}" for key in keys)
