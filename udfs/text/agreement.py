"""Whether a model's files say the same of its tokens: transformers reads more of them than tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from udfs.model.files import ModelFiles

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_ENDS = ("add_bos_token", "add_eos_token")
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

Token = dict[str, Any]  # its content, and flags


@dataclass(frozen=True)
class _Told:
    """What the files beside tokenizer.json say of tokens.

    Args:
        settings: Of tokenizer_config.json, and of special_tokens_map.json where that is read.
        listed: Tokens by their numbers; None where no file lists those of tokenizer.json too.
        more: Tokens of a file of their own, in the order of their numbers.
        problem: What is no token.
    """

    settings: dict[str, Any]
    listed: dict[int, Token] | None
    more: list[Token]
    problem: str | None = None


def add_lacking(files: ModelFiles, backend: Any) -> None:
    """Have a tokenizer know the tokens that the files beside tokenizer.json name and it does not.

    Args:
        files: The model.
        backend: What tokenizer.json makes; it is changed.

    Source: transformers, `TokenizersBackend.__init__`.
    """
    from tokenizers import AddedToken

    told = _read(files)
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    special = {token["content"]: token for token in _named(told.settings)}
    numbered = [token for _, token in sorted((told.listed or {}).items())] + told.more
    lacking: dict[str, Token] = {token["content"]: token for token in numbered if token["content"] not in known}
    lacking |= {content: token for content, token in special.items() if content not in {*known, *lacking}}
    made = [
        {**token, "special": token.get("special", False) or content in special} for content, token in lacking.items()
    ]
    backend.add_tokens([AddedToken(**token) for token in made])


def find_disagreement(files: ModelFiles, backend: Any) -> str | None:
    """What transformers would do otherwise than tokenizer.json says, by the files beside it; None for nothing.

    Tokens that it lacks are none of that.

    Args:
        files: The model.
        backend: What tokenizer.json makes.

    Source: transformers, `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend`.
    """
    told = _read(files)
    if told.problem:
        return told.problem
    known = {token.content: (number, token) for number, token in backend.get_added_tokens_decoder().items()}
    found = (
        *(
            ["special tokens are read as texts (split_special_tokens)"]
            if told.settings.get("split_special_tokens")
            else ()
        ),
        *(_compare(told.listed, known) if told.listed is not None else ()),
        *_find_ends(told.settings, backend),
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
    if kinds not in _USUAL:
        return True
    if backend.post_processor is None and told.get("tokenizer_class"):
        return True  # a class puts around a text what it always does
    if kinds[0] == ("BertNormalizer",):
        return any(told.get(key, usual) != normalizers[0].get(name) for key, (name, usual) in _NORMALIZER.items())
    prefix = before[-1].get("add_prefix_space", before[-1].get("prepend_scheme") != "never")
    return told.get("add_prefix_space") not in (None, prefix)


def _parts(rule: Any, name: str) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer is made of, as tokenizer.json has it."""
    found = json.loads(rule.__getstate__()) if rule is not None else {}
    return found.get(name) or ([found] if found else [])


def _read(files: ModelFiles) -> _Told:
    settings = files.read_json("tokenizer_config.json")
    try:
        if "added_tokens_decoder" in settings:
            listed = {int(number): _as_token(token) for number, token in settings["added_tokens_decoder"].items()}
            return _Told(settings, listed, [], _find_strange(settings))
        # older models name them elsewhere
        settings = {**settings, **files.read_json("special_tokens_map.json")}
        numbers = sorted(files.read_json("added_tokens.json").items(), key=lambda pair: int(pair[1]))
        more = [{"content": content, "normalized": True} for content, _ in numbers]
        special = {token["content"] for token in _named(settings)}
        more = [{**token, "normalized": token["content"] not in special} for token in more]
        return _Told(settings, None, more, _find_strange(settings))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return _Told(settings, None, [], f"their tokens are no tokens by their numbers: {error}")


def _as_token(told: Any) -> Token:
    """A token with the flags that a file gives it.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(told, dict) or not isinstance(told.get("content"), str):
        raise TypeError(f"{told!r:.60} is no token")
    return {"content": told["content"], **{flag: bool(told[flag]) for flag in _FLAGS if flag in told}}


def _named(settings: dict[str, Any]) -> Iterator[Token]:
    """Special tokens that a file names, in transformers' order."""
    names = (*_NAMED, *(key for key in settings if key.endswith("_token") and key not in _NAMED))
    values = [settings.get(name) for name in names]
    for key in _LISTS:
        more = settings.get(key)
        values += more.values() if isinstance(more, dict) else more if isinstance(more, list) else ()
    for value in values:
        if isinstance(value, str) and value:
            yield {"content": value}
        elif isinstance(value, dict) and value.get("content"):
            yield _as_token(value)


def _find_strange(settings: dict[str, Any]) -> str | None:
    """A name for something that is no token."""
    for name in _NAMED:
        if not isinstance(settings.get(name), str | dict | None):
            return f"{name} is {settings[name]!r:.60}"
    strange = next((name for name in _LISTS if not isinstance(settings.get(name), list | dict | None)), None)
    return strange and f"{strange} is {settings[strange]!r:.60}"


def _compare(listed: dict[int, Token], known: dict[str, tuple[int, Any]]) -> Iterator[str]:
    """Tokens that tokenizer.json has otherwise than another file, or alone."""
    for number, token in listed.items():
        own_number, own = known.get(token["content"], (number, None))
        differs = own is not None and any(getattr(own, flag) != token[flag] for flag in _FLAGS if flag in token)
        if own_number != number or differs:
            yield f"{token['content']!r} has another number, or is read otherwise"
    named = {token["content"] for token in listed.values()}
    yield from (f"{content!r} is no token of its own" for content in known if content not in named)


def _find_ends(settings: dict[str, Any], backend: Any) -> Iterator[str]:
    """What is put around a text, where a file says so."""
    if all(key not in settings for key in _ENDS):
        return
    tokens = [next(_named({(name := key.removeprefix("add_")): settings.get(name)}), None) for key in _ENDS]
    around = [
        [backend.token_to_id(token["content"])] if token and settings.get(key) else []
        for key, token in zip(_ENDS, tokens, strict=True)
    ]
    backend.no_padding()
    backend.no_truncation()
    plain = backend.encode("a", add_special_tokens=False).ids
    if backend.encode("a").ids != [*around[0], *plain, *around[1]]:
        yield " and ".join(f"{key} is {bool(settings.get(key))}" for key in _ENDS)
