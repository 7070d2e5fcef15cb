"""Which tokens end an answer: those that a model's files name, and what ends a turn of its chat."""

from __future__ import annotations

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.text.chats import RefusedError, has_chat, make_chat
from udfs.text.tokenizing import load_backend

_SAID = "gristmill"  # by the assistant, to see what comes after


def find_ends(files: ModelFiles) -> frozenset[int]:
    """Token ids that end a model's answer, by its files alone."""
    config = files.config
    places = (files.read_json("generation_config.json"), config.get("text_config") or {}, config)
    told = next((place["eos_token_id"] for place in places if place.get("eos_token_id") is not None), ())
    ends = [told] if isinstance(told, int) else told
    if not isinstance(ends, list | tuple) or not all(isinstance(end, int) for end in ends):
        raise ModelError(f"model {files.name!r} names its end tokens {told!r:.100}, which are no numbers of tokens")
    return add_turn_end(frozenset(ends), files)


def add_turn_end(ends: frozenset[int], files: ModelFiles) -> frozenset[int]:
    """End tokens, with the one that a decoder's chat template writes after an answer.

    The tokenizer's own, where there is none else.
    """
    if files.config.get("is_encoder_decoder"):
        return ends
    return ends | _find_turn_end(files) or _find_tokenizer_end(files)


def _find_turn_end(files: ModelFiles) -> frozenset[int]:
    if not has_chat(files):
        return frozenset()
    try:
        (told,) = make_chat(files, {"add_generation_prompt": False})([[("user", "?"), ("assistant", _SAID)]])
    except ModelError:  # it is told where it matters
        return frozenset()
    if isinstance(told, RefusedError):  # it has something against such a chat
        return frozenset()
    after = told.rpartition(_SAID)[2].lstrip()
    added = load_backend(files).get_added_tokens_decoder()
    found = [number for number, token in added.items() if after.startswith(token.content)]
    return frozenset(sorted(found, key=lambda number: len(added[number].content))[-1:])


def _find_tokenizer_end(files: ModelFiles) -> frozenset[int]:
    told = files.read_json("tokenizer_config.json").get("eos_token")
    token = told.get("content") if isinstance(told, dict) else told
    found = load_backend(files).token_to_id(token) if token else None
    return frozenset() if found is None else frozenset([found])
